package ckptd

import (
	"context"
	"errors"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

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
// being written there when the drain began takes that back (see holdTargets).
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
