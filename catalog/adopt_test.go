package catalog_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// copyOf is a record as a tier may keep it.
func copyOf(state catalog.State, version int64, manifest byte, edits ...func(*catalog.SetRecord)) catalog.SetRecord {
	s := catalog.SetRecord{SetID: id, State: state, World: 1, Begun: t0, Committed: t0, Level: catalog.Local, Manifest: catalog.Digest{manifest}, Size: 1, Version: version}
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

func pinned(s *catalog.SetRecord) { s.Pinned = true }

// Promises 4 and 6: what is adopted never takes a committed set back, never
// gives it another manifest, and never brings a pruned one to light.
func TestAdoptSet(t *testing.T) {
	for _, c := range []struct {
		name         string
		there, found catalog.SetRecord
		class        error
		state        catalog.State
		version      int64
	}{
		{"Newer", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Committed, 3, 1), nil, catalog.Committed, 3},
		{"Older", copyOf(catalog.Committed, 3, 1), copyOf(catalog.Committed, 2, 1), nil, catalog.Committed, 3},
		{"Tombstone", copyOf(catalog.Committed, 3, 1), copyOf(catalog.Pruned, 4, 1), nil, catalog.Pruned, 4},
		{"TombstoneOfAnOlderLife", copyOf(catalog.Committed, 9, 1), copyOf(catalog.Pruned, 4, 1), nil, catalog.Pruned, 4},
		{"NoResurrection", copyOf(catalog.Pruned, 4, 1), copyOf(catalog.Committed, 9, 1), nil, catalog.Pruned, 4},
		{"OtherManifest", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Committed, 9, 2), catalog.ErrConflict, catalog.Committed, 2},
		{"TombstoneOfAnother", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Pruned, 9, 2), catalog.ErrConflict, catalog.Committed, 2},
		{"BackToWriting", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Writing, 9, 1), catalog.ErrCorrupt, catalog.Committed, 2},
		{"BackToAborted", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Aborted, 9, 1), catalog.ErrCorrupt, catalog.Committed, 2},
		{"NoManifest", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Committed, 9, 0), catalog.ErrCorrupt, catalog.Committed, 2},
		{"HugeWorld", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Committed, 9, 1, func(s *catalog.SetRecord) { s.World = 1 << 60 }), catalog.ErrCorrupt, catalog.Committed, 2},
		{"OddName", copyOf(catalog.Committed, 2, 1), copyOf(catalog.Committed, 9, 1, func(s *catalog.SetRecord) { s.Run = "../x" }), catalog.ErrCorrupt, catalog.Committed, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			cat, _ := open(t)
			if err := cat.AdoptSet(t.Context(), c.there); err != nil {
				t.Fatal(err)
			}
			if err := cat.AdoptSet(t.Context(), c.found); c.class == nil && err != nil {
				t.Error(err)
			} else if c.class != nil {
				wantClass(t, "AdoptSet", err, c.class)
			}
			if s := must(cat.Set(t.Context(), id))(t); s.State != c.state || s.Version != c.version || s.Manifest != (catalog.Digest{1}) {
				t.Errorf("it is %s, version %d, manifest %v", s.State, s.Version, s.Manifest)
			}
		})
	}
}

// A set that a node began again before the rebuild came to it becomes what it was.
func TestAdoptOverWriting(t *testing.T) {
	c, _ := open(t)
	must(c.BeginSealed(t.Context(), id, 1, nil, t0))(t)
	if err := c.AdoptSet(t.Context(), copyOf(catalog.Committed, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if s := must(c.Set(t.Context(), id))(t); s.State != catalog.Committed {
		t.Errorf("it is %s", s.State)
	}
}

// Adopting the copies of all tiers gives one result in any order, whatever
// they say and however often.
func TestAdoptInAnyOrder(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		var sets []catalog.SetRecord
		var runs []catalog.RunRecord
		for range 1 + rnd.IntN(5) {
			s := copyOf([]catalog.State{catalog.Committed, catalog.Pruned}[rnd.IntN(2)], int64(2+rnd.IntN(3)), 1)
			if rnd.IntN(2) == 0 {
				pinned(&s)
			}
			sets = append(sets, s)
			r := catalog.RunRecord{Run: "r", Attempt: rnd.IntN(3), Launch: []string{"", "a", "b"}[rnd.IntN(3)], Created: t0.Add(time.Duration(rnd.IntN(3)) * time.Hour)}
			if rnd.IntN(2) == 0 {
				r.Launches = []string{"x", "y"}[:1+rnd.IntN(2)]
			}
			if rnd.IntN(3) > 0 {
				r.Policy.Retention.KeepLast, r.PolicySet = 1+rnd.IntN(3), t0.Add(time.Duration(rnd.IntN(3))*time.Hour)
			}
			runs = append(runs, r)
		}
		var want string
		for try := range 6 {
			c, _ := open(t)
			for _, i := range append(rnd.Perm(len(sets)), rnd.Perm(len(sets))...) {
				if err := c.AdoptSet(t.Context(), sets[i]); err != nil {
					t.Fatal(err)
				}
				if err := c.AdoptRun(t.Context(), runs[i]); err != nil {
					t.Fatal(err)
				}
			}
			r := must(c.Attach(t.Context(), "r", "new", t0))(t)
			b, err := json.Marshal([]any{must(c.Set(t.Context(), id))(t), r})
			if got := string(b); try == 0 {
				want = got
			} else if err != nil || got != want {
				t.Fatalf("seed %d: %s\nin another order %s", seed, want, got)
			}
		}
	}
}

// The policy that was set last counts, not the one that is found first: an
// older rule may keep less.
func TestAdoptRunPolicy(t *testing.T) {
	older := catalog.RunRecord{Run: "r", Attempt: 2, Launch: "b", Launches: []string{"a"}, Created: t0, Policy: catalog.Policy{Retention: catalog.Retention{KeepLast: 1}}, PolicySet: t0}
	newer := catalog.RunRecord{Run: "r", Attempt: 3, Launch: "c", Launches: []string{"b", "a"}, Created: t0, Policy: catalog.Policy{Retention: catalog.Retention{KeepLast: 100}}, PolicySet: t0.Add(time.Hour)}
	bare := catalog.RunRecord{Run: "r", Attempt: 3, Created: t0.Add(2 * time.Hour)} // from the sets alone
	for i, order := range [][]catalog.RunRecord{{older, newer, bare}, {newer, older, bare}, {bare, older, newer}} {
		c, _ := open(t)
		for _, r := range order {
			if err := c.AdoptRun(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if p := must(c.Policy(t.Context(), "r"))(t); p != newer.Policy {
			t.Errorf("order %d: policy %+v", i, p)
		}
		_, err := c.Attach(t.Context(), "r", "a", t0)
		wantClass(t, fmt.Sprintf("order %d: a fenced launch", i), err, catalog.ErrFenced)
		if a := attach(t, c, "r", "c"); a != 3 {
			t.Errorf("order %d: the newest launch has attempt %d", i, a)
		}
	}
	c, _ := open(t)
	wantClass(t, "an odd run", c.AdoptRun(t.Context(), catalog.RunRecord{Run: "../r", Attempt: 1}), catalog.ErrCorrupt)
	wantClass(t, "an odd attempt", c.AdoptRun(t.Context(), catalog.RunRecord{Run: "r", Attempt: catalog.MaxAttempt + 1}), catalog.ErrCorrupt)
}
