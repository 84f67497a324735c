package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

// A Put is a pipe of three stages, so that disk, processor and targets work at
// the same time: fill reads a batch of stripes, sum checks, hashes and codes
// it, and one drain a column writes. Batches go round in a ring, which is also
// the bound on memory.
const (
	ringSize   = 3       // batches: one in each stage
	batchBytes = 4 << 20 // of one column at most, unless a unit is larger
	readers    = 4       // reads of the source in flight
)

// pass is one way of the source through the pipe. The first has all columns;
// later ones those that lost their target, and they read and code no more than
// these need.
type pass struct {
	*put
	want  []int // columns that are written
	need  []int // data columns that are read
	again bool  // sums and content are known, and held against what is read now
	live  atomic.Int32
}

// errNobody: all columns of a pass lost their target.
var errNobody = errors.New("no column is left")

// stream moves the whole blob to the writers of the columns of want, and sets
// sums and content if they are not known yet. Columns that lose their target
// are noted; the others go on.
func (p *put) stream(ctx context.Context, want []int) error {
	ps := &pass{put: p, want: want, again: p.summed}
	ps.live.Store(int32(len(want)))
	for c := range p.layout.K {
		if !ps.again || slices.Contains(want, c) || slices.Max(want) >= p.layout.K && p.layout.K > 1 {
			ps.need = append(ps.need, c)
		}
	}
	if p.layout.K == 1 {
		ps.need = []int{0} // all columns are the same
	}
	if err := ps.run(ctx); err != nil && !errors.Is(err, errNobody) {
		return err
	}
	return nil
}

// batch is some whole stripes, as columns.
type batch struct {
	cols    [][]byte // by column; nil: neither read nor written; for k = 1 all the same memory
	room    int64    // bytes of each
	first   int64    // its first stripe
	stripes int64
	rows    int64        // bytes in each column
	writers atomic.Int32 // columns that have not been written yet
}

// ring takes the memory for the batches: as large as useful, and small enough
// that two Puts run side by side.
func (p *pass) ring(ctx context.Context) (ring []*batch, done func(), err error) {
	l, limit := p.layout, p.tier.opt.Memory
	cols := slices.Concat(p.need, p.want)
	slices.Sort(cols)
	cols = slices.Compact(cols)
	if l.K == 1 {
		cols = p.need
	}
	stripeCols := int64(len(cols))
	rows, count := min(l.Unit, p.column), 1
	if need := stripeCols * rows; need > limit {
		return nil, nil, fmt.Errorf("layout %v with units of %d bytes: %w: a stripe takes %d bytes and the tier has %d for buffers", l, l.Unit, catalog.ErrInvalid, need, limit)
	}
	for count < ringSize && int64(count)*rows < p.column && int64(count+1)*stripeCols*rows <= limit/2 {
		count++
	}
	for rows+l.Unit <= batchBytes && rows < p.column && int64(count)*stripeCols*(rows+l.Unit) <= limit/2 {
		rows += l.Unit
	}
	loan, err := p.tier.bufs.take(ctx, count, len(cols)*int(rows)) // a batch in one piece: on as few pages as possible
	if err != nil {
		return nil, nil, err
	}
	for b := range count {
		bt := &batch{cols: make([][]byte, l.Columns()), room: rows, stripes: max(1, rows/l.Unit)}
		for i, c := range cols {
			bt.cols[c] = loan.buf(b)[int64(i)*rows:][:rows:rows]
		}
		for _, c := range p.want {
			if l.K == 1 {
				bt.cols[c] = bt.cols[0]
			}
		}
		ring = append(ring, bt)
	}
	return ring, loan.done, nil
}

// run lets the source go through the pipe once.
func (p *pass) run(ctx context.Context) error {
	ring, done, err := p.ring(ctx)
	if err != nil {
		return err
	}
	defer done()
	free, filled := make(chan *batch, len(ring)), make(chan *batch, len(ring))
	for _, b := range ring {
		free <- b
	}
	columns := make([]chan *batch, len(p.want))
	for i := range columns {
		columns[i] = make(chan *batch, len(ring))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.fill(ctx, free, filled) })
	g.Go(func() error { return p.sum(ctx, filled, columns) })
	for i, c := range p.want {
		g.Go(func() error { return p.drain(ctx, c, columns[i], free) })
	}
	return g.Wait()
}

