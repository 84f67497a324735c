package remotetier

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// MendOptions say what of a place is to be put right; the zero value: the
// columns that are not there or not what they should be.
type MendOptions struct {
	Leave  func(target string) bool // columns on these targets move away, whatever their state; nil: none
	Move   map[int]string           // columns that move to the target given, if they are good
	Spread bool                     // of several columns on one target all but one move to targets that have none
	Deep   bool                     // look for columns whose bytes do not fit their sums, too
}

// Mended is what a Mend did. The place holds from the moment it returns; the
// one before does too, until DropReplaced.
type Mended struct {
	Was, Place   catalog.Place
	Columns      []MendedColumn // that were written or found written
	Left         []ColumnCheck  // that are not as they should be, and why they stay so
	BytesRead    int64
	BytesWritten int64
}

// MendedColumn is one column put right.
type MendedColumn struct {
	Column   int
	From, To string      // the same where it was replaced
	Was      ColumnState // ok: it moved
	Found    bool        // an earlier Mend that was cut short had written it
}

// Moved says that the place has changed, so that it must be recorded.
func (m *Mended) Moved() bool { return !slices.Equal(m.Was.Targets, m.Place.Targets) }

// Mend rebuilds the columns of a place that are not what they should be, from
// any others, and moves those that Leave or Move names. What was rebuilt is
// written only if the whole blob has the content of the place. A bad column on
// a target that takes new ones is replaced there, any other goes to a target
// chosen as Put does, that has none of the blob yet.
//
// Redundancy is never less than before: a column that was good stays until
// DropReplaced. So the caller records Mended.Place and then calls that. A
// crash, of either side, at any moment leaves the old place valid, and the new
// one if Mend returned. Two at once do no harm: they write the same bytes, and
// one finds the other's column.
//
// An error says that nothing could be done: ErrCorrupt, too few columns are
// good, or they do not fit together; ErrUnavailable, targets that cannot be
// reached may have enough. Columns that no target can take are in Left.
func (t *Tier) Mend(ctx context.Context, place catalog.Place, opt MendOptions) (Mended, error) {
	fail := func(err error) (Mended, error) { return Mended{}, fmt.Errorf("mend %s: %w", place.Blob, err) }
	ctx = traffic.Default(ctx, traffic.Repair)
	rep, err := t.Check(ctx, place, opt.Deep)
	if err != nil {
		return fail(err)
	}
	l, err := layoutOf(place)
	if err != nil {
		return fail(err)
	}
	m := &mend{tier: t, layout: l, opt: opt, rep: rep, without: map[string]error{}, unlike: make([]bool, l.Columns())}
	m.res.Was, m.res.Place = place, place
	m.res.Place.Targets = slices.Clone(place.Targets)
	m.plan()
	for len(m.jobs) > 0 {
		if err := m.round(ctx); err != nil {
			return fail(err)
		}
	}
	slices.SortFunc(m.res.Columns, func(a, b MendedColumn) int { return a.Column - b.Column })
	slices.SortFunc(m.res.Left, func(a, b ColumnCheck) int { return a.Column - b.Column })
	return m.res, nil
}

// DropReplaced removes the columns that moved from where they were. The caller
// has recorded m.Place. An error names targets that still hold one; calling
// again is right.
func (t *Tier) DropReplaced(ctx context.Context, m Mended) error {
	return t.drop(ctx, m, func(c MendedColumn) (string, bool) { return c.From, true })
}

// DropUnused removes what a Mend wrote elsewhere than where the place recorded
// by somebody else has its columns.
func (t *Tier) DropUnused(ctx context.Context, m Mended, recorded catalog.Place) error {
	return t.drop(ctx, m, func(c MendedColumn) (string, bool) {
		// One that was found is perhaps being recorded by who wrote it.
		return c.To, !c.Found && (c.Column >= len(recorded.Targets) || recorded.Generation != m.Place.Generation || recorded.Targets[c.Column] != c.To)
	})
}

