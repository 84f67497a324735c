package localtier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// Blob is an open blob. It keeps its bytes when the blob is removed.
type Blob struct {
	info Info
	seal *catalog.Seal
	f    vfs.File
}

var _ io.ReaderAt = (*Blob)(nil)

// Open opens a blob; a missing one is fs.ErrNotExist.
func (t *Tier) Open(name string) (*Blob, error) {
	b, err := t.open(name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return b, nil
}

func (t *Tier) open(name string) (*Blob, error) {
	l := t.lockOf(name)
	l.RLock()
	defer l.RUnlock()
	e, err := t.lookup(name)
	if err != nil {
		return nil, err
	}
	seal, err := t.sealOf(e)
	if err != nil {
		return nil, err
	}
	f, err := t.fsys.Open(e.info.Path, vfs.Opt{Direct: !t.opt.Buffered})
	if err != nil {
		// It is in the index: that its file is gone is damage, not absence.
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: its file was removed: %v", catalog.ErrCorrupt, err)
		}
		return nil, err
	}
	t.direct(e.disk, f)
	return &Blob{info: e.info, seal: seal, f: f}, nil
}

// sealOf reads the seal of a visible blob; its name lock is held.
func (t *Tier) sealOf(e entry) (seal *catalog.Seal, err error) {
	if e.pending {
		_, seal, err = t.resolve(e.disk, e.info.Name)
	} else {
		seal, err = t.readSeal(e.disk.seal(e.info.Name), e.info.Name)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: its seal was removed: %v", catalog.ErrCorrupt, err)
	case err != nil:
		return nil, err
	case seal.Root() != e.info.Root:
		return nil, fmt.Errorf("%w: its seal is not the one it had", catalog.ErrCorrupt)
	}
	return seal, nil
}

// Seal reads the seal of a blob; a missing blob is fs.ErrNotExist.
func (t *Tier) Seal(name string) (*catalog.Seal, error) {
	l := t.lockOf(name)
	l.RLock()
	defer l.RUnlock()
	e, err := t.lookup(name)
	if err == nil {
		var seal *catalog.Seal
		if seal, err = t.sealOf(e); err == nil {
			return seal, nil
		}
	}
	return nil, fmt.Errorf("seal of %s: %w", name, err)
}

func (b *Blob) Name() string        { return b.info.Name }
func (b *Blob) Size() int64         { return b.info.Size }
func (b *Blob) Path() string        { return b.info.Path }
func (b *Blob) Seal() *catalog.Seal { return b.seal }
func (b *Blob) Close() error        { return b.f.Close() }

// readStep is how much ReadBlocks reads while it checks the step before, in blocks.
const readStep = 8

// ReadBlocks reads n blocks, beginning with block first, into buf and gives
// the number of bytes that passed their checks, from the beginning. The first
// block that does not is ErrCorrupt, and no bytes of it are left in buf. buf
// is fastest on a page boundary; it needs no more room than the blocks.
func (b *Blob) ReadBlocks(ctx context.Context, first, n int, buf []byte) (int, error) {
	if first < 0 || n < 0 || first > len(b.seal.CRCs)-n {
		return 0, fmt.Errorf("read %s: %w: blocks %d to %d of %d", b.info.Name, catalog.ErrInvalid, first, first+n, len(b.seal.CRCs))
	}
	start := int64(first) * catalog.BlockSize
	end := min(b.info.Size, start+int64(n)*catalog.BlockSize)
	if end-start > int64(len(buf)) {
		return 0, fmt.Errorf("read %s: %w: %d bytes do not fit in %d", b.info.Name, catalog.ErrInvalid, end-start, len(buf))
	}
	buf = buf[:max(0, end-start)]
	const step = readStep * catalog.BlockSize
	good, read := 0, min(step, len(buf))
	err := b.fill(buf[:read], start)
	for good < len(buf) {
		var next chan error
		at := read
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && at < len(buf) {
			// The device works on the next step while this one is summed.
			read = min(at+step, len(buf))
			next = make(chan error, 1)
			go func() { next <- b.fill(buf[at:read], start+int64(at)) }()
		}
		if err == nil {
			var n int
			n, err = b.check(first+good/catalog.BlockSize, buf[good:at])
			good += n
		}
		if next != nil {
			if e := <-next; err == nil {
				err = e
			}
		}
		if err != nil {
			clear(buf[good:])
			return good, fmt.Errorf("read %s: %w", b.info.Name, err)
		}
	}
	return good, nil
}

// check sums whole blocks and gives how many bytes are good.
func (b *Blob) check(first int, p []byte) (good int, err error) {
	fault := guard(func() {
		for i := first; good < len(p) && err == nil; i++ {
			block := p[good:min(len(p), good+catalog.BlockSize)]
			if err = b.seal.CheckBlock(i, block); err == nil {
				good += len(block)
			}
		}
	})
	return good, errors.Join(fault, err)
}

