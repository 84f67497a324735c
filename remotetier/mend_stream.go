package remotetier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// mendStream is one pass over a blob's columns: rows of as many as are needed
// are read while those before them are coded, hashed and written.
type mendStream struct {
	Reader
	m     *mend
	jobs  []*mendJob
	coded bool // some column is rebuilt; otherwise all are copied
	hash  *blake3.Hasher
	seeds []uint32 // by job
}

func newMendStream(m *mend, jobs []*mendJob) *mendStream {
	s := &mendStream{m: m, jobs: jobs, hash: blake3.New()}
	s.tier, s.place, s.layout, s.slots = m.tier, m.rep.Place, m.layout, newSlots(m.layout.Columns())
	for _, j := range jobs {
		s.coded = s.coded || j.State != ColumnOK || m.unlike[j.Column]
	}
	return s
}

// run reads, rebuilds and writes all of the columns but their Commit.
func (s *mendStream) run(ctx context.Context) error {
	column := s.layout.ColumnSize(s.place.Size)
	cols := make([]int, 0, len(s.slots))
	for c := range s.slots {
		if s.coded || slices.ContainsFunc(s.jobs, func(j *mendJob) bool { return j.Column == c }) {
			cols = append(cols, c)
		}
	}
	step, count := s.step(column), 2
	if limit := s.tier.opt.Memory / int64(len(cols)); 2*step > limit {
		if count = 1; step > limit {
			return fmt.Errorf("%w: a stripe takes %d bytes and the tier has %d for buffers", catalog.ErrInvalid, step*int64(len(cols)), s.tier.opt.Memory)
		}
	}
	content, err := s.begin(ctx, cols)
	if err != nil {
		return err
	}
	loan, err := s.tier.bufs.take(ctx, count*len(cols), int(step))
	if err != nil {
		return err
	}
	defer loan.done()
	free, filled := make(chan *rowsOf, count), make(chan *rowsOf, count)
	for b := range count {
		r := &rowsOf{units: make([][]byte, len(s.slots))}
		for i, c := range cols {
			r.units[c] = loan.buf(b*len(cols) + i)
		}
		free <- r
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fill(gctx, column, step, free, filled) })
	g.Go(func() error { return s.write(gctx, filled, free) })
	if err := g.Wait(); err != nil {
		return err
	}
	if s.coded && catalog.Digest(s.hash.Sum(nil)) != content {
		return fmt.Errorf("%w: the columns fit their sums, and what they add up to has another BLAKE3 than the blob: nothing was written", catalog.ErrCorrupt)
	}
	return s.each(func(i int, j *mendJob) error {
		return writeTrailer(ctx, j.w, s.seeds[i], column, j.sums, content)
	})
}

// errAllFailed: no target is left to write to; each job says why.
var errAllFailed = errors.New("every target that was to take a column failed")

// each calls f for every job that goes on, at once, and notes its error.
func (s *mendStream) each(f func(i int, j *mendJob) error) error {
	var g errgroup.Group
	for i, j := range s.jobs {
		if j.err == nil {
			g.Go(func() error { j.err = f(i, j); return nil })
		}
	}
	_ = g.Wait()
	if !slices.ContainsFunc(s.jobs, func(j *mendJob) bool { return j.err == nil }) {
		return errAllFailed
	}
	return nil
}

// begin opens a column to learn the content, where the place does not say it,
// and writes the headers.
func (s *mendStream) begin(ctx context.Context, cols []int) (catalog.Digest, error) {
	content := s.place.Content
	if content.IsZero() {
		failed := make([]error, len(s.slots))
		for _, c := range s.prefer() {
			col, err := s.column(ctx, c)
			if failed[c] = err; err == nil {
				content = col.content
				break
			}
		}
		if err := ctx.Err(); err != nil {
			return content, err
		}
		if content.IsZero() {
			return content, s.tooFew(failed)
		}
	}
	h := Header{Layout: s.layout, Size: s.place.Size, Targets: slices.Clone(s.m.res.Place.Targets)}
	for _, j := range s.m.jobs {
		h.Targets[j.Column] = j.to
	}
	s.seeds = make([]uint32, len(s.jobs))
	return content, s.each(func(i int, j *mendJob) error {
		h := h
		h.Key = s.m.key(j)
		page := aligned(pageSize)
		s.seeds[i] = h.put(page)
		return j.w.Write(ctx, page)
	})
}

