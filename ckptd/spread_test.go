package ckptd

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

func TestTellCrowded(t *testing.T) {
	for targets, want := range map[string]string{
		"":            "",
		"a b c":       "",
		"a b a":       "2 of its columns are on target a",
		"c a a c c b": "2 of its columns are on target a, 3 of its columns are on target c",
	} {
		if got := tellCrowded(&catalog.Place{Targets: strings.Fields(targets)}); got != want {
			t.Errorf("%q: %q, want %q", targets, got, want)
		}
	}
}

// A place with two columns on a target is mended when another target of its
// pool is up, not full, and has none of it.
func TestPlanMendSpreads(t *testing.T) {
	v := aView(time.Now(),
		catalog.TargetRecord{Name: "a", State: catalog.TargetUp}, catalog.TargetRecord{Name: "b", State: catalog.TargetUp}, catalog.TargetRecord{Name: "c", State: catalog.TargetUp},
		catalog.TargetRecord{Name: "p", Pool: "slow", State: catalog.TargetUp}, catalog.TargetRecord{Name: "q", Pool: "slow", State: catalog.TargetSuspect})
	v.live = []string{"n1"}
	var room []string
	v.room = func(name string) bool { return slices.Contains(room, name) }
	blobs := []placed{
		{rank: 0, place: aPlace("r/0", "a", "b", "a")},
		{rank: 1, place: aPlace("r/1", "a", "b", "c")},
		{rank: 2, place: aPlace("r/2", "p", "p")},
		{rank: 3, place: aPlace("r/3", "a", "b", "c", "c")},
	}
	for targets, want := range map[string][]int{"": nil, "a b": nil, "c": {0}, "q": nil, "a b c p q": {0}} {
		room = strings.Fields(targets)
		jobs, all := planMend(v, blobs, nil)
		var ranks []int
		for _, j := range jobs {
			if ranks = append(ranks, j.rank); !j.spread || j.deep {
				t.Errorf("with room on %q: %+v", targets, j)
			}
		}
		if !slices.Equal(ranks, want) || all != len(want) {
			t.Errorf("with room on %q: ranks %v of %d, want %v", targets, ranks, all, want)
		}
	}
}
