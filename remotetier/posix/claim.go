package posix

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier/plain"
)

// The blob's own name is held by one writing of one column at a time: by the
// one whose hidden data name stands in the claim beside it. A claim is made
// exclusively, and durable before data gets the name.
//
// Whoever finds it made and keeps to a hidden name adds a line, so that the
// holder, when it goes, looks for those who wait; that takes a listing. And
// while data of a committed column is on its way to the name, the claim says
// so: only its mover, or a sweep long after, may end it.
const (
	claimMagic = "ckptd plain 1\n"
	claimMoves = "moves\n"
	claimMoved = "moved\n" // as long as claimMoves, which it replaces
	claimWaits = "waits\n"
)

// claimed is what a claim says.
type claimed struct {
	data  string // whose it is
	moves bool
	waits bool
}

// errBusy: a process is at it, or was until it died; a sweep will see.
var errBusy = errors.New("the blob's name is being given to a column")

// holder reads a claim; fs.ErrNotExist if there is none, ErrCorrupt if it does
// not say.
func (t *Target) holder(dir, base string) (claimed, error) {
	return t.readClaim(filepath.Join(dir, plain.ClaimName(base)), base)
}

func (t *Target) readClaim(file, base string) (claimed, error) {
	b, err := t.readFile(file, 512)
	if err != nil {
		return claimed{}, missing(err)
	}
	rest, magic := strings.CutPrefix(string(b), claimMagic)
	name, rest, line := strings.Cut(rest, "\n")
	key, kind, ok := plain.Parse(name)
	if !magic || !line || !ok || kind != plain.DataKind || key.Blob != base {
		return claimed{}, fmt.Errorf("%s: %w", file, catalog.ErrCorrupt)
	}
	return claimed{data: name, moves: strings.Contains(rest, claimMoves), waits: strings.Contains(rest, claimWaits)}, nil
}

// claim makes the claim; fs.ErrExist if somebody has it, perhaps oneself.
func (t *Target) claim(dir, base, data, more string) error {
	name := filepath.Join(dir, plain.ClaimName(base))
	f, err := t.fs.Create(name, vfs.Opt{})
	if err != nil {
		return missing(err)
	}
	_, err = f.WriteAt([]byte(claimMagic+data+"\n"+more), 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(classify(err), t.fs.Remove(name))
	}
	return nil
}

// note writes a line into a claim, at off; below 0: behind what it has.
func (t *Target) note(dir, base, line string, off int64) error {
	f, err := t.fs.OpenWrite(filepath.Join(dir, plain.ClaimName(base)), vfs.Opt{})
	if errors.Is(missing(err), fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if off < 0 {
		off, err = f.Size()
	}
	if err == nil {
		_, err = f.WriteAt([]byte(line), off)
	}
	return classify(errors.Join(err, f.Sync(), f.Close()))
}

// wait tells the holder of a blob's name that there is another column.
func (t *Target) wait(dir, base string) error {
	c, err := t.holder(dir, base)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) || c.waits {
		return nil
	} else if err != nil {
		return err
	}
	return t.note(dir, base, claimWaits, -1)
}

// old says whether a claim was last written by a process that is dead by now.
func (t *Target) old(dir, base string) bool {
	info, err := t.fs.Stat(filepath.Join(dir, plain.ClaimName(base)))
	return err == nil && time.Since(info.ModTime()) > t.opt.Stale
}

// release ends the claim of that data and, if remove, removes the file that has
// the blob's name. Taking the claim away by a rename keeps two processes from
// doing so at the same time; while the file is there nobody else gets the name.
func (t *Target) release(dir, base, data string, remove bool) (waits bool, err error) {
	name, tmp := filepath.Join(dir, plain.ClaimName(base)), t.path(ownDir, stagingDir, t.unique(kindData))
	if err := t.fs.Rename(name, tmp); errors.Is(missing(err), fs.ErrNotExist) {
		return false, nil // somebody else is at it
	} else if err != nil {
		return false, err
	}
	c, err := t.readClaim(tmp, base)
	if errors.Is(err, catalog.ErrCorrupt) { // its next holder is writing it
		c, err = claimed{}, nil
	}
	if err != nil || c.data != data {
		return false, errors.Join(t.fs.Rename(tmp, name), err) // it changed hands meanwhile
	}
	t.unstage(tmp)
	if remove {
		if err := t.fs.Remove(filepath.Join(dir, base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c.waits, err
		}
	}
	return c.waits, t.syncGone(dir)
}

// syncGone makes the removal of names durable, in a folder that may be gone too.
func (t *Target) syncGone(dir string) error {
	if err := t.fs.SyncDir(dir); err != nil && !errors.Is(missing(err), fs.ErrNotExist) {
		return err
	}
	return nil
}

// take gives the file at from the blob's own name, if that is free or was
// being given to it. Nothing is overwritten: the name is made first, empty and
// exclusively. It leaves the folder to be synced. With an error, taken says
// that there is a file of that name, which is ours.
func (t *Target) take(dir, base, data, from, more string) (taken bool, err error) {
	name := filepath.Join(dir, base)
	begun := false // by a process that died
	switch err := t.claim(dir, base, data, more); {
	case errors.Is(err, fs.ErrExist):
		if c, err := t.holder(dir, base); err != nil || c.data != data || !t.old(dir, base) {
			return false, nil
		}
		begun = true
	case err != nil:
		return false, err
	}
	if err := t.fs.SyncDir(dir); err != nil {
		return false, err
	}
	f, err := t.fs.Create(name, vfs.Opt{})
	if err == nil {
		err = f.Close()
	} else if errors.Is(err, fs.ErrExist) && begun {
		if info, serr := t.fs.Stat(name); serr != nil || info.IsDir() || info.Size() > 0 {
			return false, nil // it has its bytes already, or is somebody's: clear will see
		}
		err = nil
	}
	if err != nil {
		if _, rerr := t.release(dir, base, data, false); rerr != nil {
			return false, rerr
		}
		if errors.Is(err, fs.ErrExist) {
			return false, nil
		}
		return false, err
	}
	return true, t.fs.Rename(from, name)
}
