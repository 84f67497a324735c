package ckptd

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// drainAgain takes back what is stated of a shard's remote copy, which is lost,
// where a node still has a good copy of its own: that one drains it again.
func (n *Node) drainAgain(ctx context.Context, p *placed) error {
	if p.rank < 0 {
		return nil
	}
	parts, err := n.cat.Parts(ctx, p.id)
	if err != nil {
		return err
	}
	has := func(of catalog.PartRecord, good func(*catalog.PartShard) bool) bool {
		return slices.ContainsFunc(of.Shards, func(s catalog.PartShard) bool { return s.Rank == p.rank && s.Root == p.root && good(&s) })
	}
	lost := func(s *catalog.PartShard) bool { return s.Remote != nil && s.Remote.Generation == p.place.Generation }
	if !slices.ContainsFunc(parts, func(o catalog.PartRecord) bool {
		return has(o, func(s *catalog.PartShard) bool { return s.Local && s.Bad == "" })
	}) {
		return nil
	}
	for _, part := range parts {
		if !has(part, lost) {
			continue
		}
		after, err := n.cat.UpdatePart(ctx, p.id, part.Node, func(r *catalog.PartRecord) error {
			for i := range r.Shards {
				if s := &r.Shards[i]; s.Rank == p.rank && s.Root == p.root && lost(s) {
					s.Remote, s.Drained, s.Verified = nil, time.Time{}, time.Time{}
					return nil
				}
			}
			return catalog.ErrSame
		})
		if err != nil {
			return err
		}
		if part.Node == n.cfg.Name {
			n.inv.setPart(p.id, after)
			n.kickDrain.now()
		}
	}
	n.event(ctx, p.id, "repair", "%s will be drained again from the copy that a node has", p.what())
	return n.raiseLevel(ctx, p.id)
}

// planDrained names the targets whose drain is over: nothing that a record
// names is on them, and nothing was left out of the look. Of a target that one
// node has to itself only that node knows: small records are found by asking.
func planDrained(v *mendView, res *mendedAll) []catalog.TargetRecord {
	var done []catalog.TargetRecord
	for _, r := range v.targets.Targets {
		if r.State == catalog.TargetDraining && (r.Node == "" || r.Node == v.node) && res.on[r.Name] == 0 && !res.more && res.unseen == 0 {
			done = append(done, r)
		}
	}
	return done
}

// finishDrains says of those targets that they may be removed. A blob that was
// being written there when the drain began is found by a later look, and moves
// from a drained target too.
func (n *Node) finishDrains(ctx context.Context, v *mendView, res mendedAll) error {
	if !v.known {
		return nil
	}
	var errs []error
	for _, r := range planDrained(v, &res) {
		_, err := n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error {
			now := m.Find(r.Name, r.Node)
			if now == nil || now.State != catalog.TargetDraining || !now.Since.Equal(r.Since) {
				return catalog.ErrSame // taken back, or begun anew
			}
			return now.SetState(catalog.TargetDrained, catalog.ByDrain, "no record names a column on it", time.Now())
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n.log.Info("target drained: it may be removed", "target", r.Name)
	}
	return errors.Join(errs...)
}
