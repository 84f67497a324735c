package localtier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Remove removes a blob and the folders it leaves empty, durably. A blob that
// is not there is nil. What an error leaves is not visible, and is removed by
// the next Open at the latest.
func (t *Tier) Remove(ctx context.Context, name string) error {
	if err := errors.Join(checkName(name), ctx.Err()); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	l := t.lockOf(name)
	l.Lock()
	defer l.Unlock()
	t.mu.Lock()
	e := t.hide(name)
	t.mu.Unlock()
	if e == nil {
		return nil
	}
	err := t.delete(e)
	t.failed(e.disk, err)
	if err != nil {
		return fmt.Errorf("remove %s: disk %s: %w", name, e.disk.dir, err)
	}
	t.prune(e.disk, name)
	return nil
}

// delete removes a hidden blob's files, durably.
func (t *Tier) delete(e *entry) error {
	// Nobody may remove the folder before it is synced.
	t.tree.RLock()
	defer t.tree.RUnlock()
	d, name := e.disk, e.info.Name
	// The seal first: from then on the blob is garbage to every reader of the disk.
	err := t.fsys.Remove(d.seal(name))
	if e.pending {
		err = errors.Join(clean(err), clean(t.fsys.Remove(d.nextSeal(name))))
	}
	if clean(err) != nil {
		t.show(e)
		return err
	}
	err = clean(t.fsys.Remove(d.data(name)))
	return errors.Join(err, t.fsys.SyncDir(filepath.Dir(d.data(name))))
}

// clean forgives that something to be removed was missing.
func clean(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Quarantine puts a bad blob aside: it is visible no more, its files are kept
// under quarantine/ until Options.Quarantine makes the oldest go. A blob that
// is not there is nil.
func (t *Tier) Quarantine(ctx context.Context, name string, cause error) error {
	if err := errors.Join(checkName(name), ctx.Err()); err != nil {
		return fmt.Errorf("quarantine %s: %w", name, err)
	}
	l := t.lockOf(name)
	l.Lock()
	defer l.Unlock()
	t.mu.Lock()
	e := t.hide(name)
	t.mu.Unlock()
	if e == nil {
		return nil
	}
	t.tree.RLock() // nobody may remove the folder before it is synced
	err := t.setAside(e.disk, name, cause)
	t.tree.RUnlock()
	t.failed(e.disk, err)
	if err != nil {
		return fmt.Errorf("quarantine %s: disk %s: %w", name, e.disk.dir, err)
	}
	t.prune(e.disk, name)
	return t.trimQuarantine()
}

// maxAside bounds how many blobs are kept in quarantine, whatever their size.
const maxAside = 1000

// setAside moves a blob's files into quarantine. The data goes first: a seal
// that is left alone is garbage, data that is left alone would be.
func (t *Tier) setAside(d *disk, name string, cause error) error {
	if t.opt.Trace.Quarantined != nil {
		t.opt.Trace.Quarantined(name, cause)
	}
	dir := filepath.Join(d.dir, quarantineDir)
	t.mu.Lock()
	t.mu.seq++
	to := filepath.Join(dir, fmt.Sprintf("%016x-%06d-%s", time.Now().UnixNano(), t.mu.seq, path.Base(name)))
	t.mu.Unlock()
	data := d.data(name)
	fi, err := t.fsys.Stat(data)
	if err == nil {
		err = t.fsys.Rename(data, to)
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.mu.quarantined += fi.Size()
	t.mu.Unlock()
	err = errors.Join(clean(t.fsys.Rename(d.seal(name), to+sealSuffix)), clean(t.fsys.Remove(d.nextSeal(name))))
	// The note is for people; without it the blob is as well put aside.
	why := fmt.Sprintf("blob: %s\ncause: %v\n", name, cause)
	_ = t.writeFile(to+".why", []byte(why[:min(len(why), 4096)]))
	return errors.Join(err, t.fsys.SyncDir(dir), t.fsys.SyncDir(filepath.Dir(data)))
}

// aside is a blob in quarantine.
type aside struct {
	dir, base string
	size      int64
}

func isNote(base string) bool {
	return strings.HasSuffix(base, sealSuffix) || strings.HasSuffix(base, ".why")
}

func (t *Tier) listQuarantine(d *disk) ([]aside, error) {
	dir := filepath.Join(d.dir, quarantineDir)
	entries, err := t.fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []aside
	for _, e := range entries {
		if e.IsDir() || isNote(e.Name()) {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return nil, err
		}
		out = append(out, aside{dir: dir, base: e.Name(), size: fi.Size()})
	}
	return out, nil
}

func (t *Tier) scanQuarantine(d *disk) error {
	all, err := t.listQuarantine(d)
	for _, a := range all {
		t.mu.quarantined += a.size
	}
	return err
}

// trimQuarantine removes the oldest blobs put aside until the rest is within its bounds.
func (t *Tier) trimQuarantine() error {
	var all []aside
	for _, d := range t.disks {
		some, err := t.listQuarantine(d)
		if err != nil {
			return err
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b aside) int { return strings.Compare(a.base, b.base) }) // by time
	var sum int64
	for _, a := range all {
		sum += a.size
	}
	var errs error
	for i, a := range all {
		if sum <= t.opt.Quarantine && len(all)-i <= maxAside {
			break
		}
		for _, suffix := range []string{"", sealSuffix, ".why"} {
			errs = errors.Join(errs, clean(t.fsys.Remove(filepath.Join(a.dir, a.base+suffix))))
		}
		sum -= a.size
	}
	t.mu.Lock()
	t.mu.quarantined = sum
	t.mu.Unlock()
	return errs
}
