package localtier

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// maxSealFile bounds a seal's file, in bytes.
const maxSealFile = 4*(catalog.MaxShardSize/catalog.BlockSize) + catalog.MaxSealInfo + catalog.MaxSealName + 4096

// readFile reads a whole file of at most limit bytes.
func (t *Tier) readFile(name string, limit int64) ([]byte, error) {
	f, err := t.fsys.Open(name, vfs.Opt{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, the limit is %d", name, catalog.ErrCorrupt, size, limit)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && !(err == io.EOF && n == len(b)) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// writeFile makes a new file with b in it and syncs its bytes, not its name.
func (t *Tier) writeFile(name string, b []byte) error {
	f, err := t.newFile(name, b)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, t.fsys.Remove(name))
	}
	return err
}

// newFile makes a new file with b in it, not synced.
func (t *Tier) newFile(name string, b []byte) (vfs.File, error) {
	f, err := t.fsys.Create(name, vfs.Opt{})
	if err != nil {
		return nil, err
	}
	if len(b) > 0 {
		if _, err := f.WriteAt(b, 0); err != nil {
			return nil, errors.Join(err, f.Close(), t.fsys.Remove(name))
		}
	}
	return f, nil
}

// replaceFile writes b to name atomically and durably.
func (t *Tier) replaceFile(d *disk, name string, b []byte) error {
	tmp := t.stagingName(d)
	if err := t.writeFile(tmp, b); err != nil {
		return err
	}
	if err := t.fsys.Rename(tmp, name); err != nil {
		return errors.Join(err, t.fsys.Remove(tmp))
	}
	return t.fsys.SyncDir(filepath.Dir(name))
}

func (t *Tier) readSeal(file, name string) (*catalog.Seal, error) {
	b, err := t.readFile(file, maxSealFile)
	if err != nil {
		return nil, err
	}
	seal, err := catalog.ParseSeal(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if seal.Name != name {
		return nil, fmt.Errorf("%s: %w: it is the seal of %q", file, catalog.ErrCorrupt, seal.Name)
	}
	return seal, nil
}

func (t *Tier) entryOf(d *disk, seal *catalog.Seal, mod time.Time) *entry {
	return &entry{disk: d, info: Info{
		Name: seal.Name, Size: seal.Size, Root: seal.Root(), Path: d.data(seal.Name), Disk: d.dir, ModTime: mod,
	}}
}

// folder makes the folder of a blob and sees to it that its name, and those of
// the folders above it, are durable: an earlier process may have died between
// making one and syncing it. Tier.tree is held.
func (t *Tier) folder(d *disk, name string) error {
	dir := filepath.Dir(d.data(name))
	known := func(dir string) bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.mu.known[dir]
	}
	if known(dir) {
		return nil
	}
	if err := t.fsys.MkdirAll(dir); err != nil {
		return err
	}
	for up := dir; up != d.dir && !known(up); up = filepath.Dir(up) {
		if err := t.fsys.SyncDir(filepath.Dir(up)); err != nil {
			return err
		}
		t.mu.Lock()
		t.mu.known[up] = true
		t.mu.Unlock()
	}
	return nil
}

func sealTmp(staging string) string { return staging + sealSuffix + tmpSuffix }

// harden makes the bytes of a staging file durable, and its seal beside it:
// both at once, so that a journaling file system makes one commit of them.
func (t *Tier) harden(f vfs.File, sealTmp string, seal *catalog.Seal) error {
	var wg sync.WaitGroup
	var sealErr error
	wg.Go(func() { sealErr = t.writeFile(sealTmp, seal.Marshal()) })
	err := f.Sync()
	wg.Wait()
	if err != nil && sealErr == nil {
		t.fsys.Remove(sealTmp)
	}
	return errors.Join(err, sealErr)
}

// publish moves a staging file and its seal into place. Both are durable
// before either gets its name (see harden), so that whatever a crash leaves of
// the two names is either the whole blob or recognisably garbage. The seal
// goes first: a process that is killed between the two leaves the staging file
// for Resume. The blob's name lock is held.
//
// move is Rename, or, of a file that must not be lost whatever fails, Link.
func (t *Tier) publish(d *disk, name, staging, sealTmp string, move func(oldname, newname string) error) (err error) {
	t.tree.RLock()
	defer t.tree.RUnlock()
	data, sealed := d.data(name), d.seal(name)
	var undo []string
	defer func() {
		if err != nil {
			t.fsys.Remove(sealTmp)
			for _, file := range undo {
				t.fsys.Remove(file)
			}
			_ = t.fsys.SyncDir(filepath.Dir(data)) // on the way out
		}
	}()
	if err := t.folder(d, name); err != nil {
		return err
	}
	if err := t.makeWay(d, name); err != nil {
		return err
	}
	err = t.fsys.Rename(sealTmp, sealed)
	if errors.Is(err, fs.ErrNotExist) { // the folder was removed behind the tier's back
		t.forgetFolders()
		if err = t.folder(d, name); err == nil {
			err = t.fsys.Rename(sealTmp, sealed)
		}
	}
	if err != nil {
		return err
	}
	undo = append(undo, sealed)
	if err := move(staging, data); err != nil {
		return err
	}
	undo = append(undo, data)
	return t.fsys.SyncDir(filepath.Dir(data))
}

// makeWay removes files that a failed Remove or Commit left at a name that is
// not visible: an old seal must never meet new bytes.
func (t *Tier) makeWay(d *disk, name string) error {
	_, err := t.fsys.Stat(d.data(name))
	if err == nil {
		if _, err := t.lookup(name); err == nil {
			return fs.ErrExist
		}
	} else if _, err = t.fsys.Stat(d.seal(name)); err != nil {
		return clean(err)
	}
	return errors.Join(clean(t.fsys.Remove(d.seal(name))), clean(t.fsys.Remove(d.nextSeal(name))),
		clean(t.fsys.Remove(d.data(name))), t.fsys.SyncDir(filepath.Dir(d.data(name))))
}

// prune removes the folders of a blob that became empty.
func (t *Tier) prune(d *disk, name string) {
	t.tree.Lock()
	defer t.tree.Unlock()
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		full := d.data(dir)
		if t.fsys.Remove(full) != nil { // not empty, most of the time
			return
		}
		t.mu.Lock()
		delete(t.mu.known, full)
		t.mu.Unlock()
	}
}
