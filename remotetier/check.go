package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// ColumnState says how a column of a place is.
type ColumnState string

const (
	ColumnOK          ColumnState = "ok"
	ColumnMissing     ColumnState = "missing"     // its target has none
	ColumnCorrupt     ColumnState = "corrupt"     // it does not fit its sums or its size, or the disk cannot read it
	ColumnForeign     ColumnState = "foreign"     // a good column is there, of another blob, index or layout
	ColumnStale       ColumnState = "stale"       // a good column of the blob is there, of another generation
	ColumnUnreachable ColumnState = "unreachable" // its target cannot be asked now; the column may be well
)

// Bad says that the column is known not to be what it should be.
func (s ColumnState) Bad() bool { return s != ColumnOK && s != ColumnUnreachable }

// ColumnCheck is what was found of one column.
type ColumnCheck struct {
	Column int
	Target string
	State  ColumnState
	Err    error // why, unless it is ok
}

// CheckReport is what was found of a blob.
type CheckReport struct {
	Place   catalog.Place
	Columns []ColumnCheck // by column
	Spare   int           // good columns that may still be lost; below zero the blob can perhaps not be read
}

// Whole says that every column is as it should be.
func (r *CheckReport) Whole() bool {
	for _, c := range r.Columns {
		if c.State != ColumnOK {
			return false
		}
	}
	return true
}

// checkBuffer is how much is read at once of a column whose target does not
// check it, in bytes.
const checkBuffer = 1 << 20

// Check looks at every column of a place: that it is there, is the column of
// the place, and has the size it should have; and, deep, that its bytes fit
// their sums, where it lies if its target can do that. What is wrong with
// columns is in the report; an error is about the call.
func (t *Tier) Check(ctx context.Context, place catalog.Place, deep bool) (CheckReport, error) {
	l, err := layoutOf(place)
	if err != nil {
		return CheckReport{}, err
	}
	ctx = traffic.Default(ctx, traffic.Scrub)
	rep := CheckReport{Place: place, Columns: make([]ColumnCheck, l.Columns()), Spare: -l.K}
	var g errgroup.Group
	g.SetLimit(t.opt.Parallel)
	for c := range rep.Columns {
		g.Go(func() error {
			rep.Columns[c] = t.checkColumn(ctx, &place, l, c, deep)
			return nil
		})
	}
	_ = g.Wait()
	if err := ctx.Err(); err != nil {
		return CheckReport{}, err
	}
	for _, c := range rep.Columns {
		if c.State == ColumnOK {
			rep.Spare++
		}
	}
	return rep, nil
}

func (t *Tier) checkColumn(ctx context.Context, p *catalog.Place, l stripe.Layout, c int, deep bool) ColumnCheck {
	check := ColumnCheck{Column: c, Target: p.Targets[c]}
	ti := t.now.Load().byName[check.Target]
	if ti == nil {
		check.State, check.Err = ColumnUnreachable, fmt.Errorf("target %q: %w: it is not configured", check.Target, catalog.ErrUnavailable)
		return check
	}
	key := Key{Blob: p.Blob, Generation: p.Generation, Column: c}
	var info ColumnInfo
	var err error
	if deep {
		info, err = t.CheckColumn(ctx, check.Target, key)
	} else {
		info, err = lookAt(ctx, ti.Target, key)
	}
	if err == nil {
		check.State, err = info.of(p, l, c)
	} else {
		check.State = stateOf(err)
	}
	check.Err = err
	return check
}

// ChecksItself says whether a target reads its own columns when it is asked to
// check one: where it does not, a deep look costs the network, and perhaps money.
func (t *Tier) ChecksItself(target string) bool {
	ti := t.now.Load().byName[target]
	if ti == nil {
		return false
	}
	_, ok := ti.Target.(Checker)
	return ok
}

// CheckOne is Check of one column of a place.
func (t *Tier) CheckOne(ctx context.Context, place catalog.Place, column int, deep bool) (ColumnCheck, error) {
	l, err := layoutOf(place)
	if err != nil {
		return ColumnCheck{}, err
	}
	if column < 0 || column >= l.Columns() {
		return ColumnCheck{}, fmt.Errorf("column %d of %s: %w", column, place.Blob, catalog.ErrInvalid)
	}
	c := t.checkColumn(traffic.Default(ctx, traffic.Scrub), &place, l, column, deep)
	return c, ctx.Err()
}

