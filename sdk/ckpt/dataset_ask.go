package ckpt

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/sdk/wire"
)

// call makes one request on the connection that holds the version. When the
// daemon restarted it is opened again, once.
func (d *Dataset) call(ctx context.Context, m *wire.Message, fds []*os.File, want string) (answer, error) {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
	defer func() { <-d.turn }()
	for try := 0; ; try++ {
		if d.ses == nil {
			if err := d.reopen(ctx); err != nil {
				return answer{}, err
			}
		}
		var a answer
		var told bool
		err := d.ses.during(ctx, func() (err error) {
			a, told, err = d.c.roundTrip(d.ses, m, nil, fds)
			return err
		})
		switch {
		case err == nil && a.m.T == want:
			return a, nil
		case err == nil:
			closeFiles(a.fds)
			err = fmt.Errorf("%s: %w: answered by %q", m.T, catalog.ErrUnavailable, a.m.T)
			told = true
		case told && ctx.Err() == nil && catalog.ClassOf(err) != catalog.ErrInvalid:
			return answer{}, err // it refused, and is ready for the next request
		}
		d.ses.close()
		d.ses = nil
		if told || try > 0 || ctx.Err() != nil {
			return answer{}, err
		}
	}
}

// reopen takes up the version on a new connection. It never changes, so the
// index that is mapped stays.
func (d *Dataset) reopen(ctx context.Context) error {
	ses, a, err := d.c.ask(ctx, &wire.Message{T: "dataset", Ref: d.Name()}, nil, nil, "dataset")
	if err != nil {
		return fmt.Errorf("open dataset %s again: %w", d.Name(), err)
	}
	closeFiles(a.fds)
	if a.m.Set != d.set.String() || a.m.Size != int64(len(d.mem)) {
		ses.close()
		return fmt.Errorf("open dataset %s again: %w: it is %s now, not %v", d.Name(), catalog.ErrConflict, a.m.Set, d.set)
	}
	d.ses = ses
	return nil
}

// fetchPack asks for a pack and maps it; nil if it is still arriving.
func (d *Dataset) fetchPack(ctx context.Context, pack int) (*packMap, error) {
	p, err := d.x.Pack(pack)
	if err != nil {
		return nil, err
	}
	a, err := d.call(ctx, &wire.Message{T: "pack", Set: d.set.String(), Pack: pack}, nil, "pack")
	if err != nil {
		return nil, err
	}
	defer closeFiles(a.fds)
	if !a.m.Complete {
		return nil, nil
	}
	if len(a.fds) != 1 || a.m.Size != p.Size || a.m.Set != p.Set.String() {
		return nil, fmt.Errorf("pack %d: %w: the daemon gave %s of %d bytes, the index names %v of %d", pack, catalog.ErrCorrupt, a.m.Set, a.m.Size, p.Set, p.Size)
	}
	mem, err := mapWhole(a.fds[0], p.Size)
	if err != nil {
		return nil, err
	}
	return &packMap{pack: pack, mem: mem, told: tellsPages(a.fds[0])}, nil
}

// load reads a range of a pack that is not whole on this node: the daemon
// fills memory of ours with it when it is there, checked.
func (d *Dataset) load(ctx context.Context, f index.Field) ([]byte, error) {
	p, err := d.x.Pack(f.Pack)
	if err != nil {
		return nil, err
	}
	out := make([]byte, f.Size)
	mem, err := newMemory(min(f.Size, windowSize))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	for at := int64(0); at < f.Size; at += windowSize {
		part := out[at:min(at+windowSize, f.Size)]
		off := f.PackOffset + at
		m := &wire.Message{T: "load", Set: p.Set.String(), Ranges: [][2]int64{{off, int64(len(part))}}, Off: off}
		a, err := d.call(ctx, m, []*os.File{mem}, "loaded")
		if err != nil {
			return nil, err
		}
		if len(a.fds) == 1 { // it became whole meanwhile
			err = readFull(a.fds[0], part, off)
		} else if a.m.Filled != int64(len(part)) {
			err = fmt.Errorf("load %v: %w: filled %d of %d bytes", p.Set, catalog.ErrUnavailable, a.m.Filled, len(part))
		} else {
			err = readFull(mem, part, 0)
		}
		closeFiles(a.fds)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Open reads one file of the version as a stream of bytes: for those who want
// files and not samples.
func (d *Dataset) Open(path string) (*io.SectionReader, error) {
	i, err := d.x.Find(path)
	if err != nil {
		return nil, fmt.Errorf("open %.200q of %s: %w", path, d.Name(), err)
	}
	e, err := d.x.Entry(i)
	if err != nil {
		return nil, err
	}
	if e.Kind != index.File {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%w: it is a %v", catalog.ErrInvalid, e.Kind)}
	}
	return io.NewSectionReader(&fileAt{d, e}, 0, e.Size), nil
}

// fileAt reads a file out of its pack.
type fileAt struct {
	d *Dataset
	e index.Entry
}

func (f *fileAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, catalog.ErrInvalid)
	}
	if off >= f.e.Size {
		return 0, io.EOF
	}
	if !f.d.maps.enter() {
		return 0, fs.ErrClosed
	}
	defer f.d.maps.leave()
	ctx := context.Background()
	n := min(int64(len(p)), f.e.Size-off)
	s := Sample{Fields: []index.Field{{Offset: off, Size: n, Pack: f.e.Pack, PackOffset: f.e.Offset + off}}}
	held, err := f.d.sample(ctx, &s, nil, func() error {
		copy(p, s.Data[0])
		return nil
	})
	f.d.maps.release(held)
	if err == nil && n < int64(len(p)) {
		err = io.EOF
	}
	return int(n), err
}
