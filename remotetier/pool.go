package remotetier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// Pool is the targets that a blob's columns are placed among. Reading needs
// none: a place names its targets, whatever pool they are in. It is found
// anew by each call, so that it follows SetTargets.
type Pool struct {
	tier *Tier
	name string
}

// Pool gives the pool of that name. "" is the default one: the targets without
// a pool's name, or if there are none, the pool of the first target by name.
// One that has no target refuses what it is given.
func (t *Tier) Pool(name string) Pool { return Pool{t, name} }

// Put writes a blob to targets of this pool; see Tier.Put.
func (p Pool) Put(ctx context.Context, blob string, src Source, layout stripe.Layout) (catalog.Place, error) {
	return p.tier.put(ctx, p.tier.now.Load(), p.name, blob, src, layout, 0)
}

// PutSmall replaces a small record; its new copies are on targets of this
// pool, the old ones may be anywhere. See Tier.PutSmall.
func (p Pool) PutSmall(ctx context.Context, blob string, b []byte, copies int) (catalog.Place, error) {
	return p.tier.putSmall(ctx, p.name, blob, b, copies)
}

// PoolInfo is what a layout must fit.
type PoolInfo struct {
	Name    string
	Default bool
	Targets int // that may take new columns: those that are down count, for they may come back; those being drained do not
	Domains int // of these targets
}

