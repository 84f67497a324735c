package remotetier

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// VerifyError says which columns of a blob are not what they should be. It is
// of class ErrUnavailable if all that is wrong is that columns cannot be
// reached, and of class ErrCorrupt otherwise.
type VerifyError struct {
	Place catalog.Place
	Bad   map[int]error // by column; empty when the columns are each right and do not fit together
	Why   string        // what does not fit, if so
}

func (e *VerifyError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "verify %s: %v: %s", e.Place.Blob, e.Unwrap(), e.Why)
	for i, t := range e.Place.Targets {
		if err := e.Bad[i]; err != nil {
			fmt.Fprintf(&b, "; column %d on %s: %v", i, t, err)
		}
	}
	return b.String()
}

func (e *VerifyError) Unwrap() error {
	for _, err := range e.Bad {
		if gone(err) || errors.Is(err, catalog.ErrCorrupt) {
			return catalog.ErrCorrupt
		}
	}
	if e.Why != "" {
		return catalog.ErrCorrupt
	}
	return catalog.ErrUnavailable
}

// Verify reads back every byte of every column of a place: block checksums,
// parity against data, BLAKE3 of the blob against place.Content. What it finds
// wrong is a *VerifyError; other errors are about the call, not the columns.
func (t *Tier) Verify(ctx context.Context, place catalog.Place) error {
	ctx = traffic.Default(ctx, traffic.Drain)
	l, err := layoutOf(place)
	if err != nil {
		return err
	}
	v := &verify{Reader: Reader{tier: t, place: place, layout: l, slots: newSlots(l.Columns())}, bad: make([]error, l.Columns())}
	defer v.Close()
	if err := v.run(ctx); err != nil {
		return err
	}
	e := &VerifyError{Place: place, Bad: map[int]error{}, Why: v.why}
	for i, err := range v.bad {
		if err != nil {
			e.Bad[i] = err
		}
	}
	if len(e.Bad) > 0 || e.Why != "" {
		return e
	}
	return nil
}

type verify struct {
	Reader
	bad []error // by column, the first thing wrong
	why string
}

// rowsOf is a batch read back: the same rows of every column.
type rowsOf struct {
	units [][]byte
	off   int64 // in the columns' data
}

// run reads batches ahead of checking them.
func (v *verify) run(ctx context.Context) error {
	l, column := v.layout, v.layout.ColumnSize(v.place.Size)
	step, count, limit := v.step(column), 2, v.tier.opt.Memory/int64(l.Columns())
	if 2*step > limit {
		count = 1
	}
	if step > limit {
		return fmt.Errorf("verify %s: %w: a stripe takes %d bytes and the tier has %d for buffers", v.place.Blob, catalog.ErrInvalid, step*int64(l.Columns()), v.tier.opt.Memory)
	}
	loan, err := v.tier.bufs.take(ctx, count*l.Columns(), int(step))
	if err != nil {
		return err
	}
	defer loan.done()
	free, filled := make(chan *rowsOf, count), make(chan *rowsOf, count)
	for b := range count {
		r := &rowsOf{units: make([][]byte, l.Columns())}
		for i := range r.units {
			r.units[i] = loan.buf(b*l.Columns() + i)
		}
		free <- r
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(filled)
		for c := range l.Columns() { // also of an empty blob
			if _, err := v.column(ctx, c); err != nil {
				v.bad[c] = err
			}
		}
		for off := int64(0); off < column; off += step {
			var r *rowsOf
			select {
			case r = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			n := min(step, column-off)
			if err := v.tier.pace(ctx, n*int64(l.Columns())); err != nil {
				return err
			}
			r.off = off
			var reads errgroup.Group
			for c := range r.units {
				r.units[c] = r.units[c][:n]
				if v.bad[c] == nil {
					reads.Go(func() error { v.bad[c] = v.readColumn(ctx, c, r.units[c], off); return nil })
				}
			}
			_ = reads.Wait()
			if err := ctx.Err(); err != nil {
				return err
			}
			whole := true
			for _, err := range v.bad {
				whole = whole && err == nil
			}
			if whole {
				filled <- r
			} else { // the rest is read for its own checksums only
				free <- r
			}
		}
		return nil
	})
	g.Go(func() error { v.check(filled, free); return nil })
	return g.Wait()
}

// step is how many rows to read at once: whole units, because the hash takes
// the blob in order, and two batches in half of the memory where that is enough.
func (r *Reader) step(column int64) int64 {
	unit := r.unit()
	step := r.tier.opt.Memory / 4 / int64(r.layout.Columns()) / unit * unit
	return min(max(step, unit), max(unit, batchBytes/unit*unit), max(column, 1))
}

// unit is the layout's, or anything where there is one data column.
func (r *Reader) unit() int64 {
	if r.layout.K == 1 {
		return stripe.Block
	}
	return r.layout.Unit
}

// stripes calls f for the stripes in n rows of the columns from off: their
// units are u bytes from at, and the blob's bytes in them begin at from.
func (r *Reader) stripes(off, n int64, f func(at, u, from int64)) {
	for at := int64(0); at < n; at += r.unit() {
		from := off + at
		if r.layout.K > 1 {
			from = from / r.layout.Unit * r.layout.Width()
		}
		f(at, min(r.unit(), n-at), from)
	}
}

// check hashes the blob and holds parity against data, batch by batch. It runs
// to the end of filled; when the reading side met a bad column, what it says
// does not count.
func (v *verify) check(filled <-chan *rowsOf, free chan<- *rowsOf) {
	l, size, hash, code := v.layout, v.place.Size, blake3.New(), codeOf(v.layout)
	why, hashed := "", int64(0)
	for r := range filled {
		v.stripes(r.off, int64(len(r.units[0])), func(at, u, from int64) {
			units := make([][]byte, len(r.units))
			for i := range units {
				units[i] = r.units[i][at:][:u]
			}
			for i, unit := range units[:l.K] {
				valid := max(0, min(u, size-from-int64(i)*u))
				_, _ = hash.Write(unit[:valid])
				hashed += valid
			}
			if ok, err := code.verify(units); (err != nil || !ok) && why == "" {
				why = fmt.Sprintf("parity does not fit data at %d of the columns", r.off+at)
			}
		})
		free <- r
	}
	if hashed == size && why == "" && !v.place.Content.IsZero() && [32]byte(hash.Sum(nil)) != v.place.Content {
		why = "the content's BLAKE3 is another"
	}
	if hashed == size {
		v.why = why
	}
}
