package planes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// Source is what Encode reads, from several goroutines.
type Source interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Sealed is a Source that knows the checksums of its bytes: Encode returns
// ErrCorrupt when they differ from what it read.
type Sealed interface {
	Source
	Seal() *catalog.Seal
}

// Options of Encode; the zero value works.
type Options struct {
	// Parallel is how many frames are worked on at a time; default the number of
	// processors, at most 4.
	Parallel int
	// Most bounds the container's bytes; a larger one is ErrNoGain. 0: no bound.
	Most int64
}

// ErrNoGain says that a container would be larger than Options.Most.
var ErrNoGain = errors.New("planes: compression does not gain enough")

// Stats tells what Encode did.
type Stats struct {
	Raw, Stored int64 // bytes
	Frames      int
	AsIs        int // frames that did not shrink
}

// work is one frame on its way; its buffers go round.
type work struct {
	raw, tmp, back, out []byte // with room for a frame each
	blocks              []uint32
	err                 error
	done                chan struct{}
	mem                 []byte
}

// slack is how much longer than its frame the output may be while it is made.
const slack = 256 << 10

// newWork maps its buffers, for frames of size bytes. They are not of the heap: a
// drain would leave its garbage collector tens of megabytes to find for each shard.
func newWork(size int) (*work, error) {
	size = (size + 4095) / 4096 * 4096
	mem, err := unix.Mmap(-1, 0, 4*size+slack, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for a frame: %w", err)
	}
	part := func(i int) []byte { return mem[i*size : i*size : (i+1)*size] }
	return &work{raw: part(0), tmp: part(1), back: part(2), out: mem[3*size : 3*size], mem: mem}, nil
}

func (w *work) free() {
	if w != nil {
		_ = unix.Munmap(w.mem) // of our own mapping: it cannot fail
	}
}

// Encode writes src as a container, in order.
func Encode(ctx context.Context, w io.Writer, src Source, layout Layout, opt Options) (Stats, error) {
	st, err := encode(ctx, w, src, layout, opt)
	if err != nil && !errors.Is(err, ErrNoGain) {
		err = fmt.Errorf("compress: %w", err)
	}
	return st, err
}

func encode(ctx context.Context, w io.Writer, src Source, layout Layout, opt Options) (Stats, error) {
	raw := src.Size()
	if raw < 0 || raw > catalog.MaxShardSize {
		return Stats{}, fmt.Errorf("%w: %d bytes, at most %d are possible", catalog.ErrInvalid, raw, int64(catalog.MaxShardSize))
	}
	e := &encoder{w: w, src: src, layout: layout, most: opt.Most, x: index{raw: raw}}
	if s, ok := src.(Sealed); ok {
		e.seal = s.Seal()
	}
	if e.seal != nil && (e.seal.Size != raw || len(e.seal.CRCs) != catalog.Blocks(raw)) {
		return Stats{}, fmt.Errorf("%w: its seal is of %d bytes, the source of %d", catalog.ErrCorrupt, e.seal.Size, raw)
	}
	workers := opt.Parallel
	if workers <= 0 {
		workers = min(4, runtime.GOMAXPROCS(0))
	}
	workers = max(1, min(workers, frames(raw)))
	header := putHeader(raw)
	if err := e.write(header); err != nil {
		return Stats{}, err
	}
	if err := e.run(ctx, workers); err != nil {
		return Stats{}, err
	}
	if err := e.write(e.x.putTail(e.stored, header)); err != nil {
		return Stats{}, err
	}
	return Stats{Raw: raw, Stored: e.stored, Frames: len(e.x.sizes), AsIs: e.asIs}, nil
}

type encoder struct {
	w      io.Writer
	src    Source
	seal   *catalog.Seal // nil: not known
	layout Layout
	most   int64
	x      index
	stored int64 // bytes written
	asIs   int
}

// task is a frame, and the buffers to make it in.
type task struct {
	frame int
	runs  []Run
	*work
}