// ListTarget lists what one target has of the blobs at or under prefix.
func (t *Tier) ListTarget(ctx context.Context, target, prefix string) ([]Entry, error) {
	ti := t.now.Load().byName[target]
	if ti == nil {
		return nil, fmt.Errorf("target %q: %w: it is not configured", target, catalog.ErrUnavailable)
	}
	var all []Entry
	for e, err := range ti.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list target %s: %w", target, err)
		}
		all = append(all, e)
	}
	return all, nil
}

// RemoveColumn removes one column from one target, whoever may still name it:
// the caller knows that nobody does.
func (t *Tier) RemoveColumn(ctx context.Context, target string, key Key) error {
	ti := t.now.Load().byName[target]
	if ti == nil {
		return fmt.Errorf("target %q: %w: it is not configured", target, catalog.ErrUnavailable)
	}
	if t.writing(key.Generation) {
		return fmt.Errorf("remove %v: %w: it is being written", key, catalog.ErrConflict)
	}
	return ti.Remove(ctx, key)
}

// CheckColumn reads all of a column on a target, which need not be in any
// place, where it lies if the target can do that; see Checker.
func (t *Tier) CheckColumn(ctx context.Context, target string, key Key) (ColumnInfo, error) {
	ctx = traffic.Default(ctx, traffic.Scrub)
	ti := t.now.Load().byName[target]
	if ti == nil {
		return ColumnInfo{}, fmt.Errorf("target %q: %w: it is not configured", target, catalog.ErrUnavailable)
	}
	if c, ok := ti.Target.(Checker); ok {
		return c.CheckColumn(ctx, key, t.pace)
	}
	loan, err := t.bufs.take(ctx, 1, checkBuffer)
	if err != nil {
		return ColumnInfo{}, err
	}
	defer loan.done()
	return CheckTarget(ctx, ti.Target, key, loan.buf(0), t.pace)
}

// lookAt reads a column's first and last page.
func lookAt(ctx context.Context, t Target, key Key) (ColumnInfo, error) {
	r, err := t.Open(ctx, key)
	if err != nil {
		return ColumnInfo{}, err
	}
	defer r.Close()
	h, _, content, err := readEnds(ctx, r, aligned(pageSize))
	if err != nil {
		return ColumnInfo{}, err
	}
	return ColumnInfo{Header: *h, Content: content}, nil
}

// of says whether a good column is column c of a place.
func (i *ColumnInfo) of(p *catalog.Place, l stripe.Layout, c int) (ColumnState, error) {
	switch {
	case i.Blob == p.Blob && i.Generation != p.Generation:
		return ColumnStale, fmt.Errorf("column of generation %d: %w", i.Generation, errForeign)
	case i.Blob != p.Blob || i.Column != c:
		return ColumnForeign, fmt.Errorf("column of %v: %w", i.Key, errForeign)
	case i.Layout != l || i.Size != p.Size:
		return ColumnForeign, fmt.Errorf("column of %d bytes as %v: %w", i.Size, i.Layout, errForeign)
	case !p.Content.IsZero() && i.Content != p.Content:
		return ColumnForeign, fmt.Errorf("column of content %v: %w", i.Content, errForeign)
	}
	return ColumnOK, nil
}

// stateOf says what an error of looking at a column tells of it. What is not
// known to be temporary is damage: a disk that cannot read a sector says EIO.
func stateOf(err error) ColumnState {
	switch {
	case err == nil:
		return ColumnOK
	case errors.Is(err, fs.ErrNotExist):
		return ColumnMissing
	case errors.Is(err, errForeign):
		return ColumnForeign
	case errors.Is(err, catalog.ErrUnavailable), errors.Is(err, catalog.ErrConflict), errors.Is(err, fs.ErrPermission),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return ColumnUnreachable
	}
	return ColumnCorrupt
}
