package stripe_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/remotetier/stripe"
)

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
	frozen(t, "place.txt", b.String())
}

// frozen holds got against a file of test vectors.
func frozen(t *testing.T, name, got string) {
	t.Helper()
	name = "testdata/" + name
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("not as %s has it:\n%s", name, got)
	}
}

// TestPromise3PlaceMoreIsFrozen: testdata/more.txt, with columns that have a
// target, ranks, and fewer targets than columns.
func TestPromise3PlaceMoreIsFrozen(t *testing.T) {
	var b strings.Builder
	for i := range 60 {
		c := candidates(2+i%7, i%4)
		for j := range c {
			c[j].Rank = (i + j) % 5 / 4
		}
		held := c[:i%3]
		n, most := 6-len(held), 2+i%2
		blob := fmt.Sprintf("run/%012d-000001/rank-%05d.safetensors", i*100, i)
		fmt.Fprintf(&b, "%s %d targets=%d domains=%d held=%d most=%d: %s\n", blob, i, len(c), i%4, len(held), most,
			strings.Join(stripe.PlaceMore(blob, uint64(i), c, held, n, most), " "))
	}
	frozen(t, "more.txt", b.String())
}

// TestPromise3WeightByFreeIsFrozen: testdata/weight.txt.
func TestPromise3WeightByFreeIsFrozen(t *testing.T) {
	var b strings.Builder
	for _, w := range []float64{0, 1, 2.5, -1} {
		for _, c := range [][2]int64{{0, 0}, {5, 0}, {-1, 100}, {0, 100}, {1, 100}, {6, 100}, {7, 100}, {50, 100}, {51, 100}, {94, 100}, {99, 100}, {100, 100}, {101, 100},
			{1 << 40, 16 << 40}, {1<<40 + 1, 16 << 40}, {math.MaxInt64 - 1, math.MaxInt64}, {math.MaxInt64 / 2, math.MaxInt64}, {math.MaxInt64, math.MaxInt64}} {
			fmt.Fprintf(&b, "weight=%v free=%d total=%d: %v\n", w, c[0], c[1], stripe.ByFree(w, c[0], c[1]))
		}
	}
	frozen(t, "weight.txt", b.String())
}

// TestPlaceSpreadsAsEvenlyAsTheTargetsAllow: with domains of any sizes and
// weights, the fullest domain has as few columns as can be.
func TestPlaceSpreadsAsEvenlyAsTheTargetsAllow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 3000 {
		all, sizes := uneven(r)
		n := 1 + r.IntN(len(all))
		got := count(t, all, stripe.Place(fmt.Sprint(i), 1, all, n))
		if got.columns != n || got.onTarget > 1 || got.inDomain != fewest(sizes, n) {
			t.Fatalf("%d columns on domains of %v: %+v; the fullest domain need not have more than %d", n, sizes, got, fewest(sizes, n))
		}
	}
}

