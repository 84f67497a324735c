package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/planes"
)

// drainJob is one shard to copy to the remote tier, or to read back.
type drainJob struct {
	set    catalog.SetRecord
	shard  catalog.PartShard
	verify bool
}

// planDrain lists what this node still owes the remote tier: the most recent
// committed set first, its copies before their verification.
func planDrain(known []catalog.SetRecord, statements map[catalog.SetID]*catalog.PartRecord, policy func(catalog.Run) catalog.Policy) []drainJob {
	var jobs []drainJob
	for _, set := range known {
		part := statements[set.SetID]
		if set.State != catalog.Committed || part == nil {
			continue
		}
		p := policy(set.Run)
		for _, s := range part.Shards {
			switch {
			case s.Remote == nil && s.Local && s.Bad == "" && !p.NoDrain:
				jobs = append(jobs, drainJob{set: set, shard: s})
			case s.Remote != nil && s.Verified.IsZero() && !p.NoVerify:
				jobs = append(jobs, drainJob{set: set, shard: s, verify: true})
			}
		}
	}
	slices.SortStableFunc(jobs, func(a, b drainJob) int {
		return cmp.Or(b.set.Committed.Compare(a.set.Committed), b.set.SetID.Compare(a.set.SetID), boolCompare(a.verify, b.verify), cmp.Compare(a.shard.Rank, b.shard.Rank))
	})
	return jobs
}

// drainOnce works through the plan, planning anew after each shard so that a
// set committed meanwhile comes first. A shard that failed is not tried again
// in this round.
func (n *Node) drainOnce(ctx context.Context) error {
	if n.remote == nil {
		return nil
	}
	if err := n.recall(ctx); err != nil {
		return err
	}
	type key struct {
		id   catalog.SetID
		rank int
	}
	failed := make(map[key]bool)
	var errs []error
	if len(n.remote.Pools()) == 0 {
		if owed := len(n.drainPlan()); owed > 0 {
			return fmt.Errorf("drain: %w: the remote tier has no targets yet, and %d shards wait for one; start `ckptd target --nats`, or give --remote", catalog.ErrUnavailable, owed)
		}
		return nil
	}
	for {
		var job *drainJob
		for _, j := range n.drainPlan() {
			if !failed[key{j.set.SetID, j.shard.Rank}] {
				job = &j
				break
			}
		}
		if job == nil || ctx.Err() != nil {
			return errors.Join(errs...)
		}
		var err error
		if job.verify {
			err = n.verifyShard(ctx, job.set, job.shard)
		} else {
			err = n.drainShard(ctx, job.set, job.shard)
		}
		if err != nil {
			failed[key{job.set.SetID, job.shard.Rank}] = true
			errs = append(errs, err)
			if ctx.Err() == nil {
				n.event(ctx, job.set.SetID, "drain failed", "rank %d: %v", job.shard.Rank, err)
			}
		}
	}
}

