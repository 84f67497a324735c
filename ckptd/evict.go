package ckptd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
)

// evictOnce makes room above the high-water mark.
func (n *Node) evictOnce(ctx context.Context) error {
	u := n.local.Usage()
	if !u.High {
		return nil
	}
	freed, err := n.makeRoom(ctx, u.EvictBytes)
	if err == nil && freed < u.EvictBytes {
		err = fmt.Errorf("%w: the local tier is above its high-water mark and only %d of %d bytes were safe to evict; prune sets, or wait for the drain", catalog.ErrNoSpace, freed, u.EvictBytes)
	}
	return err
}

// makeRoom frees need bytes, copies of packs first: they can be had again.
func (n *Node) makeRoom(ctx context.Context, need int64) (int64, error) {
	freed, err := n.packs.Free(ctx, need)
	if err != nil {
		n.log.Warn("cached packs stay", "err", err)
	}
	if freed >= need {
		return freed, nil
	}
	more, err := n.evict(ctx, need-freed)
	return freed + more, err
}

// evict drops local copies until need bytes are free, oldest first, and only
// those that another tier holds checked (promise 5).
func (n *Node) evict(ctx context.Context, need int64) (freed int64, err error) {
	type source struct {
		id   catalog.SetID
		name string
		rank int
		root catalog.Digest
		size int64
	}
	from := make(map[string]source)
	var cands []localtier.Candidate
	for _, w := range n.inv.all() {
		rec, ok := n.cat.KnownSet(w.id)
		if !ok || rec.State != catalog.Committed || w.part == nil {
			continue
		}
		parts := []catalog.PartRecord{*w.part} // a cheap first look; asked again below
		for _, s := range w.shards {
			from[s.name] = source{w.id, s.name, s.rank, s.root, s.size}
			cands = append(cands, localtier.Candidate{
				Name: s.name, Size: s.size, LastUse: rec.Committed,
				Safe: catalog.SafeToDrop(n.cfg.Name, s.rank, s.root, parts),
			})
		}
	}
	// What is being read stays; then others have to go, so it is planned anew.
	for freed < need {
		names := localtier.PlanEvict(cands, need-freed)
		if len(names) == 0 {
			break
		}
		for _, name := range names {
			src := from[name]
			if err := n.evictShard(ctx, src.id, src.name, src.rank, src.root); err == nil {
				freed += src.size
			} else if !errors.Is(err, catalog.ErrConflict) { // no longer safe, or being read
				return freed, err
			}
		}
		cands = slices.DeleteFunc(cands, func(c localtier.Candidate) bool { return slices.Contains(names, c.Name) })
	}
	return freed, nil
}

// evictShard gives up one local copy: the statement first, then the bytes. A
// crash in between leaves bytes nobody counts on, which voteSet removes.
func (n *Node) evictShard(ctx context.Context, id catalog.SetID, name string, rank int, root catalog.Digest) error {
	parts, err := n.cat.Parts(ctx, id)
	if err != nil {
		return err
	}
	holders, err := n.cat.Leases(ctx, id, time.Now())
	if err != nil {
		return err
	}
	if !catalog.SafeToDrop(n.cfg.Name, rank, root, parts) || len(holders) > 0 {
		return fmt.Errorf("evict %v rank %d: %w: not checked elsewhere, or being read", id, rank, catalog.ErrConflict)
	}
	if err := n.state(ctx, id, rank, root, func(s *catalog.PartShard) { s.Local = false }); err != nil {
		return err
	}
	if err := n.dropLocal(ctx, id, rank, name); err != nil {
		return err
	}
	n.stats.Evicted.Add(1)
	n.event(ctx, id, "evicted", "rank %d from %s", rank, n.cfg.Name)
	return n.raiseLevel(ctx, id)
}
