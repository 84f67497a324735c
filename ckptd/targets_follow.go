package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// followTargets keeps the remote tier's targets those of the flags and the
// map, until ctx ends.
func (n *Node) followTargets(ctx context.Context) error {
	if n.remote == nil || !n.tgt.dynamic() {
		return nil
	}
	for {
		m, known, changed := n.cat.KnownTargets()
		if m.Version < n.tgt.seen { // the catalog was lost and began anew
			n.tgt.entered.Store(0)
		}
		n.tgt.seen = m.Version
		err := n.enterGiven(ctx, m, known)
		err = errors.Join(err, n.useTargets(ctx, m, known), n.ambiguous(m))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.setTrouble("targets", err)
		n.closeRetired(time.Now())
		wait := 5 * time.Second // what failed is tried again, what is retired is looked at
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-n.tgt.kick:
		case <-time.After(wait):
		}
	}
}

// givenRecords are the flags' targets as they are now: one that was away when
// the daemon started may have told its failure domain since.
func (n *Node) givenRecords() []catalog.TargetRecord {
	records := make([]catalog.TargetRecord, len(n.tgt.Given))
	for i, g := range n.tgt.Given {
		records[i] = g.Record
		if t, ok := g.Target.(interface{ Domain() string }); ok {
			records[i].Domain = cmp.Or(records[i].Domain, t.Domain())
		}
	}
	return records
}

