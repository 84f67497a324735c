package ckptd

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// spreadOf is by how much the fullness of targets differs.
func spreadOf(targets []fullness) float64 {
	lo, hi := math.Inf(1), math.Inf(-1)
	for i := range targets {
		lo, hi = min(lo, targets[i].part()), max(hi, targets[i].part())
	}
	return hi - lo
}

// TestPlanRebalance: random fleets of which some targets are new; the plan
// keeps what placement promises, and ends.
func TestPlanRebalance(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 40 {
		old, fresh, domains := 4+r.IntN(6), 1+r.IntN(4), 1+r.IntN(12)
		var targets []fullness
		for i := range old + fresh {
			targets = append(targets, fullness{name: fmt.Sprintf("t%d", i), domain: fmt.Sprintf("d%d", i%domains), total: int64(1+r.IntN(2)) << 30})
		}
		at := func(name string) *fullness {
			return &targets[slices.IndexFunc(targets, func(f fullness) bool { return f.name == name })]
		}
		var blobs []placed
		for i := range 60 {
			p := aPlace(fmt.Sprintf("r/%d", i), "x", "x", "x")
			p.Size = int64(1+r.IntN(64)) << 20
			for c, t := range r.Perm(old)[:3] {
				p.Targets[c] = targets[t].name
			}
			b := placed{rank: i, place: p}
			for _, name := range p.Targets {
				at(name).used += columnBytes(&b)
			}
			blobs = append(blobs, b)
		}
		before := spreadOf(targets)
		moves := planRebalance(targets, blobs, balanced)
		places := make([][]string, len(blobs))
		for i := range blobs {
			places[i] = slices.Clone(blobs[i].place.Targets)
		}
		crowd := func(place []string) (most int) {
			count := map[string]int{}
			for _, name := range place {
				count[at(name).domain]++
				most = max(most, count[at(name).domain])
			}
			return most
		}
		for _, m := range moves {
			p := places[m.blob]
			had := crowd(p)
			if p[m.column] != m.from || slices.Contains(p, m.to) {
				t.Fatalf("round %d: %+v with columns on %v", round, m, p)
			}
			p[m.column] = m.to
			if got := crowd(p); got > had {
				t.Fatalf("round %d: %+v puts %d columns into one domain, there were %d", round, m, got, had)
			}
			at(m.from).used -= m.bytes
			at(m.to).used += m.bytes
		}
		after := spreadOf(targets)
		if after > before || len(moves) == 0 && before > 0.2 && domains >= old+fresh {
			t.Errorf("round %d: %d moves, fullness differed by %.3f and now %.3f", round, len(moves), before, after)
		}
		if domains >= old+fresh && after > balanced+0.1 {
			t.Errorf("round %d: fullness still differs by %.3f after %d moves", round, after, len(moves))
		}
		if again := planRebalance(targets, blobs[:0], balanced); len(again) > 0 {
			t.Errorf("round %d: %d moves of nothing", round, len(again))
		}
	}
}

// What stays where it is.
func TestPlanRebalanceLeaves(t *testing.T) {
	place := func(size int64, targets ...string) placed {
		p := aPlace("r/1", targets...)
		p.Size = size
		return placed{id: catalog.SetID{}, place: p}
	}
	full := fullness{name: "a", domain: "1", total: 1 << 30, used: 900 << 20}
	for _, c := range []struct {
		what    string
		targets []fullness
		blobs   []placed
		moves   int
	}{
		{"to an empty one", []fullness{full, {name: "c", domain: "3", total: 1 << 30}}, []placed{place(64<<20, "a", "b")}, 1},
		{"nearly as full", []fullness{full, {name: "c", domain: "3", total: 1 << 30, used: 880 << 20}}, []placed{place(64<<20, "a", "b")}, 0},
		{"of another pool", []fullness{full, {name: "c", domain: "3", pool: "p", total: 1 << 30}}, []placed{place(64<<20, "a", "b")}, 0},
		{"has one of the blob", []fullness{full, {name: "b", domain: "2", total: 1 << 30}}, []placed{place(64<<20, "a", "b")}, 0},
		{"of a domain that has one", []fullness{full, {name: "b", domain: "2", total: 1 << 30, used: 890 << 20}, {name: "c", domain: "2", total: 1 << 30}}, []placed{place(64<<20, "a", "b")}, 1}, // b's may move within the domain
		{"would overshoot", []fullness{{name: "a", domain: "1", total: 1 << 30, used: 200 << 20}, {name: "c", domain: "3", total: 1 << 30}}, []placed{place(190<<20, "a", "b")}, 0},
	} {
		moves := planRebalance(c.targets, c.blobs, balanced)
		if len(moves) != c.moves {
			t.Errorf("%s: %+v, want %d moves", c.what, moves, c.moves)
		}
		if c.what == "of a domain that has one" && len(moves) == 1 && moves[0].from != "b" {
			t.Errorf("%s: %+v", c.what, moves)
		}
	}
}

// TestRebalance moves columns to targets that joined, and keeps every one.
func TestRebalance(t *testing.T) {
	w := newScrubWorld(t, 3, 10)
	w.join()
	w.join()
	w.awaitTargets()
	all := w.columns()
	for _, m := range w.mems {
		m.SetTotal(4 << 20)
	}
	dry, err := w.rebalance(t.Context(), true, nil)
	if err != nil || dry.Columns < 3 || dry.Most-dry.Least < 0.2 {
		t.Fatalf("dry run = %+v, %v", dry, err)
	}
	before := w.place(0)
	if now := w.place(0); !samePlace(&before, &now) {
		t.Error("a dry run moved something")
	}
	res, err := w.rebalance(t.Context(), false, nil)
	if err != nil || res.Columns != dry.Columns || len(res.Left) > 0 || res.Most-res.Least > 0.1 {
		t.Errorf("rebalance = %+v, %v", res, err)
	}
	for i := range w.ids {
		p := w.place(i)
		if err := w.remote.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
		if len(crowded(&p)) > 0 {
			t.Errorf("columns are on %v", p.Targets)
		}
	}
	if got := w.columns(); got != all {
		t.Errorf("there are %d columns, there were %d", got, all)
	}
	if again, err := w.rebalance(t.Context(), false, nil); err != nil || again.Columns > 1 {
		t.Errorf("again = %+v, %v", again, err)
	}
	if sum := w.scrubAll(); sum.Bad+sum.Extra != 0 {
		t.Errorf("a scrub finds %+v", sum)
	}
}