// Pools tells of every pool, by name.
func (t *Tier) Pools() []PoolInfo {
	m := t.now.Load()
	var all []PoolInfo
	domains := map[[2]string]bool{}
	for i := range m.all {
		ti := &m.all[i]
		at := slices.IndexFunc(all, func(p PoolInfo) bool { return p.Name == ti.Pool })
		if at < 0 {
			at = len(all)
			all = append(all, PoolInfo{Name: ti.Pool, Default: ti.Pool == m.pool("")})
		}
		if ti.State.Kept() || ti.Weight < 0 {
			continue
		}
		all[at].Targets++
		if d := cmp.Or(ti.Domain, "\x00"+ti.Name()); !domains[[2]string{ti.Pool, d}] {
			domains[[2]string{ti.Pool, d}] = true
			all[at].Domains++
		}
	}
	slices.SortFunc(all, func(a, b PoolInfo) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// pool turns the name of the default pool into that of the one it is.
func (m *members) pool(name string) string {
	if name != "" || len(m.all) == 0 || slices.ContainsFunc(m.all, func(ti TargetInfo) bool { return ti.Pool == "" }) {
		return name
	}
	return m.all[0].Pool
}

// wish is what a Put wants of placement.
type wish struct {
	pool, blob string
	gen        uint64
	layout     stripe.Layout
	size       int64            // bytes of a column, all of it
	columns    int              // to be placed now
	held       []string         // targets that have columns of the generation, one a column
	without    map[string]error // targets that failed, and how
}

// choose places columns on targets of a pool that take new ones, answer, have
// room and have not failed. Where there are too few, some get more than one,
// as long as the loss of a domain costs no more than the layout can bear.
func (m *members) choose(ctx context.Context, w wish) ([]string, error) {
	pool := m.pool(w.pool)
	total, now := 0, time.Now()
	var resting []*TargetInfo
	asked := m.ask(ctx, func(ti *TargetInfo) bool {
		if ti.Pool != pool {
			return false
		}
		total++
		h := ti.watch.met()
		if w.without[ti.Name()] == nil && h.rests(now) {
			resting = append(resting, ti)
		}
		return w.without[ti.Name()] == nil && !h.rests(now)
	})
	if n := w.layout.Columns(); n > total {
		in := ""
		if pool != "" {
			in = fmt.Sprintf(" in pool %s", pool)
		}
		return nil, fmt.Errorf("layout %v: %w: it needs %d targets and there are %d%s", w.layout, catalog.ErrInvalid, n, total, in)
	}
	for name, err := range w.without {
		asked = append(asked, TargetStatus{Name: name, Err: err})
	}
	held := make([]stripe.Candidate, len(w.held))
	for i, name := range w.held {
		held[i] = stripe.Candidate{Name: name, Domain: m.byName[name].Domain}
	}
	for {
		slices.SortFunc(asked, func(a, b TargetStatus) int { return cmp.Compare(a.Name, b.Name) })
		c := m.candidates(asked, w.size, w.without)
		for _, t := range c.tries(len(resting) == 0, len(w.without) > 0, w.layout.M) {
			if names := stripe.PlaceMore(w.blob, w.gen, t.among, held, w.columns, t.most); len(names) == w.columns {
				return names, nil
			}
		}
		if len(resting) == 0 || ctx.Err() != nil {
			return nil, c.tooFew(ctx, w.columns)
		}
		asked = append(asked, m.ask(ctx, func(ti *TargetInfo) bool { return slices.Contains(resting, ti) })...)
		resting = nil
	}
}

// try is one way of placing columns: among whom, and how many of the blob one
// target may have at most (0: one).
type try struct {
	among []stripe.Candidate
	most  int
}

// tries is the ways of placing columns, the best first. While not all targets
// were asked, none gets a second column. Once a target has failed this Put, one
// that answers and is not trusted yet comes before a second column on another:
// the source is read once more in any case. Before, it comes after: a disk that
// answers and fails every write would cost each Put a pass over its source.
func (c *candidates) tries(all, failed bool, m int) []try {
	both := slices.Concat(c.list, c.last)
	switch {
	case !all:
		return []try{{c.list, 0}}
	case failed:
		return []try{{c.list, 0}, {both, m}, {c.list, m}}
	}
	return []try{{c.list, m}, {both, m}}
}

// candidates is what asked targets may take a column, and why others may not.
type candidates struct {
	list         []stripe.Candidate
	last         []stripe.Candidate // that failed this Tier before, and answer: better than no place at all
	full, failed []error
}

// candidates looks for targets that take new columns, answer, have room for
// need bytes and are not in without. One that failed often is the last choice:
// after the network was away everything has, and works.
func (m *members) candidates(asked []TargetStatus, need int64, without map[string]error) (c candidates) {
	for _, s := range asked {
		err := s.Err
		if without[s.Name] != nil {
			err = without[s.Name]
		}
		switch {
		case !takesNew(s.State) && !(err == nil && takesNew(m.byName[s.Name].State)):
			c.failed = append(c.failed, fmt.Errorf("%s is %s and %w", s.Name, s.State, errState))
		case errors.Is(err, catalog.ErrNoSpace):
			c.full = append(c.full, fmt.Errorf("%s: %w", s.Name, err))
		case err != nil:
			c.failed = append(c.failed, fmt.Errorf("%s: %w", s.Name, err))
		case s.Space.Free < need:
			m.byName[s.Name].watch.noRoom(need)
			c.full = append(c.full, fmt.Errorf("%s has %d bytes free of the %d needed", s.Name, s.Space.Free, need))
		default:
			cand := stripe.Candidate{
				Name: s.Name, Domain: s.Domain,
				Weight: stripe.ByFree(m.byName[s.Name].Weight, s.Space.Free, s.Space.Total),
				Room:   int(min(s.Space.Free/max(need, 1), stripe.MaxColumns)),
			}
			switch {
			case !takesNew(s.State): // down by what this Tier met of it, and nobody else says so
				cand.Rank = 2
				c.last = append(c.last, cand)
				continue
			case s.State == catalog.TargetSuspect:
				cand.Rank = 1
			}
			c.list = append(c.list, cand)
		}
	}
	return c
}

// tooFew is the error of placing n columns on less than n candidates.
func (c *candidates) tooFew(ctx context.Context, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	class := catalog.ErrUnavailable
	if len(c.full) > 0 && len(c.failed) == 0 {
		class = catalog.ErrNoSpace
	}
	return fmt.Errorf("place %d columns: %w: %d targets can take one: %w", n, class, len(c.list), errors.Join(append(c.full, c.failed...)...))
}

// bearable leaves out the targets in whose domain one column more, beside those
// on held, would be more than the layout can lose.
func bearable(targets, held []stripe.Candidate, most int) []stripe.Candidate {
	columns := map[string]int{}
	for _, h := range held {
		columns[h.Domain]++
	}
	return slices.DeleteFunc(slices.Clone(targets), func(c stripe.Candidate) bool {
		return c.Domain != "" && columns[c.Domain] >= max(most, 1)
	})
}
