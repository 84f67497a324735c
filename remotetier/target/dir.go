// Package target serves one directory of columns.
//
// Dir is a remotetier.Target over a vfs.FS. FORMAT.md in package remotetier
// describes the directory. Server serves a Dir to other machines over a
// fabric, and Remote is a remotetier.Target that uses such a server.
//
//  1. One process serves a directory, and a directory has one name for ever: a
//     second opener, or another name, is refused with ErrConflict.
//  2. A column is visible only when it is whole and durable; when Commit
//     returned nil it survives a power failure, and when Remove did it is gone
//     after one.
//  3. A column that is not committed leaves nothing: neither after Close, nor,
//     once the directory was opened again, after a crash.
//  4. What a Server acknowledged, it has done: promise 2 holds across the
//     network. A column whose bytes do not fit its own checksums is refused.
//  5. A client that dies leaves nothing: its columns are given up when it has
//     been gone for a while.
//  6. A Remote is never another target than the one it was: a name that
//     differs is refused. A target that cannot be reached costs a caller no
//     more than the fabric's limits, and nothing while it is known to be away.
//  7. A Member keeps a server's place in the catalog, and never takes that of
//     another directory or of a process that lives. A catalog that is away
//     stops nothing of the serving.
package target

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
)

const (
	idFile   = "target.id"
	idMagic  = "ckptd target 1\n"
	uidFile  = "target.uid"
	uidMagic = "ckptd target uid 1\n"
)

// Dir is a directory of columns. Close it when nobody uses it any more.
type Dir struct {
	fs   vfs.FS
	dir  string
	name string
	lock io.Closer

	// tree is held for reading while a column's folder must stay, and for
	// writing while empty folders are removed.
	tree sync.RWMutex

	mu struct {
		sync.Mutex
		seq  int                     // names staging files
		busy map[remotetier.Key]bool // being written
	}
}

var _ remotetier.Target = (*Dir)(nil)

// OpenDir opens a directory as the target of that name, making both when they
// are new, and sweeps what a crash left in staging.
func OpenDir(fsys vfs.FS, dir, name string) (*Dir, error) {
	if err := remotetier.CheckTargetName(name); err != nil {
		return nil, err
	}
	d := &Dir{fs: fsys, dir: dir, name: name}
	d.mu.busy = map[remotetier.Key]bool{}
	if err := d.open(); err != nil {
		if d.lock != nil {
			_ = d.lock.Close()
		}
		return nil, fmt.Errorf("open target %s in %s: %w", name, dir, err)
	}
	return d, nil
}

