package catalog_test

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

// tgt is a target as its own process registers it.
func tgt(name, id, claim string, addrs ...string) catalog.TargetRecord {
	if len(addrs) == 0 {
		addrs = []string{"10.0.0.1:7000"}
	}
	return catalog.TargetRecord{Name: name, Scheme: "tcp", Addrs: addrs, ID: id, Claim: claim}
}

func register(t *testing.T, c *catalog.Catalog, r catalog.TargetRecord, alive bool) (catalog.TargetMap, error) {
	t.Helper()
	return c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error { return m.Register(r, alive, t0) })
}

// Who may change which state.
func TestTargetStates(t *testing.T) {
	const up, suspect, down, draining, drained = catalog.TargetUp, catalog.TargetSuspect, catalog.TargetDown, catalog.TargetDraining, catalog.TargetDrained
	all := []catalog.TargetState{up, suspect, down, draining, drained}
	allowed := map[catalog.TargetActor]map[catalog.TargetState][]catalog.TargetState{
		catalog.ByHealth:   {up: {suspect, down}, suspect: {up, down}, down: {up, suspect}},
		catalog.ByOperator: {up: {draining}, suspect: {draining}, down: {draining}, draining: {up}, drained: {up}},
		catalog.ByDrain:    {draining: {drained}, drained: {draining}},
	}
	for by, table := range allowed {
		for _, from := range all {
			for _, to := range all {
				r := catalog.TargetRecord{Name: "a", State: from, Since: t0}
				err := r.SetState(to, by, "why", t0.Add(time.Second))
				want := from == to
				for _, s := range table[from] {
					want = want || s == to
				}
				if (err == nil) != want {
					t.Errorf("actor %d: %s to %s: %v, want allowed %v", by, from, to, err, want)
				}
				if err != nil {
					wantClass(t, "a transition", err, catalog.ErrConflict)
				}
				if moved := err == nil && from != to; moved != (r.Since != t0) || moved && (r.State != to || r.Reason != "why") {
					t.Errorf("actor %d: %s to %s left %+v", by, from, to, r)
				}
			}
		}
	}
}

func TestRegisterTarget(t *testing.T) {
	c, _ := open(t)
	if m := must(c.Targets(t.Context()))(t); m.Version != 0 || len(m.Targets) != 0 {
		t.Errorf("a map that never was: %+v", m)
	}
	must(register(t, c, tgt("b", "id-b", "p1"), false))(t)
	m := must(register(t, c, tgt("a", "id-a", "p1"), false))(t)
	if m.Version != 2 || len(m.Targets) != 2 || m.Targets[0].Name != "a" || m.Targets[0].State != catalog.TargetUp {
		t.Errorf("after two: %+v", m)
	}
	t.Run("AgainIsNoChange", func(t *testing.T) {
		if m := must(register(t, c, tgt("a", "id-a", "p1"), true))(t); m.Version != 2 {
			t.Errorf("version %d", m.Version)
		}
	})
	t.Run("AnotherDirectory", func(t *testing.T) {
		for _, alive := range []bool{true, false} {
			_, err := register(t, c, tgt("a", "id-z", "p2"), alive)
			wantClass(t, "another directory of that name", err, catalog.ErrConflict)
		}
	})
	t.Run("AwayFromOneThatLives", func(t *testing.T) {
		_, err := register(t, c, tgt("a", "id-a", "p2", "10.0.0.2:7000"), true)
		wantClass(t, "a copy of the directory elsewhere", err, catalog.ErrConflict)
		if m := must(c.Targets(t.Context()))(t); m.Targets[0].Addrs[0] != "10.0.0.1:7000" || m.Version != 2 {
			t.Errorf("the refused one changed the map: %+v", m)
		}
	})
	t.Run("MovesWhenTheOtherIsGone", func(t *testing.T) {
		must(c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error {
			return m.Find("a", "").SetState(catalog.TargetDraining, catalog.ByOperator, "", t0)
		}))(t)
		m := must(register(t, c, tgt("a", "id-a", "p2", "10.0.0.2:7000"), false))(t)
		a := m.Find("a", "")
		if a.Addrs[0] != "10.0.0.2:7000" || a.Claim != "p2" || a.State != catalog.TargetDraining || m.Version != 4 {
			t.Errorf("after it moved: %+v", m)
		}
	})
	t.Run("FlagsKnowLess", func(t *testing.T) {
		r := catalog.TargetRecord{Name: "a", Scheme: "tcp", Addrs: []string{"10.9.9.9:1"}, By: "n1"}
		if m := must(c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error { return m.Enter(r, t0) }))(t); m.Version != 4 {
			t.Errorf("flags changed what the target says of itself: %+v", m)
		}
	})
	t.Run("Remove", func(t *testing.T) {
		remove := func(name string, force bool) error {
			_, err := c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error { return m.Remove(name, "", force) })
			return err
		}
		wantClass(t, "one that is draining", remove("a", false), catalog.ErrConflict)
		wantClass(t, "one that is up", remove("b", false), catalog.ErrConflict)
		wantClass(t, "none", remove("c", true), fs.ErrNotExist)
		if err := remove("b", true); err != nil {
			t.Errorf("by force: %v", err)
		}
		must(c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error {
			return m.Find("a", "").SetState(catalog.TargetDrained, catalog.ByDrain, "", t0)
		}))(t)
		if err := remove("a", false); err != nil {
			t.Errorf("a drained one: %v", err)
		}
		if m := must(c.Targets(t.Context()))(t); len(m.Targets) != 0 || m.Version != 7 {
			t.Errorf("in the end: %+v", m)
		}
	})
}