func (t *Tier) drop(ctx context.Context, m Mended, which func(MendedColumn) (target string, ok bool)) error {
	now := t.now.Load()
	var errs []error
	for _, c := range m.Columns {
		name, ok := which(c)
		if !ok || c.From == c.To {
			continue
		}
		ti := now.byName[name]
		if ti == nil {
			continue // it left, with what is on it
		}
		if err := ti.Remove(ctx, Key{Blob: m.Place.Blob, Generation: m.Place.Generation, Column: c.Column}); err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// mend is one call of Mend.
type mend struct {
	tier    *Tier
	layout  stripe.Layout
	opt     MendOptions
	rep     CheckReport
	without map[string]error // targets that failed
	unlike  []bool           // by column: it was thought good, and is not to be copied
	jobs    []*mendJob       // that are to be done
	res     Mended
}

// mendJob is a column to be written.
type mendJob struct {
	ColumnCheck
	to    string
	mode  CreateMode
	w     ColumnWriter
	sums  []uint32
	found bool
	err   error // of the target written to
}

func (m *mend) leaves(target string) bool { return m.opt.Leave != nil && m.opt.Leave(target) }

// plan makes the jobs from what was found.
func (m *mend) plan() {
	has := map[string]bool{}
	for _, c := range m.rep.Columns {
		to, move := m.opt.Move[c.Column]
		crowded := m.opt.Spread && has[c.Target] && c.State == ColumnOK
		has[c.Target] = true
		switch {
		case m.leaves(c.Target), c.State.Bad(), crowded, move && c.State == ColumnOK && to != c.Target:
			m.jobs = append(m.jobs, &mendJob{ColumnCheck: c})
		case c.State == ColumnUnreachable:
			m.res.Left = append(m.res.Left, c)
		}
	}
}

// leave gives a job up.
func (m *mend) leave(j *mendJob, err error) {
	c := j.ColumnCheck
	if c.Err = err; c.State == ColumnOK {
		c.Err = fmt.Errorf("it does not move: %w", err)
	}
	m.res.Left = append(m.res.Left, c)
	m.jobs = slices.DeleteFunc(m.jobs, func(o *mendJob) bool { return o == j })
}

// done notes a job that was.
func (m *mend) done(j *mendJob) {
	m.res.Columns = append(m.res.Columns, MendedColumn{Column: j.Column, From: j.Target, To: j.to, Was: j.State, Found: j.found})
	m.res.Place.Targets[j.Column] = j.to
	m.jobs = slices.DeleteFunc(m.jobs, func(o *mendJob) bool { return o == j })
}

// round tries every job once. What a target refuses is tried on another one in
// the next round; each round ends a job, or knows of one more target, or of
// one more column, that is not to be used.
func (m *mend) round(ctx context.Context) error {
	if err := m.choose(ctx); err != nil {
		return err
	}
	defer func() {
		for _, j := range m.jobs {
			m.close(j)
		}
	}()
	if err := m.create(ctx); err != nil {
		return err
	}
	jobs := slices.DeleteFunc(slices.Clone(m.jobs), func(j *mendJob) bool { return j.w == nil })
	if len(jobs) > 0 {
		s := newMendStream(m, jobs)
		err := s.run(ctx)
		m.res.BytesRead += s.read.Load()
		_ = s.Close()
		again := new(unlikeError)
		switch {
		case errors.As(err, &again):
			m.unlike[again.column] = true
			return nil
		case err == nil:
			m.commit(ctx, jobs)
		case !errors.Is(err, errAllFailed):
			return err
		}
	}
	for _, j := range slices.Clone(m.jobs) {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case j.err == nil:
			m.done(j)
		case errors.Is(j.err, catalog.ErrConflict):
			m.leave(j, j.err)
		default:
			m.without[j.to] = j.err
			if f := m.tier.opt.Trace.TargetFailed; f != nil {
				f(j.to, m.rep.Place.Blob, j.err)
			}
		}
	}
	return nil
}

// close gives up what a job has not committed.
func (m *mend) close(j *mendJob) {
	if j.w != nil {
		_ = j.w.Close() // after Commit it does nothing; before, what it cannot remove is swept
	}
	j.w, j.sums, j.found, j.err = nil, nil, false, nil
}

// create begins the jobs' columns, and looks at those that are there already.
func (m *mend) create(ctx context.Context) error {
	var g errgroup.Group
	for _, j := range m.jobs {
		g.Go(func() error {
			j.err = m.begin(ctx, j)
			return nil
		})
	}
	_ = g.Wait()
	return ctx.Err()
}

func (m *mend) begin(ctx context.Context, j *mendJob) error {
	ti := m.tier.now.Load().byName[j.to]
	if ti == nil {
		return fmt.Errorf("target %q: %w: it is not configured", j.to, catalog.ErrUnavailable)
	}
	size := fileSize(m.layout.ColumnSize(m.rep.Place.Size))
	var err error
	if j.w, err = ti.Create(ctx, m.key(j), size, j.mode); !isTaken(err) {
		return err
	}
	busy := fmt.Errorf("column %d on %s: %w: somebody else is writing it: %w", j.Column, j.to, catalog.ErrConflict, err)
	if j.mode == CreateReplace {
		return busy
	}
	info, err := m.tier.CheckColumn(ctx, j.to, m.key(j))
	if err == nil {
		if _, err = info.of(&m.rep.Place, m.layout, j.Column); err == nil {
			j.found = true
			return nil
		}
	}
	if s := stateOf(err); !s.Bad() || s == ColumnMissing {
		return busy // it is not committed yet, or cannot be asked
	}
	if j.w, err = ti.Create(ctx, m.key(j), size, CreateReplace); isTaken(err) {
		return busy
	}
	return err
}

func (m *mend) key(j *mendJob) Key {
	return Key{Blob: m.rep.Place.Blob, Generation: m.rep.Place.Generation, Column: j.Column}
}

// commit makes the columns visible, each as soon as it can be.
func (m *mend) commit(ctx context.Context, jobs []*mendJob) {
	var g errgroup.Group
	for _, j := range jobs {
		if j.err == nil {
			g.Go(func() error { j.err = j.w.Commit(ctx); return nil })
		}
	}
	_ = g.Wait()
	for _, j := range jobs {
		if j.err == nil {
			m.res.BytesWritten += fileSize(m.layout.ColumnSize(m.rep.Place.Size))
		}
	}
}

// unlikeError says that a column thought good is not, and that the round has
// to begin again without copying it.
type unlikeError struct {
	column int
	err    error
}

func (e *unlikeError) Error() string { return fmt.Sprintf("column %d: %v", e.column, e.err) }
func (e *unlikeError) Unwrap() error { return e.err }