// run makes the frames, some at a time, and writes them in order. One more set
// of buffers than workers is on its way, so that writing does not stop them.
func (e *encoder) run(ctx context.Context, workers int) error {
	g, ctx := errgroup.WithContext(ctx)
	todo, ready := make(chan task), make(chan task, workers+1)
	free := make(chan *work, workers+1)
	for range workers + 1 {
		wk, err := newWork(int(min(Size, e.x.raw)))
		if err != nil {
			return err
		}
		defer wk.free() // everybody who uses it has been waited for
		free <- wk
	}
	g.Go(func() error { // hands out frames in order
		defer close(todo)
		defer close(ready)
		next := 0
		for i := range frames(e.x.raw) {
			var t task
			select {
			case wk := <-free:
				wk.done = make(chan struct{})
				t = task{frame: i, work: wk}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			t.runs, next = e.layout.cut(int64(i)*Size, int64(e.x.rawSize(i)), next)
			ready <- t // has room for all buffers
			select {
			case todo <- t:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			c := coders.Get().(*coder)
			defer coders.Put(c)
			for t := range todo {
				t.err = e.frame(c, t)
				close(t.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		for t := range ready {
			select {
			case <-t.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if t.err != nil {
				return t.err
			}
			if err := e.add(t.work); err != nil {
				return err
			}
			free <- t.work // has room for all buffers
		}
		return nil
	})
	return g.Wait()
}

// frame reads, checks and encodes one frame, and holds what a reader will see
// against what was read.
func (e *encoder) frame(c *coder, t task) error {
	n := e.x.rawSize(t.frame)
	t.raw, t.tmp, t.back = t.raw[:n], t.tmp[:n], t.back[:n]
	off := int64(t.frame) * Size
	if got, err := e.src.ReadAt(t.raw, off); got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: it ends before its size", catalog.ErrCorrupt)
		}
		return fmt.Errorf("read the source at %d: %w", off, err)
	}
	t.blocks = t.blocks[:0]
	for at := 0; at < n; at += catalog.BlockSize {
		p := t.raw[at:min(at+catalog.BlockSize, n)]
		crc := catalog.Sum32C(p)
		if i := t.frame*blocksEach + len(t.blocks); e.seal != nil && e.seal.CRCs[i] != crc {
			return e.seal.CheckBlock(i, p)
		}
		t.blocks = append(t.blocks, crc)
	}
	t.out = c.encode(t.out[:0], t.raw, t.tmp, t.runs)
	if err := decode(t.back, t.out, t.tmp); err != nil {
		return fmt.Errorf("frame %d does not decode: %w", t.frame, err)
	}
	if !bytes.Equal(t.back, t.raw) {
		return fmt.Errorf("frame %d decodes to other bytes", t.frame)
	}
	return nil
}

// add writes the next frame.
func (e *encoder) add(wk *work) error {
	if wk.out[0] == formRaw {
		e.asIs++
	}
	e.x.sizes = append(e.x.sizes, uint32(len(wk.out)))
	e.x.sums = append(e.x.sums, catalog.Sum32C(wk.out))
	e.x.blocks = append(e.x.blocks, wk.blocks...)
	return e.write(wk.out)
}

func (e *encoder) write(p []byte) error {
	e.stored += int64(len(p))
	if e.most > 0 && e.stored > e.most {
		return ErrNoGain
	}
	_, err := e.w.Write(p)
	return err
}

// samples is how many frames Estimate looks at.
const samples = 4

// Estimate compresses some frames, spread over the blob, and gives their ratio
// of stored to raw bytes: whether compressing it is worth anything.
func Estimate(ctx context.Context, src Source, layout Layout) (ratio float64, err error) {
	e := &encoder{src: src, layout: layout, x: index{raw: src.Size()}}
	if s, ok := src.(Sealed); ok {
		e.seal = s.Seal()
	}
	n := frames(e.x.raw)
	c := coders.Get().(*coder)
	defer coders.Put(c)
	wk, err := newWork(int(min(Size, e.x.raw)))
	if err != nil {
		return 0, err
	}
	defer wk.free()
	stored, raw := 0, 0
	for s := range min(samples, n) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		i := s * n / min(samples, n)
		t := task{frame: i, work: wk}
		t.runs, _ = layout.cut(int64(i)*Size, int64(e.x.rawSize(i)), 0)
		if err := e.frame(c, t); err != nil {
			return 0, fmt.Errorf("compress: %w", err)
		}
		stored, raw = stored+len(wk.out), raw+len(wk.raw)
	}
	return float64(stored) / float64(max(1, raw)), nil
}
