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
	for _, f := range found {
		if err := now.byName[f.target].Remove(ctx, f.key); err != nil && t.opt.Trace.Leftover != nil {
			t.opt.Trace.Leftover(f.target, blob, err)
		}
	}
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
		b, place, err := now.readSmall(ctx, f)
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

// copyAt is a column of a small record and its target.
type copyAt struct {
	key    Key
	target string
}

// copies lists the columns of one blob on all targets, newest generation
// first. The error is about targets that did not answer.
func (m *members) copies(ctx context.Context, blob string) ([]copyAt, error) {
	var mu sync.Mutex
	var all []copyAt
	var errs []error
	var g errgroup.Group
	for i := range m.all {
		ti := &m.all[i]
		g.Go(func() error {
			for e, err := range ti.List(ctx, blob) {
				if err == nil && e.Key.Blob != blob {
					break // a folder's own columns come first
				}
				mu.Lock()
				if err != nil {
					errs = append(errs, fmt.Errorf("target %s: %w", ti.Name(), err))
				} else {
					all = append(all, copyAt{e.Key, ti.Name()})
				}
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	slices.SortFunc(all, func(a, b copyAt) int {
		return cmp.Or(cmp.Compare(b.key.Generation, a.key.Generation), cmp.Compare(a.key.Column, b.key.Column), cmp.Compare(a.target, b.target))
	})
	return all, errors.Join(errs...)
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
