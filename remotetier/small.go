package remotetier

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// MaxSmall bounds a small record, in bytes.
const MaxSmall = 16 << 20

// PutSmall replaces a small record that changes now and then: it writes a new
// generation of whole copies, newer than any the targets show, and removes the
// older ones. A crash leaves the old record or the new one. Two writers of one
// record are the caller's to keep apart.
func (t *Tier) PutSmall(ctx context.Context, blob string, b []byte, copies int) (catalog.Place, error) {
	return t.putSmall(ctx, "", blob, b, copies)
}

func (t *Tier) putSmall(ctx context.Context, pool, blob string, b []byte, copies int) (catalog.Place, error) {
	if len(b) > MaxSmall {
		return catalog.Place{}, fmt.Errorf("put %.80s: %w: %d bytes; a small record has at most %d", blob, catalog.ErrInvalid, len(b), MaxSmall)
	}
	if err := CheckBlob(blob); err != nil {
		return catalog.Place{}, err
	}
	ctx = traffic.Default(ctx, traffic.Restore) // few bytes, which others wait for
	var newest uint64
	now := t.now.Load()
	found, _ := now.copies(ctx, blob) // a target that is away may come back with an old generation, which is then the older one
	for _, f := range found {
		newest = max(newest, f.key.Generation)
	}
	place, err := t.put(ctx, now, pool, blob, bytes.NewReader(b), stripe.Layout{K: 1, M: copies - 1}, newest+1)
	if err != nil {
		return catalog.Place{}, err
	}
	t.removeAll(ctx, now, found)
	return place, nil
}

// GetSmall reads the newest generation of a small record of which a whole copy
// can be read. It is fs.ErrNotExist when every target answered that it has none.
func (t *Tier) GetSmall(ctx context.Context, blob string) ([]byte, catalog.Place, error) {
	fail := func(err error) ([]byte, catalog.Place, error) {
		return nil, catalog.Place{}, fmt.Errorf("get %.80s: %w", blob, err)
	}
	if err := CheckBlob(blob); err != nil {
		return nil, catalog.Place{}, err
	}
	now := t.now.Load()
	found, err := now.copies(ctx, blob)
	var bad []error
	for _, f := range found {
		var b []byte
		var place catalog.Place
		err := within(ctx, openTime, func(ctx context.Context) (err error) { b, place, err = now.readSmall(ctx, f); return err })
		if err == nil {
			return b, place, nil
		}
		bad = append(bad, fmt.Errorf("%v on %s: %w", f.key, f.target, err))
	}
	switch {
	case ctx.Err() != nil:
		return fail(ctx.Err())
	case len(bad) > 0:
		return fail(errors.Join(append(bad, err)...))
	case err != nil:
		return fail(fmt.Errorf("%w: %w", catalog.ErrUnavailable, err))
	}
	return fail(fs.ErrNotExist)
}

// FindSmall tells where the newest generation of a small record is, as its
// columns say; fs.ErrNotExist if no target that answers has one. Its place is
// good for Check and Mend. ErrUnavailable if a target does not answer that
// leave (nil: none) does not name: a column that is not seen may be there.
func (t *Tier) FindSmall(ctx context.Context, blob string, leave func(target string) bool) (Found, error) {
	fail := func(err error) (Found, error) { return Found{}, fmt.Errorf("find %.80s: %w", blob, err) }
	if err := CheckBlob(blob); err != nil {
		return fail(err)
	}
	now := t.now.Load()
	found, err := now.copiesOn(ctx, blob, leave)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", catalog.ErrUnavailable, err))
	}
	for len(found) > 0 {
		gen := found[0].key.Generation
		cols := map[int][]*TargetInfo{}
		for len(found) > 0 && found[0].key.Generation == gen {
			c := found[0].key.Column
			cols[c] = append(cols[c], now.byName[found[0].target])
			found = found[1:]
		}
		f, ierr := t.identify(ctx, blob, gen, cols)
		if ierr == nil {
			return f, nil
		}
		err = errors.Join(err, ierr) // no copy of it is good: an older one is the record
	}
	if err == nil {
		err = fs.ErrNotExist
	}
	return fail(err)
}

// copiesOn lists the columns of one blob on all targets, newest generation
// first. The error is about targets that did not answer and are not to be left.
func (m *members) copiesOn(ctx context.Context, blob string, leave func(target string) bool) ([]copyAt, error) {
	all := make([]*TargetInfo, len(m.all))
	for i := range all {
		all[i] = &m.all[i]
	}
	found, err := list(ctx, all, blob, leave)
	slices.SortFunc(found, compareCopies)
	return found, err
}

