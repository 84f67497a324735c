package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// maxWait bounds one call of /v1/wait; the SDKs ask again.
const maxWait = time.Minute

func (n *Node) postWait(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.WaitRequest](c)
	if err != nil {
		return err
	}
	ref, err := catalog.ParseRef(q.Ref)
	if err != nil {
		return err
	}
	if ref.Level != catalog.LevelNone && q.Level == catalog.LevelNone {
		q.Level = ref.Level
	}
	ref.Level = catalog.LevelNone
	ctx, cancel := context.WithTimeout(ctx, min(max(time.Duration(q.Timeout*float64(time.Second)), 0), maxWait))
	defer cancel()
	rec, err := n.await(ctx, ref, q.Level)
	if err != nil {
		return err
	}
	return reply(c, wire.SetOf(&rec))
}

// await returns when the set is at the level, or has failed for good.
func (n *Node) await(ctx context.Context, ref catalog.Ref, level catalog.Level) (catalog.SetRecord, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := n.cat.Watch(wctx, ref.Run, false)
	if err := n.cat.Sync(ctx); err != nil && !errors.Is(err, catalog.ErrUnavailable) && ctx.Err() == nil {
		return catalog.SetRecord{}, err
	}
	for {
		rec, err := n.cat.ResolveKnown(ref)
		if err == nil && rec.Level >= level {
			return rec, nil
		}
		if ref.Step != catalog.Latest && err != nil {
			sets, _ := n.cat.Known(ref.Run)
			for _, s := range sets {
				if s.Step == ref.Step && (ref.Attempt == 0 || s.Attempt == ref.Attempt) {
					if s.State == catalog.Aborted || s.State == catalog.Pruned {
						return s, fmt.Errorf("%v: %w: it was %s: %s", s.SetID, catalog.ErrConflict, s.State, s.Reason)
					}
					break
				}
			}
		}
		select {
		case _, ok := <-changes:
			if !ok && ctx.Err() == nil { // fell behind
				changes = n.cat.Watch(wctx, ref.Run, false)
			}
			if ok {
				continue
			}
		case <-n.stopping:
			return rec, fmt.Errorf("%v: %w: the daemon is stopping", ref, catalog.ErrUnavailable)
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrIncomplete) {
				return rec, err
			}
			return rec, fmt.Errorf("%v: %w: want %v, it is at %v", ref, catalog.ErrIncomplete, level, rec.Level)
		}
	}
}
