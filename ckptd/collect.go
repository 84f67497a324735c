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

// collectOnce removes the bytes of pruned and aborted sets: the second phase.
// Every node removes its own, here and on the targets; the coordinator, when
// nothing is left, the records.
func (n *Node) collectOnce(ctx context.Context) error {
	var errs []error
	for _, set := range n.cat.KnownWhere("", func(s *catalog.SetRecord) bool { return planCollect(s, n.cfg.Grace, time.Now()) }) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := n.collectSet(ctx, set.SetID); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// planCollect says whether a set's bytes may go now. Aborted sets were never
// visible, but a session may still be writing: they have the same grace.
func planCollect(set *catalog.SetRecord, grace time.Duration, now time.Time) bool {
	return (set.State == catalog.Pruned || set.State == catalog.Aborted) && now.Sub(set.Pruned) >= grace
}

func (n *Node) collectSet(ctx context.Context, id catalog.SetID) error {
	// The mirror may be behind: only the record itself allows a deletion.
	rec, err := n.cat.Set(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !planCollect(&rec, n.cfg.Grace, time.Now()) {
		return err
	}
	holders, err := n.cat.Leases(ctx, id, time.Now())
	if err != nil || len(holders) > 0 {
		return err // the reader is let finish
	}
	leads := n.leader() == n.cfg.Name
	own, err := n.cat.Part(ctx, id, n.cfg.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if leads || slices.ContainsFunc(own.Shards, states) {
		if err := n.collectRemote(ctx, id); err != nil {
			return err
		}
	}
	if err := n.collectLocal(ctx, id); err != nil {
		return err
	}
	if !leads {
		return nil
	}
	parts, err := n.cat.Parts(ctx, id)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if p.Node != n.cfg.Name && slices.ContainsFunc(p.Shards, states) {
			return n.awaitNode(ctx, id, p.Node)
		}
	}
	if err := n.cat.Forget(ctx, id); err != nil {
		return err
	}
	n.inv.forget(id)
	n.log.Info("collected", "set", id.String())
	return nil
}

// states says that a node still answers for bytes.
func states(s catalog.PartShard) bool { return s.Local || s.Remote != nil }

// collectRemote removes every column of a set from the targets that this node
// reaches; not every node need reach all. The record goes last: whoever finds
// columns without a catalog must be told that they are garbage.
func (n *Node) collectRemote(ctx context.Context, id catalog.SetID) error {
	if n.remote == nil {
		return nil
	}
	if err := n.wholeRemote(); err != nil { // columns would stay behind
		return err
	}
	dir, _, _ := cutLast(id.RecordName())
	if _, err := n.remote.Sweep(ctx, dir, func(blob string, _ uint64) bool { return blob == id.RecordName() }); err != nil {
		return err
	}
	return n.remote.Remove(ctx, id.RecordName(), nil)
}

// collectLocal removes what this node holds of a set, shards before the record
// that says they are garbage.
func (n *Node) collectLocal(ctx context.Context, id catalog.SetID) error {
	w, _ := n.inv.get(id)
	for _, s := range w.shards {
		if err := n.dropLocal(ctx, id, s.rank, s.name); err != nil {
			return err
		}
	}
	for _, name := range []string{id.ManifestName(), id.RecordName()} {
		if err := n.local.Remove(ctx, name); err != nil {
			return err
		}
	}
	_, err := n.cat.UpdatePart(ctx, id, n.cfg.Name, func(p *catalog.PartRecord) error {
		if !slices.ContainsFunc(p.Shards, states) {
			return catalog.ErrSame
		}
		for i := range p.Shards {
			p.Shards[i].Local, p.Shards[i].Remote = false, nil
		}
		return nil
	})
	return err
}

// awaitNode lets the records of a set stay until a node that still has bytes
// of it has removed them. One that has been gone for long is not waited for:
// what it brings back is reported as unknown, and never taken for a set.
func (n *Node) awaitNode(ctx context.Context, id catalog.SetID, name string) error {
	const patience = 24 * time.Hour
	nodes, err := n.cat.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if node.Name == name && time.Since(node.Seen) < patience {
			return nil
		}
	}
	_, err = n.cat.UpdatePart(ctx, id, name, func(p *catalog.PartRecord) error {
		for i := range p.Shards {
			p.Shards[i].Local, p.Shards[i].Remote = false, nil
		}
		return nil
	})
	return err
}

// prune tombstones what a retention no longer keeps.
func (n *Node) prune(ctx context.Context, run catalog.Run, r catalog.Retention, dryRun bool) (keep, remove []catalog.Verdict, err error) {
	sets, err := n.cat.Sets(ctx, run)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	leased := make(map[catalog.SetID]bool)
	plan := func() {
		keep, remove = catalog.PlanRetention(r, now, sets, func(id catalog.SetID) bool { return leased[id] })
	}
	plan()
	for _, v := range remove { // only these are worth asking for
		holders, err := n.cat.Leases(ctx, v.Set.SetID, now)
		if err != nil {
			return nil, nil, err
		}
		leased[v.Set.SetID] = len(holders) > 0
	}
	plan()
	if dryRun {
		return keep, remove, nil
	}
	var done []catalog.Verdict
	for _, v := range remove {
		if _, err := n.cat.Tombstone(ctx, v.Set.SetID, "prune: "+v.Why, now); errors.Is(err, catalog.ErrConflict) {
			v.Why = err.Error() // pinned or leased since the plan was made
			keep = append(keep, v)
			continue
		} else if err != nil {
			return keep, done, err
		}
		done = append(done, v)
		n.stats.Pruned.Add(1)
		n.event(ctx, v.Set.SetID, "pruned", "%s", v.Why)
	}
	return keep, done, nil
}

// retain applies the retention of every run's policy; the coordinator's duty.
func (n *Node) retain(ctx context.Context) error {
	runs, err := n.cat.Runs(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range runs {
		if r.Policy.Retention == (catalog.Retention{}) {
			continue
		}
		if _, _, err := n.prune(ctx, r.Run, r.Policy.Retention, false); err != nil {
			errs = append(errs, fmt.Errorf("retention of %s: %w", r.Run, err))
		}
	}
	return errors.Join(errs...)
}

// fencedPatience is how long a set of an older attempt may still complete: its
// ranks may have sealed everything just before their job was restarted.
const fencedPatience = 10 * time.Minute

// abortStale ends sets that will not complete.
func (n *Node) abortStale(ctx context.Context, now time.Time) error {
	var errs []error
	for _, s := range n.cat.KnownWhere("", func(s *catalog.SetRecord) bool { return s.State == catalog.Writing }) {
		run, _ := n.cat.KnownRun(s.Run)
		why := planAbort(s, run, n.cfg.Incomplete, now)
		if why == "" {
			continue
		}
		if _, err := n.cat.Abort(ctx, s.SetID, why, now); err != nil && !errors.Is(err, catalog.ErrConflict) {
			errs = append(errs, err)
			continue
		}
		n.event(ctx, s.SetID, "aborted", "%s", why)
	}
	return errors.Join(errs...)
}

func planAbort(s catalog.SetRecord, run catalog.RunRecord, patience time.Duration, now time.Time) string {
	if run.Policy.Incomplete != 0 {
		patience = run.Policy.Incomplete
	}
	age := now.Sub(s.Begun)
	switch {
	case age > patience:
		return fmt.Sprintf("incomplete for %v", patience)
	case s.Attempt < run.Attempt && age > min(patience, fencedPatience):
		return fmt.Sprintf("incomplete, and attempt %d has attached since", run.Attempt)
	}
	return ""
}
