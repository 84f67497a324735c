package stripe

import (
	"fmt"
	"iter"

	"github.com/ckptd/ckptd/catalog"
)

// Segment is a run of wanted bytes inside one unit.
type Segment struct {
	Column int
	Off    int64 // in the column's data, bytes
	Len    int64 // bytes
	Pos    int64 // in the answer, bytes from its beginning
}

// Range is a run of whole CRC blocks of a column: both ends are multiples of
// Block, or the end of the column.
type Range struct {
	Column int
	Off    int64 // in the column's data, bytes
	Len    int64 // bytes
}

// End is the offset behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Stripe says how to answer the part of a read that falls into one stripe.
type Stripe struct {
	Index    int64
	Segments []Segment // wanted bytes, in the order of the blob
	Reads    []Range   // what to read: one a segment, or K with equal rows when Rebuild is not empty
	Rebuild  []int     // wanted data columns that must be computed from Reads
}

// Plan answers a read of n bytes at off of a blob of size bytes, stripe by
// stripe. Columns with missing set are not read (nil: none is missing). With
// more than M columns missing where they are wanted it yields ErrCorrupt.
func Plan(l Layout, size, off, n int64, missing []bool) iter.Seq2[Stripe, error] {
	return func(yield func(Stripe, error) bool) {
		if off < 0 || n < 0 || off > size-n {
			yield(Stripe{}, fmt.Errorf("plan of %d bytes at %d of %d: %w", n, off, size, catalog.ErrInvalid))
			return
		}
		for pos := int64(0); pos < n; {
			s := (off + pos) / l.Width()
			take := min(n-pos, (s+1)*l.Width()-(off+pos))
			st, err := PlanStripe(l, size, off, pos, take, missing)
			if !yield(st, err) || err != nil {
				return
			}
			pos += take
		}
	}
}

// PlanStripe plans the bytes [off+pos, off+pos+n), all of one stripe.
func PlanStripe(l Layout, size, off, pos, n int64, missing []bool) (Stripe, error) {
	st := Stripe{Index: (off + pos) / l.Width()}
	for end := pos + n; pos < end; {
		c, at := l.Locate(size, off+pos)
		u := l.UnitOf(size, st.Index)
		take := min(end-pos, u-(at-st.Index*l.Unit))
		st.Segments = append(st.Segments, Segment{Column: c, Off: at, Len: take, Pos: pos})
		if missing != nil && missing[c] {
			st.Rebuild = append(st.Rebuild, c)
		}
		pos += take
	}
	col := l.ColumnSize(size)
	if len(st.Rebuild) == 0 {
		for _, g := range st.Segments {
			st.Reads = append(st.Reads, blocks(g.Column, g.Off, g.Off+g.Len, col))
		}
		return st, nil
	}
	lo, hi := st.Rows()
	for c := 0; c < l.Columns() && len(st.Reads) < l.K; c++ {
		if !missing[c] {
			st.Reads = append(st.Reads, blocks(c, lo, hi, col))
		}
	}
	if len(st.Reads) < l.K {
		return st, fmt.Errorf("stripe %d: %w: %d of the %d columns needed are there", st.Index, catalog.ErrCorrupt, len(st.Reads), l.K)
	}
	return st, nil
}

// Rows is the hull of the segments' column offsets.
func (st Stripe) Rows() (lo, hi int64) {
	lo, hi = st.Segments[0].Off, 0
	for _, g := range st.Segments {
		lo, hi = min(lo, g.Off), max(hi, g.Off+g.Len)
	}
	return lo, hi
}

// blocks widens [lo, hi) to whole CRC blocks of a column of size bytes.
func blocks(column int, lo, hi, size int64) Range {
	lo -= lo % Block
	hi = min(ceilDiv(hi, Block)*Block, size)
	return Range{Column: column, Off: lo, Len: hi - lo}
}
