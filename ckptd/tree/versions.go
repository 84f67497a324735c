package tree

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/fuse"
)

// maxVersions bounds the versions that stay open while nothing of them is
// used; maxPacks the packs of one that do: what is open is not evicted.
const (
	maxVersions = 32
	maxPacks    = 8
)

// versions keeps open what was used last.
type versions struct {
	store Store
	mu    struct {
		sync.Mutex
		of     map[catalog.SetID]*version
		recent *list.List // of *version; the front was used last
	}
}

// version is a Version that several use.
type version struct {
	Version
	rec  catalog.SetRecord
	all  *versions
	elem *list.Element
	uses int           // guarded by versions.mu
	done chan struct{} // closed when it is open, or err is set
	err  error

	packs struct {
		sync.Mutex
		of     map[int]*packFile
		recent *list.List // of *packFile
	}
}

func (c *versions) init(store Store) {
	c.store = store
	c.mu.of, c.mu.recent = make(map[catalog.SetID]*version), list.New()
}

// use opens a version until it is released.
func (c *versions) use(ctx context.Context, rec catalog.SetRecord) (*version, error) {
	c.mu.Lock()
	v := c.mu.of[rec.SetID]
	if v == nil {
		v = &version{rec: rec, all: c, done: make(chan struct{}), uses: 1}
		v.packs.of, v.packs.recent = make(map[int]*packFile), list.New()
		c.mu.of[rec.SetID] = v
		v.elem = c.mu.recent.PushFront(v)
		c.mu.Unlock()
		v.Version, v.err = c.store.OpenVersion(ctx, rec)
		if v.err != nil {
			c.mu.Lock()
			c.remove(v) // the next one tries again
			c.mu.Unlock()
		}
		close(v.done)
		if v.err != nil {
			return nil, v.err
		}
		return v, nil
	}
	v.uses++
	c.mu.recent.MoveToFront(v.elem)
	c.mu.Unlock()
	select {
	case <-v.done:
	case <-ctx.Done():
		v.release()
		return nil, ctx.Err()
	}
	switch {
	case errors.Is(v.err, context.Canceled) && ctx.Err() == nil: // of who came first
		v.release()
		return c.use(ctx, rec)
	case v.err != nil:
		v.release()
		return nil, v.err
	}
	return v, nil
}

// remove is called with the lock held.
func (c *versions) remove(v *version) {
	if c.mu.of[v.rec.SetID] == v {
		delete(c.mu.of, v.rec.SetID)
		c.mu.recent.Remove(v.elem)
	}
}

// release ends a use. What nobody uses and is not among the last is closed.
func (v *version) release() {
	c := v.all
	var closing []*version
	c.mu.Lock()
	v.uses--
	for e := c.mu.recent.Back(); e != nil && c.mu.recent.Len() > maxVersions; {
		old := e.Value.(*version)
		e = e.Prev()
		if old.uses == 0 {
			c.remove(old)
			closing = append(closing, old)
		}
	}
	c.mu.Unlock()
	for _, old := range closing {
		old.shut()
	}
}

func (v *version) shut() {
	v.packs.Lock()
	defer v.packs.Unlock()
	for e := v.packs.recent.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*packFile).f.Close() // only read from
	}
	if v.Version != nil {
		_ = v.Version.Close() // only read from
	}
}

// Close lets go of everything that is open and not used.
func (t *Tree) Close() {
	t.write.telling.Wait()
	c := &t.vers
	c.mu.Lock()
	var closing []*version
	for e := c.mu.recent.Front(); e != nil; {
		v := e.Value.(*version)
		e = e.Next()
		if v.uses == 0 {
			c.remove(v)
			closing = append(closing, v)
		}
	}
	c.mu.Unlock()
	for _, v := range closing {
		v.shut()
	}
}

// packFile is a pack that several read.
type packFile struct {
	pack int
	f    fuse.File
	uses int
	elem *list.Element
}

// read fills p from a pack.
func (v *version) read(ctx context.Context, pack int, p []byte, off int64) error {
	pf, err := v.open(ctx, pack)
	if err != nil {
		return err
	}
	n, err := pf.f.ReadAt(ctx, p, off)
	v.leave(pf)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("pack %d: %w: %d bytes at %d are behind its end", pack, catalog.ErrCorrupt, len(p), off)
	}
	return err
}

func (v *version) open(ctx context.Context, pack int) (*packFile, error) {
	v.packs.Lock()
	pf := v.packs.of[pack]
	if pf != nil {
		pf.uses++
		v.packs.recent.MoveToFront(pf.elem)
	}
	v.packs.Unlock()
	if pf != nil {
		return pf, nil
	}
	f, err := v.OpenPack(ctx, pack)
	if err != nil {
		return nil, err
	}
	v.packs.Lock()
	defer v.packs.Unlock()
	if pf := v.packs.of[pack]; pf != nil { // another was faster
		pf.uses++
		return pf, f.Close()
	}
	pf = &packFile{pack: pack, f: f, uses: 1}
	pf.elem = v.packs.recent.PushFront(pf)
	v.packs.of[pack] = pf
	return pf, nil
}

func (v *version) leave(pf *packFile) {
	v.packs.Lock()
	defer v.packs.Unlock()
	pf.uses--
	if f, ok := pf.f.(Parker); ok && pf.uses == 0 {
		f.Park()
	}
	for e := v.packs.recent.Back(); e != nil && v.packs.recent.Len() > maxPacks; {
		old := e.Value.(*packFile)
		e = e.Prev()
		if old.uses == 0 {
			v.packs.recent.Remove(old.elem)
			delete(v.packs.of, old.pack)
			_ = old.f.Close() // only read from
		}
	}
}
