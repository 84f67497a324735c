//go:build ofi

package ofi

/*
#cgo LDFLAGS: -lfabric
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

func (o Options) norm() Options {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&o.Stall, 5*time.Second)
	set(&o.Dial, 2*time.Second)
	set(&o.Timeout, time.Minute)
	set(&o.KeepAlive, 15*time.Second)
	set(&o.Idle, time.Minute)
	if o.Provider == "" {
		o.Provider = "verbs"
	}
	if o.Conns <= 0 {
		o.Conns = 6
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 512
	}
	return o
}

// code is an error of libfabric, positive. Those of the system have its numbers.
type code int

func (c code) Error() string { return C.GoString(C.fi_strerror(C.int(c))) }

// failed gives the error of a result of the shim.
func failed(rc C.int) error {
	if rc >= 0 {
		return nil
	}
	return code(-rc)
}

// provider is a Net over one of libfabric's providers.
type provider struct {
	opt   Options
	stats struct{ read, written, direct, copied, registered atomic.Int64 }
	looks chan struct{}  // one for each look-up in C, which cannot be interrupted
	wg    sync.WaitGroup // look-ups
	spare spare          // a client's memory for what is not registered
	conns atomic.Int64   // that listeners have

	mu struct {
		sync.RWMutex
		fabrics map[string]*fabricRef
		domains map[string]*domain
		regions regions
		bufs    *fabric.Buffers // of listeners
		own     bool            // they are this Net's alone
		closed  bool
	}
}

var _ Net = (*provider)(nil)

// noCache turns off that libfabric keeps registrations for later: it would not
// notice that Go maps other memory at the same place. cgo hands it on to C.
var noCache = sync.OnceValue(func() error { return os.Setenv("FI_MR_CACHE_MAX_COUNT", "0") })

// New makes a Net. It opens nothing.
func New(opt Options) (Net, error) {
	if err := noCache(); err != nil {
		return nil, err
	}
	p := &provider{opt: opt.norm(), looks: make(chan struct{}, 8)}
	p.mu.fabrics, p.mu.domains = map[string]*fabricRef{}, map[string]*domain{}
	p.mu.bufs = opt.Buffers
	p.spare.init(p)
	return p, nil
}

// Stats gives the counters.
func (p *provider) Stats() Stats {
	return Stats{
		ReadBytes: p.stats.read.Load(), WrittenBytes: p.stats.written.Load(),
		DirectBytes: p.stats.direct.Load(), CopiedBytes: p.stats.copied.Load(), Registered: p.stats.registered.Load(),
	}
}

// Close ends the threads and gives the memory back.
func (p *provider) Close() error {
	p.mu.Lock()
	p.mu.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	defer p.spare.close() // when nobody knows its pieces any more
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	p.mu.regions.each(func(r *region) { err = errors.Join(err, r.closeAll()) })
	for _, d := range p.mu.domains {
		err = errors.Join(err, d.close())
	}
	for _, f := range p.mu.fabrics {
		err = errors.Join(err, f.close())
	}
	p.mu.domains, p.mu.fabrics = nil, nil
	if p.mu.own {
		err = errors.Join(err, p.mu.bufs.Close())
		p.mu.own = false
	}
	return err
}

var errClosed = fmt.Errorf("%w: this fabric is closed", catalog.ErrUnavailable)

// look finds out how an address is reached. It may take seconds.
func (p *provider) look(host, port string, listen bool) (*C.struct_fi_info, error) {
	prov, service := C.CString(p.opt.Provider), C.CString(port)
	defer C.free(unsafe.Pointer(prov))
	defer C.free(unsafe.Pointer(service))
	var node *C.char
	if host != "" {
		node = C.CString(host)
		defer C.free(unsafe.Pointer(node))
	}
	flag := C.int(0)
	if listen {
		flag = 1
	}
	var info *C.struct_fi_info
	if err := failed(C.ofi_info(prov, node, service, flag, &info)); err != nil {
		return nil, fmt.Errorf("provider %s does not know %s:%s: %w", p.opt.Provider, host, port, err)
	}
	return info, nil
}

// fabricRef is a fabric of libfabric with the thread that takes its events.
type fabricRef struct {
	fabric *C.struct_fid_fabric
	eq     *C.struct_fid_eq
	stop   atomic.Bool
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		owners map[*C.struct_fid]owner
	}
}

// owner is who an event is for. The lock is held: what it does takes no time.
type owner interface {
	event(kind C.uint32_t, param []byte, info *C.struct_fi_info, err error)
}

// waitTime bounds the time that a thread is in C, in milliseconds.
const waitTime = 100

// fabricOf gives the fabric of info. The lock is held.
func (p *provider) fabricOf(info *C.struct_fi_info) (*fabricRef, error) {
	name := C.GoString(info.fabric_attr.name)
	if f := p.mu.fabrics[name]; f != nil {
		return f, nil
	}
	f := &fabricRef{}
	f.mu.owners = map[*C.struct_fid]owner{}
	if err := failed(C.ofi_open_fabric(info, &f.fabric, &f.eq)); err != nil {
		return nil, fmt.Errorf("open fabric %s: %w", name, err)
	}
	p.mu.fabrics[name] = f
	f.wg.Go(f.events)
	return f, nil
}

// events hands out events until close. The lock is held from taking one to
// handing it out: what it is about cannot be closed meanwhile, and so no new
// one at the same address gets it.
func (f *fabricRef) events() {
	for !f.stop.Load() {
		C.ofi_await_event(f.eq, waitTime)
		f.mu.Lock()
		for f.takeEvent() {
		}
		f.mu.Unlock()
	}
}

func (f *fabricRef) takeEvent() bool {
	var e C.struct_ofi_event
	if C.ofi_take_event(f.eq, &e) <= 0 {
		return false
	}
	var err error
	if e.err != 0 {
		err = code(e.err)
	}
	o := f.mu.owners[e.fid]
	if o != nil {
		o.event(e.kind, C.GoBytes(unsafe.Pointer(&e.param[0]), C.int(e.len)), e.info, err)
	} else if e.info != nil {
		C.fi_freeinfo(e.info)
	}
	return true
}

func (f *fabricRef) own(fid *C.struct_fid, o owner) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.owners[fid] = o
}

func (f *fabricRef) disown(fid *C.struct_fid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.owners, fid)
}

// shut closes what events were for.
func (f *fabricRef) shut(fid *C.struct_fid) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.owners, fid)
	return failed(C.ofi_close(fid))
}

func (f *fabricRef) close() error {
	f.stop.Store(true)
	f.wg.Wait()
	return errors.Join(failed(C.ofi_close(&f.eq.fid)), failed(C.ofi_close(&f.fabric.fid)))
}

// domain is a domain of libfabric with the thread that takes its completions.
type domain struct {
	p      *provider
	f      *fabricRef
	info   *C.struct_fi_info // a copy
	domain *C.struct_fid_domain
	cq     *C.struct_fid_cq
	bufs   *registration // of the listeners' Buffers; nil: nobody listens here
	stop   atomic.Bool
	wg     sync.WaitGroup

	mu struct {
		sync.RWMutex
		ends map[uint64]*endpoint
		last uint64
	}
}

// domainOf gives the domain of info.
func (p *provider) domainOf(info *C.struct_fi_info) (*domain, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, errClosed
	}
	f, err := p.fabricOf(info)
	if err != nil {
		return nil, err
	}
	name := C.GoString(info.fabric_attr.name) + "/" + C.GoString(info.domain_attr.name)
	if d := p.mu.domains[name]; d != nil {
		return d, nil
	}
	d := &domain{p: p, f: f, info: C.fi_dupinfo(info)}
	d.mu.ends = map[uint64]*endpoint{}
	// A completion for each operation that may be under way, so that none is lost.
	size := C.size_t((p.opt.MaxConns + 4*p.opt.Conns) * slots)
	if err := failed(C.ofi_open_domain(f.fabric, d.info, size, &d.domain, &d.cq)); err != nil {
		C.fi_freeinfo(d.info)
		return nil, fmt.Errorf("open domain %s: %w", name, err)
	}
	p.mu.regions.each(func(r *region) { err = errors.Join(err, r.add(d)) })
	if err != nil {
		p.mu.regions.each(func(r *region) { err = errors.Join(err, r.drop(d)) })
		return nil, errors.Join(err, d.release())
	}
	p.mu.domains[name] = d
	d.wg.Go(d.completions)
	return d, nil
}

func (d *domain) close() error {
	d.stop.Store(true)
	C.ofi_wake(d.cq)
	d.wg.Wait()
	var err error
	if d.bufs != nil {
		err = d.bufs.close()
	}
	return errors.Join(err, d.release())
}

func (d *domain) release() error {
	err := errors.Join(failed(C.ofi_close(&d.cq.fid)), failed(C.ofi_close(&d.domain.fid)))
	C.fi_freeinfo(d.info)
	return err
}

// completions hands out completions until close.
func (d *domain) completions() {
	var done [C.OFI_BATCH]C.struct_ofi_completion
	for !d.stop.Load() {
		n := int(C.ofi_wait_completions(d.cq, &done[0], waitTime))
		for i := range max(n, 0) {
			c := &done[i]
			d.mu.RLock()
			e := d.mu.ends[uint64(c.context)/slots]
			d.mu.RUnlock()
			if e == nil {
				continue // closed
			}
			var err error
			if c.err != 0 {
				err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, code(c.err))
			}
			e.completed(int(uint64(c.context)%slots), int(c.len), err)
		}
	}
}

// enter numbers an endpoint. No number comes twice: a completion that comes
// late finds nobody.
func (d *domain) enter(e *endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.last++
	e.id = d.mu.last
	d.mu.ends[e.id] = e
}

func (d *domain) leave(e *endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.ends, e.id)
}

// lookUp runs f, which waits in C, for as long as ctx lasts; f goes on behind
// it, and what it gives then is undone.
func lookUp[T any](ctx context.Context, p *provider, f func() (T, error), undo func(T)) (T, error) {
	var none T
	select {
	case p.looks <- struct{}{}:
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
	p.mu.RLock()
	closed := p.mu.closed
	if !closed {
		p.wg.Add(1)
	}
	p.mu.RUnlock()
	if closed {
		<-p.looks
		return none, errClosed
	}
	type result struct {
		v   T
		err error
	}
	done, gone := make(chan result), make(chan struct{})
	go func() {
		defer p.wg.Done()
		defer func() { <-p.looks }()
		v, err := f()
		select {
		case done <- result{v, err}:
		case <-gone:
			if err == nil {
				undo(v)
			}
		}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		close(gone)
		return none, context.Cause(ctx)
	}
}
