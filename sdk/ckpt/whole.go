package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	readSize    = 8 << 20  // bytes of one read of a local file
	readers     = 4        // in flight: the disk has work while a core sums
	windowSize  = 16 << 20 // bytes of one request for what is not local: two windows stay in a processor's cache
	windows     = 2        // one being filled, one being emptied
	directAlign = 4096     // of memory, offset and length for O_DIRECT
)

// ReadShard reads one rank's whole file into p, which must have its size.
// Local files are read past the page cache.
func (r *Reader) ReadShard(ctx context.Context, rank int, p []byte) error {
	if err := r.checkRank(rank); err != nil {
		return err
	}
	if size := r.manifest.Shards[rank].Size; int64(len(p)) != size {
		return fmt.Errorf("read %v rank %d: %w: memory of %d bytes for %d", r.manifest.Set, rank, catalog.ErrInvalid, len(p), size)
	}
	onLargePages(p)
	return r.whole(ctx, rank, memorySink(p))
}

// largePage is the kernel's, in bytes.
const largePage = 2 << 20

// onLargePages asks that memory about to be filled whole be given in large
// pages: the disk then fills it at up to twice the rate, because pinning and
// mapping cost by the page. It is a hint; memory that has its pages already,
// and kernels without large ones, stay as they are.
func onLargePages(p []byte) {
	if len(p) < 2*largePage {
		return
	}
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (largePage - 1)
	if n := (len(p) - skip) &^ (largePage - 1); n > 0 {
		_ = unix.Madvise(p[skip:skip+n], unix.MADV_HUGEPAGE)
	}
}

// CopyShard writes one rank's whole file to w, in memory bounded whatever its
// size. Several goroutines call w at once, with ranges that do not overlap.
func (r *Reader) CopyShard(ctx context.Context, rank int, w io.WriterAt) error {
	if err := r.checkRank(rank); err != nil {
		return err
	}
	return r.whole(ctx, rank, writerSink{w})
}

// sink takes the bytes of a shard.
type sink interface {
	// memory is where n bytes at off may be read to, and put takes them.
	memory(off, n int64) []byte
	put(p []byte, off int64) error
}

type memorySink []byte

func (m memorySink) memory(off, n int64) []byte  { return m[off : off+n : off+n] }
func (memorySink) put(p []byte, off int64) error { return nil }

type writerSink struct{ w io.WriterAt }

func (writerSink) memory(off, n int64) []byte { return nil } // memory of our own
func (s writerSink) put(p []byte, off int64) error {
	_, err := s.w.WriteAt(p, off)
	return err
}

// whole brings a shard from where it is.
func (r *Reader) whole(ctx context.Context, rank int, to sink) error {
	size := r.manifest.Shards[rank].Size
	first, err := newWindow(min(size, windowSize))
	if err != nil {
		return err
	}
	defer first.close()
	n := min(size, windowSize)
	l, err := r.load(ctx, rank, [][2]int64{{0, n}}, first.f, wire.Message{NoCheck: true, Seal: true, From: r.opt.from})
	if err != nil {
		return err
	}
	if l.file != nil {
		defer l.file.Close()
		if l.seal != nil || r.opt.noCheck {
			return r.wholeLocal(ctx, rank, l, first, to)
		}
		n = 0 // without a seal the daemon does the checking
	} else if err := first.give(0, n, to); err != nil {
		return err
	}
	if n == size {
		return nil
	}
	return r.wholeRemote(ctx, rank, n, first, to)
}

// filled is a window with n bytes of the shard from off on.
type filled struct {
	*window
	off, n int64
}

// wholeRemote brings what follows from, window by window: the daemon fills one
// while the one before is given on. first is one of them. The daemon is asked
// for one part at a time, in order, so that it knows what comes next.
func (r *Reader) wholeRemote(ctx context.Context, rank int, from int64, first *window, to sink) error {
	size := r.manifest.Shards[rank].Size
	second, err := newWindow(min(size-from, windowSize))
	if err != nil {
		return err
	}
	defer second.close()
	free, full := make(chan *window, windows), make(chan filled, windows)
	free <- first
	free <- second
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(full)
		for off := from; off < size; off += windowSize {
			var w *window
			select {
			case w = <-free:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			n := min(windowSize, size-off)
			if err := r.bring(ctx, rank, [][2]int64{{off, n}}, w.f, off); err != nil {
				return err
			}
			full <- filled{w, off, n} // has room for both
		}
		return nil
	})
	group.Go(func() error {
		for w := range full {
			if err := w.give(w.off, w.n, to); err != nil {
				return err
			}
			free <- w.window
		}
		return nil
	})
	return group.Wait()
}