// Directories of two nodes may have one name, because nobody else reaches them.
func TestTargetsOfNodes(t *testing.T) {
	c, _ := open(t)
	enter := func(r catalog.TargetRecord) error {
		_, err := c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error { return m.Enter(r, t0) })
		return err
	}
	dir := func(name, node string) catalog.TargetRecord {
		return catalog.TargetRecord{Name: name, Scheme: "dir", Addrs: []string{"/data/" + name}, Node: node, By: node}
	}
	for _, node := range []string{"n2", "n1"} {
		if err := enter(dir("t0", node)); err != nil {
			t.Fatal(err)
		}
	}
	m := must(c.Targets(t.Context()))(t)
	if r := m.Find("t0", "n1"); len(m.Targets) != 2 || r == nil || r.Node != "n1" || m.Find("t0", "n3") != nil {
		t.Errorf("two directories: %+v", m)
	}
	_, err := register(t, c, tgt("t0", "id", "p"), false)
	wantClass(t, "a shared target of that name", err, catalog.ErrConflict)
	must(register(t, c, tgt("t1", "id", "p"), false))(t)
	wantClass(t, "a directory of a shared one's name", enter(dir("t1", "n1")), catalog.ErrConflict)
	again := dir("t0", "n1")
	again.Addrs, again.Domain = []string{"/elsewhere"}, "rack"
	if err := enter(again); err != nil {
		t.Error(err)
	}
	m = must(c.Targets(t.Context()))(t)
	if r := m.Find("t0", "n1"); r.Addrs[0] != "/elsewhere" || r.Domain != "rack" || r.State != catalog.TargetUp {
		t.Errorf("the node's own word: %+v", r)
	}
	if _, err := c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error { return m.Add(dir("t0", "n1"), t0) }); err == nil {
		t.Error("an operator added it once more")
	} else {
		wantClass(t, "it", err, fs.ErrExist)
	}
}

