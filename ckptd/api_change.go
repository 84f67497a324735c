package ckptd

import (
	"context"
	"fmt"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

func (n *Node) postTag(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.TagRequest](c)
	if err != nil {
		return err
	}
	const maxTags, maxTag = 64, 1024
	return n.change(ctx, c, q.Ref, func(s *catalog.SetRecord) error {
		if s.State != catalog.Committed {
			return fmt.Errorf("tag: %w: it is %s", catalog.ErrConflict, s.State)
		}
		for k, v := range q.Tags {
			if k == "" || len(k) > maxTag || v != nil && len(*v) > maxTag {
				return fmt.Errorf("tag %q: %w: keys and values have at most %d bytes", k, catalog.ErrInvalid, maxTag)
			}
			if v == nil {
				delete(s.Tags, k)
				continue
			}
			if s.Tags == nil {
				s.Tags = make(map[string]string)
			}
			s.Tags[k] = *v
		}
		if len(s.Tags) > maxTags {
			return fmt.Errorf("%w: a set has at most %d tags", catalog.ErrInvalid, maxTags)
		}
		return nil
	})
}

func (n *Node) postPin(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.PinRequest](c)
	if err != nil {
		return err
	}
	return n.change(ctx, c, q.Ref, func(s *catalog.SetRecord) error {
		if s.State != catalog.Committed {
			return fmt.Errorf("pin: %w: it is %s", catalog.ErrConflict, s.State)
		}
		if s.Pinned == q.Pinned {
			return catalog.ErrSame
		}
		s.Pinned = q.Pinned
		return nil
	})
}

func (n *Node) change(ctx context.Context, c *app.RequestContext, ref string, f func(*catalog.SetRecord) error) error {
	rec, err := n.lookup(ctx, ref)
	if err != nil {
		return err
	}
	if rec, err = n.cat.Update(ctx, rec.SetID, f); err != nil {
		return err
	}
	return reply(c, wire.SetOf(&rec))
}

func (n *Node) postRemove(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.RemoveRequest](c)
	if err != nil {
		return err
	}
	rec, err := n.lookup(ctx, q.Ref)
	if err != nil {
		return err
	}
	if _, pack := catalog.PackName(rec.Run); pack && rec.State == catalog.Committed {
		return wire.WithHint(fmt.Errorf("remove %v: %w: it is a pack of a dataset", rec.SetID, catalog.ErrInvalid), "versions may refer to it; remove a version with `ckpt dataset rm NAME@VERSION`; packs that no version names go by themselves")
	}
	if rec.State == catalog.Writing {
		rec, err = n.cat.Abort(ctx, rec.SetID, "removed by request", time.Now())
	} else {
		rec, err = n.cat.Tombstone(ctx, rec.SetID, "removed by request", time.Now())
	}
	if err != nil {
		return err
	}
	n.event(ctx, rec.SetID, string(rec.State), "removed by request")
	return reply(c, wire.SetOf(&rec))
}

// checkRetained refuses rules for sets that others refer to.
func checkRetained(run catalog.Run) error {
	if _, pack := catalog.PackName(run); pack {
		return wire.WithHint(fmt.Errorf("run %s: %w: it keeps the packs of a dataset", run, catalog.ErrInvalid), "versions may refer to them; give rules for the versions, _datasets/NAME")
	}
	return nil
}

func (n *Node) postPrune(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.PruneRequest](c)
	if err != nil {
		return err
	}
	run, err := catalog.ParseRun(q.Run)
	if err != nil {
		return err
	}
	if err := checkRetained(run); err != nil {
		return err
	}
	r := q.Retention
	if r == nil {
		p, err := n.cat.Policy(ctx, run)
		if err != nil {
			return err
		}
		r = &p.Retention
	}
	if *r == (catalog.Retention{}) {
		return wire.WithHint(fmt.Errorf("prune %s: %w: no rule says what to keep", run, catalog.ErrInvalid), "give one, as --keep-last 3, or set the run's policy")
	}
	if err := r.Check(); err != nil {
		return fmt.Errorf("prune %s: %w", run, err)
	}
	keep, remove, err := n.prune(ctx, run, *r, q.DryRun)
	if err != nil {
		return err
	}
	out := wire.Prune{DryRun: q.DryRun, Keep: []wire.PruneItem{}, Remove: []wire.PruneItem{}}
	for _, v := range keep {
		out.Keep = append(out.Keep, wire.PruneItem{Set: wire.SetOf(&v.Set), Why: v.Why})
	}
	for _, v := range remove {
		out.Remove = append(out.Remove, wire.PruneItem{Set: wire.SetOf(&v.Set), Why: v.Why})
		out.Freed += v.Set.Size
	}
	return reply(c, out)
}

func (n *Node) getPolicy(ctx context.Context, c *app.RequestContext) error {
	run, err := catalog.ParseRun(c.Query("run"))
	if err != nil {
		return err
	}
	p, err := n.cat.Policy(ctx, run)
	if err != nil {
		return err
	}
	return reply(c, wire.PolicyRequest{Run: string(run), Policy: p})
}

func (n *Node) postPolicy(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.PolicyRequest](c)
	if err != nil {
		return err
	}
	err = n.checkPolicy(q.Policy)
	if err == nil && q.Policy.Retention != (catalog.Retention{}) {
		err = checkRetained(catalog.Run(q.Run))
	}
	if err != nil {
		return fmt.Errorf("policy of %s: %w", q.Run, err)
	}
	if err := n.cat.SetPolicy(ctx, catalog.Run(q.Run), q.Policy, time.Now()); err != nil {
		return err
	}
	if err := n.cat.Sync(ctx); err == nil {
		err = n.copyRun(ctx, catalog.Run(q.Run), false)
		if err == nil && n.remote != nil {
			err = n.copyRun(ctx, catalog.Run(q.Run), true)
		}
		n.setTrouble("records", err)
	}
	return reply(c, q)
}
