package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

// campaign takes part in choosing the coordinator and leads while chosen.
func (n *Node) campaign(ctx context.Context) error {
	end := func() {} // stops leading, if this node leads
	defer func() {
		end()
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := n.elector.Resign(short); err != nil {
			n.log.Debug("coordinator's lease not given back", "err", err)
		}
	}()
	leading := false
	for {
		leads, err := n.elector.Tick(ctx, time.Now())
		n.setTrouble("catalog", err)
		n.lead.Lock()
		n.lead.leader = n.elector.Leader()
		n.lead.Unlock()
		switch {
		case !leads && leading:
			end()
			leading = false
		case leads && !leading:
			end, leading = n.startLeading(ctx), true
			n.kickFollow.now() // the records on the remote tier are this node's now
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(n.cfg.LeaseTTL / 3):
		}
	}
}

// startLeading coordinates in the background until the returned function is
// called; calling it again does nothing.
func (n *Node) startLeading(ctx context.Context) (end func()) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.coordinate(ctx)
	}()
	return func() {
		stop()
		<-done
	}
}

func (n *Node) leader() string {
	n.lead.Lock()
	defer n.lead.Unlock()
	return n.lead.leader
}

// coordinate commits sets, publishes their manifests and applies retention
// until ctx ends. Everything it does is a compare-and-swap, so a second
// coordinator at the same time does no harm.
func (n *Node) coordinate(ctx context.Context) {
	n.log.Info("coordinating")
	for ctx.Err() == nil {
		if err := n.coordinateUntilError(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("coordinating again", "err", err)
			n.stats.DutyErrors.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
}

func (n *Node) coordinateUntilError(ctx context.Context) error {
	c := newCoordinator(n)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.dropIndexes(ctx) })
	g.Go(func() error { return n.judgeTargets(ctx) })
	changes := make(chan *catalog.PartRecord, 1024)
	g.Go(func() error {
		return n.cat.WatchParts(ctx, func(p *catalog.PartRecord, _ bool) error {
			if p == nil {
				return nil
			}
			select {
			case changes <- p:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	g.Go(func() error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			var err error
			select {
			case <-ctx.Done():
				return ctx.Err()
			case p := <-changes:
				err = c.see(ctx, p)
			case <-n.kickLead:
				err = c.retry(ctx)
			case <-tick.C:
				err = c.retry(ctx)
			}
			n.setTrouble("coordinator", err)
			if err != nil {
				n.log.Warn("coordinator", "err", err)
			}
		}
	})
	return g.Wait()
}

// coordinator is what one coordinator remembers: statements about sets that
// are not finished with. It loses nothing by being lost.
type coordinator struct {
	n       *Node
	writing map[catalog.SetID]map[string]catalog.PartRecord
	index   map[catalog.SetID]map[string]map[entryKey]indexEntry // of sets still writing, by node
	publish map[catalog.SetID]bool                               // committed, manifest not yet remote
	drops   chan []catalog.Digest                                // indexes nobody needs any more
}

func newCoordinator(n *Node) *coordinator {
	return &coordinator{n: n,
		writing: make(map[catalog.SetID]map[string]catalog.PartRecord),
		index:   make(map[catalog.SetID]map[string]map[entryKey]indexEntry),
		publish: make(map[catalog.SetID]bool),
		drops:   make(chan []catalog.Digest, 16),
	}
}

// dropIndexes forgets the indexes of sets that have their manifest.
func (c *coordinator) dropIndexes(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case indexes := <-c.drops:
			var g errgroup.Group
			g.SetLimit(4)
			for _, d := range indexes {
				g.Go(func() error {
					if err := c.n.cat.DropBulk(ctx, d); err != nil {
						c.n.log.Debug("index not dropped", "index", d.String(), "err", err)
					}
					return nil
				})
			}
			_ = g.Wait() // each was told above
		}
	}
}

// see takes one statement and commits its set when it was the last vote.
func (c *coordinator) see(ctx context.Context, p *catalog.PartRecord) error {
	rec, ok := c.n.cat.KnownSet(p.Set)
	if !ok { // the vote overtook the record on its way to the mirror
		var err error
		if rec, err = c.n.cat.Set(ctx, p.Set); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	switch rec.State {
	case catalog.Committed:
		c.forget(p.Set)
		if rec.Place == nil {
			c.publish[p.Set] = true
			return c.publishSet(ctx, p.Set)
		}
		return nil
	case catalog.Writing:
	default:
		c.forget(p.Set)
		return nil
	}
	of := c.writing[p.Set]
	if of == nil {
		of = make(map[string]catalog.PartRecord)
		c.writing[p.Set] = of
	}
	of[p.Node] = *p
	if err := c.readIndex(ctx, p); err != nil {
		return err
	}
	return c.tryCommit(ctx, rec)
}

func (c *coordinator) forget(id catalog.SetID) {
	delete(c.index, id)
	delete(c.writing, id)
}

// readIndex takes the manifest's entries from a vote as it arrives, so that
// the last vote has only its own to wait for.
func (c *coordinator) readIndex(ctx context.Context, p *catalog.PartRecord) error {
	of := c.index[p.Set]
	if of == nil {
		of = make(map[string]map[entryKey]indexEntry)
		c.index[p.Set] = of
	}
	delete(of, p.Node) // what a failed read leaves is asked for again
	entries, err := c.n.readIndex(ctx, p)
	if err != nil {
		return fmt.Errorf("vote of %s: %w", p.Node, err)
	}
	of[p.Node] = entries
	return nil
}

func (c *coordinator) parts(id catalog.SetID) []catalog.PartRecord {
	var parts []catalog.PartRecord
	for _, p := range c.writing[id] {
		parts = append(parts, p)
	}
	return parts
}

// retry looks again at everything unfinished: what failed before, and what
// only time decides.
func (c *coordinator) retry(ctx context.Context) error {
	var errs []error
	for id := range c.writing {
		rec, ok := c.n.cat.KnownSet(id)
		if !ok {
			continue
		}
		if rec.State != catalog.Writing {
			c.forget(id)
			continue
		}
		errs = append(errs, c.tryCommit(ctx, rec))
	}
	for id := range c.publish {
		errs = append(errs, c.publishSet(ctx, id))
	}
	errs = append(errs, c.n.retain(ctx), c.n.abortStale(ctx, time.Now()))
	return errors.Join(errs...)
}

// tryCommit makes the set visible if every rank has voted.
func (c *coordinator) tryCommit(ctx context.Context, rec catalog.SetRecord) error {
	parts := c.parts(rec.SetID)
	if len(catalog.MissingRanks(rec.World, parts)) > 0 {
		return nil
	}
	for i := range parts { // a retry after a failed read
		if c.index[rec.SetID][parts[i].Node] == nil {
			if err := c.readIndex(ctx, &parts[i]); err != nil {
				return err
			}
		}
	}
	b, root, size, err := planManifest(rec, parts, c.index[rec.SetID])
	if err != nil {
		return err
	}
	var g errgroup.Group // here and on another node, at the same time
	g.Go(func() error { return c.n.local.Put(ctx, rec.ManifestName(), b) })
	nodes := append([]string{c.n.cfg.Name}, c.n.copyManifest(ctx, rec.SetID, b, parts)...)
	if err := g.Wait(); err != nil {
		return fmt.Errorf("manifest of %v: %w", rec.SetID, err)
	}
	done, err := c.n.cat.Commit(ctx, rec.SetID, root, size, nodes, parts, time.Now())
	if errors.Is(err, catalog.ErrConflict) {
		c.forget(rec.SetID) // aborted meanwhile, or committed by another
		return nil
	} else if err != nil {
		return err
	}
	c.n.stats.Commits.Add(1)
	c.n.event(ctx, rec.SetID, "committed", "%d shards, manifest on %v", rec.World, nodes)
	var bulks []catalog.Digest
	for _, p := range parts {
		if !p.Bulk.IsZero() {
			bulks = append(bulks, p.Bulk)
		}
	}
	if len(bulks) > 0 {
		select { // the next set need not wait for it
		case c.drops <- bulks:
		case <-ctx.Done():
		}
	}
	c.forget(rec.SetID)
	c.n.log.Info("committed", "set", rec.SetID.String(), "ranks", rec.World, "bytes", size, "after", done.Committed.Sub(rec.Begun).Round(time.Millisecond))
	return nil
}

// copyManifest puts a manifest on a second node before the set is committed.
// Where no other node can be reached the commit goes on with one copy: the
// shards have no more than one either.
func (n *Node) copyManifest(ctx context.Context, id catalog.SetID, b []byte, parts []catalog.PartRecord) []string {
	nodes, err := n.cat.Nodes(ctx)
	if err != nil {
		return nil
	}
	voted := make(map[string]bool, len(parts))
	for _, p := range parts {
		voted[p.Node] = true
	}
	slices.SortStableFunc(nodes, func(a, b catalog.NodeRecord) int { // nodes with shards first
		return boolCompare(voted[b.Name], voted[a.Name])
	})
	for _, node := range nodes {
		if node.Name == n.cfg.Name || node.Addr == "" || !n.alive(node) {
			continue
		}
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := n.peers.putManifest(short, node.Addr, id, b)
		cancel()
		if err == nil {
			return []string{node.Name}
		}
		n.log.Warn("manifest not copied", "set", id.String(), "node", node.Name, "err", err)
	}
	return nil
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// publishSet puts the manifest on the remote tier once every shard is there;
// that is what makes the set's level remote.
func (c *coordinator) publishSet(ctx context.Context, id catalog.SetID) error {
	rec, ok := c.n.cat.KnownSet(id)
	if !ok || rec.State != catalog.Committed || rec.Place != nil || c.n.remote == nil {
		delete(c.publish, id)
		return nil
	}
	parts, err := c.n.cat.Parts(ctx, id)
	if err != nil {
		return err
	}
	for rank, v := range catalog.Votes(rec.World, parts) {
		if v.Shard == nil || catalog.ShardLevel(rank, v.Shard.Root, parts) < catalog.Remote {
			return nil
		}
	}
	_, b, err := c.n.manifest(ctx, rec)
	if err != nil {
		return err
	}
	place, err := c.n.putSmall(ctx, id.Run, id.ManifestName(), b)
	if err != nil {
		return fmt.Errorf("publish the manifest of %v: %w", id, err)
	}
	if _, err = c.n.cat.Update(ctx, id, func(s *catalog.SetRecord) error {
		if s.State != catalog.Committed || s.Place != nil {
			return catalog.ErrSame
		}
		s.Place = &place
		return nil
	}); err != nil {
		return err
	}
	if err := c.n.holdTargets(ctx, &place); err != nil {
		return err // repair makes good what is gone
	}
	delete(c.publish, id)
	return c.n.raiseLevel(ctx, id)
}

// raiseLevel brings the level in the set's record in line with what the nodes
// state. It can also fall: a quarantined copy no longer counts.
//
// Somebody else may change a statement and raise the level between the two
// looks at the catalog, and what was read before would then take that back. So
// who has written looks again: the last one to write has seen everything.
func (n *Node) raiseLevel(ctx context.Context, id catalog.SetID) error {
	for {
		if changed, err := n.setLevel(ctx, id); !changed || err != nil {
			return err
		}
	}
}

// setLevel sets the level by the statements as they are read, and says whether
// it was another.
func (n *Node) setLevel(ctx context.Context, id catalog.SetID) (changed bool, err error) {
	parts, err := n.cat.Parts(ctx, id)
	if err != nil {
		return false, err
	}
	var was, is catalog.Level
	_, err = n.cat.Update(ctx, id, func(s *catalog.SetRecord) error {
		was, is = s.Level, catalog.LevelOf(s, parts)
		if s.State != catalog.Committed || was == is {
			is = was
			return catalog.ErrSame
		}
		s.Level = is
		return nil
	})
	if err != nil {
		return false, err
	}
	if is != was {
		n.event(ctx, id, is.String(), "was %v", was)
		n.kickLead.now()
	}
	return is != was, nil
}
