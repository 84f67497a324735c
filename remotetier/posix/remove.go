package posix

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

// Remove deletes a column, and the folders it leaves empty. If it had the
// blob's own name, the newest other column of the blob gets it.
func (t *Target) Remove(ctx context.Context, key remotetier.Key) error {
	if err := errors.Join(ctx.Err(), key.Check()); err != nil {
		return err
	}
	whole := t.wholePath(key)
	if err := t.fs.Remove(whole); err != nil && !errors.Is(missing(err), fs.ErrNotExist) {
		return err
	}
	if err := t.retire(key); err != nil {
		return err
	}
	t.tidy(filepath.Dir(whole))
	return nil
}

// retire takes a column with a sidecar out of sight, durably, and then clears
// its data away. A staged copy of the sidecar is the note by which a sweep does
// what is not finished. Only one process gets to remove the sidecar. A name
// that is not there is synced too: an earlier removal may have got no further.
func (t *Target) retire(key remotetier.Key) error {
	name := t.sidePath(key)
	dir := filepath.Dir(name)
	s, note, err := t.noteOld(key)
	if err != nil {
		return err
	}
	err = t.fs.Remove(name)
	gone := errors.Is(missing(err), fs.ErrNotExist)
	if err != nil && !gone {
		t.unstage(note)
		return err
	}
	if err := t.syncGone(dir); err != nil {
		return err
	}
	if gone {
		t.unstage(note) // another process has removed it, and clears away
		return nil
	}
	if s == nil {
		err = t.dropStray(key, "")
	} else if waits, cerr := t.clear(s, note, kindOld); cerr != nil {
		err = cerr
	} else if waits {
		err = t.promote(key.Blob)
	}
	if errors.Is(err, errBusy) {
		return nil // the note stays
	}
	if err != nil {
		return err
	}
	t.unstage(note)
	return nil
}

// noteOld stages a copy of a sidecar that is about to be replaced or removed.
// There is none if the sidecar is not there, or does not say what its data is
// called.
func (t *Target) noteOld(key remotetier.Key) (s *plain.Sidecar, note string, err error) {
	s, err = t.sidecar(key)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) {
		return nil, "", nil
	} else if err != nil {
		return nil, "", err
	}
	b, err := t.readFile(t.sidePath(key), int(s.FileSize()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	} else if err != nil {
		return nil, "", err
	}
	note, err = t.stage(kindOld, b)
	return s, note, err
}

// tidy removes a folder and those above it as far as they are empty. One that
// stays does no harm. A file or a link in the place of a folder is not ours.
func (t *Target) tidy(dir string) {
	for ; dir != t.dir; dir = filepath.Dir(dir) {
		if info, err := t.fs.Stat(dir); err != nil || !info.IsDir() || t.fs.Remove(dir+"/") != nil {
			return
		}
		t.mu.Lock()
		delete(t.mu.known, dir)
		t.mu.Unlock()
	}
}
