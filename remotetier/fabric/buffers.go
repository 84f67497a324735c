package fabric

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
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
	free  chan *Buffer // FIFO for those who wait
	size  int
	wait  atomic.Int64
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
	b := &Buffers{arena: arena, free: make(chan *Buffer, n), size: int(size)}
	for i := range n {
		b.free <- &Buffer{Bytes: arena[i*size:][:size:size], from: b}
	}
	return b, nil
}

// Size is the size of one Buffer, in bytes.
func (b *Buffers) Size() int { return b.size }

// Arena is the memory of all of them.
func (b *Buffers) Arena() []byte { return b.arena }

// Free says how many are not lent, and Waiting how many callers wait for one.
func (b *Buffers) Free() int      { return len(b.free) }
func (b *Buffers) Waiting() int64 { return b.wait.Load() }

// Get lends a piece, when there is one.
func (b *Buffers) Get(ctx context.Context) (*Buffer, error) {
	select {
	case p := <-b.free:
		return p, nil
	default:
	}
	b.wait.Add(1)
	defer b.wait.Add(-1)
	select {
	case p := <-b.free:
		return p, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Release gives a Buffer back. It is called once.
func (p *Buffer) Release() {
	select {
	case p.from.free <- p:
	default:
		panic("fabric: a Buffer was released twice")
	}
}

// Close unmaps the memory. Every Buffer must be back.
func (b *Buffers) Close() error {
	if len(b.free) != cap(b.free) {
		return fmt.Errorf("close buffers: %w: %d are still lent", catalog.ErrConflict, cap(b.free)-len(b.free))
	}
	arena := b.arena
	b.arena = nil
	if arena == nil {
		return nil
	}
	return unix.Munmap(arena)
}
