package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// postRepair looks at every column of a run, or of all, and mends what is
// wrong, without waiting for a target that is down.
func (n *Node) postRepair(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.RepairRequest](c)
	if err != nil {
		return err
	}
	if n.remote == nil {
		return fmt.Errorf("repair: %w: this node has no remote tier", catalog.ErrInvalid)
	}
	run := catalog.Run(q.Run)
	if q.Run != "" {
		if run, err = catalog.ParseRun(q.Run); err != nil {
			return err
		}
	}
	if !q.Wait {
		n.repair.mu.Lock()
		n.repair.mu.orders[run] = true
		n.repair.mu.Unlock()
		n.kickRepair.now()
		return long(c, func(func(wire.Progress)) (wire.RepairResult, error) {
			return wire.RepairResult{Started: true, Left: []string{}}, nil
		})
	}
	return long(c, func(progress func(wire.Progress)) (wire.RepairResult, error) {
		ctx, cancel := n.untilStop(ctx)
		defer cancel()
		res, err := n.mendNow(ctx, run, progress)
		return wire.RepairResult{Blobs: res.all, Mended: res.mended, Columns: res.columns, Bytes: res.bytes, Left: append([]string{}, res.left...)}, err
	})
}

// untilStop is a context that ends with the daemon, too.
func (n *Node) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-n.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); <-done }
}

// mendNow is what an order to repair does: by this node alone, and at once.
func (n *Node) mendNow(ctx context.Context, run catalog.Run, progress func(wire.Progress)) (mendedAll, error) {
	v := n.mendView()
	v.after, v.live = 0, []string{n.cfg.Name}
	every := func(p *placed) (yes, deep bool) {
		_, deep = n.suspected(p)
		return true, deep
	}
	var told func(done, total int)
	if progress != nil {
		told = func(done, total int) {
			progress(wire.Progress{What: "blobs", Done: int64(done), Total: int64(total), Unit: "blobs"})
		}
	}
	return n.mendAll(ctx, v, run, every, told)
}

// postTargetDrain begins a drain and tells how far it is until it is over, or
// takes it back. A client that leaves stops neither.
func (n *Node) postTargetDrain(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.TargetDrainRequest](c)
	if err != nil {
		return err
	}
	next := catalog.TargetDraining
	if q.Undo {
		next = catalog.TargetUp
	}
	var r catalog.TargetRecord
	m, err := n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error {
		now := m.Find(q.Name, cmp.Or(q.Node, n.cfg.Name))
		if now == nil {
			return n.unknownTarget(m, q.Name)
		}
		if !q.Undo && now.State == catalog.TargetDrained { // it is what was asked for
			r = *now
			return catalog.ErrSame
		}
		if q.Undo && !now.State.Kept() {
			r = *now
			return catalog.ErrSame
		}
		err := now.SetState(next, catalog.ByOperator, "ordered", time.Now())
		r = *now
		return err
	})
	if err != nil {
		return err
	}
	n.log.Info("target's state ordered", "target", r.Name, "state", string(r.State), "version", m.Version)
	n.kickRepair.now()
	return stream(c, func(line func(any) error) error {
		if !q.Undo && q.Wait {
			if r, err = n.awaitDrain(ctx, r, func(p wire.Progress) error { return line(wire.Line{Progress: &p}) }); err != nil {
				return err
			}
		}
		return line(wire.Line{Result: resultOf(n.row(r, n.said()))})
	})
}

// errClientLeft ends the answer to a client that is gone.
var errClientLeft = errors.New("the client left")

// awaitDrain tells how many blobs still have columns on a target, until none
// has, the drain is taken back, or the client leaves.
func (n *Node) awaitDrain(ctx context.Context, r catalog.TargetRecord, tell func(wire.Progress) error) (catalog.TargetRecord, error) {
	var total int64
	for {
		m, _, changed := n.cat.KnownTargets()
		now := m.Find(r.Name, r.Node)
		switch {
		case now == nil:
			return r, fmt.Errorf("drain %s: %w: it was taken out meanwhile", r.Name, catalog.ErrConflict)
		case now.State == catalog.TargetDrained:
			return *now, nil
		case now.State != catalog.TargetDraining && m.Version > 0 && !now.Since.Before(r.Since):
			return *now, fmt.Errorf("drain %s: %w: it was taken back", r.Name, catalog.ErrConflict)
		}
		left := n.leftOn(r.Name)
		total = max(total, left)
		if err := tell(wire.Progress{What: "columns of " + r.Name, Done: total - left, Total: total, Unit: "columns"}); err != nil {
			return r, errClientLeft
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-n.stopping:
			return r, fmt.Errorf("drain %s: %w: the daemon is stopping; the drain goes on when it is back", r.Name, catalog.ErrUnavailable)
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// leftOn is how many columns were still on a target to be left, by the last
// look and what was mended since.
func (n *Node) leftOn(name string) int64 {
	n.repair.mu.Lock()
	defer n.repair.mu.Unlock()
	return int64(n.repair.mu.on[name])
}
