package posix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
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

// clear removes the data of a column that is not committed (any more), and
// what it has of the blob's own name. side is a file with its whole sidecar.
// waits says that others were waiting for that name.
func (t *Target) clear(s *plain.Sidecar, side string, k kind) (waits bool, err error) {
	dir, base := t.folder(s.Key.Blob)
	hidden := true
	if err := t.fs.Remove(filepath.Join(dir, s.Data)); errors.Is(missing(err), fs.ErrNotExist) {
		hidden = false
	} else if err != nil {
		return false, err
	}
	c, err := t.holder(dir, base)
	known := err == nil && c.data == s.Data
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// The file may be there all the same, where a crash came between the two.
		if err := t.claim(dir, base, s.Data, ""); errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	case errors.Is(err, catalog.ErrCorrupt):
		return false, t.dropTorn(dir, base)
	case err != nil:
		return false, err
	case !known:
		return false, nil
	case c.moves && !t.old(dir, base):
		return false, errBusy
	}
	name := filepath.Join(dir, base)
	ours := false
	if info, err := t.fs.Stat(name); err == nil && known && k == kindOld && !hidden {
		ours = !info.IsDir() // it was committed under that name, whatever its bytes are now
	} else if err == nil {
		if ours, err = t.matches(name, s, side); err != nil {
			return false, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return t.release(dir, base, s.Data, ours)
}

// dropTorn removes a claim that was not written to its end, when that is long ago.
func (t *Target) dropTorn(dir, base string) error {
	name := filepath.Join(dir, plain.ClaimName(base))
	if !t.old(dir, base) {
		return nil // its writer may be at it
	}
	if err := t.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// matches says whether a file is one that was made for a column and not
// filled, or holds the column's data.
func (t *Target) matches(name string, s *plain.Sidecar, side string) (bool, error) {
	f, err := t.fs.Open(name, vfs.Opt{})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if info, err := t.fs.Stat(name); err != nil || info.IsDir() {
		return false, errors.Join(err, f.Close())
	}
	r := &reader{side: s, data: f}
	defer r.Close()
	size, err := f.Size()
	if err != nil || size == 0 || size != s.Blob {
		return err == nil && size == 0, err
	}
	if r.sums, err = t.fs.Open(side, vfs.Opt{}); err != nil {
		return false, err
	}
	_, err = remotetier.CheckReader(context.Background(), r, vfs.AlignedBuffer(1<<20), nil)
	if errors.Is(err, catalog.ErrCorrupt) {
		return false, nil
	}
	return err == nil, err
}

// promote gives the blob's own name, when it is free, to the newest column
// that is there. A listing that is behind costs the blob its readable name
// until the next time, and nothing else.
func (t *Target) promote(blob string) error {
	dir, base := t.folder(blob)
	entries, err := t.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	} else if err != nil {
		return err
	}
	var best *remotetier.Key
	for _, e := range entries {
		key, kind, ok := plain.Parse(e.Name())
		if !ok || kind != plain.SidecarKind || key.Blob != base {
			continue
		}
		if best == nil || key.Generation > best.Generation || key.Generation == best.Generation && key.Column < best.Column {
			best = &key
		}
	}
	if best == nil {
		return nil
	}
	best.Blob = blob
	s, err := t.sidecar(*best)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) {
		return nil
	} else if err != nil {
		return err
	}
	return t.move(*best, s.Data)
}

// move gives committed data the blob's own name instead of its hidden one, if
// that is free. A record is copied: then there is no moment, whatever a crash
// leaves of a rename, at which its bytes have no name. Shards are too large for
// that, and every file system renames within a folder in one piece.
func (t *Target) move(key remotetier.Key, data string) error {
	dir, base := t.folder(key.Blob)
	hidden := filepath.Join(dir, data)
	from, err := t.copyOf(hidden)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile, or it has the name
	} else if err != nil {
		return err
	}
	taken, err := t.take(dir, base, data, from, claimMoves)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil && taken {
		err = errors.Join(t.note(dir, base, claimMoved, int64(len(claimMagic)+len(data)+1)), t.syncGone(dir))
	}
	if from != hidden && (err != nil || !taken) {
		t.unstage(from)
	}
	if err != nil || !taken {
		return err
	}
	// Whoever removes the column removes its sidecar first, and then looks for
	// a claim: one of the two sees what the other did.
	if now, err := t.sidecar(key); errors.Is(err, fs.ErrNotExist) || err == nil && now.Data != data {
		_, err := t.release(dir, base, data, true)
		return err
	}
	if from != hidden {
		if err := t.fs.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// copyOf stages a copy of a file of a record's size; of a larger one it gives
// the file itself.
func (t *Target) copyOf(name string) (string, error) {
	info, err := t.fs.Stat(name)
	if err != nil || info.Size() > remotetier.MaxSmall {
		return name, err
	}
	b, err := t.readFile(name, int(info.Size()))
	if err != nil {
		return "", err
	}
	return t.stage(kindData, b)
}

// demote makes room for a folder where a blob's data has its name, as for the
// blob a/b where a is one.
func (t *Target) demote(dir string) error {
	rel, err := filepath.Rel(t.dir, dir)
	if err != nil {
		return err
	}
	at := t.dir
	for part := range strings.SplitSeq(filepath.ToSlash(rel), "/") {
		name := filepath.Join(at, part)
		info, err := t.fs.Stat(name)
		if err != nil {
			return err
		}
		if info.IsDir() {
			at = name
			continue
		}
		c, err := t.holder(at, part)
		if err != nil || c.moves {
			return fmt.Errorf("%w: %s is a file that is not ours, and a folder is needed there; move it away", catalog.ErrConflict, name)
		}
		if err := t.fs.Rename(name, filepath.Join(at, c.data)); err != nil {
			return err
		}
		if err := t.fs.SyncDir(at); err != nil {
			return err
		}
		_, err = t.release(at, part, c.data, false)
		return err
	}
	return nil
}