func TestTargetStatus(t *testing.T) {
	c, _ := open(t)
	s := catalog.TargetStatus{Name: "rack:1/t.0@x", Claim: "p1", Seen: t0, Total: 10, Free: 5}
	wantClass(t, "the status of no member", c.PutTargetStatus(t.Context(), s), fs.ErrNotExist)
	must(register(t, c, tgt(s.Name, "id", "p1"), false))(t)
	for range 2 {
		if err := c.PutTargetStatus(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if got := must(c.TargetStatus(t.Context(), s.Name, ""))(t); got.Beat != 2 || got.Free != 5 {
		t.Errorf("status %+v", got)
	}
	must(register(t, c, tgt(s.Name, "id", "p2"), false))(t)
	wantClass(t, "the one before", c.PutTargetStatus(t.Context(), s), catalog.ErrConflict)
	if got := must(c.TargetStatuses(t.Context()))(t); len(got) != 1 || got[0].Name != s.Name {
		t.Errorf("statuses %+v", got)
	}
	if err := c.DropTargetStatus(t.Context(), s.Name, ""); err != nil {
		t.Error(err)
	}
	if got := must(c.TargetStatuses(t.Context()))(t); len(got) != 0 {
		t.Errorf("statuses %+v", got)
	}
}

// Many register at once over a store that fails before and after it did what
// it was asked: all are members, once, and no version counts for nothing.
func TestTargetsRace(t *testing.T) {
	f := catalogtest.NewFault(catalogtest.Mem())
	f.Decide(func(op int, _, _ string) catalogtest.Outcome {
		return []catalogtest.Outcome{catalogtest.FailAfter, catalogtest.Pass, catalogtest.Pass, catalogtest.FailBefore, catalogtest.Pass}[op%5]
	})
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c := catalog.New(f, f)
			for try := 0; ; try++ {
				_, err := c.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error {
					return m.Register(tgt(fmt.Sprintf("t%d", i), "id", "p"), false, t0)
				})
				if err == nil {
					return
				}
				if try > 1000 || catalog.ClassOf(err) != catalog.ErrUnavailable && catalog.ClassOf(err) != catalog.ErrConflict {
					t.Errorf("t%d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	f.Decide(nil)
	c := catalog.New(f, f)
	if m := must(c.Targets(t.Context()))(t); len(m.Targets) != n || m.Version != n {
		t.Errorf("%d targets in version %d, want %d in %d", len(m.Targets), m.Version, n, n)
	}
}

// Promise 12: a map that breaks its rules is ErrCorrupt, and is not written over.
func TestPromise12TargetMap(t *testing.T) {
	good := `{"name":"a","scheme":"tcp","addrs":["h:1"],"state":"up","by":"n1"}`
	for name, targets := range map[string]string{
		"Name":        `{"name":"a b","scheme":"tcp","addrs":["h:1"],"state":"up","by":"n1"}`,
		"State":       `{"name":"a","scheme":"tcp","addrs":["h:1"],"state":"odd","by":"n1"}`,
		"Scheme":      `{"name":"a","scheme":"ftp","addrs":["h:1"],"state":"up","by":"n1"}`,
		"NoAddress":   `{"name":"a","scheme":"tcp","addrs":[],"state":"up","by":"n1"}`,
		"TwoPaths":    `{"name":"a","scheme":"dir","node":"n1","addrs":["/a","/b"],"state":"up","by":"n1"}`,
		"DirOfNobody": `{"name":"a","scheme":"dir","addrs":["/a"],"state":"up","by":"n1"}`,
		"LineBreak":   `{"name":"a","scheme":"tcp","addrs":["h:1\nx"],"state":"up","by":"n1"}`,
		"Weight":      `{"name":"a","scheme":"tcp","addrs":["h:1"],"state":"up","by":"n1","weight":-1}`,
		"Twice":       good + "," + good,
		"Order":       strings.Replace(good, `"a"`, `"b"`, 1) + "," + good,
		"Many":        good + strings.Repeat(","+good, catalog.MaxTargets),
	} {
		t.Run(name, func(t *testing.T) {
			c, f := open(t)
			value := `{"version":1,"targets":[` + targets + `]}`
			must(f.Swap(t.Context(), "targets", 0, []byte(value)))(t)
			_, err := c.Targets(t.Context())
			wantClass(t, "Targets", err, catalog.ErrCorrupt)
			_, err = register(t, c, tgt("z", "id", "p"), false)
			wantClass(t, "UpdateTargets", err, catalog.ErrCorrupt)
			if got := must(f.Get(context.WithoutCancel(t.Context()), "targets"))(t); string(got.Value) != value {
				t.Error("the damaged record was written over")
			}
		})
	}
}

func TestPolicyOfRemote(t *testing.T) {
	c, _ := open(t)
	good := catalog.Policy{Remote: "lustre", Compress: "zstd"}
	if err := c.SetPolicy(t.Context(), "a", good, t0); err != nil {
		t.Error(err)
	}
	if got := must(c.Policy(t.Context(), "a"))(t); got != good {
		t.Errorf("policy %+v", got)
	}
	for _, bad := range []catalog.Policy{{Remote: "no pool"}, {Compress: "lzma"}, {Incomplete: -1}} {
		wantClass(t, fmt.Sprintf("%+v", bad), c.SetPolicy(t.Context(), "a", bad, t0), catalog.ErrInvalid)
	}
}

// The mirror follows the map and the statuses, and says when the map changes.
func TestKnownTargets(t *testing.T) {
	c, f := open(t)
	_, known, changed := c.KnownTargets()
	if known {
		t.Error("known before anything was seen")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-changed // an empty store is news too
	m, known, changed := c.KnownTargets()
	if !known || m.Version != 0 {
		t.Errorf("an empty store: %+v, known %v", m, known)
	}
	must(register(t, c, tgt("a", "id", "p"), false))(t)
	<-changed
	m, _, changed = c.KnownTargets()
	if m.Version != 1 || m.Find("a", "") == nil {
		t.Errorf("after one registered: %+v", m)
	}
	if err := c.PutTargetStatus(t.Context(), catalog.TargetStatus{Name: "a", Claim: "p"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.KnownTargetStatuses(); len(got) != 1 || got[0].Beat != 1 {
		t.Errorf("statuses %+v", got)
	}
	select {
	case <-changed:
		t.Error("a heartbeat changed the map")
	default:
	}
	rec := must(f.Get(t.Context(), "targets"))(t)
	must(f.Swap(t.Context(), "targets", rec.Rev, nil))(t)
	<-changed
	if m, _, _ := c.KnownTargets(); m.Version != 0 || len(m.Targets) != 0 {
		t.Errorf("after it was deleted: %+v", m)
	}
}