// fill reads the rows, in order.
func (s *mendStream) fill(ctx context.Context, column, step int64, free <-chan *rowsOf, filled chan<- *rowsOf) error {
	defer close(filled)
	for off := int64(0); off < column; off += step {
		var r *rowsOf
		select {
		case r = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		n := min(step, column-off)
		if err := s.pace(ctx, n); err != nil {
			return err
		}
		r.off = off
		for c, u := range r.units {
			if u != nil {
				r.units[c] = u[:n]
			}
		}
		var err error
		if s.coded {
			err = s.rebuild(ctx, r.units, off)
		} else {
			err = s.copy(ctx, r.units, off)
		}
		if err != nil {
			return err
		}
		filled <- r // has room for all there are
	}
	return nil
}

// pace waits for n rows of what is read and written.
func (s *mendStream) pace(ctx context.Context, n int64) error {
	cols := 2 * len(s.jobs)
	if s.coded {
		cols = s.layout.K + len(s.jobs)
	}
	return s.tier.pace(ctx, n*int64(cols))
}

// copy reads the columns themselves.
func (s *mendStream) copy(ctx context.Context, units [][]byte, off int64) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, j := range s.jobs {
		g.Go(func() error {
			err := s.readColumn(gctx, j.Column, units[j.Column], off)
			if err != nil && gctx.Err() == nil {
				err = &unlikeError{j.Column, err}
			}
			return err
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// rebuild fills every data column and every job's at the rows from off: from
// any k columns, and where some rows are bad in more than m of them, block by block.
func (s *mendStream) rebuild(ctx context.Context, bufs [][]byte, off int64) error {
	err := s.gather(ctx, bufs, off)
	n := int64(len(bufs[0]))
	if err == nil || ctx.Err() != nil || n <= stripe.Block {
		return err
	}
	part := make([][]byte, len(bufs))
	for at := int64(0); at < n; at += stripe.Block {
		for c := range bufs {
			part[c] = bufs[c][at:min(at+stripe.Block, n):min(at+stripe.Block, n)]
		}
		if err := s.gather(ctx, part, off+at); err != nil {
			return err
		}
	}
	return nil
}

// gather does rebuild from k columns, the best first.
func (s *mendStream) gather(ctx context.Context, bufs [][]byte, off int64) error {
	units, failed := make([][]byte, len(bufs)), make([]error, len(bufs))
	have, order := 0, s.prefer()
	for have < s.layout.K {
		pick := order[:min(len(order), s.layout.K-have)]
		order = order[len(pick):]
		if len(pick) == 0 {
			return s.tooFew(failed)
		}
		var g errgroup.Group
		for _, c := range pick {
			g.Go(func() error { failed[c] = s.readColumn(ctx, c, bufs[c], off); return nil })
		}
		_ = g.Wait()
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, c := range pick {
			if failed[c] == nil {
				units[c] = bufs[c]
				have++
			}
		}
	}
	var want []int
	for c := range units {
		if units[c] != nil {
			continue
		}
		units[c] = bufs[c][:0]
		if c < s.layout.K || slices.ContainsFunc(s.jobs, func(j *mendJob) bool { return j.Column == c }) {
			want = append(want, c)
		}
	}
	if len(want) == 0 {
		return nil
	}
	return codeOf(s.layout).rebuild(units, want) // into bufs, which are as large
}

// prefer gives the columns in the order in which to read them.
func (s *mendStream) prefer() []int {
	avoid, _ := s.avoid()
	rank := func(c int) int {
		check := s.m.rep.Columns[c]
		switch {
		case check.State == ColumnMissing:
			return 5
		case avoid[c], check.State.Bad():
			return 4 // some of its rows may be good
		case check.State == ColumnUnreachable:
			return 3
		case s.m.unlike[c]:
			return 2
		case slices.ContainsFunc(s.jobs, func(j *mendJob) bool { return j.Column == c }):
			return 0 // what is wanted need not be computed
		}
		return 1
	}
	order := make([]int, len(s.slots))
	for c := range order {
		order[c] = c
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank(a), rank(b)) })
	return order
}

// write hashes and writes the rows, in order.
func (s *mendStream) write(ctx context.Context, filled <-chan *rowsOf, free chan<- *rowsOf) error {
	for {
		r, err := nextRows(ctx, filled)
		if err != nil || r == nil {
			return err
		}
		if s.coded {
			s.stripes(r.off, int64(len(r.units[0])), func(at, u, from int64) {
				for _, unit := range r.units[:s.layout.K] {
					_, _ = s.hash.Write(unit[at:][:max(0, min(u, s.place.Size-from))])
					from += u
				}
			})
		}
		if err := s.each(func(_ int, j *mendJob) error {
			b := r.units[j.Column]
			for block := range slices.Chunk(b, stripe.Block) {
				j.sums = append(j.sums, crcOf(block))
			}
			return j.w.Write(ctx, b)
		}); err != nil {
			return err
		}
		free <- r // has room for all there are
	}
}

func nextRows(ctx context.Context, in <-chan *rowsOf) (*rowsOf, error) {
	select {
	case r := <-in: // nil when closed
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// isTaken says that a key exists, or is being written.
func isTaken(err error) bool { return errors.Is(err, fs.ErrExist) }