// fill reads all of p from the file, unchecked, whatever its alignment.
func (b *Blob) fill(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if !b.f.Direct() {
		return whole(b.f.ReadAt(p, off))(len(p))
	}
	if n := len(p) &^ (vfs.Align - 1); n > 0 && vfs.Aligned(p[:n], off) {
		if err := whole(b.f.ReadAt(p[:n], off))(n); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	if len(p) == 0 {
		return nil
	}
	buf := getBuffer()
	defer putBuffer(buf)
	for len(p) > 0 {
		skip := int(off & (vfs.Align - 1))
		want := min(len(p), len(*buf)-skip)
		n, err := b.f.ReadAt((*buf)[:(skip+want+vfs.Align-1)&^(vfs.Align-1)], off-int64(skip))
		if err := whole(min(n, skip+want), err)(skip + want); err != nil {
			return err
		}
		if err := guard(func() { copy(p, (*buf)[skip:skip+want]) }); err != nil {
			return err
		}
		p, off = p[want:], off+int64(want)
	}
	return nil
}

// whole turns a short read into an error: the file must be as long as its seal says.
func whole(n int, err error) func(want int) error {
	return func(want int) error {
		switch {
		case n == want:
			return nil
		case err == nil || err == io.EOF:
			return fmt.Errorf("%w: the file ends early", catalog.ErrCorrupt)
		default:
			return err
		}
	}
}

// ReadAt reads any range, every byte checked: blocks the range covers in part
// are read whole.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s: %w: offset %d", b.info.Name, catalog.ErrInvalid, off)
	}
	if off >= b.info.Size {
		return 0, io.EOF
	}
	var eof error
	if rest := b.info.Size - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	ctx := context.Background()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		first, skip := int(at/catalog.BlockSize), int(at%catalog.BlockSize)
		if n := len(p) - done; skip == 0 {
			blocks := n / catalog.BlockSize
			if at+int64(n) == b.info.Size {
				blocks = catalog.Blocks(int64(n))
			}
			if blocks > 0 {
				got, err := b.ReadBlocks(ctx, first, blocks, p[done:])
				done += got
				if err != nil {
					return done, err
				}
				continue
			}
		}
		buf := getBuffer()
		got, err := b.ReadBlocks(ctx, first, 1, *buf)
		if err == nil {
			done += copy(p[done:], (*buf)[skip:got])
		}
		putBuffer(buf)
		if err != nil {
			return done, err
		}
	}
	return done, eof
}

// Raw reads without checking, for callers that check against Seal themselves.
func (b *Blob) Raw() io.ReaderAt { return raw{b} }

type raw struct{ b *Blob }

func (r raw) ReadAt(p []byte, off int64) (int, error) {
	rest := r.b.info.Size - off
	if off < 0 || rest <= 0 {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	if err := r.b.fill(p, off); err != nil {
		return 0, fmt.Errorf("read %s: %w", r.b.info.Name, err)
	}
	return len(p), eof
}

// ReadvRaw fills several buffers from consecutive bytes, unchecked, in one read
// where the file can do that: it is direct, and all is page-aligned.
func (b *Blob) ReadvRaw(bufs [][]byte, off int64) (int, error) {
	total := 0
	for _, p := range bufs {
		total += len(p)
	}
	if v, ok := b.f.(vfs.Vector); ok && b.f.Direct() && off >= 0 && off <= b.info.Size-int64(total) {
		n, err := v.ReadvAt(bufs, off)
		if err := whole(n, err)(total); err != nil {
			return 0, fmt.Errorf("read %s: %w", b.info.Name, err)
		}
		return n, nil
	}
	done := 0
	for _, p := range bufs {
		n, err := b.Raw().ReadAt(p, off+int64(done))
		done += n
		if err != nil && !(errors.Is(err, io.EOF) && n == len(p)) {
			return done, err
		}
	}
	return done, nil
}

// OpenFile opens the blob's file once more, for reading by others: to pass it
// to another process, to mmap it, to back a mount. Nothing checks what is read
// from it. It works after the blob was removed, too.
func (b *Blob) OpenFile(direct bool) (*os.File, error) {
	fd, ok := b.f.Fd()
	if !ok {
		return nil, fmt.Errorf("open file of %s: %w: its file system is not the operating system's", b.info.Name, catalog.ErrInvalid)
	}
	flag := os.O_RDONLY | unix.O_CLOEXEC
	if direct {
		flag |= unix.O_DIRECT
	}
	// A new description of the same file, whatever its name is now.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flag, 0)
	if err != nil {
		return nil, fmt.Errorf("open file of %s: %w", b.info.Name, err)
	}
	return f, nil
}

// Verify reads a whole blob and checks it; the error is ErrCorrupt and names the
// block. progress, which may be nil, is told how many bytes are checked so far.
func (t *Tier) Verify(ctx context.Context, name string, progress func(n int64)) error {
	b, err := t.Open(name)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer b.Close()
	return b.verify(ctx, 0, b.Size(), progress)
}

// VerifyRange checks the blocks that hold n bytes at off.
func (t *Tier) VerifyRange(ctx context.Context, name string, off, n int64) error {
	b, err := t.Open(name)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer b.Close()
	if off < 0 || n < 0 || off > b.Size()-n {
		return fmt.Errorf("verify %s: %w: bytes %d to %d of %d", name, catalog.ErrInvalid, off, off+n, b.Size())
	}
	return b.verify(ctx, off, n, nil)
}

func (b *Blob) verify(ctx context.Context, off, n int64, progress func(int64)) error {
	const step = 2 * readStep
	buf := vfs.AlignedBuffer(int(min(step*catalog.BlockSize, (b.Size()+vfs.Align-1)&^(vfs.Align-1))))
	last := catalog.Blocks(off + n)
	var done int64
	for i := int(off / catalog.BlockSize); i < last && n > 0; i += step {
		got, err := b.ReadBlocks(ctx, i, min(step, last-i), buf)
		done += int64(got)
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		if progress != nil {
			progress(done)
		}
	}
	return nil
}
