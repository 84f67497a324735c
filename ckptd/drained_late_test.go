package ckptd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

func TestPlanLate(t *testing.T) {
	m := catalog.TargetMap{Version: 3, Targets: []catalog.TargetRecord{
		{Name: "a", State: catalog.TargetUp}, {Name: "b", State: catalog.TargetDrained}, {Name: "c", State: catalog.TargetDraining},
		{Name: "d", Node: "n2", State: catalog.TargetDrained}, {Name: "e", Node: "n1", State: catalog.TargetDrained},
	}}
	for _, c := range []struct{ on, drained, gone string }{
		{"a a c", "[]", "[]"},
		{"a b c", "[b]", "[]"},
		{"b e x", "[b e]", "[x]"},
		{"d", "[]", "[]"}, // another node's: only that one knows
		{"mine x y", "[]", "[x y]"},
	} {
		drained, gone := planLate(&m, "n1", &catalog.Place{Targets: strings.Fields(c.on)}, func(name string) bool { return name == "mine" })
		if fmt.Sprint(drained) != c.drained || fmt.Sprint(gone) != c.gone {
			t.Errorf("on %s: drained %v, gone %v; want %s, %s", c.on, drained, gone, c.drained, c.gone)
		}
	}
}

// drainTarget lets an operator drain a target and the drain end, as the
// catalog sees it.
func (w *scrubWorld) drainTarget(name string) {
	w.t.Helper()
	w.c.change(func(m *catalog.TargetMap) error {
		r := m.Find(name, "")
		return errors.Join(r.SetState(catalog.TargetDraining, catalog.ByOperator, "ordered", time.Now()), r.SetState(catalog.TargetDrained, catalog.ByDrain, "", time.Now()))
	})
}

// TestPutThatOutlivesADrain: a shard is on its way to a target when that is
// drained, and perhaps taken out, before the place of the shard is recorded.
// The target drains again, or the shard does: no record that counts names a
// target that is gone.
func TestPutThatOutlivesADrain(t *testing.T) {
	for _, c := range []struct {
		what string
		out  bool
		gone error // of the drain of the shard
	}{{"drained meanwhile", false, nil}, {"drained and taken out meanwhile", true, errTakenOut}} {
		t.Run(c.what, func(t *testing.T) {
			w := newScrubWorld(t, 5, 1)
			id, ctx := w.ids[0], t.Context()
			if err := w.local.Put(ctx, id.ShardName(0), w.bytes[id]); err != nil {
				t.Fatal(err)
			}
			part, err := w.cat.UpdatePart(ctx, id, "n1", func(p *catalog.PartRecord) error {
				p.Shards[0].Remote, p.Shards[0].Verified, p.Shards[0].Drained = nil, time.Time{}, time.Time{}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			w.inv.setPart(id, part)
			set, err := w.cat.Set(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			var once sync.Once
			victim := ""
			for name, m := range w.mems {
				m.Fault(func(op string, k remotetier.Key) error {
					if op == "commit" && k.Blob == id.ShardName(0) {
						once.Do(func() {
							victim = name
							w.drainTarget(name)
							if c.out {
								w.c.change(func(m *catalog.TargetMap) error { return m.Remove(name, "", false) })
							}
						})
					}
					return nil
				})
			}
			if err := w.drainShard(ctx, set, part.Shards[0]); !errors.Is(err, c.gone) {
				t.Errorf("the drain of the shard: %v, want %v", err, c.gone)
			}
			m, err := w.cat.Targets(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if r := m.Find(victim, ""); c.out != (r == nil) || r != nil && r.State != catalog.TargetDraining {
				t.Errorf("%s is %+v, want it draining again", victim, r)
			}
			now, err := w.cat.Part(ctx, id, "n1")
			if err != nil {
				t.Fatal(err)
			}
			if c.out {
				if now.Shards[0].Remote != nil {
					t.Errorf("the shard counts as drained to %v", now.Shards[0].Remote.Targets)
				}
				for deadline := time.Now().Add(time.Minute); w.pool("").Targets != 4; { // the node has seen it, too
					if time.Now().After(deadline) {
						t.Fatal("the node still uses the target that is gone")
					}
					_, _, changed := w.cat.KnownTargets()
					w.tgt.kick.now()
					select {
					case <-changed:
					case <-time.After(time.Millisecond):
					}
				}
				if err := w.drainShard(ctx, set, now.Shards[0]); err != nil {
					t.Error(err)
				}
				if now, err = w.cat.Part(ctx, id, "n1"); err != nil {
					t.Fatal(err)
				}
			}
			place := *now.Shards[0].Remote
			if c.out == slices.Contains(place.Targets, victim) {
				t.Errorf("the shard is on %v; %s was drained", place.Targets, victim)
			}
			if err := w.remote.Verify(ctx, place); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTakingOutLooksAgain: a drained target that a record came to name does not
// go; its columns move, and then it may.
func TestTakingOutLooksAgain(t *testing.T) {
	w := newScrubWorld(t, 5, 1)
	name := w.place(0).Targets[0]
	w.drainTarget(name) // nobody moved anything
	state := func() catalog.TargetRecord {
		t.Helper()
		m, err := w.cat.Targets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return *m.Find(name, "")
	}
	if err := w.mayTakeOut(t.Context(), state()); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("with a column on it: %v, want ErrConflict", err)
	}
	if s := state(); s.State != catalog.TargetDraining {
		t.Errorf("it is %s, want draining", s.State)
	}
	for deadline := time.Now().Add(time.Minute); state().State != catalog.TargetDrained; {
		if time.Now().After(deadline) {
			t.Fatal("it was not drained again")
		}
		if err := errors.Join(w.cat.Sync(t.Context()), w.repairOnce(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.mayTakeOut(t.Context(), state()); err != nil {
		t.Errorf("with nothing on it: %v", err)
	}
	if p := w.place(0); slices.Contains(p.Targets, name) {
		t.Errorf("the shard is on %v", p.Targets)
	}
}
