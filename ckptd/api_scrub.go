package ckptd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// postScrub looks at every column of a target, or of all that this node uses:
// here and now with wait, otherwise by whoever scrubs it anyway.
func (n *Node) postScrub(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.ScrubRequest](c)
	if err != nil {
		return err
	}
	var targets []catalog.TargetRecord
	for _, t := range n.tgt.snapshot() {
		if q.Target == "" && scrubbable(&t.TargetRecord) || q.Target == t.Name {
			targets = append(targets, t.TargetRecord)
		}
	}
	if q.Target != "" && len(targets) == 0 {
		m, _, _ := n.cat.KnownTargets()
		return n.unknownTarget(&m, q.Target)
	}
	if !q.Wait {
		return long(c, func(func(wire.Progress)) (wire.ScrubResult, error) {
			for _, t := range targets {
				if _, err := n.cat.UpdateScrub(ctx, t.Name, t.Node, func(r *catalog.ScrubRecord) error { r.Asked = time.Now(); return nil }); err != nil {
					return wire.ScrubResult{}, err
				}
			}
			n.kickScrub.now()
			return wire.ScrubResult{Started: true, Targets: len(targets), Left: []string{}}, nil
		})
	}
	return long(c, func(progress func(wire.Progress)) (wire.ScrubResult, error) {
		ctx, cancel := n.untilStop(ctx)
		defer cancel()
		res := wire.ScrubResult{Left: []string{}}
		for _, t := range targets {
			rec, err := n.scrubTarget(ctx, t, true, func(_ catalog.ScrubRecord, done, total int) {
				progress(wire.Progress{What: "target " + t.Name, Done: int64(done), Total: int64(total), Unit: "sets"})
			})
			if ctx.Err() != nil {
				return res, errors.Join(ctx.Err(), err)
			} else if err != nil {
				res.Left = append(res.Left, fmt.Sprintf("target %s: %v", t.Name, err))
				continue
			}
			res.Targets++
			res.Columns, res.Bytes, res.Extra = res.Columns+rec.Columns, res.Bytes+rec.Bytes, res.Extra+rec.Extra
			if res.Bad, res.Mended = res.Bad+rec.Bad, res.Mended+rec.Mended; rec.Mended < rec.Bad {
				res.Left = append(res.Left, fmt.Sprintf("target %s: %d of %d bad columns are not mended; `ckpt status` tells why", t.Name, rec.Bad-rec.Mended, rec.Bad))
			}
		}
		return res, nil
	})
}