// uneven makes domains of 1 to 5 targets of any weight; one in three has no name.
func uneven(r *rand.Rand) (all []stripe.Candidate, sizes []int) {
	for d := range 1 + r.IntN(8) {
		n, domain := 1+r.IntN(5), fmt.Sprintf("d%d", d)
		if r.IntN(3) == 0 {
			n, domain = 1, ""
		}
		sizes = append(sizes, n)
		for i := range n {
			all = append(all, stripe.Candidate{Name: fmt.Sprintf("t%d-%d", d, i), Domain: domain, Weight: r.ExpFloat64() + 1e-9})
		}
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all, sizes
}

// fewest is the least number of columns that the fullest domain can have.
func fewest(sizes []int, n int) int {
	for most := 1; ; most++ {
		room := 0
		for _, s := range sizes {
			room += min(s, most)
		}
		if room >= n {
			return most
		}
	}
}

// counted is how columns lie.
type counted struct{ columns, onTarget, inDomain int }

func count(t *testing.T, all []stripe.Candidate, names []string) counted {
	t.Helper()
	target, domain := map[string]int{}, map[string]int{}
	for _, name := range names {
		i := slices.IndexFunc(all, func(c stripe.Candidate) bool { return c.Name == name })
		if i < 0 {
			t.Fatalf("%s is no candidate", name)
		}
		target[name]++
		if all[i].Domain == "" {
			domain["the target "+name]++
		} else {
			domain[all[i].Domain]++
		}
	}
	most := func(m map[string]int) int { return slices.Max(append(slices.Collect(maps.Values(m)), 0)) }
	return counted{len(names), most(target), most(domain)}
}

// TestPlaceMoreDoublesOnlyWhenItMust: a target gets a second column only when
// there is no other way, and then the loss of any domain, or where there are
// too few of them of any target, costs most columns.
func TestPlaceMoreDoublesOnlyWhenItMust(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	doubled, crowded, refused := 0, 0, 0
	for i := range 3000 {
		all, sizes := uneven(r)
		n, most := 1+r.IntN(12), 1+r.IntN(3)
		names := stripe.PlaceMore(fmt.Sprint(i), 1, all, nil, n, most)
		got := count(t, all, names)
		switch {
		case n <= len(all):
			if !slices.Equal(names, stripe.Place(fmt.Sprint(i), 1, all, n)) {
				t.Fatalf("%d columns on domains of %v go to %v, not as Place says", n, sizes, names)
			}
		case n <= most*len(sizes):
			doubled++
			if got.columns != n || got.inDomain > most {
				t.Fatalf("%d columns on domains of %v, at most %d each: %+v", n, sizes, most, got)
			}
		case n <= most*len(all):
			crowded++
			if got.columns != n || got.onTarget > most {
				t.Fatalf("%d columns on domains of %v, at most %d a target: %+v", n, sizes, most, got)
			}
		default:
			refused++
			if got.columns >= n {
				t.Fatalf("%d columns on domains of %v, at most %d each: %+v", n, sizes, most, got)
			}
		}
	}
	if doubled < 100 || crowded < 100 || refused < 100 {
		t.Errorf("%d doubled, %d crowded and %d refused prove little", doubled, crowded, refused)
	}
}

// TestPlaceMoreGoesRoundWhatIsHeld: a column that lost its target goes to one
// that has none of its sisters, in a domain that has the fewest.
func TestPlaceMoreGoesRoundWhatIsHeld(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	for i := range 3000 {
		all, _ := uneven(r)
		names := stripe.Place(fmt.Sprint(i), 1, all, 6)
		var held, free []stripe.Candidate
		domains := map[string]int{}
		for _, c := range all {
			if at := slices.Index(names, c.Name); at < 0 {
				free = append(free, c)
			} else if at > 0 { // the first of them fails
				held = append(held, c)
				domains[c.Domain]++
			}
		}
		got := stripe.PlaceMore(fmt.Sprint(i), 1, free, held, 1, 0)
		if len(got) != min(1, len(free)) {
			t.Fatalf("of %d free targets: %v", len(free), got)
		}
		for _, c := range free {
			least := domains[c.Domain]
			if c.Domain == "" {
				least = 0
			}
			chosen := free[slices.IndexFunc(free, func(c stripe.Candidate) bool { return c.Name == got[0] })]
			if has := domains[chosen.Domain]; chosen.Domain != "" && has > least {
				t.Fatalf("it went to %s, whose domain has %d columns; that of %s has %d", chosen.Name, has, c.Name, least)
			}
		}
	}
}

func TestPlaceTakesRanksInTurn(t *testing.T) {
	for i := range 200 {
		all := candidates(9, 3)
		for j := range all {
			all[j].Rank = j / 3
		}
		for n := 1; n <= 9; n++ {
			names := slices.Sorted(slices.Values(stripe.Place(fmt.Sprint(i), 1, all, n)))
			for j, name := range names {
				if want := j / 3; all[slices.IndexFunc(all, func(c stripe.Candidate) bool { return c.Name == name })].Rank != want {
					t.Fatalf("%d of 9: %v", n, names)
				}
			}
		}
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
