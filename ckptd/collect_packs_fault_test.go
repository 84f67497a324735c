package ckptd

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

// packWorld is a coordinator, and a dataset whose sets are records only.
type packWorld struct {
	*Node
	cat *catalog.Catalog // of another node
	t   *testing.T
}

func (w *packWorld) set(run catalog.Run, step int64) catalog.SetID {
	return catalog.SetID{Run: run, Step: step, Attempt: 1}
}

// commit commits a set that was begun two days ago.
func (w *packWorld) commit(id catalog.SetID) {
	w.t.Helper()
	ctx, at := w.t.Context(), time.Now().Add(-48*time.Hour)
	if _, err := w.cat.BeginSealed(ctx, id, 1, nil, at); err != nil {
		w.t.Fatal(err)
	}
	p := catalog.PartRecord{Set: id, Node: "n2", Shards: []catalog.PartShard{{Size: 1, Root: catalog.Digest{1}, Durable: at, Local: true, Raw: true}}}
	if _, err := w.cat.UpdatePart(ctx, id, "n2", func(r *catalog.PartRecord) error { *r = p; return nil }); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.cat.Commit(ctx, id, catalog.Digest{1}, 1, []string{"n2"}, []catalog.PartRecord{p}, at); err != nil {
		w.t.Fatal(err)
	}
}

func (w *packWorld) is(id catalog.SetID) catalog.SetRecord {
	w.t.Helper()
	s, err := w.cat.Set(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// TestPromise6CollectorAndCatalogFaults: the catalog fails at any operation of a
// round of the collector, before or after it happened, and a version that names
// one of its candidates comes before the next round. No version misses a pack,
// what is named is no longer condemned, and what is nobody's goes.
func TestPromise6CollectorAndCatalogFaults(t *testing.T) {
	packs, versions := catalog.Run("_packs/pets"), catalog.Run("_datasets/pets")
	tried, refused := 0, 0
	for _, outcome := range []catalogtest.Outcome{catalogtest.FailBefore, catalogtest.FailAfter} {
		for at := 1; ; at++ {
			c := newCluster(t, 0)
			n, end := c.node("n1", Targets{})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = n.cat.Run(ctx) })
			w := &packWorld{Node: n, cat: c.cat, t: t}
			n.lead.leader = "n1"
			kept, wanted, nobodys := w.set(packs, 1), w.set(packs, 2), w.set(packs, 3)
			first, second := w.set(versions, 1), w.set(versions, 2)
			for _, id := range []catalog.SetID{kept, wanted, nobodys, first} {
				w.commit(id)
			}
			n.named.put(namedBy{first, catalog.Digest{1}}, []catalog.SetID{kept})
			n.named.put(namedBy{second, catalog.Digest{1}}, []catalog.SetID{kept, wanted})
			if err := n.cat.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			start, hit := c.fault.Ops(), false
			c.fault.Decide(func(op int, _, _ string) catalogtest.Outcome {
				if op == start+at {
					hit = true
					return outcome
				}
				return catalogtest.Pass
			})
			err := n.collectPacks(ctx)
			c.fault.Decide(func(int, string, string) catalogtest.Outcome { return catalogtest.Pass })

			// An import names the second pack, as its store does.
			if _, err := w.cat.BeginSealed(ctx, second, 1, nil, time.Now()); err != nil {
				t.Fatal(err)
			}
			if p := w.is(wanted); !p.Condemned.IsZero() {
				if err := n.collectPacks(ctx); err != nil { // it waits for that
					t.Fatal(err)
				}
			}
			made := w.is(wanted).State == catalog.Committed && w.is(wanted).Condemned.IsZero()
			if made {
				w.commit(second)
			} else if _, err := w.cat.Abort(ctx, second, "test", time.Now()); err != nil {
				t.Fatal(err)
			} else {
				refused++
			}
			for range 2 {
				if err := n.collectPacks(ctx); err != nil {
					t.Fatal(err)
				}
			}
			got := fmt.Sprint(w.is(kept).State, w.is(kept).Condemned.IsZero(), w.is(wanted).State == catalog.Committed, w.is(wanted).Condemned.IsZero() || !made, w.is(nobodys).State)
			if want := fmt.Sprint(catalog.Committed, true, made, true, catalog.Pruned); got != want {
				t.Errorf("%v at operation %d (%v): %s, want %s", outcome, at, err, got, want)
			}
			cancel()
			wg.Wait()
			c.stop()
			end()
			if !hit {
				break
			}
			tried++
		}
	}
	t.Logf("%d faults, %d imports refused", tried, refused)
	if tried < 20 || refused == 0 || refused == tried {
		t.Errorf("%d faults, %d imports refused; want many, and some of both", tried, refused)
	}
}
