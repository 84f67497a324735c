package posix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

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
		if ours && !known { // two writings of one shard have the same bytes
			used, err := t.inUse(s.Key.Blob)
			if err != nil {
				return false, err
			}
			ours = !used
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

// sidecars gives the columns of a blob that have one, as the folder lists them.
func (t *Target) sidecars(blob string) ([]remotetier.Key, error) {
	dir, base := t.folder(blob)
	entries, err := t.fs.ReadDir(dir)
	if errors.Is(missing(err), fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var keys []remotetier.Key
	for _, e := range entries {
		if key, kind, ok := plain.Parse(e.Name()); ok && kind == plain.SidecarKind && key.Blob == base {
			key.Blob = blob
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// inUse says whether a committed column's data can have the blob's own name,
// because it has no other.
func (t *Target) inUse(blob string) (bool, error) {
	keys, err := t.sidecars(blob)
	if err != nil {
		return false, err
	}
	dir, _ := t.folder(blob)
	for _, key := range keys {
		s, err := t.sidecar(key)
		if errors.Is(err, catalog.ErrCorrupt) {
			return true, nil // nobody can tell
		} else if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return false, err
		}
		if _, err := t.fs.Stat(filepath.Join(dir, s.Data)); errors.Is(err, fs.ErrNotExist) {
			return true, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, nil
}

// promote gives the blob's own name, when it is free, to the newest column
// that is there. A listing that is behind costs the blob its readable name
// until the next time, and nothing else.
func (t *Target) promote(blob string) error {
	keys, err := t.sidecars(blob)
	if err != nil || len(keys) == 0 {
		return err
	}
	best := slices.MaxFunc(keys, func(a, b remotetier.Key) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(b.Column, a.Column))
	})
	s, err := t.sidecar(best)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) {
		return nil
	} else if err != nil {
		return err
	}
	return t.move(best, s.Data) // which is nothing to do if it has the name
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