// enterGiven enters the flags' targets into the map, once for each catalog and
// whenever they tell something new.
func (n *Node) enterGiven(ctx context.Context, m catalog.TargetMap, known bool) error {
	if !known || len(n.tgt.Given) == 0 {
		return nil
	}
	records := n.givenRecords()
	if n.tgt.entered.Load() > 0 {
		var news []catalog.TargetRecord
		for _, r := range records {
			if old := m.Find(r.Name, r.Node); old != nil && old.By == r.By && old.Domain != r.Domain {
				news = append(news, r)
			}
		}
		if len(news) == 0 {
			return nil
		}
		records = news
	}
	var refused []error
	now, err := n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error {
		refused = nil
		for _, r := range records {
			if err := m.Enter(r, time.Now()); err != nil { // the others are entered all the same
				refused = append(refused, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.tgt.entered.Store(max(now.Version, 1))
	return errors.Join(refused...)
}

// ambiguous finds targets that records of sets cannot tell apart: two nodes
// have each one of that name to itself.
func (n *Node) ambiguous(m catalog.TargetMap) error {
	for _, g := range n.tgt.Given {
		for _, r := range m.Targets {
			if r.Name == g.Record.Name && r.Node != g.Record.Node {
				return fmt.Errorf("%s: %w: node %s has another target of this name, and a set's record cannot tell them apart; give one of them another name=", r.Name, catalog.ErrConflict, r.Node)
			}
		}
	}
	return nil
}

// useTargets carries out the plan.
func (n *Node) useTargets(ctx context.Context, m catalog.TargetMap, known bool) error {
	want := planTargets(targetView{
		node: n.cfg.Name, follow: n.tgt.Follow, given: n.givenRecords(), entered: n.tgt.entered.Load(), now: m, known: known, failing: n.failing,
	})
	n.tgt.mu.Lock()
	had := maps.Clone(n.tgt.mu.used)
	n.tgt.mu.Unlock()
	used, refused := n.openWanted(ctx, want, had)
	infos := make([]remotetier.TargetInfo, 0, len(used))
	for _, t := range used {
		infos = append(infos, remotetier.TargetInfo{Target: t.open, Domain: t.Domain, Weight: t.Weight, Pool: t.Pool, State: t.State})
	}
	if err := n.remote.SetTargets(infos); err != nil {
		for name, t := range used { // the old ones stay in use
			if !t.given && (had[name] == nil || had[name].open != t.open) {
				_ = t.open.Close()
			}
		}
		return err
	}
	version := int64(0)
	if n.tgt.Follow && known {
		version = m.Version
	}
	n.tgt.mu.Lock()
	n.tgt.mu.used, n.tgt.mu.refused, n.tgt.mu.version, n.tgt.mu.applied = used, refused, version, known
	n.tgt.mu.Unlock()
	for name, t := range had {
		if next := used[name]; next == nil || next.open != t.open {
			n.log.Info("target given up", "target", name, "where", t.where)
			if !t.given { // the flags' ones are closed by who opened them
				n.tgt.retired = append(n.tgt.retired, retiredTarget{t.open, time.Now()})
			}
		}
	}
	joined := false
	for name, t := range used {
		if last := had[name]; last == nil || last.open != t.open || last.State != t.State {
			n.log.Info("target in use", "target", name, "where", t.where, "state", string(t.State), "pool", t.Pool, "domain", t.Domain)
			joined = true
		}
	}
	if joined {
		n.kickDrain.now() // what found no room may find some
		n.kickRepair.now()
	}
	var errs []error
	for name, err := range refused {
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	return errors.Join(errs...)
}

// openWanted gives an open target for each that is wanted, those it had where
// they have not moved. One that cannot be opened is left out, and tried again.
func (n *Node) openWanted(ctx context.Context, want []wantedTarget, had map[string]*usedTarget) (used map[string]*usedTarget, refused map[string]error) {
	used, refused = make(map[string]*usedTarget), make(map[string]error)
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	slots := make(chan struct{}, openAtOnce)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, w := range want {
		t := &usedTarget{wantedTarget: w, where: whereOf(&w.TargetRecord)}
		name := w.Name
		if w.given {
			for _, g := range n.tgt.Given {
				if g.Record.Name == name {
					t.open = g.Target
				}
			}
		} else if old := had[name]; old != nil && !old.given && old.where == t.where {
			t.open = old.open
		}
		if t.open != nil {
			mu.Lock()
			used[name] = t
			mu.Unlock()
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			var err error
			t.open, err = n.tgt.Open(ctx, w.TargetRecord)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused[name] = err
				return
			}
			used[name] = t
		})
	}
	wg.Wait()
	return used, refused
}

// closeRetired closes the targets that nobody uses any more.
func (n *Node) closeRetired(now time.Time) {
	keep := n.tgt.retired[:0]
	for _, t := range n.tgt.retired {
		over := now.Sub(t.since) >= retiredMost
		if i, ok := t.open.(interface{ Idle() time.Duration }); ok {
			over = now.Sub(t.since) >= retiredIdle && i.Idle() >= retiredIdle
		}
		if !over {
			keep = append(keep, t)
		} else if err := t.open.Close(); err != nil {
			n.log.Debug("retired target", "err", err)
		}
	}
	clear(n.tgt.retired[len(keep):])
	n.tgt.retired = keep
}

// closeTargets closes what the node opened, when nothing runs any more.
func (n *Node) closeTargets() error {
	var errs []error
	for _, t := range n.tgt.retired {
		errs = append(errs, t.open.Close())
	}
	n.tgt.retired = nil
	n.tgt.mu.Lock()
	defer n.tgt.mu.Unlock()
	for _, t := range n.tgt.mu.used {
		if !t.given {
			errs = append(errs, t.open.Close())
		}
	}
	clear(n.tgt.mu.used)
	return errors.Join(errs...)
}

// wholeRemote says why the remote tier may lack targets that it should have:
// what is not found on it then is not gone. Duties that conclude something
// from what is missing wait until it is nil.
func (n *Node) wholeRemote() error {
	if n.remote == nil || !n.tgt.dynamic() {
		return nil
	}
	n.tgt.mu.Lock()
	defer n.tgt.mu.Unlock()
	if n.tgt.Follow && !n.tgt.mu.applied {
		return fmt.Errorf("remote tier: %w: the target map has not been read yet", catalog.ErrUnavailable)
	}
	for name, err := range n.tgt.mu.refused {
		return fmt.Errorf("remote tier: %w: target %s cannot be opened: %w", catalog.ErrUnavailable, name, err)
	}
	return nil
}

// pool is what a layout of new blobs must fit; without targets it is empty.
func (n *Node) pool(name string) remotetier.PoolInfo {
	for _, p := range n.remote.Pools() {
		if p.Name == name || name == "" && p.Default {
			return p
		}
	}
	return remotetier.PoolInfo{Name: name}
}
