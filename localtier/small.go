package localtier

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// MaxSmall bounds what Put and Get take, in bytes.
const MaxSmall = 1 << 30

// Put stores a small blob, in place of an earlier one of that name: after a
// crash there is the old one or the new one. Quota does not refuse it, a full
// disk does: the set whose shards had room must not fail for its manifest.
func (t *Tier) Put(ctx context.Context, name string, b []byte) error {
	err := t.put(ctx, name, b)
	if errors.Is(err, fs.ErrNotExist) { // somebody removed folders behind the tier's back
		t.forgetFolders()
		t.mu.Lock()
		t.hide(name)
		t.mu.Unlock()
		err = t.put(ctx, name, b)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// forgetFolders makes folder look again which folders there are.
func (t *Tier) forgetFolders() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.mu.known)
}

func (t *Tier) put(ctx context.Context, name string, b []byte) error {
	if err := errors.Join(checkName(name), ctx.Err()); err != nil {
		return err
	}
	if len(b) > MaxSmall {
		return fmt.Errorf("%w: %d bytes, the limit is %d", catalog.ErrInvalid, len(b), MaxSmall)
	}
	seal := &catalog.Seal{Name: name, Size: int64(len(b)), CRCs: make([]uint32, catalog.Blocks(int64(len(b))))}
	sumBlocks(seal.CRCs, b)

	l := t.lockOf(name)
	l.Lock()
	defer l.Unlock()
	t.mu.Lock()
	old, busy, closed := t.mu.index[name], t.mu.staged[name] != nil, t.mu.closed
	t.mu.Unlock()
	switch {
	case closed:
		return fs.ErrClosed
	case busy:
		return fmt.Errorf("%w: it is being written", catalog.ErrConflict)
	}
	disks, err := t.order(seal.Size)
	if old != nil {
		disks, err = []*disk{old.disk}, nil
	}
	if err != nil {
		return err
	}
	if len(disks) == 0 {
		free := t.roomiest()
		return &Shortage{Need: seal.Size, Free: free, Short: max(1, seal.Size+sealRoom(seal.Size)-free)}
	}
	d := disks[0]
	tmp := t.stagingName(d)
	f, err := t.newFile(tmp, b)
	if err == nil {
		if err = t.harden(f, sealTmp(tmp), seal); err == nil && old == nil {
			err = t.publish(d, name, tmp, sealTmp(tmp), t.fsys.Rename)
		} else if err == nil {
			err = t.replace(old, tmp, seal)
		}
		f.Close()
		if err != nil {
			t.fsys.Remove(tmp)
		}
	}
	t.failed(d, err)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.dir, err)
	}
	if old == nil {
		t.show(t.entryOf(d, seal, time.Now()))
	}
	return nil
}

// replace exchanges a blob's bytes. Two names cannot change at once, so the
// new seal (durable in staging, see harden) first stands beside the old one: at every moment the bytes fit one
// of the two, and settle finds out which.
func (t *Tier) replace(old *entry, tmp string, seal *catalog.Seal) error {
	d, name := old.disk, seal.Name
	data, next := d.data(name), d.nextSeal(name)
	dir := filepath.Dir(data)
	sealTmp := sealTmp(tmp)
	if old.pending {
		if err := t.settle(old); err != nil {
			t.fsys.Remove(sealTmp)
			return err
		}
	}
	e := t.entryOf(d, seal, time.Now())
	err := t.fsys.Rename(sealTmp, next)
	if err != nil {
		t.fsys.Remove(sealTmp)
		return err
	}
	if err = t.fsys.SyncDir(dir); err == nil {
		if err = t.fsys.Rename(tmp, data); err == nil {
			err = t.fsys.SyncDir(dir)
		}
	}
	if err != nil {
		// What the disk holds now is for settle to say; until then Get finds out itself.
		o := *old
		o.pending = true
		if _, now, e := t.resolve(d, name); e == nil {
			info := t.entryOf(d, now, old.info.ModTime)
			o.info = info.info
		}
		t.show(&o)
		return err
	}
	// The new bytes are durable: whatever happens now, Put has succeeded.
	e.pending = true
	if t.settle(e) == nil {
		e.pending = false
	}
	t.show(e)
	return nil
}

// settle ends an interrupted replacement: one seal remains, the one that fits.
// The next seal is copied, not renamed: until the directory is synced, a rename
// may be half done on disk, the old name gone and the new one not yet changed.
func (t *Tier) settle(e *entry) error {
	d, name := e.disk, e.info.Name
	isNext, seal, err := t.resolve(d, name)
	if err != nil {
		return err
	}
	if isNext {
		if err := t.replaceFile(d, d.seal(name), seal.Marshal()); err != nil {
			return err
		}
	}
	return clean(t.fsys.Remove(d.nextSeal(name)))
}

// resolve reads a small blob's bytes and says which of its two seals fits them.
func (t *Tier) resolve(d *disk, name string) (isNext bool, _ *catalog.Seal, err error) {
	b, err := t.readFile(d.data(name), MaxSmall)
	if err != nil {
		return false, nil, err
	}
	var errs error
	for _, isNext := range []bool{true, false} {
		file := d.seal(name)
		if isNext {
			file = d.nextSeal(name)
		}
		seal, err := t.readSeal(file, name)
		if err == nil {
			if err = checkAll(seal, b); err == nil {
				return isNext, seal, nil
			}
		}
		errs = errors.Join(errs, err)
	}
	return false, nil, errs
}

func checkAll(seal *catalog.Seal, b []byte) error {
	if int64(len(b)) != seal.Size {
		return fmt.Errorf("%s: %w: %d bytes, its seal says %d", seal.Name, catalog.ErrCorrupt, len(b), seal.Size)
	}
	for i, want := range seal.CRCs {
		p := b[i*catalog.BlockSize : min(len(b), (i+1)*catalog.BlockSize)]
		if crc32.Checksum(p, catalog.Castagnoli) != want {
			return seal.CheckBlock(i, p)
		}
	}
	return nil
}

// Get reads and checks a blob of at most MaxSmall bytes.
func (t *Tier) Get(ctx context.Context, name string) ([]byte, error) {
	b, err := t.Open(name)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > MaxSmall {
		return nil, fmt.Errorf("get %s: %w: %d bytes, the limit is %d", name, catalog.ErrInvalid, b.Size(), MaxSmall)
	}
	p := make([]byte, b.Size())
	if _, err := b.ReadBlocks(ctx, 0, len(b.seal.CRCs), p); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	return p, nil
}
