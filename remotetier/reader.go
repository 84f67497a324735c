package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// Reader reads a blob from its columns, any k of them. Its methods may be
// called concurrently. Columns are opened when they are needed.
type Reader struct {
	tier   *Tier
	place  catalog.Place
	layout stripe.Layout
	read   atomic.Int64
	hedged atomic.Int64
	slots  []slot // by column
}

// slot is a column that may not be open, or not there.
type slot struct {
	opening chan struct{} // holds one token: taken to open it, which may last
	sync.Mutex
	col    *column
	err    error // why it cannot be opened; sticky
	cause  error // the first thing that went wrong with it
	faults int   // reads that failed
}

func newSlots(n int) []slot {
	s := make([]slot, n)
	for i := range s {
		s[i].opening = make(chan struct{}, 1)
	}
	return s
}

// maxFaults is how many failed reads make a column the last choice.
const maxFaults = 4

var _ io.ReaderAt = (*Reader)(nil)

// Report tells what a Reader has met so far.
type Report struct {
	Degraded  bool     // some column was missing or corrupt, and others were used in its place
	Missing   []string // targets whose column is not there or cannot be reached, by name
	Corrupt   []string // targets whose column failed a check, by name
	BytesRead int64    // from targets, checksums and headers included
	Hedged    int64    // parts of columns that were late, and rebuilt from others sooner than they came
}

// Open finds k columns of a place. It returns fs.ErrNotExist when every target
// answers that it has none, ErrUnavailable when targets that cannot be reached
// may have enough, and ErrCorrupt when too few are left.
func (t *Tier) Open(ctx context.Context, place catalog.Place) (*Reader, error) {
	l, err := layoutOf(place)
	if err != nil {
		return nil, err
	}
	place.Targets = slices.Clone(place.Targets)
	r := &Reader{tier: t, place: place, layout: l, slots: newSlots(l.Columns())}
	if err := r.openSome(traffic.Default(ctx, traffic.Restore)); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("open %s: %w", place.Blob, err)
	}
	return r, nil
}

// openSome opens the data columns, and as many parity columns as are missing,
// or on targets that had better not be asked.
func (r *Reader) openSome(ctx context.Context) error {
	open, order := 0, r.order()
	for next := 0; open < r.layout.K && next < len(r.slots); {
		n := min(r.layout.K-open, len(r.slots)-next)
		var ok atomic.Int32
		var g errgroup.Group
		for _, c := range order[next : next+n] {
			g.Go(func() error {
				if _, err := r.column(ctx, c); err == nil {
					ok.Add(1)
				}
				return nil
			})
		}
		_ = g.Wait()
		if err := ctx.Err(); err != nil {
			return err
		}
		open, next = open+int(ok.Load()), next+n
	}
	if open < r.layout.K {
		return r.tooFew(nil)
	}
	return nil
}

// order is the columns by how much their targets are doubted.
func (r *Reader) order() []int {
	all, doubts := make([]int, len(r.slots)), make([]int, len(r.slots))
	for c := range all {
		all[c], doubts[c] = c, r.tier.doubt(r.place.Targets[c])
	}
	slices.SortStableFunc(all, func(a, b int) int { return doubts[a] - doubts[b] })
	return all
}

// Size is the number of bytes of the blob.
func (r *Reader) Size() int64 { return r.place.Size }

// Place is what Open was given.
func (r *Reader) Place() catalog.Place { return r.place }

// Close closes the columns. Reads must have returned.
func (r *Reader) Close() error {
	var errs []error
	for i := range r.slots {
		s := &r.slots[i]
		s.Lock()
		if s.col != nil {
			errs = append(errs, s.col.close())
		}
		s.col, s.err = nil, fs.ErrClosed
		s.Unlock()
	}
	return errors.Join(errs...)
}

// Report tells what was met so far.
func (r *Reader) Report() Report {
	rep := Report{BytesRead: r.read.Load(), Hedged: r.hedged.Load()}
	for i := range r.slots {
		s := &r.slots[i]
		s.Lock()
		cause := s.cause
		s.Unlock()
		switch {
		case cause == nil:
			continue
		case errors.Is(cause, catalog.ErrCorrupt):
			rep.Corrupt = append(rep.Corrupt, r.place.Targets[i])
		default:
			rep.Missing = append(rep.Missing, r.place.Targets[i])
		}
		rep.Degraded = true
	}
	slices.Sort(rep.Missing)
	slices.Sort(rep.Corrupt)
	rep.Missing, rep.Corrupt = slices.Compact(rep.Missing), slices.Compact(rep.Corrupt) // a target may have two columns
	return rep
}