func (d *Dir) open() (err error) {
	if err := d.fs.MkdirAll(d.dir); err != nil {
		return err
	}
	if d.lock, err = d.fs.Lock(d.path("lock")); err != nil {
		return err
	}
	if err := d.identify(); err != nil {
		return err
	}
	for _, sub := range []string{"columns", "staging"} {
		if err := d.fs.MkdirAll(d.path(sub)); err != nil {
			return err
		}
	}
	left, err := d.fs.ReadDir(d.path("staging"))
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := d.fs.Remove(d.path("staging", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// identify reads the directory's name, or gives it one.
func (d *Dir) identify() error {
	got, err := NameOf(d.fs, d.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.writeText(idFile, idMagic+d.name+"\n")
	case err != nil:
		return err
	case got != d.name:
		return fmt.Errorf("%w: the directory belongs to target %q", catalog.ErrConflict, got)
	}
	return nil
}

// NameOf reads the name that a directory has as a target; fs.ErrNotExist if it
// is none yet.
func NameOf(fsys vfs.FS, dir string) (string, error) {
	f, err := fsys.Open(filepath.Join(dir, idFile), vfs.Opt{})
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readID(f)
}

func readID(f vfs.File) (name string, err error) {
	b := make([]byte, len(idMagic)+remotetier.MaxTargetName+2)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	name, magic := strings.CutPrefix(string(b[:n]), idMagic)
	name, line := strings.CutSuffix(name, "\n")
	if !magic || !line || remotetier.CheckTargetName(name) != nil {
		return "", fmt.Errorf("%s: %w", idFile, catalog.ErrCorrupt)
	}
	return name, nil
}

// UID tells this directory from every other of the same name. It is made when
// it is first asked for; a copy of the directory has the same.
func (d *Dir) UID() (string, error) {
	uid, err := d.readUID()
	if errors.Is(err, fs.ErrNotExist) {
		uid = rand.Text() // 130 bits
		err = d.writeText(uidFile, uidMagic+uid+"\n")
	}
	if err != nil {
		return "", fmt.Errorf("target %s: uid: %w", d.name, err)
	}
	return uid, nil
}

func (d *Dir) readUID() (string, error) {
	f, err := d.fs.Open(d.path(uidFile), vfs.Opt{})
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 128)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	uid, magic := strings.CutPrefix(string(b[:n]), uidMagic)
	uid, line := strings.CutSuffix(uid, "\n")
	if !magic || !line || len(uid) < 16 || remotetier.CheckTargetName(uid) != nil {
		return "", fmt.Errorf("%s: %w", uidFile, catalog.ErrCorrupt)
	}
	return uid, nil
}

// writeText makes a small file of the directory, whole or not at all.
func (d *Dir) writeText(name, text string) error {
	tmp := d.path(name + ".tmp")
	if err := d.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.fs.Create(tmp, vfs.Opt{})
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := d.fs.Rename(tmp, d.path(name)); err != nil {
		return err
	}
	return d.fs.SyncDir(d.dir)
}

func (d *Dir) path(parts ...string) string {
	return filepath.Join(d.dir, filepath.Join(parts...))
}

func (d *Dir) column(key remotetier.Key) string {
	return d.path("columns", filepath.FromSlash(key.Path()))
}

// Close lets another process have the directory.
func (d *Dir) Close() error { return d.lock.Close() }

// Name is the target's name.
func (d *Dir) Name() string { return d.name }

// Space is that of the file system the directory is on. A disk that is gone
// from under it is ErrUnavailable, although the mount point is still there.
func (d *Dir) Space(ctx context.Context) (remotetier.Space, error) {
	if err := ctx.Err(); err != nil {
		return remotetier.Space{}, err
	}
	if _, err := d.fs.Stat(d.path(idFile)); errors.Is(err, fs.ErrNotExist) {
		return remotetier.Space{}, fmt.Errorf("target %s: %w: %s has no %s any more: is its disk still mounted?", d.name, catalog.ErrUnavailable, d.dir, idFile)
	} else if err != nil {
		return remotetier.Space{}, err
	}
	total, free, err := d.fs.Space(d.dir)
	return remotetier.Space{Total: total, Free: free}, err
}

// Open reads a column.
func (d *Dir) Open(ctx context.Context, key remotetier.Key) (remotetier.ColumnReader, error) {
	if err := errors.Join(ctx.Err(), key.Check()); err != nil {
		return nil, err
	}
	f, err := d.fs.Open(d.column(key), vfs.Opt{Direct: true})
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &reader{d: d, key: key, f: f, size: size}, nil
}

// file opens a column through the page cache, from where it can be sent
// without being touched. The caller calls done.
func (d *Dir) file(key remotetier.Key) (f vfs.File, size int64, done func() error, err error) {
	if f, err = d.fs.Open(d.column(key), vfs.Opt{}); err != nil {
		return nil, 0, nil, err
	}
	if size, err = f.Size(); err != nil {
		_ = f.Close()
		return nil, 0, nil, err
	}
	return f, size, f.Close, nil
}

// Remove deletes a column, and the folders it leaves empty.
func (d *Dir) Remove(ctx context.Context, key remotetier.Key) error {
	if err := errors.Join(ctx.Err(), key.Check()); err != nil {
		return err
	}
	name := d.column(key)
	if err := d.unlink(name); err != nil {
		return err
	}
	d.tree.Lock()
	defer d.tree.Unlock()
	top := d.path("columns")
	for dir := filepath.Dir(name); dir != top; dir = filepath.Dir(dir) {
		if d.fs.Remove(dir) != nil {
			break // not empty, or gone; an empty folder that stays does no harm
		}
	}
	return nil
}

// unlink removes a column's name durably. A name that is not there is synced
// too: an earlier removal may have got no further.
func (d *Dir) unlink(name string) error {
	d.tree.RLock()
	defer d.tree.RUnlock()
	if err := d.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.fs.SyncDir(filepath.Dir(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
