//go:build ofi

package ofi

/*
#include "shim.h"
*/
import "C"

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// Who may do what with memory.
const (
	localAccess  = C.FI_SEND | C.FI_RECV | C.FI_READ | C.FI_WRITE
	remoteAccess = C.FI_REMOTE_READ | C.FI_REMOTE_WRITE
)

// registration is memory as one domain knows it.
type registration struct {
	start uintptr
	c     C.struct_ofi_memory
}

// register makes memory outside of Go's heap known to the domain.
func (d *domain) register(mem []byte, access C.uint64_t) (*registration, error) {
	var key [8]byte
	_, _ = rand.Read(key[:]) // never fails; for providers that do not choose keys
	at := unsafe.Pointer(unsafe.SliceData(mem))
	r := &registration{start: uintptr(at)}
	err := failed(C.ofi_register(d.domain, d.info, at, C.size_t(len(mem)), access, C.uint64_t(binary.LittleEndian.Uint64(key[:])), &r.c))
	if err != nil {
		return nil, fmt.Errorf("register %d bytes of memory (is `ulimit -l` large enough?): %w", len(mem), err)
	}
	return r, nil
}

func (r *registration) close() error { return failed(C.ofi_close(&r.c.mr.fid)) }

// span names p to the other side.
func (r *registration) span(p []byte) span {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(p))) - r.start
	return span{addr: uint64(r.c.base) + uint64(off), key: uint64(r.c.key), len: len(p)}
}

// region is memory that may be announced, on every domain there is.
type region struct {
	mem []byte
	at  map[*domain]*registration
}

func (r *region) start() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(r.mem))) }

func (r *region) add(d *domain) (err error) {
	r.at[d], err = d.register(r.mem, remoteAccess)
	if err == nil {
		d.p.stats.registered.Add(int64(len(r.mem)))
	}
	return err
}

func (r *region) drop(d *domain) error {
	reg := r.at[d]
	if reg == nil {
		return nil
	}
	delete(r.at, d)
	d.p.stats.registered.Add(-int64(len(r.mem)))
	return reg.close()
}

func (r *region) closeAll() (err error) {
	for d := range r.at {
		err = errors.Join(err, r.drop(d))
	}
	return err
}

// regions are sorted by address, and apart.
type regions struct{ list []*region }

func (s *regions) each(f func(*region)) {
	for _, r := range s.list {
		f(r)
	}
}

// find gives the region that holds all of p.
func (s *regions) find(p []byte) *region {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	i, same := slices.BinarySearchFunc(s.list, at, func(r *region, at uintptr) int { return cmp.Compare(r.start(), at) })
	if !same {
		i--
	}
	if i < 0 || at+uintptr(len(p)) > s.list[i].start()+uintptr(len(s.list[i].mem)) {
		return nil
	}
	return s.list[i]
}

// Register makes memory known to all domains, those opened later too.
func (p *provider) Register(mem []byte) (unregister func(), err error) {
	if len(mem) == 0 {
		return nil, fmt.Errorf("register no memory: %w", catalog.ErrInvalid)
	}
	r := &region{mem: mem, at: map[*domain]*registration{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, errClosed
	}
	i, same := slices.BinarySearchFunc(p.mu.regions.list, r.start(), func(r *region, at uintptr) int { return cmp.Compare(r.start(), at) })
	if same {
		return nil, fmt.Errorf("register memory twice: %w", catalog.ErrInvalid)
	}
	for _, d := range p.mu.domains {
		if err := r.add(d); err != nil {
			return nil, errors.Join(err, r.closeAll())
		}
	}
	p.mu.regions.list = slices.Insert(p.mu.regions.list, i, r)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.mu.regions.list = slices.DeleteFunc(p.mu.regions.list, func(o *region) bool { return o == r })
		_ = r.closeAll() // libfabric forgets it in any case
	}, nil
}

// known names p to the other side, if it is registered.
func (p *provider) known(d *domain, b []byte) (span, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if r := p.mu.regions.find(b); r != nil && r.at[d] != nil {
		return r.at[d].span(b), true
	}
	return span{}, false
}

// maxSpare bounds a client's registered memory for what is not, in pieces: an
// exchange of the largest size, both ways, fits.
const maxSpare = 2 * maxSpans

// spare lends registered pieces, made when they are first needed.
type spare struct {
	p   *provider
	sem *semaphore.Weighted
	mu  struct {
		sync.Mutex
		free [][]byte
		all  [][]byte
	}
}

func (s *spare) init(p *provider) { s.p, s.sem = p, semaphore.NewWeighted(maxSpare) }

// take lends pieces for n bytes, all at once: who waits holds none. Without
// wait it gives none at all where there are not enough.
func (s *spare) take(ctx context.Context, n int, wait bool) (pieces [][]byte, ok bool, err error) {
	count := (n + pieceSize - 1) / pieceSize
	if !s.sem.TryAcquire(int64(count)) {
		if !wait {
			return nil, false, nil
		}
		if err := s.sem.Acquire(ctx, int64(count)); err != nil {
			return nil, false, err
		}
	}
	for range count {
		piece, err := s.piece()
		if err != nil {
			s.give(pieces)
			s.sem.Release(int64(count - len(pieces)))
			return nil, false, err
		}
		pieces = append(pieces, piece)
	}
	return pieces, true, nil
}

func (s *spare) piece() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.mu.free); n > 0 {
		piece := s.mu.free[n-1]
		s.mu.free = s.mu.free[:n-1]
		return piece, nil
	}
	piece, err := pages(pieceSize)
	if err != nil {
		return nil, err
	}
	if _, err := s.p.Register(piece); err != nil { // Close unregisters it
		_ = unix.Munmap(piece)
		return nil, err
	}
	s.mu.all = append(s.mu.all, piece)
	return piece, nil
}

func (s *spare) give(pieces [][]byte) {
	s.mu.Lock()
	s.mu.free = append(s.mu.free, pieces...)
	s.mu.Unlock()
	s.sem.Release(int64(len(pieces)))
}

// close unmaps the pieces, which are not registered any more.
func (s *spare) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, piece := range s.mu.all {
		_ = unix.Munmap(piece)
	}
	s.mu.all, s.mu.free = nil, nil
}

// pages maps memory outside of Go's heap.
func pages(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	return b, nil
}

// buffers gives the listeners' Buffers.
func (p *provider) buffers() (*fabric.Buffers, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, errClosed
	}
	if p.mu.bufs == nil {
		b, err := fabric.NewBuffers(0, 0)
		if err != nil {
			return nil, err
		}
		p.mu.bufs, p.mu.own = b, true
	}
	return p.mu.bufs, nil
}

// withBuffers registers the listeners' Buffers, once a domain.
func (d *domain) withBuffers(b *fabric.Buffers) error {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if d.bufs != nil {
		return nil
	}
	reg, err := d.register(b.Arena(), localAccess)
	if err == nil {
		d.bufs = reg
		d.p.stats.registered.Add(int64(len(b.Arena())))
	}
	return err
}