// column gives column c, opened.
func (r *Reader) column(ctx context.Context, c int) (*column, error) {
	s := &r.slots[c]
	if col, err := s.now(); col != nil || err != nil {
		return col, err
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if col, err := s.now(); col != nil || err != nil { // somebody else has
		return col, err
	}
	col, err := r.tier.openPlaced(ctx, &r.place, r.layout, c, &r.read)
	s.Lock()
	defer s.Unlock()
	if err != nil {
		if ctx.Err() == nil { // a caller that went away says nothing about the column
			s.err = err
			r.blame(s, c, err)
		}
		return nil, err
	}
	s.col = col
	return col, nil
}

// now is the column as far as it is known.
func (s *slot) now() (*column, error) {
	s.Lock()
	defer s.Unlock()
	return s.col, s.err
}

// openPlaced opens column c of a place; a column that is not of the place is
// an error.
func (t *Tier) openPlaced(ctx context.Context, p *catalog.Place, l stripe.Layout, c int, read *atomic.Int64) (*column, error) {
	ti := t.now.Load().byName[p.Targets[c]]
	if ti == nil {
		return nil, fmt.Errorf("target %q: %w: it is not configured", p.Targets[c], catalog.ErrUnavailable)
	}
	col, err := openColumn(ctx, ti.Target, Key{Blob: p.Blob, Generation: p.Generation, Column: c}, read)
	if err != nil {
		return nil, err
	}
	if err := col.matches(p, l); err != nil {
		_ = col.close()
		return nil, err
	}
	return col, nil
}

// blame notes the first fault of a column; its slot is locked.
func (r *Reader) blame(s *slot, c int, err error) {
	if s.cause != nil {
		return
	}
	s.cause = err
	if f := r.tier.opt.Trace.Degraded; f != nil {
		f(r.place.Blob, c, r.place.Targets[c], err)
	}
}

// readColumn is a checked read of column c that notes failures.
func (r *Reader) readColumn(ctx context.Context, c int, p []byte, off int64) error {
	col, err := r.column(ctx, c)
	if err != nil {
		return err
	}
	if err = col.readData(ctx, p, off); err != nil && ctx.Err() == nil {
		s := &r.slots[c]
		s.Lock()
		s.faults++
		r.blame(s, c, err)
		s.Unlock()
	}
	return err
}

// avoid tells which columns not to plan with: those that cannot be opened,
// fail often, or are on targets that are down; and while there are enough
// others, those on targets that are slow.
func (r *Reader) avoid() (missing []bool, any bool) {
	missing = make([]bool, len(r.slots))
	count, now := 0, time.Now()
	for i := range r.slots {
		s := &r.slots[i]
		s.Lock()
		missing[i] = s.err != nil || s.faults >= maxFaults
		s.Unlock()
		missing[i] = missing[i] || r.tier.doubt(r.place.Targets[i]) >= doubtDown
		if missing[i] {
			count++
		}
	}
	for i := range missing {
		if !missing[i] && count < r.layout.M && r.tier.hedges.last(r.place.Targets[i], now) {
			missing[i] = true
			count++
		}
	}
	return missing, count > 0
}

// tooFew is the error for having fewer than k columns, where failed (by column,
// may be nil) are errors beyond those of opening.
func (r *Reader) tooFew(failed []error) error {
	var errs []error
	lost, absent := 0, 0
	for i := range r.slots {
		r.slots[i].Lock()
		err := r.slots[i].err
		r.slots[i].Unlock()
		if err == nil && failed != nil {
			err = failed[i]
		}
		if err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf("column %d on %s: %w", i, r.place.Targets[i], plain{err}))
		if gone(err) || errors.Is(err, catalog.ErrCorrupt) {
			lost++
		}
		if errors.Is(err, fs.ErrNotExist) {
			absent++
		}
	}
	class := catalog.ErrUnavailable
	switch {
	case absent == len(r.slots):
		class = fs.ErrNotExist
	case lost > r.layout.M:
		class = catalog.ErrCorrupt
	}
	return fmt.Errorf("%w: %d of %d columns cannot be used, %v allows %d: %w", class, len(errs), len(r.slots), r.layout, r.layout.M, errors.Join(errs...))
}

// plain keeps an error's text but not its class: what one column lacks is not
// what the blob lacks.
type plain struct{ err error }

func (p plain) Error() string { return p.err.Error() }
