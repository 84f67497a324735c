package stripe_test

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
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

func candidates(n, domains int) (all []stripe.Candidate) {
	for i := range n {
		c := stripe.Candidate{Name: fmt.Sprintf("t%02d", i)}
		if domains > 0 {
			c.Domain = fmt.Sprintf("rack%d", i%domains)
		}
		all = append(all, c)
	}
	return all
}

// TestPromise3PlaceIsFrozen: testdata/place.txt is for every implementation.
func TestPromise3PlaceIsFrozen(t *testing.T) {
	var b strings.Builder
	for i := range 40 {
		c := candidates(3+i%9, i%4)
		for j := range c {
			c[j].Weight = float64(j % 3)
		}
		blob := fmt.Sprintf("run/%012d-000001/rank-%05d.safetensors", i*100, i)
		fmt.Fprintf(&b, "%s %d targets=%d domains=%d: %s\n", blob, i, 3+i%9, i%4, strings.Join(stripe.Place(blob, uint64(i), c, 3), " "))
	}
	if *update {
		if err := os.WriteFile("testdata/place.txt", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/place.txt")
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("columns go elsewhere than before:\n%s", b.String())
	}
}

func TestPlaceSpreadsOverDomains(t *testing.T) {
	for i := range 200 {
		blob := fmt.Sprint(i)
		for _, c := range []struct{ targets, domains, n, most int }{{12, 6, 6, 1}, {12, 3, 6, 2}, {12, 4, 6, 2}, {5, 2, 5, 3}, {6, 0, 6, 1}} {
			all := candidates(c.targets, c.domains)
			names := stripe.Place(blob, 1, all, c.n)
			in := map[string]int{}
			for _, name := range names {
				d := all[slices.IndexFunc(all, func(a stripe.Candidate) bool { return a.Name == name })].Domain
				if d == "" {
					d = name
				}
				if in[d]++; in[d] > c.most {
					t.Errorf("%+v: %v", c, names)
				}
			}
			if slices.Sort(names); len(slices.Compact(names)) != c.n {
				t.Errorf("%+v: %v", c, names)
			}
		}
	}
	if got := stripe.Place("a", 1, candidates(2, 0), 3); len(got) != 2 {
		t.Errorf("of two targets: %v", got)
	}
	if got := stripe.Place("a", 1, []stripe.Candidate{{Name: "a", Weight: -1}, {Name: "b", Weight: math.NaN()}, {Name: "c"}}, 3); !slices.Equal(got, []string{"c"}) {
		t.Errorf("weights below zero: %v", got)
	}
}

func TestPlaceFollowsWeightsAndMovesLittle(t *testing.T) {
	all := []stripe.Candidate{{Name: "a"}, {Name: "b", Weight: 2}, {Name: "c", Weight: 3}}
	const n = 20_000
	got := map[string]int{}
	moved := 0
	for i := range n {
		first := stripe.Place(fmt.Sprint(i), 1, all, 1)[0]
		got[first]++
		if after := stripe.Place(fmt.Sprint(i), 1, append(all, stripe.Candidate{Name: "d"}), 1)[0]; after != first {
			moved++
			if after != "d" {
				t.Fatalf("blob %d moved from %s to %s when d came", i, first, after)
			}
		}
	}
	for name, want := range map[string]float64{"a": 1. / 6, "b": 2. / 6, "c": 3. / 6} {
		if share := float64(got[name]) / n; math.Abs(share-want) > 0.02 {
			t.Errorf("%s has %.3f of the columns, want %.3f", name, share, want)
		}
	}
	if share := float64(moved) / n; math.Abs(share-1./7) > 0.02 {
		t.Errorf("%.3f moved to the newcomer, want 1/7", share)
	}
}

func BenchmarkPlace(b *testing.B) {
	all := candidates(64, 8)
	for b.Loop() {
		stripe.Place("run/000000000001-000001/rank-00000.safetensors", 1, all, 6)
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
