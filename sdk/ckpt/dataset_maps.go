package ckpt

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// packMap is a whole pack of this node's cache, mapped.
type packMap struct {
	pack int
	mem  []byte
	told bool // the kernel says truly which of its pages are in memory

	users int    // guarded by packMaps.mu
	used  uint64 // when last, by packMaps.clock
}

// bytes gives a range, whose pages are there; nil if they cannot be read. So a
// disk that fails is an error, and not a signal that ends the process.
func (m *packMap) bytes(off, n int64) []byte {
	from := off &^ (pageSize - 1)
	to := min((off+n+pageSize-1)&^(pageSize-1), int64(len(m.mem)))
	// Populating costs as much as reading the bytes, also where all pages are
	// there. The last one tells whether the file still goes as far.
	if m.told && resident(m.mem[from:to]) {
		from = max(from, (to-1)&^(pageSize-1))
	}
	err := unix.Madvise(m.mem[from:to], unix.MADV_POPULATE_READ)
	if err != nil && err != unix.EINVAL { // before Linux 5.14 the pages come when they are touched
		return nil
	}
	return m.mem[off : off+n : off+n]
}

var pageSize = int64(os.Getpagesize())

// resident says whether all pages of mapped memory are in the page cache. p
// begins with a page.
func resident(p []byte) bool {
	var pages [1024]byte // a byte each
	for len(p) > 0 {
		part := p[:min(int64(len(p)), int64(len(pages))*pageSize)]
		p = p[len(part):]
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&part[0])), uintptr(len(part)), uintptr(unsafe.Pointer(&pages))); errno != 0 {
			return false
		}
		for _, in := range pages[:(int64(len(part))+pageSize-1)/pageSize] {
			if in&1 == 0 {
				return false
			}
		}
	}
	return true
}

// tellsPages says whether the kernel tells this process which pages of a file
// are in memory. To others than its owner it says that all are.
func tellsPages(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && int(st.Uid) == os.Geteuid()
}

// packMaps holds the mappings of a Dataset: at most limit, the ones used last,
// and those in use.
type packMaps struct {
	limit int
	fetch func(ctx context.Context, pack int) (*packMap, error) // nil: not whole yet

	mu      sync.Mutex
	maps    map[int]*packMap
	pending map[int]chan struct{} // closed when a fetch has ended
	clock   uint64
	closed  bool
	running sync.WaitGroup // Batches
}

func newPackMaps(limit int, fetch func(context.Context, int) (*packMap, error)) *packMaps {
	return &packMaps{limit: limit, fetch: fetch, maps: map[int]*packMap{}, pending: map[int]chan struct{}{}}
}

// enter begins a Batch, unless the maps are closed.
func (p *packMaps) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Add(1)
	}
	return !p.closed
}

func (p *packMaps) leave() { p.running.Done() }

// close unmaps everything when no Batch runs any more; false: it is closed.
func (p *packMaps) close() bool {
	p.mu.Lock()
	was := p.closed
	p.closed = true
	p.mu.Unlock()
	if was {
		return false
	}
	p.running.Wait()
	for _, m := range p.maps {
		_ = unix.Munmap(m.mem)
	}
	p.maps = nil
	return true
}

// acquire gives a pack's mapping, to be released; nil if the pack is not whole
// on this node yet. One caller fetches, the others wait for it.
func (p *packMaps) acquire(ctx context.Context, pack int) (*packMap, error) {
	p.mu.Lock()
	for {
		if m := p.maps[pack]; m != nil {
			m.users++
			p.clock++
			m.used = p.clock
			p.mu.Unlock()
			return m, nil
		}
		wait := p.pending[pack]
		if wait == nil {
			break
		}
		p.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		p.mu.Lock()
	}
	done := make(chan struct{})
	p.pending[pack] = done
	p.mu.Unlock()
	m, err := p.fetch(ctx, pack)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pending, pack)
	close(done)
	if m == nil || err != nil {
		return nil, err
	}
	p.clock++
	m.users, m.used = 1, p.clock
	p.maps[pack] = m
	p.trim()
	return m, nil
}

func (p *packMaps) release(m *packMap) {
	if m == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m.users--
	p.trim()
}

// trim unmaps what was not used longest, as far as nobody uses it.
func (p *packMaps) trim() {
	for len(p.maps) > p.limit {
		var oldest *packMap
		for _, m := range p.maps {
			if m.users == 0 && (oldest == nil || m.used < oldest.used) {
				oldest = m
			}
		}
		if oldest == nil {
			return
		}
		delete(p.maps, oldest.pack)
		_ = unix.Munmap(oldest.mem)
	}
}

// mapWhole maps a file for reading.
func mapWhole(f *os.File, size int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, fmt.Errorf("map %d bytes: %w: the file has %d", size, catalog.ErrCorrupt, info.Size())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return mem, nil
}
