package remotetier

import (
	"context"
	"math/bits"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// buffers lends page-aligned memory and counts what is out. Who takes several
// buffers for one piece of work takes them in one call, so that nobody waits
// while holding.
type buffers struct {
	limit  int64 // bytes
	mapped func(mem []byte) (unmap func())
	sem    *semaphore.Weighted
	mu     struct {
		sync.Mutex
		pools map[int]*sync.Pool // by size; there are not more sizes than fit into limit
	}
}

func newBuffers(limit int64, mapped func(mem []byte) (unmap func())) *buffers {
	b := &buffers{limit: limit, mapped: mapped, sem: semaphore.NewWeighted(limit)}
	b.mu.pools = map[int]*sync.Pool{}
	return b
}

// roundUp gives the size of the buffers that size is served from: a power of
// two, or a multiple of the large page.
func roundUp(size int) int {
	if size > hugePage {
		return (size + hugePage - 1) / hugePage * hugePage
	}
	return 1 << bits.Len(uint(max(size, pageSize)-1))
}

func (b *buffers) pool(size int) *sync.Pool {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.mu.pools[size]
	if p == nil {
		p = new(sync.Pool)
		b.mu.pools[size] = p
	}
	return p
}

// loan is memory lent in one call. Its buffers are gone when it is: who uses
// one keeps the loan, and gives it back by done.
type loan struct {
	from *buffers
	size int64
	bufs []*[]byte
}

// take lends count buffers of size bytes each, when there is room for them.
// More than the limit waits for all there is.
func (b *buffers) take(ctx context.Context, count, size int) (*loan, error) {
	size = roundUp(size)
	l := &loan{from: b, size: min(int64(count)*int64(size), b.limit)}
	if err := b.sem.Acquire(ctx, l.size); err != nil {
		return nil, err
	}
	l.fill(count, size)
	return l, nil
}

// tryTake is take for those who do without, with nil, when there is no room now.
func (b *buffers) tryTake(count, size int) *loan {
	size = roundUp(size)
	l := &loan{from: b, size: int64(count) * int64(size)}
	if !b.sem.TryAcquire(l.size) {
		return nil
	}
	l.fill(count, size)
	return l
}

func (l *loan) fill(count, size int) {
	pool := l.from.pool(size)
	for range count {
		p, _ := pool.Get().(*[]byte)
		if p == nil {
			p = newBuffer(size, l.from.mapped)
		}
		l.bufs = append(l.bufs, p)
	}
}

// buf is the i-th buffer, at least as long as was asked for; its bytes are
// what somebody left there.
func (l *loan) buf(i int) []byte { return *l.bufs[i] }

// done gives everything back.
func (l *loan) done() {
	for _, p := range l.bufs {
		l.from.pool(len(*p)).Put(p)
	}
	l.from.sem.Release(l.size)
}

// hugePage is the kernel's large page, in bytes.
const hugePage = 2 << 20

// newBuffer makes a buffer of n bytes, a size that roundUp gives. Large ones lie on large
// pages where the kernel has them: to pin a page costs the same whatever its
// size, which is most of what O_DIRECT costs (1 GiB written by 4 MiB: 0.03
// instead of 0.10 s of processor time, and twice the rate), and every pass over
// the bytes needs fewer translations. mapped (nil: nobody) is told of those.
func newBuffer(n int, mapped func(mem []byte) (unmap func())) *[]byte {
	p := new([]byte)
	if n >= hugePage {
		m, err := unix.Mmap(-1, 0, n+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err == nil {
			_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // a hint: a kernel without them says EINVAL
			skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(m))) & (hugePage - 1))
			*p = m[skip : skip+n : skip+n] // the rest is never touched and takes no memory
			var unmap func()
			if mapped != nil {
				unmap = mapped(*p)
			}
			runtime.AddCleanup(p, func(m []byte) {
				if unmap != nil {
					unmap()
				}
				_ = unix.Munmap(m)
			}, m)
			return p
		}
	}
	*p = aligned(n)
	return p
}

// aligned makes page-aligned memory, as O_DIRECT needs it.
func aligned(n int) []byte {
	b := make([]byte, n+pageSize)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (pageSize - 1))
	return b[skip : skip+n : skip+n]
}
