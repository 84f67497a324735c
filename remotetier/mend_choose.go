package remotetier

import (
	"context"
	"fmt"
	"slices"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// choose says where each job's column goes, and gives up those that can go nowhere.
func (m *mend) choose(ctx context.Context) error {
	now, place := m.tier.now.Load(), m.rep.Place
	stays := map[int]string{} // by column: where it is, or will be
	for c, t := range m.res.Place.Targets {
		stays[c] = t
	}
	var away []*mendJob
	for _, j := range m.jobs {
		ti := now.byName[j.Target]
		if j.State.Bad() && ti != nil && takesNew(ti.State) && m.without[j.Target] == nil && !m.leaves(j.Target) {
			j.to, j.mode = j.Target, CreateReplace
			continue
		}
		j.to, j.mode = m.opt.Move[j.Column], CreateNew
		if j.State == ColumnOK && j.to != "" && m.mayMove(now, j) == nil {
			stays[j.Column] = j.to
			continue
		}
		delete(stays, j.Column)
		away = append(away, j)
	}
	if len(away) == 0 {
		return nil
	}
	pool := m.poolOf(now)
	asked := now.ask(ctx, func(ti *TargetInfo) bool { return ti.Pool == pool })
	c := now.candidates(asked, fileSize(m.layout.ColumnSize(place.Size)), m.without)
	c.list = slices.DeleteFunc(c.list, func(cand stripe.Candidate) bool {
		return m.leaves(cand.Name) || slices.Contains(place.Targets, cand.Name)
	})
	for _, j := range away {
		if _, fixed := m.opt.Move[j.Column]; fixed && j.State == ColumnOK && !m.leaves(j.Target) {
			m.leave(j, m.mayMove(now, j))
			continue
		}
		var held []stripe.Candidate
		for _, t := range stays {
			h := stripe.Candidate{Name: t}
			if ti := now.byName[t]; ti != nil {
				h.Domain = ti.Domain
			}
			held = append(held, h)
		}
		able, spread := c.list, j.State == ColumnOK && !m.leaves(j.Target)
		if spread { // it need not move
			able = bearable(able, held, m.layout.M)
		}
		names := stripe.PlaceMore(place.Blob, place.Generation, able, held, 1, 0)
		if len(names) == 0 {
			err := c.tooFew(ctx, 1)
			if ctx.Err() != nil {
				return err
			}
			if m.leave(j, err); spread {
				stays[j.Column] = j.Target
			}
			continue
		}
		j.to = names[0]
		stays[j.Column] = j.to
	}
	return nil
}

// mayMove says why a column cannot go where Move wants it, if so.
func (m *mend) mayMove(now *members, j *mendJob) error {
	to := m.opt.Move[j.Column]
	ti := now.byName[to]
	switch {
	case m.without[to] != nil:
		return m.without[to]
	case ti == nil:
		return fmt.Errorf("target %q: %w: it is not configured", to, catalog.ErrUnavailable)
	case !takesNew(ti.State) || m.leaves(to):
		return fmt.Errorf("target %s is %s and %w: %w", to, ti.State.OrUp(), errState, catalog.ErrConflict)
	case slices.Contains(m.rep.Place.Targets, to):
		return fmt.Errorf("target %s: %w: it has a column of the blob", to, catalog.ErrConflict)
	}
	return nil
}

// poolOf is the pool of the blob: the one most of its columns are in.
func (m *mend) poolOf(now *members) string {
	count, best := map[string]int{}, ""
	for _, t := range m.rep.Place.Targets {
		if ti := now.byName[t]; ti != nil {
			if count[ti.Pool]++; count[ti.Pool] > count[best] {
				best = ti.Pool
			}
		}
	}
	if len(count) == 0 {
		return now.pool("")
	}
	return best
}
