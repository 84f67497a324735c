package ckptd

import (
	"context"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// lateDriver does something after the first listing was read, before who asked
// for it can use it.
type lateDriver struct {
	catalog.Driver
	once sync.Once
	do   func()
}

func (d *lateDriver) List(ctx context.Context, prefix string) iter.Seq2[catalog.Record, error] {
	return func(yield func(catalog.Record, error) bool) {
		for rec, err := range d.Driver.List(ctx, prefix) {
			if !yield(rec, err) {
				return
			}
		}
		d.once.Do(d.do)
	}
}

// TestLevelIsNotTakenBack: somebody verifies a shard and raises the level while
// somebody else, who has read the statements before, is about to write it.
func TestLevelIsNotTakenBack(t *testing.T) {
	w := newScrubWorld(t, 3, 1)
	id := w.ids[0]
	verified := func(at time.Time) {
		t.Helper()
		if _, err := w.cat.UpdatePart(t.Context(), id, "n1", func(p *catalog.PartRecord) error { p.Shards[0].Verified = at; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := w.raiseLevel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	level := func() catalog.Level {
		t.Helper()
		set, err := w.cat.Set(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return set.Level
	}
	verified(time.Time{})
	if got := level(); got != catalog.Remote {
		t.Fatalf("the level is %v, want remote", got)
	}
	late := &lateDriver{Driver: w.c.fault, do: func() { verified(time.Now()) }}
	slow := &Node{cfg: w.cfg, log: w.log, cat: catalog.New(w.c.fault, late), kickLead: newKick()}
	if err := slow.raiseLevel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := level(); got != catalog.Verified {
		t.Errorf("the level is %v, want verified", got)
	}
}
