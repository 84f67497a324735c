package posix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

func (t *Target) sidePath(key remotetier.Key) string {
	dir, _ := t.folder(key.Blob)
	return filepath.Join(dir, plain.SidecarName(key))
}

func (t *Target) wholePath(key remotetier.Key) string {
	dir, _ := t.folder(key.Blob)
	return filepath.Join(dir, plain.WholeName(key))
}

// sidecar reads the beginning of a committed column's sidecar.
func (t *Target) sidecar(key remotetier.Key) (*plain.Sidecar, error) {
	b, err := t.readFile(t.sidePath(key), plain.Head)
	if err != nil {
		return nil, missing(err)
	}
	return plain.ParseSidecar(key, b)
}

// missing says of a name below a file that it is not there.
func missing(err error) error {
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// exists reports whether a key is committed.
func (t *Target) exists(key remotetier.Key) (bool, error) {
	for _, name := range []string{t.sidePath(key), t.wholePath(key)} {
		if _, err := t.fs.Stat(name); err == nil {
			return true, nil
		} else if !errors.Is(missing(err), fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// openTries is how often a column may move under somebody who opens it.
const openTries = 4

// Open reads a column. One whose data is gone or has another size is
// ErrCorrupt: it is there, and damaged.
func (t *Target) Open(ctx context.Context, key remotetier.Key) (remotetier.ColumnReader, error) {
	if err := key.Check(); err != nil {
		return nil, err
	}
	var err error
	for range openTries {
		if cerr := ctx.Err(); cerr != nil {
			return nil, cerr
		}
		r := &reader{t: t, key: key}
		if err = r.open(); err == nil {
			return r, nil
		}
		_ = r.Close()
		if !errors.Is(err, errMoved) {
			break
		}
	}
	if errors.Is(err, errMoved) {
		err = fmt.Errorf("column %v: %w: its data is not there", key, catalog.ErrCorrupt)
	}
	return nil, err
}

// errMoved: the sidecar is there and the data is not, where it was looked for.
var errMoved = errors.New("the data is not there")

// reader reads a column with O_DIRECT where the request allows it, and through
// the page cache otherwise.
type reader struct {
	t    *Target
	key  remotetier.Key
	side *plain.Sidecar // nil: a whole column
	sums vfs.File       // the sidecar's file; nil of a whole column
	data vfs.File
	size int64 // of a whole column

	mu struct {
		sync.Mutex
		cached vfs.File // data, opened when first needed
	}
}

func (r *reader) open() error {
	f, err := r.t.fs.Open(r.t.sidePath(r.key), vfs.Opt{})
	if errors.Is(missing(err), fs.ErrNotExist) {
		return r.openWhole()
	} else if err != nil {
		return err
	}
	r.sums = f
	head := make([]byte, plain.Head)
	n, err := f.ReadAt(head, 0)
	if errors.Is(err, syscall.ESTALE) {
		return errMoved // replaced, on another node
	}
	if r.side, err = plain.ParseSidecar(r.key, head[:n]); err != nil {
		return err
	}
	if got, err := f.Size(); err != nil || got != r.side.FileSize() {
		return errors.Join(err, fmt.Errorf("sidecar of %v: %w: %d bytes, want %d", r.key, catalog.ErrCorrupt, got, r.side.FileSize()))
	}
	if r.data, err = r.openData(vfs.Opt{Direct: true}); err != nil {
		return err
	}
	if got, err := r.data.Size(); err != nil || got != r.side.Blob {
		return errors.Join(err, fmt.Errorf("data of %v: %w: %d bytes, want %d", r.key, catalog.ErrCorrupt, got, r.side.Blob))
	}
	return nil
}

// openData finds the data: under the name that only it has, or else under the
// blob's.
func (r *reader) openData(opt vfs.Opt) (vfs.File, error) {
	dir, base := r.t.folder(r.key.Blob)
	f, err := r.t.fs.Open(filepath.Join(dir, r.side.Data), opt)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = r.t.fs.Open(filepath.Join(dir, base), opt)
	}
	if errors.Is(missing(err), fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return nil, errMoved
	}
	return f, err
}

func (r *reader) openWhole() (err error) {
	if r.data, err = r.t.fs.Open(r.t.wholePath(r.key), vfs.Opt{Direct: true}); err != nil {
		return missing(err)
	}
	r.size, err = r.data.Size()
	return err
}

func (r *reader) Size() int64 {
	if r.side != nil {
		return r.side.Size()
	}
	return r.size
}

func (r *reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if r.side == nil {
		return r.readData(ctx, p, off)
	}
	return r.side.ReadAt(ctx, p, off, func(_ context.Context, p []byte, off int64) (int, error) {
		n, err := r.sums.ReadAt(p, off)
		return n, classify(err)
	}, r.readData)
}

func (r *reader) readData(_ context.Context, p []byte, off int64) (int, error) {
	f := r.data
	if f.Direct() && !vfs.Aligned(p, off) {
		var err error
		if f, err = r.pageCached(); err != nil {
			return 0, err
		}
	}
	n, err := f.ReadAt(p, off)
	return n, classify(err)
}

// pageCached opens the data once more, through the page cache. The name may be
// another file's by now: then the sidecar is another's too.
func (r *reader) pageCached() (vfs.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.cached != nil {
		return r.mu.cached, nil
	}
	var f vfs.File
	var err error
	if r.side == nil {
		f, err = r.t.fs.Open(r.t.wholePath(r.key), vfs.Opt{})
	} else {
		f, err = r.openData(vfs.Opt{})
	}
	if err != nil {
		return nil, fmt.Errorf("column %v: %w: %w", r.key, fs.ErrNotExist, err)
	}
	r.mu.cached = f
	return f, nil
}

// Close closes what is open.
func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, f := range []*vfs.File{&r.sums, &r.data, &r.mu.cached} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}