// next receives, unless the Put has ended.
func next(ctx context.Context, in <-chan *batch) (*batch, error) {
	select {
	case b := <-in: // nil when closed
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// fill reads the source into batches, in order.
func (p *pass) fill(ctx context.Context, free <-chan *batch, filled chan<- *batch) error {
	l, stripes := p.layout, p.layout.Stripes(p.size)
	for s := int64(0); s < stripes; {
		b, err := next(ctx, free)
		if err != nil {
			return err
		}
		b.first, b.stripes = s, min(b.room/l.Unit, stripes-s)
		if b.stripes == 0 {
			b.stripes = 1 // the buffers fit a blob with no more than one short stripe
		}
		b.rows = (b.stripes-1)*l.Unit + l.UnitOf(p.size, s+b.stripes-1)
		if err := p.tier.pace(ctx, b.rows*int64(len(p.want))); err != nil {
			return err
		}
		if err := p.read(ctx, b); err != nil {
			return fmt.Errorf("read the source: %w", err)
		}
		filled <- b // has room for the whole ring
		s += b.stripes
	}
	close(filled)
	return nil
}

// read fills the data columns of b that are needed.
func (p *pass) read(ctx context.Context, b *batch) error {
	l := p.layout
	if l.K == 1 {
		return readUnit(p.src, b.cols[0][:b.rows], b.first*l.Unit, p.size)
	}
	if v, ok := p.src.(Vector); ok && len(p.need) == l.K && (b.first+b.stripes)*l.Width() <= p.size {
		bufs := make([][]byte, 0, b.stripes*int64(l.K))
		for s := range b.stripes {
			for i := range l.K {
				bufs = append(bufs, b.cols[i][s*l.Unit:][:l.Unit])
			}
		}
		return errors.Join(short(v.ReadvAt(bufs, b.first*l.Width()))(b.stripes*l.Width()), ctx.Err())
	}
	var g errgroup.Group
	g.SetLimit(readers)
	for s := range b.stripes {
		u := l.UnitOf(p.size, b.first+s)
		for _, i := range p.need {
			unit, off := b.cols[i][s*l.Unit:][:u], (b.first+s)*l.Width()+int64(i)*u
			g.Go(func() error { return readUnit(p.src, unit, off, p.size) })
		}
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// readUnit fills unit with the blob's bytes from off, and zeros behind its end.
func readUnit(src io.ReaderAt, unit []byte, off, size int64) error {
	n := max(0, min(int64(len(unit)), size-off))
	clear(unit[n:])
	if n == 0 {
		return nil
	}
	return short(src.ReadAt(unit[:n], off))(n)
}

// short turns a read of less than want bytes into an error.
func short(got int, err error) func(want int64) error {
	return func(want int64) error {
		if int64(got) == want {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: it ends before its size", catalog.ErrCorrupt)
		}
		return err
	}
}

// drain writes column c from its first to its last byte. When its target fails
// the batches are let go by, because the other columns wait for them.
func (p *pass) drain(ctx context.Context, c int, in <-chan *batch, free chan<- *batch) error {
	h := &Header{Key: p.key(c), Layout: p.layout, Size: p.size, Targets: p.names}
	page := aligned(pageSize)
	seed := h.put(page)
	w := &pieces{ColumnWriter: p.writers[c]}
	err := w.Write(ctx, page)
	for {
		if err != nil && p.lost[c] == nil {
			if err := p.lose(ctx, c, err); err != nil {
				return err
			}
		}
		b, gone := next(ctx, in)
		if gone != nil {
			return gone
		}
		if b == nil {
			break
		}
		err = w.Write(ctx, b.cols[c][:b.rows])
		if b.writers.Add(-1) == 0 {
			free <- b // has room for the whole ring
		}
	}
	if err := writeTrailer(ctx, w, seed, p.column, p.sums[c], p.content); err != nil && p.lost[c] == nil {
		return p.lose(ctx, c, err)
	}
	return nil
}

// lose notes that a column's target failed. The error says that there is no
// reason to go on.
func (p *pass) lose(ctx context.Context, c int, err error) error {
	if ctx.Err() != nil { // it may be that which failed
		return context.Cause(ctx)
	}
	p.lost[c] = err
	_ = p.writers[c].Close() // now: what it holds on its target may be what others lack
	if p.live.Add(-1) == 0 {
		return errNobody
	}
	return nil
}

// pieces is a writer that keeps to a time limit, and to its first error.
type pieces struct {
	ColumnWriter
	err error
}

func (w *pieces) Write(ctx context.Context, p []byte) error {
	if w.err == nil {
		w.err = within(ctx, writeTime, func(ctx context.Context) error { return w.ColumnWriter.Write(ctx, p) })
	}
	return w.err
}

// trailerPages is how many pages of sums are written at once.
const trailerPages = 64

// writeTrailer writes what follows a column's data.
func writeTrailer(ctx context.Context, w ColumnWriter, seed uint32, data int64, sums []uint32, content catalog.Digest) error {
	total := int(pages(data)) + 1
	buf := aligned(min(total, trailerPages) * pageSize)
	n := 0 // bytes of buf in use
	for i := range total {
		page := buf[n:][:pageSize]
		clear(page)
		if i < total-1 {
			take := min(len(sums), pageSums)
			putSums(page, seed, i, sums[:take])
			sums = sums[take:]
		} else {
			putFooter(page, seed, data, content)
		}
		if n += pageSize; n == len(buf) || i == total-1 {
			if err := w.Write(ctx, buf[:n]); err != nil {
				return err
			}
			n = 0
		}
	}
	return nil
}
