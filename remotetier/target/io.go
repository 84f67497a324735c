package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
)

// writer is a column being written into a staging file.
type writer struct {
	d    *Dir
	key  remotetier.Key
	tmp  string
	f    vfs.File // nil: closed
	size int64
	off  int64
	mode remotetier.CreateMode
	done bool // closed: the key may be another's by now
}

// Create begins a column: its room is taken from the disk before any byte comes.
func (d *Dir) Create(ctx context.Context, key remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	if err := errors.Join(ctx.Err(), key.Check(), mode.Check()); err != nil {
		return nil, err
	}
	if size <= 0 || size%vfs.Align != 0 {
		return nil, fmt.Errorf("create %v: %w: size %d is no multiple of %d", key, catalog.ErrInvalid, size, vfs.Align)
	}
	tmp, err := d.claim(key, mode)
	if err != nil {
		return nil, err
	}
	w := &writer{d: d, key: key, tmp: tmp, size: size, mode: mode}
	if err := w.start(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("create %v: %w", key, err)
	}
	return w, nil
}

// claim makes key busy and names its staging file.
func (d *Dir) claim(key remotetier.Key, mode remotetier.CreateMode) (tmp string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.busy[key] {
		return "", fmt.Errorf("column %v is being written: %w", key, fs.ErrExist)
	}
	switch _, err := d.fs.Stat(d.column(key)); {
	case err == nil && mode == remotetier.CreateNew:
		return "", fmt.Errorf("column %v: %w", key, fs.ErrExist)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	d.mu.busy[key] = true
	d.mu.seq++
	return d.path("staging", strconv.Itoa(d.mu.seq)), nil
}

func (w *writer) start() (err error) {
	_, free, err := w.d.fs.Space(w.d.dir)
	if err != nil {
		return err
	}
	if free < w.size {
		return fmt.Errorf("%w: %d bytes are free of the %d needed", catalog.ErrNoSpace, free, w.size)
	}
	if w.f, err = w.d.fs.Create(w.tmp, vfs.Opt{Direct: true}); err != nil {
		return err
	}
	return w.f.Allocate(w.size)
}

func (w *writer) Write(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.f == nil {
		return fmt.Errorf("write %v: %w", w.key, fs.ErrClosed)
	}
	if !vfs.Aligned(p, w.off) || int64(len(p)) > w.size-w.off {
		return fmt.Errorf("write %v: %w: %d bytes at %d of %d, or they are not page-aligned", w.key, catalog.ErrInvalid, len(p), w.off, w.size)
	}
	n, err := w.f.WriteAt(p, w.off)
	w.off += int64(n)
	return err
}

// Commit: the bytes first, then the name, each durable before the next.
func (w *writer) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.f == nil {
		return fmt.Errorf("commit %v: %w", w.key, fs.ErrClosed)
	}
	if w.off != w.size {
		return fmt.Errorf("commit %v: %w: %d of %d bytes were written", w.key, catalog.ErrInvalid, w.off, w.size)
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	name := w.d.column(w.key)
	if err := w.publish(name); err != nil {
		return err
	}
	w.tmp = "" // from here the file has its name
	err := w.d.fs.SyncDir(filepath.Dir(name))
	if err != nil && w.mode == remotetier.CreateNew {
		return errors.Join(err, w.d.unlink(name)) // in place of another one it stays: old or new, not none
	}
	return errors.Join(err, w.Close())
}

func (w *writer) publish(name string) error {
	w.d.tree.RLock()
	defer w.d.tree.RUnlock()
	if err := w.d.fs.MkdirAll(filepath.Dir(name)); err != nil {
		return err
	}
	return w.d.fs.Rename(w.tmp, name)
}

// Close gives up a column that was not committed.
func (w *writer) Close() (err error) {
	if w.done {
		return nil
	}
	w.done = true
	if w.f != nil {
		err = w.f.Close()
		w.f = nil
	}
	if w.tmp != "" {
		if e := w.d.fs.Remove(w.tmp); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		w.tmp = ""
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	delete(w.d.mu.busy, w.key)
	return err
}

// reader reads a column with O_DIRECT where the request allows it, and through
// the page cache otherwise.
type reader struct {
	d    *Dir
	key  remotetier.Key
	f    vfs.File
	size int64

	mu struct {
		sync.Mutex
		cached vfs.File // opened when first needed
	}
}

func (r *reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if r.f.Direct() && !vfs.Aligned(p, off) {
		f, err := r.pageCached()
		if err != nil {
			return 0, err
		}
		return f.ReadAt(p, off)
	}
	return r.f.ReadAt(p, off)
}

func (r *reader) pageCached() (vfs.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.cached == nil {
		f, err := r.d.fs.Open(r.d.column(r.key), vfs.Opt{})
		if err != nil {
			return nil, err
		}
		r.mu.cached = f
	}
	return r.mu.cached, nil
}

func (r *reader) Size() int64 { return r.size }

func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.f.Close()
	if r.mu.cached != nil {
		err = errors.Join(err, r.mu.cached.Close())
		r.mu.cached = nil
	}
	return err
}
