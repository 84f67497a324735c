package localtier

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// scan removes what a crash left on a disk and indexes the rest.
func (t *Tier) scan(d *disk) error {
	if err := t.sweepStaging(d); err != nil {
		return err
	}
	if err := t.scanQuarantine(d); err != nil {
		return err
	}
	if _, err := t.scanFolder(d, ""); err != nil {
		return err
	}
	return t.scanAreas(d)
}

func (t *Tier) sweepStaging(d *disk) error {
	dir := filepath.Join(d.dir, stagingDir)
	entries, err := t.fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		if e.IsDir() || !strings.HasSuffix(e.Name(), tmpSuffix) || t.opt.Keep != nil && t.opt.Keep(file) {
			continue
		}
		if err := t.orphan(file); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tier) orphan(file string) error {
	if t.opt.Trace.Orphan != nil {
		t.opt.Trace.Orphan(file)
	}
	if err := t.fsys.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// found says which files of a blob a folder has.
type found struct{ data, seal, next bool }

// scanFolder indexes the folder dir (slash-separated, "" for the top) and
// those in it; empty reports whether nothing is left in it.
func (t *Tier) scanFolder(d *disk, dir string) (empty bool, err error) {
	if strings.Count(dir, "/") >= maxDepth {
		return false, nil // nothing of ours is that deep
	}
	full := d.data(dir)
	entries, err := t.fsys.ReadDir(full)
	if err != nil {
		return false, err
	}
	left := len(entries)
	blobs := map[string]found{}
	var order []string
	note := func(base string, set func(*found)) {
		b, ok := blobs[base]
		if !ok {
			order = append(order, base)
		}
		set(&b)
		blobs[base] = b
	}
	for _, e := range entries {
		base := e.Name()
		hidden, isHidden := strings.CutPrefix(base, ".")
		switch {
		case e.IsDir():
			if checkName(path.Join(dir, base)) != nil {
				continue // not ours
			}
			empty, err := t.scanFolder(d, path.Join(dir, base))
			if err != nil {
				return false, err
			}
			if empty && t.fsys.Remove(filepath.Join(full, base)) == nil {
				left--
			}
		case isHidden && strings.HasSuffix(hidden, nextSuffix):
			note(strings.TrimSuffix(hidden, nextSuffix), func(f *found) { f.next = true })
		case isHidden && strings.HasSuffix(hidden, sealSuffix):
			note(strings.TrimSuffix(hidden, sealSuffix), func(f *found) { f.seal = true })
		case !isHidden:
			note(base, func(f *found) { f.data = true })
		}
	}
	// A process that died may have moved or removed files here and not synced
	// their names: what is seen now must stay so.
	if err := t.fsys.SyncDir(full); err != nil {
		return false, err
	}
	if len(order) == 0 {
		return left == 0, nil
	}
	for _, base := range order {
		name := path.Join(dir, base)
		if checkName(name) != nil {
			continue // not ours
		}
		if err := t.scanBlob(d, name, blobs[base]); err != nil {
			return false, err
		}
	}
	entries, err = t.fsys.ReadDir(full)
	return len(entries) == 0, err
}

// scanBlob decides what becomes of one blob's files.
func (t *Tier) scanBlob(d *disk, name string, has found) error {
	if !has.data || !has.seal && !has.next {
		// One half of a pair: the power failed before Commit returned, or
		// during a Remove. The bytes were promised to nobody.
		for file, there := range map[string]bool{d.data(name): has.data, d.seal(name): has.seal, d.nextSeal(name): has.next} {
			if there {
				if err := t.orphan(file); err != nil {
					return err
				}
			}
		}
		return nil
	}
	seal, err := t.scanSeal(d, name, has)
	if err != nil {
		// No crash leaves this: seals are synced before they get their names.
		return t.setAside(d, name, err)
	}
	fi, err := t.fsys.Stat(d.data(name))
	if err != nil {
		return err
	}
	if fi.Size() != seal.Size {
		return t.setAside(d, name, fmt.Errorf("%w: %d bytes, its seal says %d", catalog.ErrCorrupt, fi.Size(), seal.Size))
	}
	if other := t.mu.index[name]; other != nil {
		return t.setAside(d, name, fmt.Errorf("%w: disk %s has a blob of this name too", catalog.ErrConflict, other.disk.dir))
	}
	t.show(t.entryOf(d, seal, fi.ModTime()))
	return nil
}

func (t *Tier) scanSeal(d *disk, name string, has found) (*catalog.Seal, error) {
	if has.next {
		e := &entry{disk: d, info: Info{Name: name}}
		if err := t.settle(e); err != nil {
			return nil, err
		}
	}
	return t.readSeal(d.seal(name), name)
}