// wholeLocal reads the local file with several reads in flight, each checked
// while the others run. Bad blocks come from elsewhere, at the end.
func (r *Reader) wholeLocal(ctx context.Context, rank int, l *loaded, w *window, to sink) error {
	size := r.manifest.Shards[rank].Size
	direct, err := reopenDirect(l.file)
	if err == nil {
		defer direct.Close()
	}
	seal := l.seal
	if r.opt.noCheck {
		seal = nil
	}
	var next atomic.Int64
	var bad struct {
		sync.Mutex
		ranges [][2]int64
		err    error
	}
	group, gctx := errgroup.WithContext(ctx)
	for range min(readers, (size+readSize-1)/readSize) {
		group.Go(func() error {
			var buf []byte
			for gctx.Err() == nil {
				off := next.Add(readSize) - readSize
				if off >= size {
					return nil
				}
				n := min(readSize, size-off)
				p := to.memory(off, n)
				if p == nil {
					if buf == nil {
						buf = alignedBuffer(readSize)
					}
					p = buf[:n]
				}
				err := readPast(direct, l.file, p, off)
				for i := off / block; err == nil && seal != nil && i*block < off+n; i++ {
					at := i*block - off
					err = seal.CheckBlock(int(i), p[at:min(at+block, n)])
				}
				if err != nil && (r.opt.from == "local" || !damaged(err)) {
					return err
				}
				if err != nil {
					bad.Lock()
					bad.ranges, bad.err = append(bad.ranges, [2]int64{off, n}), err
					bad.Unlock()
					continue
				}
				if err := to.put(p, off); err != nil {
					return err
				}
			}
			return context.Cause(gctx)
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for _, rg := range bad.ranges {
		if err := r.bring(ctx, rank, [][2]int64{rg}, w.f, rg[0]); err != nil {
			return errors.Join(bad.err, err)
		}
		if err := w.give(rg[0], rg[1], to); err != nil {
			return err
		}
	}
	return nil
}

// reopenDirect opens the file once more with O_DIRECT; the flag belongs to the
// open file, which the daemon may share.
func reopenDirect(f *os.File) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// readPast reads p past the page cache where that is possible: memory and
// length are aligned, and the file system can.
func readPast(direct, file *os.File, p []byte, off int64) error {
	body := int64(len(p)) &^ (directAlign - 1)
	if direct == nil || body == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directAlign != 0 {
		return readFull(file, p, off)
	}
	if err := readFull(direct, p[:body], off); err != nil {
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		body = 0 // this file system cannot after all
	}
	return readFull(file, p[body:], off+body)
}

func alignedBuffer(n int) []byte {
	b := make([]byte, n+directAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directAlign - 1)
	return b[skip : skip+n : skip+n]
}

// Bytes maps the whole file, checked. The memory is read-only and gone when
// the ShardReader closes.
func (s *ShardReader) Bytes() ([]byte, error) { return s.BytesContext(s.r.life) }

// BytesContext is Bytes for those who may have to stop.
func (s *ShardReader) BytesContext(ctx context.Context) ([]byte, error) {
	if s.shard.Size == 0 {
		return nil, nil
	}
	blocks := int64(catalog.Blocks(s.shard.Size))
	if err := s.open(ctx, 0, min(blocks, windowSize/block)); err != nil {
		return nil, err
	}
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer func() { <-s.turn }()
	if s.st.closed {
		return nil, os.ErrClosed
	}
	if s.st.file != nil {
		m, err := mapFile(s.st.file, s.shard.Size)
		if err == nil && s.st.seal != nil {
			if err = checkMapped(ctx, m, s.st.seal); err != nil {
				unix.Munmap(m)
			}
		}
		if err == nil {
			s.st.maps = append(s.st.maps, m)
			return m, nil
		}
		if ctx.Err() != nil || s.r.opt.from == "local" || !damaged(err) {
			return nil, fmt.Errorf("map %v rank %d: %w", s.r.manifest.Set, s.shard.Rank, err)
		}
	}
	mem, err := newMemory(s.shard.Size)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	if err := s.r.bring(ctx, s.shard.Rank, [][2]int64{{0, s.shard.Size}}, mem, 0); err != nil {
		return nil, err
	}
	m, err := mapFile(mem, s.shard.Size)
	if err != nil {
		return nil, err
	}
	s.st.maps = append(s.st.maps, m)
	return m, nil
}

func mapFile(f *os.File, size int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < size {
		return nil, fmt.Errorf("%w: the file is cut short", catalog.ErrCorrupt)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return m, nil
}

// checkMapped checks every block of a mapped file; a page the disk cannot give
// is ErrCorrupt, not the end of the process.
func checkMapped(ctx context.Context, m []byte, seal *catalog.Seal) error {
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range min(copiers, (len(m)+readSize-1)/readSize) {
		group.Go(func() (err error) {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				if recover() != nil {
					err = fmt.Errorf("%w: the disk cannot read it", catalog.ErrCorrupt)
				}
			}()
			for ctx.Err() == nil {
				off := next.Add(readSize) - readSize
				if off >= int64(len(m)) {
					return nil
				}
				end := min(off+readSize, int64(len(m)))
				if ahead := min(end+copiers*readSize, int64(len(m))); ahead > end {
					unix.Madvise(m[end:ahead], unix.MADV_WILLNEED)
				}
				if err := unix.Madvise(m[off:end], unix.MADV_POPULATE_READ); err == unix.EFAULT {
					return fmt.Errorf("%w: the disk cannot read it", catalog.ErrCorrupt)
				}
				for i := off / block; i*block < end; i++ {
					if err := seal.CheckBlock(int(i), m[i*block:min((i+1)*block, end)]); err != nil {
						return err
					}
				}
			}
			return context.Cause(ctx)
		})
	}
	return group.Wait()
}
