package localtier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// sums are what a file's seal will say of it.
type sums struct {
	size int64
	crcs []uint32
}

// Sum makes a file's bytes durable and reads them once, for its seal. A file
// that is open for writing, or is opened meanwhile, is ErrConflict. progress,
// which may be nil, is told how many bytes more were read.
func (a *Area) Sum(ctx context.Context, name string, progress func(n int64)) error {
	a.mu.Lock()
	f, err := a.mu.files[name], error(nil)
	switch {
	case f == nil:
		err = fs.ErrNotExist
	case f.sums == nil:
		err = f.unwritten()
	}
	if err != nil || f.sums != nil {
		a.mu.Unlock()
		return err
	}
	opens := f.opens
	file, err := a.t.fsys.Open(f.path(), vfs.Opt{})
	a.mu.Unlock()
	if err != nil {
		return fmt.Errorf("sum %.200q: %w", name, err)
	}
	defer file.Close()
	s, err := sumFile(ctx, file, progress)
	if err != nil {
		if ctx.Err() == nil {
			a.t.failed(a.d, err)
		}
		return fmt.Errorf("sum %.200q: disk %s: %w", name, a.d.dir, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if f.opens != opens || f.name == "" {
		return fmt.Errorf("sum %.200q: %w: it was opened for writing meanwhile", name, catalog.ErrConflict)
	}
	a.t.charge(s.size - f.size)
	f.sums, f.size = s, s.size
	return nil
}

func sumFile(ctx context.Context, file vfs.File, progress func(int64)) (*sums, error) {
	// What is on its way to the disk gets there first: an error of it is ours.
	if err := file.Sync(); err != nil {
		return nil, err
	}
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	if size > catalog.MaxShardSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", catalog.ErrInvalid, size, int64(catalog.MaxShardSize))
	}
	s := &sums{size: size, crcs: make([]uint32, catalog.Blocks(size))}
	buf := getBuffer()
	defer putBuffer(buf)
	for i := range s.crcs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		off := int64(i) * catalog.BlockSize
		p := (*buf)[:min(catalog.BlockSize, size-off)]
		if n, err := file.ReadAt(p, off); n < len(p) {
			if err == nil || err == io.EOF {
				err = fmt.Errorf("%w: it became shorter", catalog.ErrConflict)
			}
			return nil, err
		}
		s.crcs[i] = catalog.Sum32C(p)
		if progress != nil {
			progress(int64(len(p)))
		}
	}
	return s, nil
}

// Adopt makes a file of a frozen area the blob name, durably, with info in its
// seal, and takes it out of the area. A file whose blob is there already is only
// taken out. When it fails, the file is where it was, or the blob is there.
func (a *Area) Adopt(ctx context.Context, file, name string, info []byte) error {
	if len(info) > catalog.MaxSealInfo {
		return fmt.Errorf("adopt %.200q: %w: info of %d bytes, the limit is %d", file, catalog.ErrInvalid, len(info), catalog.MaxSealInfo)
	}
	if err := checkName(name); err != nil {
		return err
	}
	if err := a.Sum(ctx, file, nil); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.mu.files[file]
	if f == nil || f.sums == nil || !a.mu.frozen {
		return fmt.Errorf("adopt %.200q: %w: the area changed", file, catalog.ErrConflict)
	}
	err := a.adopt(f, name, info)
	a.t.failed(a.d, err)
	if err != nil {
		return fmt.Errorf("adopt %.200q as %s: disk %s: %w", file, name, a.d.dir, err)
	}
	return nil
}

// adopt makes one file a blob. Area.mu is held.
func (a *Area) adopt(f *areaFile, name string, info []byte) error {
	t := a.t
	seal := &catalog.Seal{Name: name, Size: f.sums.size, CRCs: f.sums.crcs, Info: slices.Clone(info)}
	l := t.lockOf(name)
	l.Lock()
	defer l.Unlock()
	if e, err := t.lookup(name); err == nil {
		if e.info.Root != seal.Root() {
			return fmt.Errorf("%w: there is another blob of that name", fs.ErrExist)
		}
	} else if err := a.publish(f, seal); err != nil {
		return err
	}
	if err := clean(t.fsys.Remove(f.path())); err != nil {
		return err // tried again with the next Adopt
	}
	f.unname()
	a.mu.loose = true
	return nil
}

// publish gives a file its second name. Area.mu and the blob's name lock are held.
func (a *Area) publish(f *areaFile, seal *catalog.Seal) error {
	t := a.t
	t.mu.Lock()
	busy := t.mu.staged[seal.Name] != nil
	t.mu.Unlock()
	if busy {
		return fmt.Errorf("%w: it is being written", catalog.ErrConflict)
	}
	file, err := t.fsys.Open(f.path(), vfs.Opt{})
	if err != nil {
		return err
	}
	sealTmp := sealTmp(t.stagingName(a.d))
	err = t.harden(file, sealTmp, seal)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	// The name it has now must outlive the attempt to give it another.
	if err := t.fsys.SyncDir(filepath.Join(a.dir, areaFiles)); err != nil {
		t.fsys.Remove(sealTmp)
		return err
	}
	if err := t.publish(a.d, seal.Name, f.path(), sealTmp, t.fsys.Link); err != nil {
		return err
	}
	t.charge(-f.size) // it counts as a blob from here on
	f.size = 0
	t.show(t.entryOf(a.d, seal, time.Now()))
	return nil
}
