package catalog_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/ckptd/ckptd/catalog"
)

var retainNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// retainSet makes a committed set of run "r", so many hours old.
func retainSet(step int64, attempt int, level Level, hours int) SetRecord {
	return SetRecord{
		SetID: SetID{Run: "r", Step: step, Attempt: attempt}, State: Committed, Level: level,
		Committed: retainNow.Add(-time.Duration(hours) * time.Hour), World: 1,
	}
}

// steps gives "step" or "step#attempt" (attempts after the first) in order.
func steps(vs []Verdict) string {
	var out []string
	for _, v := range vs {
		s := fmt.Sprint(v.Set.Step)
		if v.Set.Attempt > 1 {
			s += fmt.Sprint("#", v.Set.Attempt)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestPlanRetention(t *testing.T) {
	ladder := []SetRecord{ // given in no order on purpose
		retainSet(30, 1, Verified, 70), retainSet(10, 1, Verified, 90), retainSet(60, 1, Local, 40),
		retainSet(20, 1, Verified, 80), retainSet(40, 1, Verified, 60), retainSet(50, 1, Remote, 50),
	}
	verified := func(n int) (sets []SetRecord) {
		for i := range n {
			sets = append(sets, retainSet(int64(10*(i+1)), 1, Verified, 10*(n-i)))
		}
		return sets
	}
	edit := func(sets []SetRecord, step int64, f func(*SetRecord)) []SetRecord {
		for i := range sets {
			if sets[i].Step == step {
				f(&sets[i])
			}
		}
		return sets
	}
	metric := func(name string, values ...float64) []SetRecord {
		sets := verified(len(values))
		for i, v := range values {
			sets[i].Metrics = map[string]float64{name: v}
		}
		return sets
	}
	for _, c := range []struct {
		name         string
		r            Retention
		sets         []SetRecord
		leased       int64 // step
		keep, remove string
	}{
		{"ZeroKeepsEverything", Retention{}, verified(3), -1, "30 20 10", ""},
		{"NoSets", Retention{KeepLast: 1}, nil, -1, "", ""},
		{"KeepLast", Retention{KeepLast: 2}, verified(4), -1, "40 30", "20 10"},
		{"KeepLastMoreThanThereAre", Retention{KeepLast: 9}, verified(2), -1, "20 10", ""},
		{"KeepEvery", Retention{KeepEvery: 20}, verified(5), -1, "50 40 20", "30 10"},
		{"KeepEveryZeroth", Retention{KeepEvery: 1000}, edit(verified(3), 10, func(s *SetRecord) { s.Step = 0 }), -1, "30 0", "20"},
		{"KeepWithin", Retention{KeepWithin: 25 * time.Hour}, verified(4), -1, "40 30", "20 10"},
		{"KeepWithinIsStrict", Retention{KeepWithin: 20 * time.Hour}, verified(3), -1, "30", "20 10"},
		{"KeepWithinUnknownTime", Retention{KeepWithin: time.Hour}, edit(verified(3), 10, func(s *SetRecord) { s.Committed = time.Time{} }), -1, "30 10", "20"},
		{"KeepBestSmallest", Retention{KeepBest: "loss"}, metric("loss", 3, 1, 2, 4), -1, "40 20", "30 10"},
		{"KeepBestLargest", Retention{KeepBest: "acc:max"}, metric("acc", 3, 9, 2, 4), -1, "40 20", "30 10"},
		{"KeepBestNewestOfEqual", Retention{KeepBest: "loss:min"}, metric("loss", 1, 1, 2, 4), -1, "40 20", "30 10"},
		{"KeepBestSkipsNaN", Retention{KeepBest: "loss"}, metric("loss", 3, 2, math.NaN(), 4), -1, "40 20", "30 10"},
		{"KeepBestOfNothing", Retention{KeepBest: "f1"}, metric("loss", 3, 1), -1, "20", "10"},
		{"Union", Retention{KeepLast: 1, KeepEvery: 40}, verified(5), -1, "50 40", "30 20 10"},
		{"NewestAtEachLevelStays", Retention{KeepLast: 1}, ladder, -1, "60 50 40", "30 20 10"},
		{"KeepLevelCountsOnlySafeOnes", Retention{KeepLast: 2, KeepLevel: Remote}, ladder, -1, "60 50 40", "30 20 10"},
		{"KeepLevelKeepsWhatIsOnItsWay", Retention{KeepLast: 2, KeepLevel: Verified}, ladder, -1, "60 50 40 30", "20 10"},
		{"KeepLevelAloneIsNoRule", Retention{KeepLevel: Remote}, ladder, -1, "60 50 40 30 20 10", ""},
		{"Pinned", Retention{KeepLast: 1}, edit(verified(3), 10, func(s *SetRecord) { s.Pinned = true }), -1, "30 10", "20"},
		{"Leased", Retention{KeepLast: 1}, verified(3), 20, "30 20", "10"},
		{"SuccessorNotYetAsSafe", Retention{KeepLast: 1, KeepEvery: 20},
			[]SetRecord{retainSet(30, 1, Verified, 1), retainSet(20, 1, Local, 2), retainSet(10, 1, Remote, 3)}, -1, "30 20 10", ""},
		{"SuccessorAsSafe", Retention{KeepLast: 1, KeepEvery: 20},
			[]SetRecord{retainSet(30, 1, Verified, 1), retainSet(20, 1, Remote, 2), retainSet(10, 1, Remote, 3)}, -1, "30 20", "10"},
		{"OlderAttemptOfTheSameStep", Retention{KeepLast: 2},
			[]SetRecord{retainSet(20, 1, Verified, 9), retainSet(30, 1, Verified, 8), retainSet(20, 2, Verified, 7), retainSet(25, 2, Verified, 6)}, -1, "25#2 20#2", "30 20"},
		{"OnlyCommittedGetVerdicts", Retention{KeepLast: 1}, append(verified(2),
			SetRecord{SetID: SetID{"r", 99, 1}, State: Writing}, SetRecord{SetID: SetID{"r", 98, 1}, State: Pruned}, SetRecord{SetID: SetID{"r", 97, 1}, State: Aborted}), -1, "20", "10"},
		{"EachRunByItself", Retention{KeepLast: 1}, edit(verified(3), 10, func(s *SetRecord) { s.Run = "q" }), -1, "30 10", "20"},
		{"TwoRecordsOfOneSet", Retention{KeepLast: 1}, append(verified(1), verified(1)...), -1, "10", ""},
		{"BadRuleKeepsEverything", Retention{KeepLast: 1, KeepBest: "loss:best"}, verified(3), -1, "30 20 10", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			keep, remove := PlanRetention(c.r, retainNow, c.sets, func(id SetID) bool { return id.Step == c.leased })
			if got := steps(keep); got != c.keep {
				t.Errorf("keep = %q, want %q", got, c.keep)
			}
			if got := steps(remove); got != c.remove {
				t.Errorf("remove = %q, want %q", got, c.remove)
			}
			for _, v := range append(keep, remove...) {
				if v.Why == "" {
					t.Errorf("%v: no reason", v.Set.SetID)
				}
			}
		})
	}
}

func TestRetentionReasons(t *testing.T) {
	sets := []SetRecord{retainSet(30, 2, Local, 1), retainSet(20, 1, Remote, 30), retainSet(15, 1, Local, 40), retainSet(12, 1, Remote, 45), retainSet(10, 1, Verified, 50)}
	sets[0].Metrics = map[string]float64{"loss": 1.5}
	keep, remove := PlanRetention(Retention{KeepLast: 1, KeepBest: "loss"}, retainNow, sets, nil)
	var got []string
	for _, v := range append(keep, remove...) {
		got = append(got, fmt.Sprintf("%d: %s", v.Set.Step, v.Why))
	}
	want := []string{
		"30: newest, keep-last 1, best loss 1.5",
		"20: newest replicated, newest remote",
		"10: newest verified",
		"15: no rule keeps it; its successor 20#1 is remote",
		"12: no rule keeps it; its successor 20#1 is remote",
	}
	sets = []SetRecord{retainSet(30, 1, Verified, 1), retainSet(20, 1, Local, 2), retainSet(10, 1, Remote, 3)}
	keep, _ = PlanRetention(Retention{KeepEvery: 20}, retainNow, sets, nil)
	got, want = append(got, keep[2].Why), append(want, "its successor 20#1 is only local")
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRetentionCheck(t *testing.T) {
	for _, r := range []Retention{
		{KeepLast: -1}, {KeepEvery: -1}, {KeepWithin: -1}, {KeepLevel: Remote}, {KeepLast: 1, KeepLevel: 99},
		{KeepBest: ":min"}, {KeepBest: "loss:"}, {KeepBest: "eval:loss"},
	} {
		if err := r.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", r, err)
		}
	}
	for s, want := range map[string]string{"loss": "loss false", "loss:min": "loss false", "acc:max": "acc true", "eval:acc:max": "eval:acc true"} {
		metric, largest, err := ParseKeepBest(s)
		if got := fmt.Sprint(metric, " ", largest); err != nil || got != want {
			t.Errorf("ParseKeepBest(%q) = %s, %v, want %s", s, got, err, want)
		}
	}
}

// randomSets has levels that do not fall with age, repeated steps, pins and
// sets that are not committed.
func randomSets(rnd *rand.Rand) []SetRecord {
	var sets []SetRecord
	seen := map[SetID]bool{}
	for range rnd.IntN(14) {
		s := retainSet(int64(rnd.IntN(12)), 1+rnd.IntN(3), Local+Level(rnd.IntN(4)), rnd.IntN(30))
		if seen[s.SetID] {
			continue
		}
		seen[s.SetID] = true
		s.Pinned = rnd.IntN(10) == 0
		if rnd.IntN(2) == 0 {
			s.Metrics = map[string]float64{"loss": float64(rnd.IntN(5))}
		}
		if rnd.IntN(8) == 0 {
			s.State = []State{Writing, Aborted, Pruned}[rnd.IntN(3)]
		}
		sets = append(sets, s)
	}
	return sets
}

// randomRule gives one of the four rules.
func randomRule(rnd *rand.Rand, r Retention) Retention {
	switch rnd.IntN(4) {
	case 0:
		r.KeepLast = 1 + rnd.IntN(4)
		if rnd.IntN(2) == 0 {
			r.KeepLevel = Local + Level(rnd.IntN(4))
		}
	case 1:
		r.KeepEvery = 1 + rnd.Int64N(5)
	case 2:
		r.KeepWithin = time.Duration(1+rnd.IntN(20)) * time.Hour
	case 3:
		r.KeepBest = []string{"loss", "loss:max", "other"}[rnd.IntN(3)]
	}
	return r
}

func ids(vs []Verdict) map[SetID]bool {
	m := map[SetID]bool{}
	for _, v := range vs {
		m[v.Set.SetID] = true
	}
	return m
}

func TestRetentionAlgebra(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 20000 {
		sets := randomSets(rnd)
		a, b := randomRule(rnd, Retention{}), randomRule(rnd, Retention{})
		lease := SetID{"r", int64(rnd.IntN(12)), 1 + rnd.IntN(3)}
		leased := func(id SetID) bool { return id == lease }
		plan := func(r Retention, sets []SetRecord) (keep, remove map[SetID]bool, ks []Verdict) {
			k, rm := PlanRetention(r, retainNow, sets, leased)
			return ids(k), ids(rm), k
		}
		keepA, removeA, listA := plan(a, sets)
		fail := func(why string) {
			t.Helper()
			t.Fatalf("%s\nrule a %+v\nrule b %+v\nlease %v\nsets %+v", why, a, b, lease, sets)
		}

		// Every committed set has one verdict, no other set has any.
		for _, s := range sets {
			if c := s.State == Committed; keepA[s.SetID] == removeA[s.SetID] && c || !c && (keepA[s.SetID] || removeA[s.SetID]) {
				fail(fmt.Sprintf("%v: kept %v, removed %v", s.SetID, keepA[s.SetID], removeA[s.SetID]))
			}
		}
		checkNeverRemoved(t, fail, sets, removeA, leased)

		// Planning again for what stayed removes nothing more.
		var left []SetRecord
		for _, v := range listA {
			left = append(left, v.Set)
		}
		if _, again, _ := plan(a, left); len(again) > 0 {
			fail(fmt.Sprintf("not idempotent: a second run removes %v", again))
		}

		// The order of the records does not matter.
		mixed := slices.Clone(sets)
		rnd.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		if _, rm, _ := plan(a, mixed); fmt.Sprint(rm) != fmt.Sprint(removeA) {
			fail("depends on the order of the records")
		}

		// Two rules together keep what each keeps alone; so adding one never removes more.
		both := union(a, b)
		if both == (Retention{}) {
			continue
		}
		keepB, _, _ := plan(b, sets)
		keepBoth, removeBoth, _ := plan(both, sets)
		for id := range removeBoth {
			if keepA[id] || keepB[id] {
				fail(fmt.Sprintf("%v: kept by one rule, removed by both together", id))
			}
		}
		if len(keepBoth)+len(removeBoth) != len(keepA)+len(removeA) {
			fail("verdicts got lost")
		}
	}
}

// union joins two rules of different kinds; zero when they are of one kind.
func union(a, b Retention) Retention {
	if a.KeepLast > 0 && b.KeepLast > 0 || a.KeepEvery > 0 && b.KeepEvery > 0 || a.KeepWithin > 0 && b.KeepWithin > 0 || a.KeepBest != "" && b.KeepBest != "" {
		return Retention{}
	}
	return Retention{
		KeepLast: a.KeepLast + b.KeepLast, KeepEvery: a.KeepEvery + b.KeepEvery, KeepWithin: a.KeepWithin + b.KeepWithin,
		KeepBest: a.KeepBest + b.KeepBest, KeepLevel: max(a.KeepLevel, b.KeepLevel),
	}
}

// checkNeverRemoved attacks promise 6 of the contract, without using the
// planner's own helpers.
func checkNeverRemoved(t *testing.T, fail func(string), sets []SetRecord, removed map[SetID]bool, leased func(SetID) bool) {
	t.Helper()
	for _, s := range sets {
		if !removed[s.SetID] {
			continue
		}
		if s.Pinned || leased(s.SetID) {
			fail(fmt.Sprintf("%v: pinned or leased, and removed", s.SetID))
		}
		for level := Local; level <= s.Level; level++ {
			if !slices.ContainsFunc(sets, func(o SetRecord) bool {
				return o.State == Committed && o.Level >= level && o.SetID.Compare(s.SetID) > 0
			}) {
				fail(fmt.Sprintf("%v: the newest at %v, and removed", s.SetID, level))
			}
		}
		var next *SetRecord // the next newer one that stays
		for i := range sets {
			o := &sets[i]
			if o.State == Committed && !removed[o.SetID] && o.SetID.Compare(s.SetID) > 0 && (next == nil || o.SetID.Compare(next.SetID) < 0) {
				next = o
			}
		}
		if next == nil || next.Level < s.Level {
			fail(fmt.Sprintf("%v: removed before its successor is as safe", s.SetID))
		}
	}
}
