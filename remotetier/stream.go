package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
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

// batch is some whole stripes, as columns.
type batch struct {
	cols    [][]byte // by column; for k = 1 all the same memory
	first   int64    // its first stripe
	stripes int64
	rows    int64        // bytes in each column
	writers atomic.Int32 // columns that have not been written yet
}

// ring takes the memory for the batches: as large as useful, and small enough
// that two Puts run side by side.
func (p *put) ring(ctx context.Context) (ring []*batch, done func(), err error) {
	l, limit := p.layout, p.tier.opt.Memory
	cols := l.Columns()
	if l.K == 1 {
		cols = 1
	}
	rows, count := min(l.Unit, p.column), 1
	if need := int64(cols) * rows; need > limit {
		return nil, nil, fmt.Errorf("layout %v with units of %d bytes: %w: a stripe takes %d bytes and the tier has %d for buffers", l, l.Unit, catalog.ErrInvalid, need, limit)
	}
	for count < ringSize && int64(count)*rows < p.column && int64(count+1)*int64(cols)*rows <= limit/2 {
		count++
	}
	for rows+l.Unit <= batchBytes && rows < p.column && int64(count)*int64(cols)*(rows+l.Unit) <= limit/2 {
		rows += l.Unit
	}
	loan, err := p.tier.bufs.take(ctx, count, cols*int(rows)) // a batch in one piece: on as few pages as possible
	if err != nil {
		return nil, nil, err
	}
	for b := range count {
		bt := &batch{cols: make([][]byte, l.Columns()), stripes: max(1, rows/l.Unit)}
		for i := range bt.cols {
			bt.cols[i] = loan.buf(b)[int64(i%cols)*rows:][:rows:rows]
		}
		ring = append(ring, bt)
	}
	return ring, loan.done, nil
}