// recall reads, once after a start, what this node stated about sets of which
// it has no shard any more: their remote copies may still have to be read back.
func (n *Node) recall(ctx context.Context) error {
	if n.recalled.Load() {
		return nil
	}
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	for _, s := range n.cat.KnownWhere("", func(s *catalog.SetRecord) bool {
		return s.State == catalog.Committed && s.Level < catalog.Verified
	}) {
		if w, ok := n.inv.get(s.SetID); ok && w.part != nil {
			continue
		}
		part, err := n.cat.Part(ctx, s.SetID, n.cfg.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		n.inv.setPart(s.SetID, part)
	}
	n.recalled.Store(true)
	return nil
}

func (n *Node) drainPlan() []drainJob {
	var known []catalog.SetRecord
	statements := make(map[catalog.SetID]*catalog.PartRecord)
	for _, w := range n.inv.all() {
		if set, ok := n.cat.KnownSet(w.id); ok && w.part != nil {
			known = append(known, set)
			statements[w.id] = w.part
		}
	}
	return planDrain(known, statements, func(run catalog.Run) catalog.Policy {
		r, _ := n.cat.KnownRun(run)
		return r.Policy
	})
}

// drainShard copies one shard: its columns first, then what attempts cut short
// have left goes, then the statement of where the columns are. In this order
// no crash leaves columns that nobody will remove: without a statement the
// next drain finds them.
func (n *Node) drainShard(ctx context.Context, set catalog.SetRecord, s catalog.PartShard) error {
	name := s.BlobName(set.SetID)
	parts, err := n.cat.Parts(ctx, set.SetID)
	if err != nil {
		return err
	}
	if place, ok := statedRemote(s.Rank, s.Root, parts); ok { // a rebuild found it, and said so for another node
		return n.stateDrained(ctx, set, s, place)
	}
	layout, pool, err := n.layout(set.Run)
	if err != nil {
		return err
	}
	b, err := n.local.Open(name)
	if err != nil {
		return n.localBad(ctx, set.SetID, s.Rank, fmt.Errorf("drain: %w", err))
	}
	defer b.Close()
	begin := time.Now()
	out, encoding := b, ""
	if n.compresses(set.Run) && !s.Raw { // nothing is known of a raw shard's bytes
		spool, err := n.compressed(ctx, set, s.Rank, b)
		if errors.Is(err, catalog.ErrCorrupt) {
			return n.localBad(ctx, set.SetID, s.Rank, err)
		} else if err != nil {
			return fmt.Errorf("drain %s: %w", name, err)
		}
		if spool != nil {
			defer spool.Close()
			out, encoding = spool.Blob(), planes.Encoding
		}
	}
	place, err := n.remote.Pool(pool).Put(ctx, name, rawBlob{out, out.Raw()}, layout)
	if errors.Is(err, catalog.ErrCorrupt) && encoding == "" { // a spool that went bad is made anew
		return n.localBad(ctx, set.SetID, s.Rank, err)
	} else if err != nil {
		return fmt.Errorf("drain %s: %w", name, err)
	}
	place.Encoding = encoding
	if err := n.remote.Remove(ctx, name, func(gen uint64) bool { return gen == place.Generation }); err != nil {
		n.log.Warn("older columns not removed", "blob", name, "err", err)
	}
	if err := n.stateDrained(ctx, set, s, place); errors.Is(err, errTakenOut) {
		return errors.Join(fmt.Errorf("drain %s anew: %w", name, err), n.state(context.WithoutCancel(ctx), set.SetID, s.Rank, s.Root, func(t *catalog.PartShard) {
			if t.Remote != nil && samePlace(t.Remote, &place) {
				t.Remote, t.Drained = nil, time.Time{}
			}
		}))
	} else if err != nil {
		return err
	}
	n.stats.DrainedBytes.Add(s.Size)
	n.stats.StoredBytes.Add(place.Size)
	how := place.Layout
	if encoding != "" {
		how += fmt.Sprintf(", compressed to %.1f %%,", 100*float64(place.Size)/float64(max(1, s.Size)))
	}
	if said := tellCrowded(&place); said != "" {
		how += " (" + said + ", for want of others)"
	}
	n.event(ctx, set.SetID, "drained", "rank %d to %v as %s in %v", s.Rank, place.Targets, how, time.Since(begin).Round(time.Millisecond))
	return nil
}

func (n *Node) stateDrained(ctx context.Context, set catalog.SetRecord, s catalog.PartShard, place catalog.Place) error {
	if err := n.state(ctx, set.SetID, s.Rank, s.Root, func(t *catalog.PartShard) {
		t.Remote, t.Drained, t.Verified = &place, time.Now(), time.Time{}
	}); err != nil {
		return err
	}
	if err := n.holdTargets(ctx, &place); err != nil {
		return err
	}
	return n.raiseLevel(ctx, set.SetID)
}

// statedRemote is where any node says that a shard is on the remote tier.
func statedRemote(rank int, root catalog.Digest, parts []catalog.PartRecord) (catalog.Place, bool) {
	for _, p := range parts {
		for _, s := range p.Shards {
			if s.Rank == rank && s.Root == root && s.Remote != nil {
				return *s.Remote, true
			}
		}
	}
	return catalog.Place{}, false
}

// rawBlob reads without checking: Put checks every block against the seal
// itself, with sums it needs anyway.
type rawBlob struct {
	*localtier.Blob
	io.ReaderAt
}

func (r rawBlob) ReadAt(p []byte, off int64) (int, error)       { return r.ReaderAt.ReadAt(p, off) }
func (r rawBlob) ReadvAt(bufs [][]byte, off int64) (int, error) { return r.Blob.ReadvRaw(bufs, off) }

// verifyShard reads the remote copy back; a bad one is forgotten, so that it
// is drained again, as long as the bytes are here.
func (n *Node) verifyShard(ctx context.Context, set catalog.SetRecord, s catalog.PartShard) error {
	// Another node may have moved columns since this one made its statement.
	part, err := n.cat.Part(ctx, set.SetID, n.cfg.Name)
	if err != nil {
		return fmt.Errorf("verify %s: %w", s.BlobName(set.SetID), err)
	}
	n.inv.setPart(set.SetID, part)
	i := slices.IndexFunc(part.Shards, func(t catalog.PartShard) bool { return t.Rank == s.Rank && t.Root == s.Root && t.Remote != nil })
	if i < 0 || !part.Shards[i].Verified.IsZero() {
		return nil
	}
	s = part.Shards[i]
	err = n.remote.Verify(ctx, *s.Remote)
	if errors.Is(err, catalog.ErrCorrupt) {
		job := mendJob{placed: placed{set.SetID, s.Rank, s.Root, *s.Remote}, deep: true}
		if m, merr := n.mendWith(ctx, job, remotetier.MendOptions{Deep: true}); merr == nil && len(m.Columns) > 0 {
			return nil // it is read back again
		}
	}
	same := func(t *catalog.PartShard) bool { return t.Remote != nil && t.Remote.Generation == s.Remote.Generation }
	if errors.Is(err, catalog.ErrCorrupt) && s.Local {
		n.event(ctx, set.SetID, "verify failed", "rank %d will be drained again: %v", s.Rank, err)
		if serr := n.state(ctx, set.SetID, s.Rank, s.Root, func(t *catalog.PartShard) {
			if same(t) {
				t.Remote, t.Drained = nil, time.Time{}
			}
		}); serr != nil {
			return serr
		}
		return errors.Join(err, n.raiseLevel(ctx, set.SetID))
	} else if err != nil {
		return fmt.Errorf("verify %s: %w", s.BlobName(set.SetID), err)
	}
	if err := n.state(ctx, set.SetID, s.Rank, s.Root, func(t *catalog.PartShard) {
		if same(t) {
			t.Verified = time.Now()
		}
	}); err != nil {
		return err
	}
	n.stats.VerifiedBytes.Add(s.Size)
	n.event(ctx, set.SetID, "verified", "rank %d", s.Rank)
	return n.raiseLevel(ctx, set.SetID)
}

// state changes what this node says about one of its shards.
func (n *Node) state(ctx context.Context, id catalog.SetID, rank int, root catalog.Digest, change func(*catalog.PartShard)) error {
	set, _ := n.cat.KnownSet(id)
	committed := set.State == catalog.Committed
	p, err := n.cat.UpdatePart(ctx, id, n.cfg.Name, func(p *catalog.PartRecord) error {
		for i := range p.Shards {
			if p.Shards[i].Rank == rank && p.Shards[i].Root == root {
				if committed {
					p.Index, p.Bulk = nil, catalog.Digest{} // the manifest has it now
				}
				change(&p.Shards[i])
				return nil
			}
		}
		return fmt.Errorf("rank %d: %w: no such shard is stated", rank, catalog.ErrConflict)
	})
	if err == nil {
		n.inv.setPart(id, p)
	}
	return err
}

// localBad takes a local copy that failed its check, or is gone, out of
// service: the bytes are kept aside, the statement says so, and the level follows.
func (n *Node) localBad(ctx context.Context, id catalog.SetID, rank int, cause error) error {
	w, _ := n.inv.get(id)
	w.id = id
	name := w.blobName(rank)
	if err := n.local.Quarantine(ctx, name, cause); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(cause, fmt.Errorf("quarantine %s: %w", name, err))
	}
	n.inv.drop(id, rank)
	n.stats.Quarantined.Add(1)
	n.event(ctx, id, "quarantined", "rank %d on %s: %v", rank, n.cfg.Name, cause)
	if w.part != nil {
		for _, s := range w.part.Shards {
			if s.Rank == rank {
				if err := n.state(ctx, id, rank, s.Root, func(t *catalog.PartShard) { t.Local, t.Bad = false, cause.Error() }); err != nil {
					return errors.Join(cause, err)
				}
			}
		}
	}
	return errors.Join(cause, n.raiseLevel(ctx, id))
}
