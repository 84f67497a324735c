package remotetier

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// ReadAt is ReadAtContext without a context.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext fills p with the blob's bytes from off, checked; at the blob's
// end it returns io.EOF as io.ReaderAt does. With an error other than io.EOF
// it returns 0, and p holds nothing of worth. Whole blocks go from the target
// into p without a copy.
func (r *Reader) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", r.place.Blob, off, catalog.ErrInvalid)
	}
	n := min(int64(len(p)), max(0, r.place.Size-off))
	ctx = traffic.Default(ctx, traffic.Restore)
	leave, err := r.tier.gate.Enter(ctx, traffic.ClassOf(ctx), n)
	if err != nil {
		return 0, fmt.Errorf("read %s at %d: %w", r.place.Blob, off, err)
	}
	defer leave()
	if err := r.readRange(ctx, p[:n], off); err != nil {
		return 0, fmt.Errorf("read %s at %d: %w", r.place.Blob, off, err)
	}
	if int(n) < len(p) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readRange reads the stripes' healthy parts, each on its own, and then
// rebuilds the stripes in which that did not succeed.
func (r *Reader) readRange(ctx context.Context, p []byte, off int64) error {
	missing, any := r.avoid()
	if !any {
		missing = nil
	}
	broken := struct {
		sync.Mutex
		stripes []stripe.Stripe
		seen    map[int64]bool
	}{seen: map[int64]bool{}}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.tier.opt.Parallel)
	spread := int64(0) // which target first: neighbouring stripes begin on different ones
	for pos, n := int64(0), int64(len(p)); pos < n; {
		spread++
		width := r.layout.Width()
		take := min(n-pos, width-(off+pos)%width)
		st, err := stripe.PlanStripe(r.layout, r.place.Size, off, pos, take, missing)
		pos += take
		if err != nil || len(st.Rebuild) > 0 { // the plan may count columns out that rebuild tries as a last resort
			broken.Lock()
			broken.stripes, broken.seen[st.Index] = append(broken.stripes, st), true
			broken.Unlock()
			continue
		}
		for i := range st.Segments {
			i = (i + int(spread)) % len(st.Segments)
			g.Go(func() error {
				err := r.readHedged(gctx, p, st.Segments[i], st.Reads[i])
				if err == nil || gctx.Err() != nil {
					return err
				}
				broken.Lock()
				defer broken.Unlock()
				if !broken.seen[st.Index] {
					broken.stripes, broken.seen[st.Index] = append(broken.stripes, st), true
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(broken.stripes) == 0 {
		return ctx.Err()
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(max(1, r.tier.opt.Parallel/r.layout.K))
	for _, st := range broken.stripes {
		g.Go(func() error { return r.rebuild(gctx, p, st) })
	}
	return g.Wait()
}

// readSegment reads one segment into p: the blocks that are wanted whole
// straight into it, those at the ends by way of a buffer.
func (r *Reader) readSegment(ctx context.Context, p []byte, g stripe.Segment, rg stripe.Range) error {
	dst := p[g.Pos:][:g.Len]
	lo, hi := g.Off, g.Off+g.Len
	first := min((lo+stripe.Block-1)/stripe.Block*stripe.Block, rg.End()) // of the blocks wanted whole
	last := hi / stripe.Block * stripe.Block
	if hi == rg.End() {
		last = hi // the column's last block may be short
	}
	if last-first < 4*stripe.Block && (first != lo || last != hi) {
		return r.readVia(ctx, dst, g.Column, lo, rg.Off, rg.End()) // one read and a copy beat three reads
	}
	if lo < first {
		if err := r.readVia(ctx, dst[:first-lo], g.Column, lo, first-stripe.Block, first); err != nil {
			return err
		}
	}
	if err := r.readColumn(ctx, g.Column, dst[first-lo:last-lo], first); err != nil {
		return err
	}
	if last < hi {
		return r.readVia(ctx, dst[last-lo:], g.Column, last, last, rg.End())
	}
	return nil
}

// readVia reads [from, to) of a column's data and copies what begins at lo.
func (r *Reader) readVia(ctx context.Context, dst []byte, column int, lo, from, to int64) error {
	loan, err := r.tier.bufs.take(ctx, 1, int(to-from))
	if err != nil {
		return err
	}
	defer loan.done()
	buf := loan.buf(0)[:to-from]
	if err := r.readColumn(ctx, column, buf, from); err != nil {
		return err
	}
	copy(dst, buf[lo-from:])
	return nil
}

// rebuild answers the segments of one stripe from any k columns, some rows at
// a time.
func (r *Reader) rebuild(ctx context.Context, p []byte, st stripe.Stripe) error {
	lo, hi := st.Rows()
	lo -= lo % stripe.Block
	hi = min((hi+stripe.Block-1)/stripe.Block*stripe.Block, r.layout.ColumnSize(r.place.Size))
	step := r.tier.opt.Memory / 8 / int64(r.layout.Columns()) / stripe.Block * stripe.Block
	for step = max(step, stripe.Block); lo < hi; lo += step {
		if err := r.rebuildRows(ctx, p, st, lo, min(lo+step, hi)); err != nil {
			return fmt.Errorf("stripe %d: %w", st.Index, err)
		}
	}
	return nil
}

// rebuildRows does the rows [lo, hi) of every column.
func (r *Reader) rebuildRows(ctx context.Context, p []byte, st stripe.Stripe, lo, hi int64) error {
	n := hi - lo
	loan, err := r.tier.bufs.take(ctx, r.layout.Columns(), int(n))
	if err != nil {
		return err
	}
	defer loan.done()
	bufs := make([][]byte, r.layout.Columns())
	for i := range bufs {
		bufs[i] = loan.buf(i)[:n]
	}
	for _, g := range st.Segments { // wanted whole: no copy
		if g.Off <= lo && g.Off+g.Len >= hi {
			bufs[g.Column] = p[g.Pos+lo-g.Off:][:n:n]
		}
	}
	units, err := r.gather(ctx, bufs, lo, -1)
	if err != nil {
		return err
	}
	var want []int
	for _, g := range st.Segments {
		if len(units[g.Column]) == 0 {
			want = append(want, g.Column)
		}
	}
	if len(want) > 0 {
		if err := codeOf(r.layout).rebuild(units, want); err != nil {
			return err
		}
	}
	for _, g := range st.Segments {
		from, to := max(lo, g.Off), min(hi, g.Off+g.Len)
		if from < to && !(g.Off <= lo && g.Off+g.Len >= hi) {
			copy(p[g.Pos+from-g.Off:][:to-from], units[g.Column][from-lo:])
		}
	}
	return nil
}

// gather reads the rows at lo of k columns: of those that have not failed yet
// first, of others when there is no choice, but never of column without (-1:
// any will do). The units it did not get have length 0 and keep their capacity.
func (r *Reader) gather(ctx context.Context, bufs [][]byte, lo int64, without int) ([][]byte, error) {
	units := make([][]byte, len(bufs))
	failed := make([]error, len(bufs))
	tried := make([]bool, len(bufs))
	if without >= 0 {
		tried[without] = true
	}
	have := 0
	for have < r.layout.K {
		var pick []int
		avoid, _ := r.avoid()
		for _, lastResort := range []bool{false, true} {
			for c := range bufs {
				if !tried[c] && avoid[c] == lastResort && len(pick) < r.layout.K-have {
					tried[c] = true
					pick = append(pick, c)
				}
			}
		}
		if len(pick) == 0 {
			return nil, r.tooFew(failed)
		}
		var g errgroup.Group
		for _, c := range pick {
			g.Go(func() error { failed[c] = r.readColumn(ctx, c, bufs[c], lo); return nil })
		}
		_ = g.Wait()
		for _, c := range pick {
			if failed[c] == nil {
				units[c] = bufs[c]
				have++
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	for c := range units {
		if units[c] == nil {
			units[c] = bufs[c][:0]
		}
	}
	return units, nil
}
