package tarview

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sort"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Source is the samples of a version. It is used by several goroutines at once.
type Source interface {
	Samples() int64
	// Members gives the members of a sample. into may be used for them, names
	// and all; what was in it is not needed any more.
	Members(sample int64, into []Member) ([]Member, error)
}

// Order says which sample is at a position of the epoch. It is used by several
// goroutines at once.
type Order interface {
	At(position int64) (sample int64)
}

// stride is how many samples lie between two sums that a view remembers.
const stride = 256

// ending is the two zero blocks.
const ending = 2 * block

// View is the tar of one share of an epoch.
type View struct {
	order Order
	share Share
	count int64
	sums  []int64 // offset of each stride's first sample, and of the ending
}

// New looks at every sample of the share, on all processors, and gives its tar.
func New(ctx context.Context, src Source, order Order, share Share) (*View, error) {
	n := src.Samples()
	if err := share.Check(n); err != nil {
		return nil, err
	}
	v := &View{order: order, share: share, count: share.Count(n)}
	strides := (v.count + stride - 1) / stride
	v.sums = make([]int64, strides+1)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(int64(runtime.GOMAXPROCS(0)), strides) {
		g.Go(func() error {
			var members []Member
			for s := next.Add(1) - 1; s < strides; s = next.Add(1) - 1 {
				if err := ctx.Err(); err != nil {
					return err
				}
				var sum int64
				for i := s * stride; i < min(v.count, (s+1)*stride); i++ {
					var span int64
					var err error
					if span, members, err = v.span(src, i, members); err != nil {
						return err
					}
					sum += span
				}
				v.sums[s+1] = sum
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range v.sums[1:] {
		v.sums[i+1] += v.sums[i]
		if v.sums[i+1] < v.sums[i] {
			return nil, errors.New("tar: its size overflows")
		}
	}
	return v, nil
}

// span is the size of the i-th sample in the tar.
func (v *View) span(src Source, i int64, into []Member) (span int64, members []Member, err error) {
	sample := v.order.At(v.share.position(i))
	members, err = src.Members(sample, into[:0])
	if err != nil {
		return 0, members, fmt.Errorf("sample %d: %w", sample, err)
	}
	for k := range members {
		span += members[k].span()
	}
	return span, members, nil
}

// Size is the tar's, in bytes.
func (v *View) Size() int64 { return v.sums[len(v.sums)-1] + ending }

// Samples is how many the tar has.
func (v *View) Samples() int64 { return v.count }

// Memory is how many bytes the view takes.
func (v *View) Memory() int64 { return 8*int64(len(v.sums)) + 128 }

// Data reads bytes of members: all of p, from the member's byte off on.
type Data interface {
	ReadMember(ctx context.Context, m *Member, p []byte, off int64) error
}

// place is a sample and where it begins in the tar.
type place struct{ i, off int64 }

// Reader reads a view. Many goroutines may use one.
type Reader struct {
	v    *View
	src  Source
	data Data
	last atomic.Pointer[place] // where the last read ended
}

// Reader reads the view's bytes from data. src is what New was given, or the
// same once more: a view does not keep it.
func (v *View) Reader(src Source, data Data) *Reader { return &Reader{v: v, src: src, data: data} }

// begin is a sample from which walking on meets off.
func (r *Reader) begin(off int64) place {
	v := r.v
	s := int64(sort.Search(len(v.sums), func(i int) bool { return v.sums[i] > off })) - 1
	at := place{min(s*stride, v.count), v.sums[s]}
	if last := r.last.Load(); last != nil && last.off <= off && last.off > at.off {
		at = *last
	}
	return at
}

// ReadAt reads as io.ReaderAt does. What it returned before an error is right.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	v := r.v
	if off >= v.Size() {
		return 0, io.EOF
	}
	var eof error
	if rest := v.Size() - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	out := cut{p: p, off: off}
	at := r.begin(off)
	var members []Member
	var header []byte
	for at.i < v.count && !out.full() {
		var span int64
		var err error
		if span, members, err = v.span(r.src, at.i, members); err != nil {
			return out.n, err
		}
		if at.off+span <= off {
			at = place{at.i + 1, at.off + span}
			continue
		}
		pos := at.off
		for k := range members {
			m := &members[k]
			if dst, _ := out.part(pos, m.headerSize()); len(dst) > 0 {
				header = m.appendHeader(header[:0])
				copy(dst, header[max(0, off-pos):])
				out.n += len(dst)
			}
			pos += m.headerSize()
			if dst, from := out.part(pos, m.Size); len(dst) > 0 {
				if err := r.data.ReadMember(ctx, m, dst, from); err != nil {
					return out.n, fmt.Errorf("%q: %w", m.Name, err)
				}
				out.n += len(dst)
			}
			pos += m.Size
			pos += out.zero(pos, padded(m.Size)-m.Size)
		}
		if out.full() && at.off+span > off+int64(len(p)) {
			break
		}
		at = place{at.i + 1, at.off + span}
	}
	r.last.Store(&at)
	if at.i == v.count {
		out.zero(v.Size()-ending, ending)
	}
	return out.n, eof
}

// cut is the piece of the tar that was asked for; it is filled in order.
type cut struct {
	p   []byte
	off int64
	n   int // bytes of p that are filled
}

func (c *cut) full() bool { return c.n == len(c.p) }

// part gives where the n bytes of the tar at pos go, as far as they are asked
// for, and with which of them that begins.
func (c *cut) part(pos, n int64) (dst []byte, from int64) {
	begin, end := max(pos, c.off), min(pos+n, c.off+int64(len(c.p)))
	if begin >= end {
		return nil, 0
	}
	return c.p[begin-c.off : end-c.off], begin - pos
}

func (c *cut) zero(pos, n int64) int64 {
	dst, _ := c.part(pos, n)
	clear(dst)
	c.n += len(dst)
	return n
}