// list lists the columns of one blob on some targets, in no order. The error is
// about those that did not answer and are not to be left.
func list(ctx context.Context, targets []*TargetInfo, blob string, leave func(target string) bool) (all []copyAt, err error) {
	var mu sync.Mutex
	var errs []error
	var g errgroup.Group
	g.SetLimit(askParallel)
	for _, ti := range targets {
		g.Go(func() error {
			found, err := ti.copies(ctx, blob)
			mu.Lock()
			defer mu.Unlock()
			if all = append(all, found...); err != nil && (leave == nil || !leave(ti.Name())) {
				errs = append(errs, fmt.Errorf("target %s: %w", ti.Name(), err))
			}
			return nil
		})
	}
	_ = g.Wait()
	return all, errors.Join(errs...)
}

// copyAt is a column of a small record and its target.
type copyAt struct {
	key    Key
	target string
}

// copies lists the columns of one blob on all targets, newest generation
// first. The error is about targets that did not answer. One that is down is
// asked only when the others have nothing.
func (m *members) copies(ctx context.Context, blob string) ([]copyAt, error) {
	var asked, resting []*TargetInfo
	var errs []error
	for i := range m.all {
		ti := &m.all[i]
		if h := ti.watch.met(); h.rests(time.Now()) {
			resting = append(resting, ti)
			errs = append(errs, fmt.Errorf("target %s: %w", ti.Name(), h.why()))
		} else {
			asked = append(asked, ti)
		}
	}
	all, err := list(ctx, asked, blob, nil)
	if errs = append(errs, err); len(all) == 0 {
		var late error
		all, late = list(ctx, resting, blob, nil)
		errs = []error{err, late}
	}
	slices.SortFunc(all, compareCopies)
	return all, errors.Join(errs...)
}

// compareCopies puts the newest generation first.
func compareCopies(a, b copyAt) int {
	return cmp.Or(cmp.Compare(b.key.Generation, a.key.Generation), cmp.Compare(a.key.Column, b.key.Column), cmp.Compare(a.target, b.target))
}

// copies lists the columns of one blob on one target.
func (ti *TargetInfo) copies(ctx context.Context, blob string) (all []copyAt, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTime, errSilent)
	defer cancel()
	for e, err := range ti.List(ctx, blob) {
		if err != nil {
			if context.Cause(ctx) == errSilent {
				err = errSilent
			}
			return all, err
		}
		if e.Key.Blob != blob {
			break // a folder's own columns come first
		}
		all = append(all, copyAt{e.Key, ti.Name()})
	}
	return all, nil
}

// removeAll removes columns, at once and within a time limit, and tells of those it
// could not remove.
func (t *Tier) removeAll(ctx context.Context, m *members, columns []copyAt) {
	var g errgroup.Group
	g.SetLimit(askParallel)
	for _, at := range columns {
		g.Go(func() error {
			err := within(ctx, cleanupTime, func(ctx context.Context) error { return m.byName[at.target].Remove(ctx, at.key) })
			if err != nil && t.opt.Trace.Leftover != nil {
				t.opt.Trace.Leftover(at.target, at.key.Blob, err)
			}
			return nil
		})
	}
	_ = g.Wait()
}

// readSmall reads a whole copy and checks it against its BLAKE3.
func (m *members) readSmall(ctx context.Context, at copyAt) ([]byte, catalog.Place, error) {
	var read atomic.Int64
	col, err := openColumn(ctx, m.byName[at.target].Target, at.key, &read)
	if err != nil {
		return nil, catalog.Place{}, err
	}
	defer col.close()
	h := col.head
	if h.Layout.K != 1 || h.Size > MaxSmall {
		return nil, catalog.Place{}, fmt.Errorf("blob of %d bytes as %v: %w: not a small record", h.Size, h.Layout, catalog.ErrInvalid)
	}
	b := aligned(int(h.ColumnData()))
	if err := col.readData(ctx, b, 0); err != nil {
		return nil, catalog.Place{}, err
	}
	b = b[:h.Size]
	if blake3.Sum256(b) != col.content {
		return nil, catalog.Place{}, fmt.Errorf("%w: the content's BLAKE3 is another", catalog.ErrCorrupt)
	}
	place := catalog.Place{
		Blob: h.Blob, Layout: h.Layout.String(), Unit: h.Layout.Unit, Size: h.Size,
		Generation: h.Generation, Targets: h.Targets, Content: col.content,
	}
	return b, place, nil
}
