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

// voteOnce tells the catalog of every shard that is durable here and not yet
// stated there. It is how votes are first given, and how they are delivered
// after the catalog was away or the daemon died.
func (n *Node) voteOnce(ctx context.Context) error {
	var errs []error
	orphans := 0
	for _, w := range n.inv.unstated() {
		if w.awaits(time.Now()) {
			continue
		}
		if err := n.voteSet(ctx, w.id); err != nil {
			errs = append(errs, err)
			if errors.Is(err, catalog.ErrUnavailable) || ctx.Err() != nil {
				break
			}
		}
	}
	for _, w := range n.inv.all() {
		if w.orphan {
			orphans++
		}
	}
	if orphans > 0 {
		n.setTrouble("orphans", fmt.Errorf("%d committed sets on these disks are unknown to the catalog; `ckpt catalog rebuild` brings them back, `ckpt catalog fsck` lists them", orphans))
	} else {
		n.setTrouble("orphans", nil)
	}
	return errors.Join(errs...)
}

// voteSet states this node's shards of one set. One record a node and set
// carries all ranks; the node's ranks finish at different times, so it may be
// written a few times.
func (n *Node) voteSet(ctx context.Context, id catalog.SetID) error {
	part, err := n.cat.Part(ctx, id, n.cfg.Name)
	if err == nil {
		n.inv.setPart(id, part)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w, ok := n.inv.get(id)
	if !ok {
		return nil
	}
	var todo []held
	for _, s := range w.shards {
		if stated(w.part, s) {
			continue
		}
		if evicted(w.part, s) { // the eviction was recorded and cut short
			if err := n.dropLocal(ctx, id, s.rank, s.name); err != nil {
				return err
			}
			continue
		}
		todo = append(todo, s)
	}
	if len(todo) == 0 {
		return nil
	}
	if todo, err = n.fence(ctx, id, todo); err != nil || len(todo) == 0 {
		return err
	}
	if todo, err = n.begun(ctx, id, todo); err != nil || len(todo) == 0 {
		return err
	}
	var entries []held // of all that will be stated, not of what was dropped above
	for _, s := range w.shards {
		if stated(w.part, s) || slices.ContainsFunc(todo, func(t held) bool { return t.rank == s.rank }) {
			entries = append(entries, s)
		}
	}
	index, err := n.encodeIndex(id, entries)
	if err != nil {
		return err
	}
	var bulk, old catalog.Digest
	if len(index) > maxInline {
		if bulk, err = n.cat.PutBulk(ctx, index); err != nil {
			return err
		}
		index = nil
	}
	part, err = n.cat.UpdatePart(ctx, id, n.cfg.Name, func(p *catalog.PartRecord) error {
		old = p.Bulk
		p.Index, p.Bulk = index, bulk
		for _, s := range todo {
			setShard(p, catalog.PartShard{
				Rank: s.rank, Size: s.size, Root: s.root, Raw: s.info.Raw(),
				Sealed: s.info.Sealed, Durable: s.durable, Local: true,
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !old.IsZero() && old != bulk {
		if err := n.cat.DropBulk(ctx, old); err != nil {
			n.log.Debug("index not dropped", "set", id.String(), "err", err)
		}
	}
	n.inv.setPart(id, part)
	n.stats.Votes.Add(int64(len(todo)))
	return nil
}

// evicted says that the statement gave the local copy up on purpose.
func evicted(p *catalog.PartRecord, s held) bool {
	if p == nil {
		return false
	}
	for _, t := range p.Shards {
		if t.Rank == s.rank && t.Root == s.root && !t.Local {
			return true
		}
	}
	return false
}

// setShard puts a rank's entry into a statement. Places are kept when the
// bytes are the same.
func setShard(p *catalog.PartRecord, s catalog.PartShard) {
	for i := range p.Shards {
		if old := &p.Shards[i]; old.Rank == s.Rank {
			if old.Root == s.Root {
				s.Remote, s.Drained, s.Verified = old.Remote, old.Drained, old.Verified
			}
			*old = s
			return
		}
	}
	p.Shards = append(p.Shards, s)
}

// fence drops shards that were sealed while the catalog was away and whose
// attempt has been replaced meanwhile.
func (n *Node) fence(ctx context.Context, id catalog.SetID, shards []held) ([]held, error) {
	var keep []held
	for _, s := range shards {
		if s.info.Fence {
			keep = append(keep, s)
			continue
		}
		err := n.cat.CheckAttempt(ctx, id.Run, id.Attempt)
		switch {
		case errors.Is(err, catalog.ErrFenced):
			n.event(ctx, id, "fenced", "rank %d was saved by an older attempt: %v", s.rank, err)
			if err := n.dropLocal(ctx, id, s.rank, s.name); err != nil {
				return nil, err
			}
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrInvalid):
			return nil, err
		default: // an unknown run or attempt: the catalog was lost, not the fence
			keep = append(keep, s)
		}
	}
	return keep, nil
}

// begun makes sure the set's record takes votes, and drops shards that can
// never be part of it.
func (n *Node) begun(ctx context.Context, id catalog.SetID, shards []held) ([]held, error) {
	rec, err := n.cat.Set(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := n.local.Stat(id.RecordName()); serr == nil {
			// It was committed once. Whether it was pruned since, only a catalog
			// that was not lost could say: touch nothing.
			n.inv.setOrphan(id, true)
			return nil, nil
		}
		rec, err = n.cat.BeginSealed(ctx, id, shards[0].info.World, shards[0].info.Metrics, time.Now())
	}
	if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, catalog.ErrConflict) && !errors.Is(err, catalog.ErrInvalid) {
		return nil, err
	}
	var keep []held
	for _, s := range shards {
		why := ""
		switch {
		case rec.State == catalog.Writing && rec.World == s.info.World:
			keep = append(keep, s)
			continue
		case rec.State == catalog.Committed:
			ok, err := n.belongs(ctx, rec, s)
			if err != nil {
				return nil, err
			}
			if ok {
				keep = append(keep, s)
				continue
			}
			why = "the set was committed with another copy"
		case rec.State == catalog.Writing:
			why = fmt.Sprintf("the set has world size %d, the shard %d", rec.World, s.info.World)
		default:
			why = fmt.Sprintf("the set was %s: %s", rec.State, rec.Reason)
		}
		n.event(ctx, id, "dropped", "rank %d: %s", s.rank, why)
		if err := n.dropLocal(ctx, id, s.rank, s.name); err != nil {
			return nil, err
		}
	}
	return keep, nil
}

// belongs says whether a shard found here is one of a committed set's. The
// manifest decides; votes only where it is out of reach, because a vote can
// still be added to a set that is committed.
func (n *Node) belongs(ctx context.Context, rec catalog.SetRecord, s held) (bool, error) {
	m, _, merr := n.manifest(ctx, rec)
	if merr == nil {
		return s.rank < len(m.Shards) && m.Shards[s.rank].Root == s.root, nil
	}
	parts, err := n.cat.Parts(ctx, rec.SetID)
	if err != nil {
		return false, err
	}
	if votes := catalog.Votes(rec.World, parts); s.rank < len(votes) && votes[s.rank].Shard != nil {
		return votes[s.rank].Shard.Root == s.root, nil
	}
	return false, merr
}

// dropLocal removes a shard's bytes from this node.
func (n *Node) dropLocal(ctx context.Context, id catalog.SetID, rank int, name string) error {
	if err := n.local.Remove(ctx, name); err != nil {
		return err
	}
	n.inv.drop(id, rank)
	return nil
}
