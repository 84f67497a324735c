package ckptd

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

func aPlace(blob string, targets ...string) catalog.Place {
	return catalog.Place{Blob: blob, Layout: fmt.Sprintf("%d+1", len(targets)-1), Unit: 65536, Size: 1000, Generation: 7, Targets: targets}
}

func aView(now time.Time, targets ...catalog.TargetRecord) *mendView {
	return &mendView{node: "n1", live: []string{"n1", "n2", "n3"}, targets: catalog.TargetMap{Version: 1, Targets: targets}, known: true, now: now, after: 15 * time.Minute}
}

// Which targets are to be left, by state and time.
func TestPlanLeave(t *testing.T) {
	now := time.Now()
	since := func(ago time.Duration, state catalog.TargetState) catalog.TargetRecord {
		return catalog.TargetRecord{Name: "a", State: state, Since: now.Add(-ago)}
	}
	for _, c := range []struct {
		what  string
		m     []catalog.TargetRecord
		gone  bool
		leave bool
	}{
		{"up", []catalog.TargetRecord{since(time.Hour, catalog.TargetUp)}, false, false},
		{"suspect", []catalog.TargetRecord{since(time.Hour, catalog.TargetSuspect)}, false, false},
		{"down for a moment", []catalog.TargetRecord{since(14*time.Minute, catalog.TargetDown)}, false, false},
		{"down for long", []catalog.TargetRecord{since(16*time.Minute, catalog.TargetDown)}, false, true},
		{"draining", []catalog.TargetRecord{since(0, catalog.TargetDraining)}, false, true},
		{"drained", []catalog.TargetRecord{since(0, catalog.TargetDrained)}, false, true},
		{"no member, since just now", nil, false, false},
		{"no member, for long", nil, true, true},
		{"one of two of the name is up", []catalog.TargetRecord{since(time.Hour, catalog.TargetDown), since(time.Hour, catalog.TargetUp)}, false, false},
	} {
		v := aView(now, c.m...)
		v.gone = func(string) bool { return c.gone }
		if got := v.leaves("a"); got != c.leave {
			t.Errorf("%s: leaves = %v, want %v", c.what, got, c.leave)
		}
		v.known = false
		if v.leaves("a") {
			t.Errorf("%s: left without a map", c.what)
		}
	}
}

// Who mends what, and in which order.
func TestPlanMend(t *testing.T) {
	now := time.Now()
	id := func(step int64) catalog.SetID { return catalog.SetID{Run: "run", Step: step, Attempt: 1} }
	v := aView(now,
		catalog.TargetRecord{Name: "dead1", State: catalog.TargetDown, Since: now.Add(-time.Hour)},
		catalog.TargetRecord{Name: "dead2", State: catalog.TargetDown, Since: now.Add(-time.Hour)},
		catalog.TargetRecord{Name: "drain", State: catalog.TargetDraining},
		catalog.TargetRecord{Name: "own", State: catalog.TargetUp, Node: "n2"},
		catalog.TargetRecord{Name: "a", State: catalog.TargetUp}, catalog.TargetRecord{Name: "b", State: catalog.TargetUp})
	blobs := []placed{
		{id: id(1), rank: 0, place: aPlace("r/1/0", "a", "b", "drain")},
		{id: id(2), rank: 0, place: aPlace("r/2/0", "a", "dead1", "b")},
		{id: id(3), rank: 0, place: aPlace("r/3/0", "a", "dead1", "dead2")},
		{id: id(4), rank: 0, place: aPlace("r/4/0", "a", "b")},
		{id: id(5), rank: 0, place: aPlace("r/5/0", "own", "drain")},
		{id: id(6), rank: 0, place: aPlace("r/6/0", "a", "drain")},
	}
	// Every blob to be mended has one owner, and every node is one of some.
	owners := map[string]int{}
	for i := range 300 {
		p := aPlace(fmt.Sprintf("r/%d", i), "a", "drain")
		owners[v.owner(&p)]++
	}
	if len(owners) != 3 {
		t.Errorf("owners %v, want three", owners)
	}
	all := 0
	var steps []int64
	for _, node := range v.live {
		w := *v
		w.node = node
		jobs, total := planMend(&w, blobs, nil)
		all = total
		for _, j := range jobs {
			steps = append(steps, j.id.Step)
		}
	}
	slices.Sort(steps)
	if want := []int64{1, 2, 3, 5, 6}; all != len(want) || !slices.Equal(steps, want) {
		t.Errorf("mended by all nodes: %v of %d, want %v", steps, all, want)
	}
	if p := blobs[4].place; v.owner(&p) != "n2" {
		t.Errorf("owner of a blob on a target of n2: %q", v.owner(&p))
	}
	// A node that is gone is taken over.
	v.live = []string{"n1"}
	jobs, _ := planMend(v, blobs, func(p *placed) (yes, deep bool) { return p.id.Step == 4, p.id.Step == 4 })
	sortMend(jobs)
	steps = nil
	for _, j := range jobs {
		steps = append(steps, j.id.Step)
		if j.deep != (j.id.Step == 4) {
			t.Errorf("step %d: deep = %v", j.id.Step, j.deep)
		}
	}
	if want := []int64{3, 2, 6, 4, 1}; !slices.Equal(steps, want) {
		t.Errorf("order %v, want %v: the least to lose first, then the newest", steps, want)
	}
}

