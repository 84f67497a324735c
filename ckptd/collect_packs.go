package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Packs that no version names are collected by the coordinator: it condemns
// them, looks once more whether a version names them or is being written, and
// tombstones those that are still nobody's. From there on they go as every
// pruned set does. See catalog.Condemn for why a version that is committed
// meanwhile never misses a pack.

// maxCondemned bounds the packs of a dataset that are condemned in one round;
// those of the next round follow at once.
const maxCondemned = 1024

// packsEvery is how often the coordinator looks for packs that go.
func packsEvery(patience time.Duration) time.Duration {
	return min(max(patience/4, 100*time.Millisecond), time.Minute)
}

// collectPacks is the duty. A dataset with a version whose index cannot be read
// loses nothing, and holds up no other.
func (n *Node) collectPacks(ctx context.Context) error {
	if n.leader() != n.cfg.Name {
		return nil
	}
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	var errs []error
	for _, run := range n.cat.KnownRuns() {
		name, ok := catalog.PackName(run)
		if !ok {
			continue
		}
		if err := n.collectPacksOf(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("packs of dataset %s are kept: %w", name, err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

func (n *Node) collectPacksOf(ctx context.Context, name string) error {
	plan, err := n.planPacksOf(ctx, name)
	if err != nil {
		return err
	}
	if err := n.reprieve(ctx, plan.reprieve); err != nil {
		return err
	}
	if len(plan.condemn) > 0 {
		for _, p := range plan.condemn[:min(len(plan.condemn), maxCondemned)] {
			if _, err := n.cat.Condemn(ctx, p.SetID, time.Now()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		more := len(plan.condemn) > maxCondemned
		if err := n.cat.Sync(ctx); err != nil { // what was condemned is seen
			return err
		}
		if plan, err = n.planPacksOf(ctx, name); err != nil { // what comes to light is reprieved in the next round
			return err
		}
		if err := n.reprieve(ctx, plan.reprieve); err != nil {
			return err
		}
		if more {
			defer n.kickPacks.now()
		}
	}
	for _, p := range plan.bury {
		const why = "no version names it"
		_, err := n.cat.TombstoneCondemned(ctx, p.SetID, p.Condemned, why, time.Now())
		if errors.Is(err, catalog.ErrConflict) { // leased, pinned or reprieved since
			if err := n.reprieve(ctx, []catalog.SetRecord{p}); err != nil {
				return err
			}
			continue
		} else if errors.Is(err, fs.ErrNotExist) { // another coordinator was faster
			continue
		} else if err != nil {
			return err
		}
		n.stats.Pruned.Add(1)
		n.event(ctx, p.SetID, "pruned", why)
		n.log.Info("pack pruned: no version names it", "set", p.SetID.String(), "bytes", p.Size)
	}
	return nil
}

func (n *Node) reprieve(ctx context.Context, packs []catalog.SetRecord) error {
	for _, p := range packs {
		if _, err := n.cat.Reprieve(ctx, p.SetID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// planPacksOf looks at a dataset: at its packs first, then at its versions, so
// that no pack is without the version that was made of it.
func (n *Node) planPacksOf(ctx context.Context, name string) (packCollection, error) {
	packRun, err := catalog.PackRun(name)
	if err != nil {
		return packCollection{}, err
	}
	versionRun, err := catalog.DatasetRun(name)
	if err != nil {
		return packCollection{}, err
	}
	d := packSight{named: make(map[catalog.SetID]bool), patience: n.cfg.PackPatience, now: time.Now()}
	d.packs = n.cat.KnownWhere(packRun, func(s *catalog.SetRecord) bool { return s.State == catalog.Committed || s.State == catalog.Writing })
	if !d.worth() {
		return packCollection{}, nil
	}
	if err := n.cat.Sync(ctx); err != nil {
		return packCollection{}, err
	}
	if d.rebuilt, err = n.cat.Rebuilt(ctx); err != nil {
		return packCollection{}, err
	}
	all, _ := n.cat.Known(versionRun)
	for _, v := range all {
		switch v.State {
		case catalog.Writing:
			d.writing = true
			continue
		case catalog.Aborted:
			continue
		case catalog.Pruned: // within its grace, and while it is read, it is whole
			holders, err := n.cat.Leases(ctx, v.SetID, d.now)
			if err != nil {
				return packCollection{}, err
			}
			if len(holders) == 0 && planCollect(&v, n.cfg.Grace, d.now) {
				continue
			}
		}
		if v.Committed.After(d.newest) {
			d.newest = v.Committed
		}
		ids, err := n.packsNamed(ctx, v)
		if err != nil {
			return packCollection{}, err
		}
		for _, id := range ids {
			d.named[id] = true
		}
	}
	var failed error
	plan := planPacks(d, func(id catalog.SetID) bool {
		holders, err := n.cat.Leases(ctx, id, d.now)
		failed = errors.Join(failed, err)
		return len(holders) > 0 || err != nil
	})
	return plan, failed
}

// packSight is what is known of one dataset at a time.
type packSight struct {
	packs    []catalog.SetRecord    // committed, or being written
	named    map[catalog.SetID]bool // by a version that is visible, or may still be read
	writing  bool                   // a version is on its way
	newest   time.Time              // when the newest version was committed
	rebuilt  time.Time              // when the catalog was built anew
	patience time.Duration
	now      time.Time
}

// worth says whether any pack could go, or is condemned, whatever the versions
// name.
func (d *packSight) worth() bool {
	return slices.ContainsFunc(d.packs, func(p catalog.SetRecord) bool {
		return p.State == catalog.Committed && (!p.Condemned.IsZero() || d.now.Sub(p.Committed) >= d.patience)
	})
}

// packCollection says what is to be done with packs.
type packCollection struct{ condemn, bury, reprieve []catalog.SetRecord }

// planPacks is pure but for leased, which is asked about few.
//
// A pack that no version names goes when it has been there for the patience. One
// that is newer than the newest version may be of an import that is under way,
// or that was cut short and is taken up again: it goes when that long no pack
// has come. Nothing goes that is pinned or leased, nor what is newer than an
// unnamed pack that is leased: an import holds its first one. Nothing goes while
// a version is on its way, and for the patience after a rebuild, when versions
// may come back later than their packs.
func planPacks(d packSight, leased func(catalog.SetID) bool) (c packCollection) {
	var last time.Time // sign of life of an import
	for _, p := range d.packs {
		switch {
		case p.State == catalog.Writing && p.Begun.After(last):
			last = p.Begun
		case p.State == catalog.Committed && !d.named[p.SetID] && p.Committed.After(d.newest) && p.Committed.After(last):
			last = p.Committed
		}
	}
	free := func(p *catalog.SetRecord) bool {
		since := p.Committed
		if p.Committed.After(d.newest) && last.After(since) {
			since = last
		}
		if d.rebuilt.After(since) {
			since = d.rebuilt
		}
		return !d.named[p.SetID] && !p.Pinned && !d.writing && d.now.Sub(since) >= d.patience
	}
	packs := slices.Clone(d.packs)
	slices.SortStableFunc(packs, func(a, b catalog.SetRecord) int { return a.Committed.Compare(b.Committed) })
	held := false
	for _, p := range packs {
		if p.State != catalog.Committed {
			continue
		}
		goes := free(&p) && !held
		if goes && leased(p.SetID) {
			held, goes = true, false
		}
		switch {
		case goes && p.Condemned.IsZero():
			c.condemn = append(c.condemn, p)
		case goes:
			c.bury = append(c.bury, p)
		case !p.Condemned.IsZero():
			c.reprieve = append(c.reprieve, p)
		}
	}
	return c
}