// stream moves the whole blob to the writers, and sets sums and content.
func (p *put) stream(ctx context.Context) error {
	ring, done, err := p.ring(ctx)
	if err != nil {
		return err
	}
	defer done()
	free, filled := make(chan *batch, len(ring)), make(chan *batch, len(ring))
	for _, b := range ring {
		free <- b
	}
	columns := make([]chan *batch, p.layout.Columns())
	for i := range columns {
		columns[i] = make(chan *batch, len(ring))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.fill(ctx, free, filled) })
	g.Go(func() error { return p.sum(ctx, filled, columns) })
	for i, in := range columns {
		g.Go(func() error {
			if err := p.drain(ctx, i, in, free); err != nil {
				return &targetError{p.names[i], err}
			}
			return nil
		})
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
func (p *put) fill(ctx context.Context, free <-chan *batch, filled chan<- *batch) error {
	l, stripes := p.layout, p.layout.Stripes(p.size)
	for s := int64(0); s < stripes; {
		b, err := next(ctx, free)
		if err != nil {
			return err
		}
		b.first, b.stripes = s, min(int64(len(b.cols[0]))/l.Unit, stripes-s)
		if b.stripes == 0 {
			b.stripes = 1 // the buffers fit a blob with no more than one short stripe
		}
		b.rows = (b.stripes-1)*l.Unit + l.UnitOf(p.size, s+b.stripes-1)
		if err := p.tier.pace(ctx, b.rows*int64(l.Columns())); err != nil {
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

// read fills the data columns of b.
func (p *put) read(ctx context.Context, b *batch) error {
	l := p.layout
	if l.K == 1 {
		return readUnit(p.src, b.cols[0][:b.rows], b.first*l.Unit, p.size)
	}
	if v, ok := p.src.(Vector); ok && (b.first+b.stripes)*l.Width() <= p.size {
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
		for i := range l.K {
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

// sum checks, hashes and codes the batches and hands them to every column.
func (p *put) sum(ctx context.Context, filled <-chan *batch, columns []chan *batch) error {
	l := p.layout
	var check *sealCheck
	if p.seal != nil {
		check = &sealCheck{seal: p.seal}
	}
	hash, code := blake3.New(), codeOf(l)
	p.sums = make([][]uint32, l.Columns())
	for i := range p.sums {
		p.sums[i] = make([]uint32, 0, stripe.Blocks(p.column))
	}
	for {
		b, err := next(ctx, filled)
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		for s := range b.stripes {
			if err := p.sumStripe(b, s, hash, check, code); err != nil {
				return err
			}
		}
		b.writers.Store(int32(len(columns)))
		for _, c := range columns {
			c <- b // has room for the whole ring
		}
	}
	hash.Sum(p.content[:0])
	if l.K == 1 {
		for i := range p.sums {
			p.sums[i] = p.sums[0]
		}
	}
	for _, c := range columns {
		close(c)
	}
	return nil
}

// sumStripe does the s-th stripe of b. Each data byte is brought into the
// cache once for both its checksum and its hash, in the blob's order.
func (p *put) sumStripe(b *batch, s int64, hash *blake3.Hasher, check *sealCheck, code *code) error {
	l := p.layout
	u := l.UnitOf(p.size, b.first+s)
	units := make([][]byte, l.Columns())
	for i := range units {
		units[i] = b.cols[i][s*l.Unit:][:u]
	}
	left := p.size - (b.first+s)*l.Width() // bytes of the blob from here
	whole := left >= l.Width()
	for i, unit := range units[:l.K] {
		for len(unit) > 0 {
			block := unit[:min(stripe.Block, len(unit))]
			unit = unit[len(block):]
			valid := block[:max(0, min(int64(len(block)), left))] // padding follows the blob's end
			left -= int64(len(valid))
			_, _ = hash.Write(valid) // never fails; slower than memory, so it goes first
			crc := crcOf(block)
			p.sums[i] = append(p.sums[i], crc)
			var err error
			if whole {
				err = check.block(crc)
			} else { // its blocks are not aligned with the seal's
				err = check.bytes(valid)
			}
			if err != nil {
				return err
			}
		}
	}
	return p.code(units, code)
}

// code computes the parity units of a stripe and sums them, a block of each at
// a time, while it is in the cache. The sums of a single parity follow from
// those of the data.
func (p *put) code(units [][]byte, code *code) error {
	if p.layout.K == 1 || p.layout.M == 0 {
		return nil // copies have the sums of what they are copies of
	}
	k := p.layout.K
	if p.layout.M == 1 {
		if err := code.encode(units); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		crcs := make([]uint32, k)
		for at := 0; at < len(units[0]); at += stripe.Block {
			block := len(p.sums[k])
			for i := range crcs {
				crcs[i] = p.sums[i][block]
			}
			p.sums[k] = append(p.sums[k], xorSum(crcs, min(stripe.Block, len(units[0])-at)))
		}
		return nil
	}
	rows := make([][]byte, len(units))
	for at := 0; at < len(units[0]); at += stripe.Block {
		for i, unit := range units {
			rows[i] = unit[at:min(at+stripe.Block, len(unit))]
		}
		if err := code.encode(rows); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		for i, row := range rows[k:] {
			p.sums[k+i] = append(p.sums[k+i], crcOf(row))
		}
	}
	return nil
}

// drain writes column i from its first to its last byte.
func (p *put) drain(ctx context.Context, i int, in <-chan *batch, free chan<- *batch) error {
	w := p.writers[i]
	h := &Header{Key: p.key(i), Layout: p.layout, Size: p.size, Targets: p.names}
	page := aligned(pageSize)
	seed := h.put(page)
	if err := w.Write(ctx, page); err != nil {
		return err
	}
	for {
		b, err := next(ctx, in)
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		if err := w.Write(ctx, b.cols[i][:b.rows]); err != nil {
			return err
		}
		if b.writers.Add(-1) == 0 {
			free <- b // has room for the whole ring
		}
	}
	return writeTrailer(ctx, w, seed, p.column, p.sums[i], p.content)
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
