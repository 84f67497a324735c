package posix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"syscall"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

// writer is a column being written into a staged file.
type writer struct {
	t    *Target
	key  remotetier.Key
	mode remotetier.CreateMode
	cut  *plain.Cut
	name string // data name of this writing
	tmp  string // the staged data; empty: none, or it has another name by now
	side string // the staged sidecar; empty: none, or it is committed
	note string // another copy of it; empty: none
	f    vfs.File
	at   string // where the data was put, before it is committed
	own  bool   // that is the blob's own name
	keep bool   // the note stays, for a sweep to see what happened
	done bool   // closed: the key may be another's by now
}

// Create begins a column. Its file is made when its first bytes come.
func (t *Target) Create(ctx context.Context, key remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	if err := errors.Join(ctx.Err(), key.Check(), mode.Check()); err != nil {
		return nil, err
	}
	if size <= 0 || size%vfs.Align != 0 {
		return nil, fmt.Errorf("create %v: %w: size %d is no multiple of %d", key, catalog.ErrInvalid, size, vfs.Align)
	}
	space, err := t.Space(ctx)
	if err != nil {
		return nil, fmt.Errorf("create %v: %w", key, err)
	}
	if space.Free < size {
		return nil, fmt.Errorf("create %v: %w: %d bytes are free of the %d needed", key, catalog.ErrNoSpace, space.Free, size)
	}
	t.sweepNow(ctx)
	if err := t.writing.Begin(key); err != nil {
		return nil, err
	}
	if there, err := t.exists(key); err != nil || there && mode == remotetier.CreateNew {
		t.writing.End(key)
		if err == nil {
			err = fs.ErrExist
		}
		return nil, fmt.Errorf("create %v: %w", key, err)
	}
	return &writer{t: t, key: key, mode: mode, cut: plain.NewCut(key, size), name: plain.DataName(key, rand.Uint32())}, nil
}

func (w *writer) Write(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.done {
		return fmt.Errorf("write %v: %w", w.key, fs.ErrClosed)
	}
	data, off, err := w.cut.Next(p)
	if err != nil {
		return err
	}
	if err := w.start(); err != nil {
		return fmt.Errorf("write %v: %w", w.key, err)
	}
	if len(data) == 0 {
		return nil
	}
	_, err = w.f.WriteAt(data, off)
	return classify(err)
}

// start makes the file that takes the data, with its room.
func (w *writer) start() (err error) {
	if w.f != nil {
		return nil
	}
	size, sub := w.cut.DataSize(), stagingDir
	if w.t.opt.Stripe.wants(size) {
		sub = stripedDir
	}
	tmp := w.t.path(ownDir, sub, w.t.unique(kindData))
	if w.f, err = w.t.fs.Create(tmp, vfs.Opt{Direct: true}); err != nil {
		return err
	}
	w.tmp = tmp
	return classify(w.f.Allocate(size))
}

// Commit: the data first, then its name, then the sidecar's, each durable
// before the next.
func (w *writer) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.done {
		return fmt.Errorf("commit %v: %w", w.key, fs.ErrClosed)
	}
	if err := w.cut.Complete(); err != nil {
		return err
	}
	if err := w.finish(); err != nil {
		return fmt.Errorf("commit %v: %w", w.key, classify(err))
	}
	publish := w.publishWhole
	if w.cut.Plain() {
		publish = w.publishPlain
	}
	if err := publish(); err != nil {
		return fmt.Errorf("commit %v: %w", w.key, err)
	}
	return w.Close()
}

// finish makes the data durable, with the size it has.
func (w *writer) finish() error {
	size, err := w.f.Size()
	if err == nil && size != w.cut.DataSize() {
		err = w.f.Truncate(w.cut.DataSize())
	}
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		err = w.f.Close()
		w.f = nil
	}
	return err
}

// folderTries is how often somebody may remove an empty folder between its
// being made and its first file.
const folderTries = 64

// inFolder does what needs a blob's folder to be there, and makes it.
func (t *Target) inFolder(dir string, do func() error) error {
	var err error
	for range folderTries {
		if err = t.fs.MkdirAll(dir); err == nil {
			err = do()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, syscall.ENOTDIR):
			if derr := t.demote(dir); derr != nil && !errors.Is(derr, fs.ErrNotExist) {
				return derr
			}
		default:
			return err
		}
	}
	return err
}

// syncFolder makes the names in a folder durable, and the names of the folder
// and those above it: they may have been made by another process, which has
// not got as far.
func (t *Target) syncFolder(dir string) error {
	if err := t.fs.SyncDir(dir); err != nil {
		return err
	}
	t.mu.Lock()
	known := t.mu.known[dir]
	t.mu.Unlock()
	for up := dir; !known && up != t.dir; {
		up = filepath.Dir(up)
		if err := t.fs.SyncDir(up); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.mu.known) >= maxKnown {
		clear(t.mu.known)
	}
	t.mu.known[dir] = true
	return nil
}

// maxKnown bounds the folders that are remembered.
const maxKnown = 4096

