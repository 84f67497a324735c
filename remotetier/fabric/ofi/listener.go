//go:build ofi

package ofi

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// listener takes connections at one address.
type listener struct {
	p    *provider
	f    *fabricRef
	addr address
	bufs *fabric.Buffers
	came chan *C.struct_fi_info // requests for connections

	ctx context.Context // ends when it is closed
	end context.CancelFunc

	pep  *C.struct_fid_pep
	once sync.Once // closes it

	mu sync.Mutex     // between who enters and Close
	wg sync.WaitGroup // connections
}

var _ fabric.Listener = (*listener)(nil)

// address is HOST:PORT.
type address string

func (address) Network() string  { return "ofi" }
func (a address) String() string { return string(a) }

// maxCame bounds requests for connections that wait for Serve.
const maxCame = 64

// Listen opens an address. See Options.CheckListen for what is refused.
func (p *provider) Listen(addr string) (fabric.Listener, error) {
	if err := p.opt.CheckListen(addr); err != nil {
		return nil, err
	}
	l, err := p.listen(addr)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", addr, err)
	}
	return l, nil
}

func (p *provider) listen(addr string) (*listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	l := &listener{p: p, came: make(chan *C.struct_fi_info, maxCame)}
	l.ctx, l.end = context.WithCancel(context.Background())
	if l.bufs, err = p.buffers(); err != nil {
		return nil, err
	}
	info, err := p.look(host, port, true)
	if err != nil {
		return nil, err
	}
	defer C.fi_freeinfo(info)
	d, err := p.domainOf(info) // memory that cannot be registered is told now
	if err == nil {
		err = d.withBuffers(l.bufs)
	}
	if err != nil {
		return nil, err
	}
	l.f = d.f
	// No request for a connection is handed out before its owner is known.
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if err := failed(C.ofi_listen(l.f.fabric, info, l.f.eq, &l.pep)); err != nil {
		return nil, err
	}
	var h, s [64]C.char
	if err := failed(C.ofi_name(&l.pep.fid, &h[0], C.size_t(len(h)), &s[0], C.size_t(len(s)))); err != nil {
		return nil, errors.Join(err, failed(C.ofi_close(&l.pep.fid)))
	}
	l.addr = address(net.JoinHostPort(C.GoString(&h[0]), C.GoString(&s[0])))
	l.f.mu.owners[&l.pep.fid] = l
	return l, nil
}

// event is told by the fabric's thread.
func (l *listener) event(kind C.uint32_t, param []byte, info *C.struct_fi_info, err error) {
	if kind != C.FI_CONNREQ || info == nil {
		return
	}
	// A provider may pad what came with the request.
	if len(param) >= len(knock) && string(param[:len(knock)]) == knock {
		select {
		case l.came <- info:
			return
		default:
		}
	}
	l.reject(info)
}

func (l *listener) reject(info *C.struct_fi_info) {
	_ = C.ofi_reject(l.pep, info) // it may be gone
	C.fi_freeinfo(info)
}

// Addr is the address, with the port where 0 was asked for.
func (l *listener) Addr() net.Addr { return l.addr }

// Close stops listening and closes every connection.
func (l *listener) Close() (err error) {
	l.mu.Lock() // nobody enters behind it
	l.end()
	l.mu.Unlock()
	l.wg.Wait()
	l.once.Do(func() {
		l.f.disown(&l.pep.fid) // nothing comes any more
		for drained := false; !drained; {
			select {
			case info := <-l.came:
				l.reject(info)
			default:
				drained = true
			}
		}
		err = l.f.shut(&l.pep.fid)
	})
	return err
}

// Serve answers clients until ctx ends, or Close is called.
func (l *listener) Serve(ctx context.Context, h fabric.Handler) (err error) {
	defer func() { err = l.Close() }()
	stop := context.AfterFunc(ctx, l.end)
	defer stop()
	for {
		select {
		case <-l.ctx.Done():
			return nil
		case info := <-l.came:
			if !l.enter() {
				l.reject(info)
				continue
			}
			go func() {
				defer l.wg.Done()
				defer l.p.conns.Add(-1)
				l.serve(l.ctx, info, h)
			}()
		}
	}
}

// enter counts a connection, if there is room for it.
func (l *listener) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return false
	}
	if l.p.conns.Add(1) > int64(l.p.opt.MaxConns) {
		l.p.conns.Add(-1)
		return false
	}
	l.wg.Add(1)
	return true
}

// accept makes the endpoint of a request and waits for the connection.
func (l *listener) accept(ctx context.Context, info *C.struct_fi_info) (*endpoint, error) {
	d, err := l.p.domainOf(info)
	if err == nil {
		err = d.withBuffers(l.bufs)
	}
	if err != nil {
		l.reject(info)
		return nil, err
	}
	e, err := d.open(info, l.p.opt.Stall)
	if err != nil {
		l.reject(info)
		return nil, err
	}
	C.fi_freeinfo(info)
	if err := failed(C.ofi_accept(e.mu.ep)); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	stop := e.during(ctx)
	defer stop()
	select {
	case <-e.up:
		return e, nil
	case <-e.ctx.Done():
		return nil, errors.Join(context.Cause(e.ctx), e.Close())
	}
}

// serve says hello and answers exchanges, one after the other.
func (l *listener) serve(ctx context.Context, info *C.struct_fi_info, h fabric.Handler) {
	hello, cancel := context.WithTimeout(ctx, l.p.opt.Stall)
	defer cancel()
	e, err := l.accept(hello, info)
	if err != nil {
		return // the client knows
	}
	defer e.Close()
	stop := e.during(ctx)
	defer stop()
	session, err := e.welcome(hello, l.p.opt.Token, h.Greeting())
	if err != nil {
		return // the client knows why
	}
	h.Join(session)
	defer h.Leave(session)
	s := &served{endpoint: e, h: h, session: session, bufs: l.bufs}
	for s.next(ctx, l.p.opt.Idle) == nil {
	}
}

// welcome does the target's part of the hello, within the stall limit.
func (e *endpoint) welcome(ctx context.Context, token string, greeting []byte) (fabric.Session, error) {
	stop := e.during(ctx)
	s, c, err := frame.Welcome(e, token)
	aerr := frame.Answer(e, token, &s, &c, greeting, err)
	if err != nil {
		_ = e.next(e.stall) // until the client has read the answer and hangs up
		stop()
		return c.Session, err
	}
	if !stop() && aerr == nil {
		aerr = context.Cause(ctx)
	}
	return c.Session, aerr
}

// served is a target's side of a connection.
type served struct {
	*endpoint
	h       fabric.Handler
	session fabric.Session
	bufs    *fabric.Buffers
	number  uint32
}

// next answers one frame of a client.
func (s *served) next(ctx context.Context, idle time.Duration) error {
	h, payload, err := s.frame(idle)
	if err != nil {
		return err
	}
	if s.number++; h.Number != s.number {
		return frame.Corrupt("exchange %d follows %d", h.Number, s.number-1)
	}
	switch {
	case h.Kind == frame.Ping && h.Length == 0:
		_, err := s.Write(frame.Control(nil, frame.Wait, s.number))
		return err
	case h.Kind == frame.Request:
		r, err := parseRequest(payload)
		if err != nil {
			return err
		}
		x := &exchange{served: s, request: append([]byte(nil), r.body...)}
		x.out, x.in = spans{list: r.out, left: total(r.out)}, spans{list: r.in, left: total(r.in)}
		return x.serve(ctx, time.Duration(r.left)*time.Millisecond)
	}
	return frame.Corrupt("type %d with %d bytes from a client", h.Kind, h.Length)
}
