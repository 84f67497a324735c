package remotetier

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

// A column whose target fails goes to another one; the other columns go on.
// Until something is written that costs nothing. Afterwards the source is read
// once more, for the columns that need it and no others. The failed target is
// not asked again in this Put. A whole column that it may have all the same,
// because only its answer was lost, is no place's column: it is removed, now if
// the target can be reached, otherwise by who finds it there and knows the
// recorded place (see Found.Strays).

// assign chooses targets for the columns of want, beside those the others have.
func (p *put) assign(ctx context.Context, want []int) error {
	w := wish{pool: p.pool, blob: p.blob, gen: p.gen, layout: p.layout, size: fileSize(p.column), columns: len(want), without: p.without}
	for i, name := range p.names {
		if name != "" && !slices.Contains(want, i) {
			w.held = append(w.held, name)
		}
	}
	names, err := p.targets.choose(ctx, w)
	if err != nil {
		return err
	}
	for i, c := range want {
		p.names[c] = names[i]
	}
	return nil
}

// move gives up the targets that lost the columns of want and assigns others.
func (p *put) move(ctx context.Context, want []int) error {
	trace := &p.tier.opt.Trace
	for _, c := range want {
		if name := p.names[c]; p.without[name] == nil {
			p.without[name] = p.lost[c]
			if trace.TargetFailed != nil {
				trace.TargetFailed(name, p.blob, p.lost[c])
			}
		}
	}
	p.close(want)
	from := slices.Clone(p.names)
	if err := p.assign(ctx, want); err != nil {
		return err
	}
	for _, c := range want {
		if trace.Replanned != nil {
			trace.Replanned(p.blob, c, from[c], p.names[c], p.lost[c])
		}
		p.lost[c] = nil
	}
	return nil
}

// open begins the columns of want, on other targets where theirs refuse.
func (p *put) open(ctx context.Context, want []int) error {
	for try := 1; ; try++ {
		if err := p.each(ctx, want, openTime, func(ctx context.Context, c int) (err error) {
			p.writers[c], err = p.target(c).Create(ctx, p.key(c), fileSize(p.column), CreateNew)
			return err
		}); err != nil {
			return err
		}
		for _, c := range want {
			if errors.Is(p.lost[c], fs.ErrExist) {
				return fmt.Errorf("%w: %s: %w", errTaken, p.names[c], p.lost[c])
			}
		}
		if want = p.lostOf(want); len(want) == 0 {
			return nil
		}
		if try == openTries {
			return p.gaveUp(want, try)
		}
		if err := p.move(ctx, want); err != nil {
			return err
		}
	}
}

// commit makes the columns of want visible that have not lost their target.
func (p *put) commit(ctx context.Context, want []int) error {
	var whole []int
	for _, c := range want {
		if p.lost[c] == nil {
			whole = append(whole, c)
			p.tried = append(p.tried, copyAt{p.key(c), p.names[c]})
		}
	}
	return p.each(ctx, whole, commitTime, func(ctx context.Context, c int) error { return p.writers[c].Commit(ctx) })
}

// each calls f for the columns at once, each within limit, and notes which are
// lost by it. It returns an error only when ctx has ended.
func (p *put) each(ctx context.Context, columns []int, limit time.Duration, f func(ctx context.Context, column int) error) error {
	var g errgroup.Group
	for _, c := range columns {
		g.Go(func() error {
			p.lost[c] = within(ctx, limit, func(ctx context.Context) error { return f(ctx, c) })
			return nil
		})
	}
	_ = g.Wait()
	return ctx.Err()
}

// within calls f with a time limit; to have met it is ErrUnavailable.
func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	short, cancel := context.WithTimeoutCause(ctx, limit, errLimit)
	defer cancel()
	err := f(short)
	if err != nil && ctx.Err() == nil && short.Err() != nil {
		return fmt.Errorf("%w: no answer within %v: %w", catalog.ErrUnavailable, limit, plain{err})
	}
	return err
}

// lostOf is the columns of want that have lost their target.
func (p *put) lostOf(want []int) (lost []int) {
	for _, c := range want {
		if p.lost[c] != nil {
			lost = append(lost, c)
		}
	}
	return lost
}

// gaveUp is the error for columns that found no target in so many tries.
func (p *put) gaveUp(want []int, tries int) error {
	var errs []error
	class := catalog.ErrNoSpace
	for _, c := range want {
		errs = append(errs, fmt.Errorf("column %d: %s: %w", c, p.names[c], p.lost[c]))
		if !errors.Is(p.lost[c], catalog.ErrNoSpace) {
			class = catalog.ErrUnavailable
		}
	}
	return fmt.Errorf("%w: %d columns found no target in %d tries: %w", class, len(want), tries, errors.Join(errs...))
}

// close gives up the columns that were not committed.
func (p *put) close(columns []int) {
	var g errgroup.Group
	for _, c := range columns {
		if w := p.writers[c]; w != nil {
			p.writers[c] = nil
			g.Go(w.Close) // after Commit it does nothing; before, what it cannot remove is swept
		}
	}
	_ = g.Wait()
}

// tidy removes what commits left that are no part of the result: after a Put
// that failed all of them, otherwise those that were made good elsewhere.
func (p *put) tidy(ctx context.Context, done bool) {
	var left []copyAt
	for _, at := range p.tried {
		if !done || p.names[at.key.Column] != at.target {
			left = append(left, at)
		}
	}
	p.tier.removeAll(context.WithoutCancel(ctx), p.targets, left)
}

// crowded tells of targets that got more than one column.
func (p *put) crowded() {
	f := p.tier.opt.Trace.Crowded
	if f == nil {
		return
	}
	columns := map[string]int{}
	for _, name := range p.names {
		if columns[name]++; columns[name] == 2 {
			f(name, p.blob)
		}
	}
}
