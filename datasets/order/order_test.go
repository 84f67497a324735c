package order

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// digest is a version's digest for tests.
func digest(n byte) catalog.Digest {
	var d catalog.Digest
	for i := range d {
		d[i] = n + byte(i)
	}
	return d
}

func mustNew(t testing.TB, n int64, seed uint64, m Mode) *Order {
	t.Helper()
	o, err := New(n, NewKey(digest(1), seed, 0), m)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// permutes checks that o is a permutation and that Find is its inverse.
func permutes(t *testing.T, o *Order) {
	t.Helper()
	seen := make([]bool, o.Len())
	for p := range o.Len() {
		s := o.At(p)
		if s < 0 || s >= o.Len() || seen[s] {
			t.Fatalf("n=%d %v: position %d holds sample %d, out of range or for the second time", o.Len(), o.Mode(), p, s)
		}
		seen[s] = true
		if got := o.Find(s); got != p {
			t.Fatalf("n=%d %v: Find(At(%d)) = %d", o.Len(), o.Mode(), p, got)
		}
	}
}

func TestOrderIsAPermutation(t *testing.T) {
	t.Run("GlobalSmall", func(t *testing.T) {
		for n := range int64(1100) {
			permutes(t, mustNew(t, n, 7, Global))
		}
	})
	t.Run("WindowSmall", func(t *testing.T) {
		for n := range int64(42) {
			for slice := int64(1); slice <= n+2; slice++ {
				for group := int64(1); group <= n/slice+2; group++ {
					for seed := range uint64(3) {
						permutes(t, mustNew(t, n, seed, Window(slice, group)))
					}
				}
			}
		}
	})
	t.Run("WindowLarger", func(t *testing.T) {
		for _, m := range []Mode{Window(1, 1), Window(1, 1000), Window(100, 1), Window(77, 13), Window(1<<40, 3), Window(3, MaxGroup)} {
			permutes(t, mustNew(t, 100_003, 5, m))
		}
	})
	t.Run("Large", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, n := range []int64{MaxSamples, MaxSamples - 1, 1<<47 + 1, 1<<33 - 1, 1 << 32, 1<<31 + 1} {
			for _, m := range []Mode{Global, Window(1<<20, 16), Window(12345, 7), Window(MaxSamples, 1), Window(1, MaxGroup)} {
				o := mustNew(t, n, 3, m)
				for range 300 {
					p := r.Int64N(n)
					s := o.At(p)
					if got := o.Find(s); s < 0 || s >= n || got != p {
						t.Fatalf("n=%d %v: At(%d) = %d, of which Find is %d", n, m, p, s, got)
					}
				}
			}
		}
	})
}

func TestWindowStaysWithinItsSlices(t *testing.T) {
	const n, slice, group = 10_007, 100, 8
	o := mustNew(t, n, 11, Window(slice, group))
	m := (n + slice - 1) / slice
	p := int64(0)
	var order []int64 // of the slices, by the block in which they come
	for c := 0; p < n; c++ {
		found := map[int64]int64{}
		length := int64(min(group, m-c*group) * slice)
		if c == int(o.shortBlock) {
			length -= int64(o.missing)
		}
		for range length {
			found[o.At(p)/slice]++
			p++
		}
		if got, want := len(found), min(group, m-c*group); got != want {
			t.Errorf("block %d has samples of %d slices, want %d", c, got, want)
		}
		for s, k := range found {
			if want := min(int64(slice), n-s*slice); k != want {
				t.Errorf("block %d has %d samples of slice %d, want %d", c, k, s, want)
			}
			order = append(order, s)
		}
	}
	slices.Sort(order)
	if got, want := len(slices.Compact(order)), m; got != want {
		t.Errorf("%d slices were met, want %d", got, want)
	}
}

// Promise 4: however the number of ranks changes within an epoch, every sample
// is taken once.
func TestWorldSizeMayChangeMidEpoch(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		n := 1 + r.Int64N(500)
		o := mustNew(t, n, r.Uint64(), []Mode{Global, Window(1+r.Int64N(60), 1+r.Int64N(6))}[r.IntN(2)])
		taken := make([]int, n)
		for at := int64(0); at < n; {
			world := 1 + r.IntN(9)
			steps := 1 + r.Int64N(40)
			for rank := range world {
				left := steps
				for _, s := range o.Rank(at, rank, world) {
					if left--; left < 0 {
						break
					}
					taken[s]++
				}
			}
			at = min(n, at+steps*int64(world))
		}
		if i := slices.IndexFunc(taken, func(k int) bool { return k != 1 }); i >= 0 {
			t.Fatalf("n=%d %v: sample %d was taken %d times", n, o.Mode(), i, taken[i])
		}
	}
}

