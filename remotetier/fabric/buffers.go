package fabric

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// Defaults of Buffers, in bytes.
const (
	DefaultBuffers    = 64 << 20
	DefaultBufferSize = 4 << 20
)

// Buffers are a target's memory for bytes under way: page-aligned pieces of
// one mapping, which a fabric with remote memory access registers once. Pages
// are taken from the system when they are first used.
type Buffers struct {
	arena []byte
	size  int
	count int

	mu struct {
		sync.Mutex
		free []*Buffer // the last one was used last: it is in the cache
		line traffic.Line[chan *Buffer]
	}
}

// Buffer is one piece, lent.
type Buffer struct {
	Bytes []byte // page-aligned
	from  *Buffers
}

// NewBuffers maps total bytes (0: 64 MiB) in pieces of size (0: 4 MiB, or less
// where total is small). Both are rounded to whole pages; there is at least one piece.
func NewBuffers(total, size int64) (*Buffers, error) {
	if total == 0 {
		total = DefaultBuffers
	}
	if size == 0 {
		size = min(DefaultBufferSize, max(total/4, 64<<10))
	}
	const page = 4096
	size = (size + page - 1) / page * page
	if total < 0 || size <= 0 || size > MaxTransfer || total > 1<<40 {
		return nil, fmt.Errorf("buffers of %d bytes in pieces of %d: %w", total, size, catalog.ErrInvalid)
	}
	n := max(1, total/size)
	arena, err := unix.Mmap(-1, 0, int(n*size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of buffers: %w", n*size, err)
	}
	_ = unix.Madvise(arena, unix.MADV_HUGEPAGE) // where there are none, small ones do
	b := &Buffers{arena: arena, size: int(size), count: int(n)}
	for i := range n {
		b.mu.free = append(b.mu.free, &Buffer{Bytes: arena[i*size:][:size:size], from: b})
	}
	return b, nil
}

// Size is the size of one Buffer, in bytes.
func (b *Buffers) Size() int { return b.size }

// Arena is the memory of all of them.
func (b *Buffers) Arena() []byte { return b.arena }

// Free says how many are not lent.
func (b *Buffers) Free() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.mu.free)
}

// Waiting is the number of callers of Get that wait.
func (b *Buffers) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.line.Len()
}

// Get lends a piece, when there is one: to the most urgent class first, and within it to who came first.
func (b *Buffers) Get(ctx context.Context) (*Buffer, error) {
	b.mu.Lock()
	if n := len(b.mu.free); n > 0 {
		p := b.mu.free[n-1]
		b.mu.free = b.mu.free[:n-1]
		b.mu.Unlock()
		return p, nil
	}
	ready := make(chan *Buffer, 1)
	b.mu.line.Join(time.Now(), traffic.ClassOf(ctx), ready)
	b.mu.Unlock()
	select {
	case p := <-ready:
		return p, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	waits := b.mu.line.Leave(func(c chan *Buffer) bool { return c == ready })
	b.mu.Unlock()
	if !waits { // it came in the same moment
		(<-ready).Release()
	}
	return nil, ctx.Err()
}

// Release gives a Buffer back. It is called once.
func (p *Buffer) Release() {
	b := p.from
	b.mu.Lock()
	defer b.mu.Unlock()
	if ready, ok := b.mu.line.Next(time.Now()); ok {
		ready <- p // has room for it
		return
	}
	if len(b.mu.free) == b.count {
		panic("fabric: a Buffer was released twice")
	}
	b.mu.free = append(b.mu.free, p)
}

// Close unmaps the memory. Every Buffer must be back.
func (b *Buffers) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mu.free) != b.count {
		return fmt.Errorf("close buffers: %w: %d are still lent", catalog.ErrConflict, b.count-len(b.mu.free))
	}
	arena := b.arena
	b.arena = nil
	if arena == nil {
		return nil
	}
	return unix.Munmap(arena)
}
