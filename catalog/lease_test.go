package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

func TestLease(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	wantClass(t, "a lease of nothing", c.Lease(ctx, id, "reader", t0.Add(time.Hour)), fs.ErrNotExist)
	must(c.BeginSealed(ctx, id, 1, nil, t0))(t)
	wantClass(t, "a lease of a set being written", c.Lease(ctx, id, "reader", t0.Add(time.Hour)), fs.ErrNotExist)
	wantClass(t, "a holder without name", c.Lease(ctx, id, "", t0.Add(time.Hour)), catalog.ErrInvalid)
	if held := must(c.Leases(ctx, id, t0))(t); len(held) != 0 {
		t.Errorf("refused leases stay: %v", held)
	}
	must(c.Commit(ctx, id, catalog.Digest{1}, 1, nil, []catalog.PartRecord{part(id, "n1", 0)}, t0))(t)
	if err := errors.Join(c.Lease(ctx, id, "reader.1", t0.Add(time.Hour)), c.Lease(ctx, id, "reader.2", t0.Add(2*time.Hour))); err != nil {
		t.Fatal(err)
	}
	_, err := c.Tombstone(ctx, id, "test", t0)
	wantClass(t, "Tombstone of a leased set", err, catalog.ErrConflict)
	if held := must(c.Leases(ctx, id, t0.Add(90*time.Minute)))(t); fmt.Sprint(held) != "[reader.2]" {
		t.Errorf("after one ran out %v hold it", held)
	}
	if held := must(c.Leases(ctx, id, t0))(t); fmt.Sprint(held) != "[reader.2]" {
		t.Errorf("a lease that ran out comes back: %v", held)
	}
	if err := errors.Join(c.Unlease(ctx, id, "reader.2"), c.Unlease(ctx, id, "reader.2")); err != nil {
		t.Error(err)
	}
	must(c.Tombstone(ctx, id, "test", t0))(t)
	wantClass(t, "a lease of a pruned set", c.Lease(ctx, id, "reader", t0.Add(time.Hour)), fs.ErrNotExist)
}

// Promise 6, the race of a reader and a pruner: the lease is taken between any
// two steps of the pruner, and the prune happens between any two steps of the
// reader. Either the reader is refused, or the pruner sees its lease before the
// bytes go.
func TestPromise6LeaseOrTombstone(t *testing.T) {
	ctx := t.Context()
	prune := func(c *catalog.Catalog) (bytesGone bool) {
		if _, err := c.Tombstone(ctx, id, "test", t0); err != nil {
			return false
		}
		holders, err := c.Leases(ctx, id, t0) // as the collector asks before it removes bytes
		return err == nil && len(holders) == 0
	}
	lease := func(c *catalog.Catalog) (held bool) { return c.Lease(ctx, id, "reader", t0.Add(time.Hour)) == nil }
	for _, order := range []string{"LeaseWithinPrune", "PruneWithinLease"} {
		for n := 1; n <= 8; n++ {
			c, f := open(t)
			committed(t, c, id)
			other := catalog.New(f, f)
			var gone, held bool
			start, done := f.Ops(), false
			f.Decide(func(op int, _, _ string) catalogtest.Outcome {
				if op == start+n && !done { // just before operation n of the first, all of the second
					done = true
					if order == "LeaseWithinPrune" {
						held = lease(other)
					} else {
						gone = prune(other)
					}
				}
				return catalogtest.Pass
			})
			if order == "LeaseWithinPrune" {
				gone = prune(c)
			} else {
				held = lease(c)
			}
			if gone && held {
				t.Errorf("%s at %d: the bytes went and the reader was told it holds them", order, n)
			}
			if done && !gone && !held && order == "LeaseWithinPrune" && n == 1 {
				t.Errorf("%s at %d: both lost", order, n)
			}
		}
	}
}

// A reader that renews too late keeps the time it had.
func TestRenewOfAPrunedSet(t *testing.T) {
	c, f := open(t)
	ctx := t.Context()
	committed(t, c, id)
	// The lease comes between the pruner's look and its tombstone.
	start := f.Ops()
	f.Decide(func(op int, what, _ string) catalogtest.Outcome {
		if op == start+2 {
			if err := catalog.New(f, f).Lease(ctx, id, "reader", t0.Add(time.Hour)); err != nil {
				t.Error(err)
			}
		}
		return catalogtest.Pass
	})
	must(c.Tombstone(ctx, id, "test", t0))(t)
	wantClass(t, "renewal", c.Lease(ctx, id, "reader", t0.Add(3*time.Hour)), fs.ErrNotExist)
	if held := must(c.Leases(ctx, id, t0.Add(30*time.Minute)))(t); len(held) != 1 {
		t.Error("the refused renewal took the lease away from under the reader")
	}
	if held := must(c.Leases(ctx, id, t0.Add(90*time.Minute)))(t); len(held) != 0 {
		t.Errorf("%v hold a pruned set longer than they were allowed", held)
	}
}