func TestKeysDiffer(t *testing.T) {
	base := NewKey(digest(1), 1, 1)
	for _, k := range []Key{NewKey(digest(2), 1, 1), NewKey(digest(1), 2, 1), NewKey(digest(1), 1, 2), NewKey(digest(1), 1, 1<<63)} {
		for i := range k {
			if k[i] == base[i] {
				t.Errorf("word %d is the same for two keys", i)
			}
		}
	}
}

// The chi-square of where samples come, and of what comes at positions, over
// many keys, for small n too: those are numbers of slices.
func TestPositionsAreUniform(t *testing.T) {
	for _, n := range []int64{2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 100} {
		keys := int64(400) * n
		counts := make([]int64, n*n)
		for k := range keys {
			o := mustNew(t, n, uint64(k), Global)
			for p := range n {
				counts[p*n+o.At(p)]++
			}
		}
		var chi float64
		for _, c := range counts {
			d := float64(c) - float64(keys)/float64(n)
			chi += d * d / (float64(keys) / float64(n))
		}
		// Rows and columns add up: (n-1)^2 degrees of freedom.
		df := float64((n - 1) * (n - 1))
		if z := (chi - df) / math.Sqrt(2*df); z > 6 || z < -6 {
			t.Errorf("n=%d: chi-square %.0f with %.0f degrees of freedom, z = %.1f", n, chi, df, z)
		}
	}
}

// Pairs of neighbours, for the keys and the epochs: an order and the next one
// must look as independent as two random ones.
func TestOrdersLookRandom(t *testing.T) {
	for _, n := range []int64{1000, 1024, 4099, 65537} {
		for seed := range uint64(20) {
			o, next := mustNew(t, n, seed, Global), mustNew(t, n, seed+1, Global)
			var q, sameAsNext Quality
			q = Measure(n, o.At, Mix{})
			sameAsNext = Measure(n, func(p int64) int64 { return o.Find(next.At(p)) }, Mix{})
			for _, v := range []Quality{q, sameAsNext} {
				// A random permutation moves a sample by n/3 on average, deviation of the mean n/sqrt(90n/4) or so.
				if d := math.Abs(v.Displacement - 1.0/3); d > 1/math.Sqrt(float64(n)) {
					t.Errorf("n=%d seed %d: mean displacement %.4f n, want 1/3", n, seed, v.Displacement)
				}
				// Neighbours that stay neighbours: Poisson with mean about 2.
				if v.Adjacent*float64(n-1) > 14 {
					t.Errorf("n=%d seed %d: %.0f neighbours stayed together, want about 2", n, seed, v.Adjacent*float64(n-1))
				}
			}
		}
	}
}

func TestBadInputIsRefused(t *testing.T) {
	for _, n := range []int64{-1, MaxSamples + 1, math.MinInt64} {
		if _, err := New(n, Key{}, Global); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("New(%d) = %v, want ErrInvalid", n, err)
		}
	}
	for _, m := range []Mode{{Slice: -1}, {Slice: MaxSamples + 1, Group: 1}, {Slice: 1, Group: -1}, {Slice: 1, Group: MaxGroup + 1}, {Group: 3}} {
		if _, err := New(10, Key{}, m); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("New(%+v) = %v, want ErrInvalid", m, err)
		}
	}
}

func BenchmarkAt(b *testing.B) {
	for _, m := range []Mode{Global, Window(4096, 16)} {
		for _, n := range []int64{1_281_167, 1<<40 + 1} {
			b.Run(fmt.Sprintf("%v/%d", m, n), func(b *testing.B) {
				o := mustNew(b, n, 1, m)
				p, sum := int64(0), int64(0)
				b.ReportAllocs()
				for b.Loop() {
					sum += o.At(p)
					if p += 1_000_003; p >= n {
						p -= n
					}
				}
				_ = sum
			})
		}
	}
}
