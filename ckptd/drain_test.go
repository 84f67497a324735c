package ckptd

import (
	"errors"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// committed boots a node with one committed set that is not drained yet.
func committed(t *testing.T) (*world, point, catalog.SetRecord) {
	t.Helper()
	return committedStep(t, 1)
}

func committedStep(t *testing.T, step int64) (*world, point, catalog.SetRecord) {
	t.Helper()
	p := point{fs: vfstest.New(vfstest.Options{}), records: catalogtest.Mem(), parts: catalogtest.Mem()}
	w, err := boot(t.Context(), p.fs, p.records, p.parts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	if _, err := w.cat.Attach(w.ctx, crashRun, "launch 1", time.Now()); err != nil {
		t.Fatal(err)
	}
	m := newModel()
	for rank := range crashWorld {
		if err := w.save(m, crashID(step, 1), rank); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.n.voteOnce(w.ctx), w.lead()); err != nil {
		t.Fatal(err)
	}
	rec, err := w.cat.Set(w.ctx, crashID(step, 1))
	if err != nil || rec.State != catalog.Committed {
		t.Fatalf("%v, %v", rec, err)
	}
	return w, p, rec
}

// drainOnly copies every shard and reads none back.
func drainOnly(t *testing.T, w *world) {
	t.Helper()
	for _, j := range w.n.drainPlan() {
		if err := w.n.drainShard(w.ctx, j.set, j.shard); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDrainVerifiesWhatIsNoLongerHere: a shard was drained, its local copy went
// bad, and the node restarted: nobody but this node's own statement says that
// the remote copy still has to be read back.
func TestDrainVerifiesWhatIsNoLongerHere(t *testing.T) {
	w, p, rec := committed(t)
	drainOnly(t, w)
	for rank := range crashWorld {
		if err := w.n.localBad(w.ctx, rec.SetID, rank, catalog.ErrCorrupt); !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatal(err)
		}
	}
	w.stop()
	w, err := boot(t.Context(), p.fs.Crash(vfstest.Keep, nil), p.records, p.parts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	if err := w.settle(p.state(w)); err != nil {
		t.Fatal(err)
	}
	if err := w.check(map[catalog.SetID]fate{rec.SetID: durable}); err != nil {
		t.Error(err)
	}
}

// TestDrainTakesWhatAnotherNodeStates: after a rebuild another node may state
// where this node's shards are. They are not copied again, and above all the
// columns that were stated are not removed.
func TestDrainTakesWhatAnotherNodeStates(t *testing.T) {
	w, p, rec := committed(t)
	drainOnly(t, w)
	part, err := w.cat.Part(w.ctx, rec.SetID, "n1")
	if err != nil {
		t.Fatal(err)
	}
	places := part.Shards
	if _, err := w.cat.UpdatePart(w.ctx, rec.SetID, "n2", func(far *catalog.PartRecord) error {
		for _, s := range places {
			s.Local = false
			far.Shards = append(far.Shards, s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if part, err = w.cat.UpdatePart(w.ctx, rec.SetID, "n1", func(own *catalog.PartRecord) error {
		for i := range own.Shards {
			own.Shards[i].Remote, own.Shards[i].Drained = nil, time.Time{}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.n.inv.setPart(rec.SetID, part)
	if err := w.settle(p.state(w)); err != nil {
		t.Fatal(err)
	}
	if part, err = w.cat.Part(w.ctx, rec.SetID, "n1"); err != nil {
		t.Fatal(err)
	}
	for i, s := range part.Shards {
		if s.Remote == nil || s.Remote.Generation != places[i].Remote.Generation {
			t.Errorf("rank %d is stated at %+v, want %+v", s.Rank, s.Remote, places[i].Remote)
		}
	}
	if err := w.check(map[catalog.SetID]fate{rec.SetID: durable}); err != nil {
		t.Error(err)
	}
}
