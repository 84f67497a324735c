package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// dirPart is how much of a file is written at a time, in bytes.
const dirPart = 8 << 20

const tempSuffix = ".exporting" // of a file on its way; hidden by a dot as well

// Dir is a Store in a directory, on any file system that renames atomically.
type Dir struct{ path string }

// NewDir names a directory. Ready makes it.
func NewDir(path string) *Dir { return &Dir{filepath.Clean(path)} }

var _ Store = (*Dir)(nil)

func (d *Dir) String() string { return d.path }

// Ready makes the directory and takes its lock. One that holds what no export
// writes is refused.
func (d *Dir) Ready(context.Context) (release func() error, err error) {
	if err := makeDir(d.path); err != nil {
		return nil, err
	}
	f, err := os.Open(d.path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// Where there are no locks, two exports of one set still write the same files.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, wire.WithHint(fmt.Errorf("%s: %w: another export is writing there", d.path, catalog.ErrConflict), "wait until it has ended, or name another folder")
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !ours(e.Name()) {
			return nil, fmt.Errorf("%s holds %q: %w: name a new folder, or an empty one", d.path, e.Name(), fs.ErrExist)
		}
	}
	return f.Close, nil
}

// ours reports whether an export writes files of that name.
func ours(name string) bool {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "."), tempSuffix)
	if name == ManifestFile || name == RecordFile {
		return true
	}
	rank := 0
	name = strings.TrimSuffix(name, sealSuffix)
	n, err := fmt.Sscanf(name, "rank-%d.", &rank)
	return n == 1 && err == nil && (name == ShardFile(rank) || name == RawFile(rank))
}

// makeDir makes a folder and those above it, durably.
func makeDir(path string) error {
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return full(err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// full gives an error of a full disk its class.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", catalog.ErrNoSpace, err)
	}
	return err
}

type dirFile struct {
	f    *os.File
	path string // its name to be
	over bool
}

func (d *Dir) Create(_ context.Context, name string, size int64, _ catalog.Digest) (File, error) {
	path := filepath.Join(d.path, name)
	temp := filepath.Join(d.path, "."+name+tempSuffix)
	// What an export that was killed left is in the way; the lock says that it is nobody's.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, full(err)
	}
	w := &dirFile{f: f, path: path}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); size > 0 && full(err) != err {
		return nil, errors.Join(fmt.Errorf("%s: %w: %d bytes do not fit", d.path, catalog.ErrNoSpace, size), w.Close())
	}
	return w, nil
}

func (w *dirFile) Part() int64 { return dirPart }

func (w *dirFile) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := w.f.WriteAt(p, off)
	return full(err)
}

func (w *dirFile) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return full(err)
	}
	if err := os.Rename(w.f.Name(), w.path); err != nil {
		return full(err)
	}
	w.over = true
	return errors.Join(w.f.Close(), syncDir(filepath.Dir(w.path)))
}

func (w *dirFile) Close() error {
	if w.over {
		return nil
	}
	w.over = true
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

// Has reads the file: its bytes are the only witness of themselves.
func (d *Dir) Has(ctx context.Context, name string, size int64, root catalog.Digest) (bool, error) {
	f, err := d.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	if f.Size() != size {
		return false, nil
	}
	seal := &catalog.Seal{Size: size, CRCs: make([]uint32, catalog.Blocks(size))}
	buf := make([]byte, min(size, dirPart))
	for off := int64(0); off < size; off += dirPart {
		p := buf[:min(dirPart, size-off)]
		if err := f.ReadAt(ctx, p, off); err != nil {
			return false, err
		}
		first := int(off / catalog.BlockSize)
		sumBlocks(seal.CRCs[first:first+catalog.Blocks(int64(len(p)))], p)
	}
	return seal.Root() == root, nil
}

type dirObject struct {
	f    *os.File
	size int64
}

// Open opens a plain file below the directory; a link that leads out of it, or
// something that is no file, is ErrCorrupt.
func (d *Dir) Open(_ context.Context, name string) (Object, error) {
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not make it wait
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%s in %s: %w: %w", name, d.path, catalog.ErrCorrupt, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s in %s: %w: it is no file", name, d.path, catalog.ErrCorrupt)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &dirObject{f, st.Size()}, nil
}

func (o *dirObject) Size() int64  { return o.size }
func (o *dirObject) Close() error { return o.f.Close() }

func (o *dirObject) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := o.f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("read %s at %d: %w: it ends early", filepath.Base(o.f.Name()), off, catalog.ErrCorrupt)
	}
	return err
}