func TestElector(t *testing.T) {
	c, f := open(t)
	ctx := t.Context()
	const ttl = 10 * time.Second
	a, b := &catalog.Elector{Catalog: c, Node: "a", TTL: ttl}, &catalog.Elector{Catalog: c, Node: "b", TTL: ttl}
	now := t0
	tick := func(e *catalog.Elector, want bool, leader string) {
		t.Helper()
		leads, err := e.Tick(ctx, now)
		if err != nil || leads != want || e.Leader() != leader {
			t.Errorf("%s at %v: leads %v, %v, thinks %q leads; want %v, %q", e.Node, now.Sub(t0), leads, err, e.Leader(), want, leader)
		}
	}
	tick(a, true, "a")
	tick(b, false, "a")
	for range 10 { // renewed, it goes on for ever
		now = now.Add(ttl / 3)
		tick(a, true, "a")
		now = now.Add(ttl / 3)
		tick(b, false, "a")
	}
	now = now.Add(ttl - 2*time.Second) // a falls silent; b has seen its last beat ttl/3 late
	tick(b, false, "a")
	now = now.Add(3 * time.Second)
	tick(b, true, "b")
	tick(a, false, "b")
	if err := a.Resign(ctx); err != nil { // is not the leader: nothing happens
		t.Error(err)
	}
	tick(b, true, "b")
	if err := b.Resign(ctx); err != nil || b.Leader() != "" {
		t.Errorf("resigned: %v, thinks %q leads", err, b.Leader())
	}
	tick(a, true, "a") // at once
	tick(b, false, "a")
	// A node that starts again under its name goes on without waiting.
	a = &catalog.Elector{Catalog: c, Node: "a", TTL: ttl}
	tick(a, true, "a")
	// A damaged record is anyone's.
	rec := must(f.Get(ctx, "coord"))(t)
	must(f.Swap(ctx, "coord", rec.Rev, []byte("?")))(t)
	tick(b, true, "b")
}

// Clocks of contenders differ by an hour; still one leads at a time.
func TestElectorClocks(t *testing.T) {
	c, _ := open(t)
	a, b := &catalog.Elector{Catalog: c, Node: "a", TTL: time.Second}, &catalog.Elector{Catalog: c, Node: "b", TTL: time.Second}
	for i := range 30 {
		now := t0.Add(time.Duration(i) * 300 * time.Millisecond)
		first, err := a.Tick(t.Context(), now)
		later, err2 := b.Tick(t.Context(), now.Add(time.Hour))
		if err != nil || err2 != nil || !first || later {
			t.Fatalf("tick %d: a leads %v, b leads %v, %v, %v", i, first, later, err, err2)
		}
	}
}

// Whoever loses the race, or is not answered, does not think it leads.
func TestElectorLosesTheRace(t *testing.T) {
	c, f := open(t)
	ctx := t.Context()
	a, b := &catalog.Elector{Catalog: c, Node: "a", TTL: time.Second}, &catalog.Elector{Catalog: catalog.New(f, f), Node: "b", TTL: time.Second}
	must(a.Tick(ctx, t0))(t)
	must(b.Tick(ctx, t0))(t)
	now := t0.Add(time.Minute)
	start := f.Ops()
	f.Decide(func(op int, _, _ string) catalogtest.Outcome {
		if op == start+2 { // between a's look and its swap
			if leads, err := b.Tick(ctx, now); err != nil || !leads {
				t.Errorf("b: %v, %v", leads, err)
			}
		}
		return catalogtest.Pass
	})
	if leads, err := a.Tick(ctx, now); err != nil || leads || a.Leader() == "a" {
		t.Errorf("a leads %v, %v, and thinks %q does", leads, err, a.Leader())
	}
	f.Decide(nil)
	f.FailAt(f.Ops()+2, catalogtest.FailAfter) // b renews, and does not hear of it
	if leads, err := b.Tick(ctx, now); !errors.Is(err, catalog.ErrUnavailable) || leads || b.Leader() != "" {
		t.Errorf("b leads %v, %v, and thinks %q does", leads, err, b.Leader())
	}
	if leads, err := b.Tick(ctx, now); err != nil || !leads {
		t.Errorf("asked again: b leads %v, %v", leads, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if leads, err := b.Tick(ctx, now); err == nil || leads {
		t.Errorf("without a store b leads: %v, %v", leads, err)
	}
}
