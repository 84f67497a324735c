package ckptd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// A Put that began before a target was drained may record a column there when
// nobody looks any more. Who records and who takes a target out therefore
// write first and look afterwards: who records then looks at the target map
// and takes "drained" back, or finds that the target is gone and counts the
// column as lost; who takes out marks nothing but a drained target, and looks
// at all records before. Whichever comes last sees the other.

// errTakenOut: a target was taken out while a column was written there.
var errTakenOut = fmt.Errorf("%w: taken out while a column was written there", catalog.ErrConflict)

// planLate says what a place that was recorded just now means for the map:
// targets of it that were thought to be drained, and those that are no members
// any more. Those that own says so of need not be members.
func planLate(m *catalog.TargetMap, node string, place *catalog.Place, own func(name string) bool) (drained, gone []string) {
	for _, name := range place.Targets {
		switch r := m.Find(name, node); {
		case r != nil && r.State == catalog.TargetDrained:
			drained = append(drained, name)
		case r == nil && !own(name) && !slices.ContainsFunc(m.Targets, func(r catalog.TargetRecord) bool { return r.Name == name }):
			gone = append(gone, name)
		}
	}
	return drained, gone
}

// holdTargets comes after a place was recorded and before it is counted on:
// drained targets of it drain again, and errTakenOut says that one is gone.
func (n *Node) holdTargets(ctx context.Context, place *catalog.Place) error {
	if !n.tgt.dynamic() {
		return nil
	}
	m, err := n.cat.Targets(ctx)
	if err != nil || m.Version == 0 {
		return err
	}
	own := func(name string) bool { return n.tgt.ownsUnentered(name, m.Version) }
	drained, gone := planLate(&m, n.cfg.Name, place, own)
	if len(drained) > 0 {
		if m, err = n.drainAgain(ctx, drained); err != nil {
			return err
		}
		_, gone = planLate(&m, n.cfg.Name, place, own)
	}
	if len(gone) > 0 {
		return fmt.Errorf("%s on %v: %w", place.Blob, gone, errTakenOut)
	}
	return nil
}

// drainAgain takes back that targets are drained: there is a column on them.
func (n *Node) drainAgain(ctx context.Context, names []string) (catalog.TargetMap, error) {
	m, err := n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error {
		for _, name := range names {
			r := m.Find(name, n.cfg.Name)
			if r == nil || r.State != catalog.TargetDrained {
				continue
			}
			if err := r.SetState(catalog.TargetDraining, catalog.ByDrain, "a column came there after all", time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	n.kickRepair.now()
	return m, err
}

// mayTakeOut looks at all records once more before a drained target goes.
func (n *Node) mayTakeOut(ctx context.Context, r catalog.TargetRecord) error {
	if n.remote == nil {
		return fmt.Errorf("take out %s: %w: this node has no remote tier to see what is on it; ask one that has", r.Name, catalog.ErrInvalid)
	}
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	m, err := n.cat.Targets(ctx)
	if err != nil {
		return err
	}
	v := n.mendView()
	v.targets, v.known = m, true
	look := mendedAll{on: map[string]int{}}
	if _, err := n.mendJobs(ctx, v, "", nil, &look); err != nil {
		return err
	}
	switch left := look.on[r.Name]; {
	case left > 0:
		_, err := n.drainAgain(ctx, []string{r.Name})
		return errors.Join(fmt.Errorf("take out %s: %w: %d blobs came to have a column on it after it was drained; they move away now, try again when it is drained", r.Name, catalog.ErrConflict, left), err)
	case look.unseen > 0:
		return fmt.Errorf("take out %s: %w: %d small records could not be looked for, for a target is away; try again when it is back, or force it out", r.Name, catalog.ErrUnavailable, look.unseen)
	}
	return nil
}
