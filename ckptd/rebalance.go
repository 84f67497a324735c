package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cloudwego/hertz/pkg/app"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/sdk/wire"
)

// maxBalanced bounds the blobs that one rebalance looks at; another one goes on.
const maxBalanced = 200_000

// postTargetRebalance moves columns from the fullest targets to the emptiest,
// or tells what it would move.
func (n *Node) postTargetRebalance(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.RebalanceRequest](c)
	if err != nil {
		return err
	}
	if n.remote == nil {
		return fmt.Errorf("rebalance: %w: this node has no remote tier", catalog.ErrInvalid)
	}
	return long(c, func(progress func(wire.Progress)) (wire.RebalanceResult, error) {
		ctx, cancel := n.untilStop(ctx)
		defer cancel()
		return n.rebalance(ctx, q.DryRun, progress)
	})
}

// fullnesses tells how full the targets are that take new columns.
func (n *Node) fullnesses(ctx context.Context) []fullness {
	var all []fullness
	for _, s := range n.remote.Targets(ctx) {
		if s.Err == nil && s.State.OrUp() == catalog.TargetUp && s.Space.Total > 0 {
			all = append(all, fullness{name: s.Name, domain: s.Domain, pool: s.Pool, total: s.Space.Total, used: s.Space.Total - s.Space.Free})
		}
	}
	return all
}

// partsOf gives the least and the greatest part that is used.
func partsOf(targets []fullness) (least, most float64) {
	for i := range targets {
		p := targets[i].part()
		if i == 0 {
			least, most = p, p
		}
		least, most = min(least, p), max(most, p)
	}
	return least, most
}

func (n *Node) rebalance(ctx context.Context, dryRun bool, progress func(wire.Progress)) (wire.RebalanceResult, error) {
	res := wire.RebalanceResult{DryRun: dryRun, Moves: []wire.RebalanceMove{}, Left: []string{}}
	if err := n.cat.Sync(ctx); err != nil {
		return res, err
	}
	targets := n.fullnesses(ctx)
	res.Least, res.Most = partsOf(targets)
	v := n.mendView()
	var blobs []placed
	for _, set := range n.cat.KnownWhere("", func(s *catalog.SetRecord) bool { return s.State == catalog.Committed }) {
		if len(blobs) >= maxBalanced || res.Most-res.Least <= balanced {
			break
		}
		parts, err := n.cat.Parts(ctx, set.SetID)
		if err != nil {
			return res, err
		}
		for _, p := range placesOf(&set, parts) {
			if v.reaches(n.cfg.Name, &p.place) {
				blobs = append(blobs, p)
			}
		}
	}
	moves := planRebalance(targets, blobs, balanced)
	byBlob := map[int]map[int]string{}
	for _, m := range moves {
		if byBlob[m.blob] == nil {
			byBlob[m.blob] = map[int]string{}
		}
		byBlob[m.blob][m.column] = m.to
		i := slices.IndexFunc(res.Moves, func(o wire.RebalanceMove) bool { return o.From == m.from && o.To == m.to })
		if i < 0 {
			i = len(res.Moves)
			res.Moves = append(res.Moves, wire.RebalanceMove{From: m.from, To: m.to})
		}
		res.Moves[i].Columns++
		res.Moves[i].Bytes += m.bytes
	}
	slices.SortFunc(res.Moves, func(a, b wire.RebalanceMove) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	if dryRun {
		for _, m := range moves {
			res.Columns, res.Bytes = res.Columns+1, res.Bytes+m.bytes
		}
		return res, nil
	}
	err := n.carryOut(ctx, blobs, byBlob, &res, progress)
	res.Least, res.Most = partsOf(n.fullnesses(ctx))
	return res, err
}

// carryOut makes the moves, of one blob all at once.
func (n *Node) carryOut(ctx context.Context, blobs []placed, moves map[int]map[int]string, res *wire.RebalanceResult, progress func(wire.Progress)) error {
	var mu sync.Mutex
	done := 0
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(repairWorkers)
	for i := range blobs {
		to := moves[i]
		if to == nil {
			continue
		}
		g.Go(func() error {
			var m remotetier.Mended
			now, err := n.placeNow(ctx, &blobs[i])
			if err == nil && !samePlace(&now, &blobs[i].place) {
				err = errLater // somebody has moved it meanwhile
			}
			if err == nil {
				m, err = n.mendWith(ctx, mendJob{placed: blobs[i]}, remotetier.MendOptions{Move: to})
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			done++
			res.Columns += len(m.Columns)
			res.Bytes += m.BytesWritten
			for _, l := range m.Left {
				res.Left = append(res.Left, fmt.Sprintf("%v %s: column %d on %s: %v", blobs[i].id, blobs[i].what(), l.Column, l.Target, l.Err))
			}
			if err != nil && !errors.Is(err, errLater) {
				res.Left = append(res.Left, fmt.Sprintf("%v %s: %v", blobs[i].id, blobs[i].what(), err))
			}
			if progress != nil {
				progress(wire.Progress{What: "blobs", Done: int64(done), Total: int64(len(moves)), Unit: "blobs"})
			}
			return nil
		})
	}
	return g.Wait()
}