// publishWhole gives a column that is one file its name.
func (w *writer) publishWhole() error {
	t, name := w.t, w.t.wholePath(w.key)
	dir := filepath.Dir(name)
	if err := w.taken(); err != nil {
		return err
	}
	if err := t.inFolder(dir, func() error { return t.fs.Rename(w.tmp, name) }); err != nil {
		return err
	}
	w.tmp = "" // from here the file has its name
	if err := t.syncFolder(dir); err != nil {
		if w.mode == remotetier.CreateNew {
			err = errors.Join(err, t.fs.Remove(name))
		}
		return err // in place of another one it stays: old or new, not none
	}
	if w.mode == remotetier.CreateReplace {
		return t.retire(w.key) // a column with a sidecar, if it took the place of one
	}
	return nil
}

// taken refuses a key that another process committed meanwhile.
func (w *writer) taken() error {
	if w.mode == remotetier.CreateReplace {
		return nil
	}
	if there, err := w.t.exists(w.key); err != nil || !there {
		return err
	}
	return fs.ErrExist
}

// publishPlain gives the data a name and then the sidecar. A staged copy of
// the sidecar is the note by which a sweep undoes what is not finished; it goes
// last, because not every file system renames between folders in one piece.
func (w *writer) publishPlain() (err error) {
	t := w.t
	dir, base := t.folder(w.key.Blob)
	side := w.cut.Sidecar(w.name, "", false)
	if w.note, err = t.stage(kindNew, side); err != nil {
		return err
	}
	if w.side, err = t.stage(kindData, side); err != nil {
		return err
	}
	if err := w.taken(); err != nil {
		return err
	}
	if err := t.inFolder(dir, func() error { return w.place(dir, base) }); err != nil {
		return err
	}
	if err := t.syncFolder(dir); err != nil {
		return err
	}
	var replaced string // the note of what is replaced
	if w.mode == remotetier.CreateReplace {
		if _, replaced, err = t.noteOld(w.key); err != nil {
			return err
		}
	}
	if err := t.fs.Rename(w.side, t.sidePath(w.key)); err != nil {
		t.unstage(replaced)
		return err
	}
	w.side, w.at = "", "" // from here it is committed
	w.keep = true
	if err := t.fs.SyncDir(dir); err != nil {
		if w.mode == remotetier.CreateNew {
			err = errors.Join(err, t.retire(w.key))
		}
		return err
	}
	w.keep = false
	if !w.own { // its holder may have gone before it was told
		t.trace(t.moveIfFree(w.key, w.name))
	}
	if w.mode == remotetier.CreateReplace {
		t.trace(t.dropReplaced(w.key, w.name, replaced)) // it is committed, whatever is left
	}
	return nil
}

// moveIfFree is move unless somebody has the blob's name.
func (t *Target) moveIfFree(key remotetier.Key, data string) error {
	dir, base := t.folder(key.Blob)
	for _, name := range []string{plain.ClaimName(base), base} {
		if _, err := t.fs.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return t.move(key, data)
}

// place moves the data to the blob's name, or to its hidden one when that is
// not free.
func (w *writer) place(dir, base string) error {
	own, err := w.t.take(dir, base, w.name, w.tmp, "")
	if own {
		w.at, w.own = filepath.Join(dir, base), true
	}
	w.keep = err != nil && !own
	if err == nil && !own {
		to := filepath.Join(dir, w.name)
		if err = w.t.fs.Rename(w.tmp, to); err == nil {
			w.at = to
			err = w.t.wait(dir, base)
		}
	}
	if err == nil {
		w.tmp = ""
	}
	return err
}

// dropReplaced clears away what a committed replacement took the place of.
// name is the new data's.
func (t *Target) dropReplaced(key remotetier.Key, name, note string) error {
	if err := t.fs.Remove(t.wholePath(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if note == "" {
		return t.dropStray(key, name)
	}
	if err := t.resolveOf(key, note, kindOld); err != nil {
		return err
	}
	t.unstage(note)
	return nil
}

// dropStray removes data of a key whose sidecar did not say what it is called,
// except the one named.
func (t *Target) dropStray(key remotetier.Key, except string) error {
	dir, base := t.folder(key.Blob)
	of := remotetier.Key{Blob: base, Generation: key.Generation, Column: key.Column}
	stray := func(name string) bool {
		k, kind, ok := plain.Parse(name)
		return ok && kind == plain.DataKind && k == of && name != except
	}
	entries, err := t.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	hidden := false
	for _, e := range entries {
		if stray(e.Name()) {
			hidden = true
			if err := t.fs.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	c, err := t.holder(dir, base)
	if err == nil && stray(c.data) {
		if _, err := t.release(dir, base, c.data, !hidden); err != nil { // without a hidden file it had the blob's own name
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrCorrupt) {
		return err
	}
	return t.promote(key.Blob)
}

// Close gives up a column that was not committed.
func (w *writer) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	defer w.t.writing.End(w.key)
	var errs []error
	if w.f != nil {
		errs = append(errs, w.f.Close())
	}
	dir, base := w.t.folder(w.key.Blob)
	drop := func(name string) {
		if name == "" {
			return
		}
		if err := w.t.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if w.at != "" {
		if w.own {
			_, err := w.t.release(dir, base, w.name, true)
			errs = append(errs, err)
		} else {
			drop(w.at)
			errs = append(errs, w.t.syncGone(dir))
		}
		w.keep = errors.Join(errs...) != nil
	}
	drop(w.tmp)
	drop(w.side)
	if !w.keep {
		drop(w.note)
	}
	w.t.tidy(dir)
	return errors.Join(errs...)
}
