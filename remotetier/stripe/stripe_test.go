package stripe_test

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

var update = flag.Bool("update", false, "write the test vectors anew; a changed line changes where columns go")

func TestParse(t *testing.T) {
	for _, s := range []string{"1+0", "1+2", "2+1", "4+2", "32+8"} {
		l, err := stripe.Parse(s)
		if err != nil || l.String() != s || l.Unit != stripe.UnitSize || l.Check() != nil {
			t.Errorf("Parse(%q) = %+v, %v", s, l, err)
		}
	}
	for _, s := range []string{"", "+", "4", "4+", "+2", "0+1", "33+1", "4+9", "4+-1", "04+2", " 4+2", "4+2 ", "4+2+1", "a+b", "4.0+2", "99999999999999999999+1"} {
		if _, err := stripe.Parse(s); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Parse(%q) = %v, want ErrInvalid", s, err)
		}
	}
	for _, unit := range []int64{-1, 0, 1, 4096, 65535, 65537, 32 << 20, math.MaxInt64} {
		if err := (stripe.Layout{K: 1, Unit: unit}).Check(); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("unit %d = %v, want ErrInvalid", unit, err)
		}
	}
}

// layouts and sizes that meet every edge.
func each(f func(l stripe.Layout, size int64)) {
	for _, l := range []stripe.Layout{{K: 1, M: 1, Unit: 65536}, {K: 2, M: 1, Unit: 65536}, {K: 4, M: 2, Unit: 131072}, {K: 3, M: 2, Unit: 196608}, {K: 32, M: 8, Unit: 65536}} {
		w := l.Width()
		for _, size := range []int64{1, 2, 4095, 4096, 4097, 65535, 65536, 65537, l.Unit + 1, w - 1, w, w + 1, 2*w + 1, 3*w - 1, 3*w + 100_000} {
			f(l, size)
		}
	}
}

// TestPromise1EveryByteHasOneHome walks the columns and finds every byte of
// the blob once, and nothing but padding behind its end.
func TestPromise1EveryByteHasOneHome(t *testing.T) {
	each(func(l stripe.Layout, size int64) {
		column := l.ColumnSize(size)
		if column%stripe.Align != 0 || column*int64(l.K) < size || column*int64(l.K) >= size+int64(l.K)*stripe.Align+l.Width() {
			t.Errorf("%+v, %d: columns of %d", l, size, column)
		}
		seen := int64(0)
		step := int64(1021) // a prime, and the edges
		for c := range l.K {
			for at := int64(0); at < column; at++ {
				off := l.BlobOffset(size, c, at)
				if off < size {
					seen++
				}
				if at%step != 0 && at%4096 != 0 && at%4096 != 4095 {
					continue
				}
				if off < size {
					if gc, gat := l.Locate(size, off); gc != c || gat != at {
						t.Fatalf("%+v, %d: byte %d of column %d is blob byte %d, which is located at %d of column %d", l, size, at, c, off, gat, gc)
					}
				} else if off >= size+l.Width() {
					t.Fatalf("%+v, %d: padding at %d", l, size, off)
				}
			}
		}
		if seen != size {
			t.Errorf("%+v, %d: %d bytes have a home", l, size, seen)
		}
	})
}

func TestEmptyBlob(t *testing.T) {
	l := stripe.Layout{K: 4, M: 2, Unit: 65536}
	if l.ColumnSize(0) != 0 || l.Stripes(0) != 0 || stripe.Blocks(0) != 0 {
		t.Error("an empty blob has data")
	}
	for range stripe.Plan(l, 0, 0, 0, nil) {
		t.Error("an empty read has a plan")
	}
}

// TestPromise2Plans: segments give each wanted byte once; reads are whole
// blocks that cover them, and no more.
func TestPromise2Plans(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	each(func(l stripe.Layout, size int64) {
		for range 20 {
			off := r.Int64N(size)
			n := 1 + r.Int64N(min(size-off, 300_000))
			var missing []bool
			if r.IntN(2) == 0 {
				missing = make([]bool, l.Columns())
				for range l.M {
					missing[r.IntN(l.Columns())] = true
				}
			}
			checkPlan(t, l, size, off, n, missing)
		}
	})
}

func checkPlan(t *testing.T, l stripe.Layout, size, off, n int64, missing []bool) {
	t.Helper()
	what := fmt.Sprintf("%+v size %d: [%d, +%d) missing %v", l, size, off, n, missing)
	column, next := l.ColumnSize(size), int64(0)
	for st, err := range stripe.Plan(l, size, off, n, missing) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, g := range st.Segments {
			if g.Pos != next || g.Len <= 0 || l.BlobOffset(size, g.Column, g.Off) != off+g.Pos || l.BlobOffset(size, g.Column, g.Off+g.Len-1) != off+g.Pos+g.Len-1 {
				t.Fatalf("%s: segment %+v, want position %d", what, g, next)
			}
			next += g.Len
			wants := missing != nil && missing[g.Column]
			if wants != slices.Contains(st.Rebuild, g.Column) {
				t.Fatalf("%s: rebuilds %v", what, st.Rebuild)
			}
			covered := false
			for _, rd := range st.Reads {
				covered = covered || (rd.Column == g.Column || wants) && rd.Off <= g.Off && rd.End() >= g.Off+g.Len
			}
			if !covered {
				t.Fatalf("%s: %+v is not covered by %+v", what, g, st.Reads)
			}
		}
		for i, rd := range st.Reads {
			if rd.Off%stripe.Block != 0 || rd.End()%stripe.Block != 0 && rd.End() != column || rd.Off < 0 || rd.End() > column || missing != nil && missing[rd.Column] {
				t.Fatalf("%s: read %+v", what, rd)
			}
			if len(st.Rebuild) == 0 && (rd.Off+stripe.Block <= st.Segments[i].Off || rd.End() >= st.Segments[i].Off+st.Segments[i].Len+stripe.Block) {
				t.Fatalf("%s: read %+v is more than segment %+v needs", what, rd, st.Segments[i])
			}
		}
		if len(st.Rebuild) > 0 && len(st.Reads) != l.K || len(st.Rebuild) == 0 && len(st.Reads) != len(st.Segments) {
			t.Fatalf("%s: %d reads", what, len(st.Reads))
		}
	}
	if next != n {
		t.Fatalf("%s: gives %d bytes", what, next)
	}
}

func TestPlanRefuses(t *testing.T) {
	l := stripe.Layout{K: 2, M: 1, Unit: 65536}
	for _, c := range [][2]int64{{-1, 1}, {0, -1}, {0, 101}, {100, 1}, {math.MaxInt64, 1}, {1, math.MaxInt64}} {
		for _, err := range stripe.Plan(l, 100, c[0], c[1], nil) {
			if !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("Plan of %v = %v, want ErrInvalid", c, err)
			}
		}
	}
	for _, err := range stripe.Plan(l, 100, 0, 100, []bool{true, true, false}) {
		if !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("Plan with two of 2+1 missing = %v, want ErrCorrupt", err)
		}
	}
	for st, err := range stripe.Plan(l, 200_000, 70_000, 10, []bool{true, false, true}) { // the wanted column is there
		if err != nil || len(st.Reads) != 1 {
			t.Errorf("Plan = %+v, %v", st, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("4+2")
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := stripe.Parse(s); err == nil && (l.String() != s || l.Check() != nil) {
			t.Errorf("Parse(%q) = %+v", s, l)
		}
	})
}