// A drain is over when no record names the target, and not when some of the
// records were left out of the look.
func TestPlanDrained(t *testing.T) {
	v := aView(time.Now(), catalog.TargetRecord{Name: "a", State: catalog.TargetDraining}, catalog.TargetRecord{Name: "b", State: catalog.TargetDraining}, catalog.TargetRecord{Name: "c", State: catalog.TargetUp},
		catalog.TargetRecord{Name: "d", Node: "n2", State: catalog.TargetDraining})
	for _, c := range []struct {
		res  mendedAll
		want string
	}{
		{mendedAll{on: map[string]int{"a": 1, "b": 0}}, "[b]"}, {mendedAll{on: map[string]int{}, more: true}, "[]"}, {mendedAll{on: map[string]int{}, unseen: 1}, "[]"}, {mendedAll{on: map[string]int{}}, "[a b]"},
	} {
		names := []string{}
		for _, r := range planDrained(v, &c.res) {
			names = append(names, r.Name)
		}
		if got := fmt.Sprint(names); got != c.want {
			t.Errorf("planDrained of %+v = %s, want %s", c.res, got, c.want)
		}
	}
}

// What people are told of a blob.
func TestTellCheck(t *testing.T) {
	now := time.Now()
	v := aView(now, catalog.TargetRecord{Name: "down", State: catalog.TargetDown, Since: now.Add(-5 * time.Minute)}, catalog.TargetRecord{Name: "drain", State: catalog.TargetDraining},
		catalog.TargetRecord{Name: "ok", State: catalog.TargetUp})
	rep := func(spare int, cols ...remotetier.ColumnCheck) *remotetier.CheckReport {
		return &remotetier.CheckReport{Spare: spare, Columns: cols}
	}
	ok := remotetier.ColumnCheck{Target: "ok", State: remotetier.ColumnOK}
	for _, c := range []struct {
		rep  *remotetier.CheckReport
		want string
	}{
		{rep(1, ok, ok, ok), ""},
		{rep(0, ok, ok, remotetier.ColumnCheck{Target: "down", State: remotetier.ColumnUnreachable}), "1 of 3 columns missing (down: unreachable), reads go on; repair waits up to 10m0s for the target to come back"},
		{rep(0, ok, ok, remotetier.ColumnCheck{Target: "ok", State: remotetier.ColumnCorrupt}), "1 of 3 columns missing (ok: corrupt), reads go on; repair rebuilds what is missing"},
		{rep(-1, ok, remotetier.ColumnCheck{Target: "ok", State: remotetier.ColumnMissing}, remotetier.ColumnCheck{Target: "ok", State: remotetier.ColumnMissing}), "2 of 3 columns missing (ok: missing, ok: missing), more than it can bear"},
		{rep(1, ok, ok, remotetier.ColumnCheck{Target: "drain", State: remotetier.ColumnOK}), "columns move away from a target that is being drained"},
	} {
		if got := tellCheck(v, c.rep); got != c.want {
			t.Errorf("tellCheck = %q, want %q", got, c.want)
		}
	}
}

// Columns that share a target move when another member can take one.
func TestPlanSpread(t *testing.T) {
	p := placed{id: catalog.SetID{Run: "run", Step: 1, Attempt: 1}, place: aPlace("r/1/0", "a", "b", "a")}
	up := func(names ...string) (all []catalog.TargetRecord) {
		for _, n := range names {
			all = append(all, catalog.TargetRecord{Name: n, State: catalog.TargetUp})
		}
		return all
	}
	for _, c := range []struct {
		what string
		m    []catalog.TargetRecord
		want bool
	}{
		{"no other target", up("a", "b"), false},
		{"another one", up("a", "b", "c"), true},
		{"another one, down", append(up("a", "b"), catalog.TargetRecord{Name: "c", State: catalog.TargetDown}), false},
		{"another one of another pool", append(up("a", "b"), catalog.TargetRecord{Name: "c", State: catalog.TargetUp, Pool: "other"}), false},
		{"another one of another node", append(up("a", "b"), catalog.TargetRecord{Name: "c", State: catalog.TargetUp, Node: "n2"}), false},
	} {
		v := aView(time.Now(), c.m...)
		v.live = []string{"n1"}
		jobs, _ := planMend(v, []placed{p}, nil)
		if got := len(jobs) == 1 && jobs[0].spread; got != c.want {
			t.Errorf("%s: planned %+v", c.what, jobs)
		}
	}
}
