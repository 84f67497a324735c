package packs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
)

// SetNext says when readers' orders next need each shard, in bytes read
// before; what is not there is needed by no order that is known.
func (c *Cache) SetNext(next map[catalog.SetID]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.next = next
}

// Free makes room on the disks for something more important: need bytes, or
// as many as can go. It gives how many went.
func (c *Cache) Free(ctx context.Context, need int64) (int64, error) {
	return c.evict(ctx, need, NotKnown)
}

// evict removes copies, as PlanEvict says.
func (c *Cache) evict(ctx context.Context, need, before int64) (freed int64, err error) {
	c.mu.Lock()
	ids := make(map[string]catalog.SetID, len(c.mu.copies))
	cands := make([]Candidate, 0, len(c.mu.copies))
	for id, k := range c.mu.copies {
		next, known := c.mu.next[id]
		if !known {
			next = NotKnown
		}
		ids[k.name] = id
		cands = append(cands, Candidate{Name: k.name, Size: k.size, Used: k.used, Next: next, Held: c.isHeld(id), Lent: k.lent > 0})
	}
	policy := c.mu.policy
	c.mu.Unlock()
	names, _ := PlanEvict(cands, need, before, policy)
	for _, name := range names {
		c.letGo(ids[name])
		n, err := c.drop(ctx, ids[name], false)
		if err != nil {
			return freed, err
		}
		if freed += n; n > 0 {
			c.stats.evicted.Add(1)
			c.stats.evictedBytes.Add(n)
		}
	}
	return freed, nil
}

// isHeld says whether somebody has a shard open who may read it at any moment;
// the lock is held.
func (c *Cache) isHeld(id catalog.SetID) bool {
	e := c.mu.open[id]
	return e != nil && e.users > len(e.parked)
}

// letGo has parked handles let go of a shard.
func (c *Cache) letGo(id catalog.SetID) {
	c.mu.Lock()
	var parked []*Handle
	if e := c.mu.open[id]; e != nil {
		parked = slices.Collect(maps.Keys(e.parked))
	}
	c.mu.Unlock()
	for _, h := range parked {
		h.letGo()
	}
}

// drop removes one copy, unless somebody has opened it meanwhile.
func (c *Cache) drop(ctx context.Context, id catalog.SetID, evenOpen bool) (int64, error) {
	c.mu.Lock()
	k := c.mu.copies[id]
	if k == nil || c.mu.open[id] != nil && !evenOpen {
		c.mu.Unlock()
		return 0, nil
	}
	delete(c.mu.copies, id)
	wasted := k.prefetched
	c.mu.Unlock()
	if wasted {
		c.stats.wasted.Add(1)
	}
	if err := c.opt.Local.Remove(ctx, k.name); err != nil {
		c.mu.Lock()
		c.mu.copies[id] = k // it still takes room
		c.mu.Unlock()
		return 0, fmt.Errorf("evict a copy: %w", err)
	}
	return k.size, nil
}

// Remove drops a copy whose set is no more. Handles on it stay readable.
func (c *Cache) Remove(ctx context.Context, id catalog.SetID) error {
	_, err := c.drop(ctx, id, true)
	return err
}

// reserve makes room for a copy that is to arrive, within the quota. want is
// when it is needed. It is ErrNoSpace when there cannot be enough; but an index
// is let in over the quota, because nothing of its version is read without it.
// One at a time makes room: two would choose the same copies to evict.
func (c *Cache) reserve(ctx context.Context, ref restore.ShardRef, want int64) error {
	c.making.Lock()
	defer c.making.Unlock()
	size := ref.Size
	_, index := catalog.DatasetName(ref.Set.Run)
	for last := false; ; {
		c.mu.Lock()
		quota := c.mu.quota
		over := c.used() + size - quota
		if over <= 0 || last && index {
			c.mu.arrives += size
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if last || size > quota && !index {
			return fmt.Errorf("%w: a copy of %d bytes, over the cache's %d by %d, which all is in use or needed sooner", catalog.ErrNoSpace, size, quota, over)
		}
		freed, err := c.evict(ctx, over, want)
		if err != nil {
			return err
		}
		last = freed == 0 // what could go, went
	}
}

func (c *Cache) unreserve(size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.arrives -= size
}

// quarantine puts a bad copy aside.
func (c *Cache) quarantine(ctx context.Context, e *entry, cause error) error {
	c.log.Warn("cached copy is bad; it is put aside and fetched again", "shard", e.ref.String(), "err", cause)
	c.stats.bad.Add(1)
	c.detach(e)
	c.mu.Lock()
	delete(c.mu.copies, e.ref.Set)
	c.mu.Unlock()
	err := c.opt.Local.Quarantine(context.WithoutCancel(ctx), Name(e.ref.Set), cause)
	if err != nil {
		return errors.Join(cause, err)
	}
	return nil
}
