package ckptd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

func TestPlanScrub(t *testing.T) {
	id := catalog.SetID{Run: "run", Step: 1, Attempt: 1}
	entry := func(blob string, gen uint64, col int) remotetier.Entry {
		return remotetier.Entry{Key: remotetier.Key{Blob: blob, Generation: gen, Column: col}, Size: 8192}
	}
	blobs := []placed{{id: id, rank: 0, place: aPlace("r/0", "a", "b", "c")}, {id: id, rank: 1, place: aPlace("r/1", "c", "a", "b")}}
	p := planScrub("a", blobs, []remotetier.Entry{
		entry("r/0", 7, 0), // as it should be
		entry("r/0", 7, 1), // of b
		entry("r/0", 6, 0), // of an older generation
		entry("r/0", 9, 0), // of a newer one
		entry("r/x", 7, 0), // of a blob whose record is on its way
	})
	if len(p.check) != 1 || p.check[0].rank != 0 || p.check[0].column != 0 || p.check[0].size != 8192 {
		t.Errorf("check %+v", p.check)
	}
	if len(p.missing) != 1 || p.missing[0].rank != 1 || p.missing[0].column != 1 {
		t.Errorf("missing %+v", p.missing)
	}
	var extra []string
	for _, e := range p.extra {
		extra = append(extra, fmt.Sprint(e.Key.Generation, e.Key.Column))
	}
	if got := fmt.Sprint(extra); got != "[7 1 6 0 9 0]" {
		t.Errorf("extra %v", got)
	}
}

func TestPlanScrubber(t *testing.T) {
	now := time.Now()
	v := aView(now)
	count := map[string]int{}
	for i := range 200 {
		r := catalog.TargetRecord{Name: fmt.Sprint("t", i)}
		by := 0
		for _, node := range v.live {
			w := *v
			if w.node = node; w.mayScrub(&r) {
				count[node]++
				by++
			}
		}
		if by != 1 {
			t.Errorf("target %s is scrubbed by %d nodes", r.Name, by)
		}
	}
	if len(count) != 3 {
		t.Errorf("scrubbers %v", count)
	}
	own := catalog.TargetRecord{Name: "x", Node: "n2"}
	if v.mayScrub(&own) {
		t.Error("n1 scrubs a target of n2")
	}
	for _, c := range []struct {
		r    catalog.ScrubRecord
		want bool
	}{
		{catalog.ScrubRecord{By: "n2", Started: now, Seen: now}, true}, {catalog.ScrubRecord{By: "n1", Started: now, Seen: now}, false},
		{catalog.ScrubRecord{By: "n2", Started: now.Add(-time.Hour), Seen: now.Add(-time.Hour)}, false}, {catalog.ScrubRecord{By: "n2", Started: now, Finished: now, Seen: now}, false},
	} {
		if got := scrubbedByOther(&c.r, "n1", now); got != c.want {
			t.Errorf("scrubbedByOther(%+v) = %v", c.r, got)
		}
	}
}

// scrubWorld is a node with targets in memory, and committed sets on them.
type scrubWorld struct {
	*Node
	c     *cluster
	t     *testing.T
	mems  map[string]*targettest.Mem
	ids   []catalog.SetID
	bytes map[catalog.SetID][]byte
}

func newScrubWorld(t *testing.T, targets, sets int) *scrubWorld {
	t.Helper()
	c := newCluster(t, 0)
	n, end := c.node("n1", Targets{Follow: true})
	w := &scrubWorld{Node: n, c: c, t: t, mems: map[string]*targettest.Mem{}, bytes: map[catalog.SetID][]byte{}}
	for range targets {
		w.join()
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = n.cat.Run(ctx) })
	wg.Go(func() { _ = n.followTargets(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		c.stop()
		end()
	})
	w.awaitTargets()
	if _, err := n.cat.Attach(t.Context(), "run", "first", time.Now()); err != nil {
		t.Fatal(err)
	}
	for i := range sets {
		w.commit(int64(i + 1))
	}
	if err := n.cat.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// join registers one more target.
func (w *scrubWorld) join() {
	name := fmt.Sprintf("t%d", len(w.mems))
	w.mems[name] = w.c.register(name, "h:"+name).Target.(*targettest.Mem)
}

// awaitTargets waits until the node uses them all.
func (w *scrubWorld) awaitTargets() {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); w.pool("").Targets < len(w.mems); {
		if time.Now().After(deadline) {
			w.t.Fatalf("%d targets are used", w.pool("").Targets)
		}
		_, _, changed := w.cat.KnownTargets()
		w.tgt.kick.now()
		select {
		case <-changed:
		case <-time.After(time.Millisecond):
		}
	}
}

// commit puts a set of one shard on the targets and says so in the catalog.
func (w *scrubWorld) commit(step int64) {
	w.t.Helper()
	ctx, id := w.t.Context(), catalog.SetID{Run: "run", Step: step, Attempt: 1}
	b := bytes.Repeat([]byte{byte(step), 1, 2, 3, 5}, 40_000)
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	_, err := w.cat.Begin(ctx, id, 1, nil, time.Now())
	check(err)
	place, err := w.remote.Put(ctx, id.ShardName(0), bytes.NewReader(b), stripe.Layout{K: 2, M: 1, Unit: 65536})
	check(err)
	root := catalog.Digest(sha256.Sum256(b))
	part, err := w.cat.UpdatePart(ctx, id, "n1", func(p *catalog.PartRecord) error {
		p.Shards = []catalog.PartShard{{Rank: 0, Size: int64(len(b)), Root: root, Durable: time.Now(), Local: true, Remote: &place, Verified: time.Now()}}
		return nil
	})
	check(err)
	manifest := []byte(fmt.Sprint("manifest of ", step))
	_, err = w.cat.Commit(ctx, id, sha256.Sum256(manifest), int64(len(b)), []string{"n1"}, []catalog.PartRecord{part}, time.Now())
	check(err)
	at, err := w.remote.PutSmall(ctx, id.ManifestName(), manifest, 2)
	check(err)
	_, err = w.cat.Update(ctx, id, func(s *catalog.SetRecord) error { s.Place = &at; return nil })
	check(err)
	for _, name := range []string{id.RecordName(), runRecordName("run")} {
		_, err = w.remote.PutSmall(ctx, name, []byte("a record"), 2)
		check(err)
	}
	w.ids, w.bytes[id] = append(w.ids, id), b
}

// place says where the shard of the i-th set is.
func (w *scrubWorld) place(i int) catalog.Place {
	w.t.Helper()
	part, err := w.cat.Part(w.t.Context(), w.ids[i], "n1")
	if err != nil {
		w.t.Fatal(err)
	}
	return *part.Shards[0].Remote
}

// harm changes a column where it lies; nil removes it.
func (w *scrubWorld) harm(p catalog.Place, column int, f func([]byte) []byte) {
	m, k := w.mems[p.Targets[column]], remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: column}
	m.SetColumn(k, f(m.Column(k)))
}

// columns counts what lies on all targets.
func (w *scrubWorld) columns() (n int) {
	for _, m := range w.mems {
		n += len(m.Keys())
	}
	return n
}

// scrubAll scrubs every target, and adds up.
func (w *scrubWorld) scrubAll() (sum catalog.ScrubRecord) {
	w.t.Helper()
	for _, t := range w.tgt.snapshot() {
		rec, err := w.scrubTarget(w.t.Context(), t.TargetRecord, true, nil)
		if err != nil {
			w.t.Errorf("scrub %s: %v", t.Name, err)
		}
		sum.Columns, sum.Bad, sum.Mended, sum.Extra = sum.Columns+rec.Columns, sum.Bad+rec.Bad, sum.Mended+rec.Mended, sum.Extra+rec.Extra
	}
	return sum
}

// TestScrubFindsAndMends: flipped, cut, missing, foreign and stale columns of
// shards, manifests and records are found and mended, each once; what nobody
// names goes after the grace, and nothing else does.
func TestScrubFindsAndMends(t *testing.T) {
	w := newScrubWorld(t, 5, 4)
	all := w.columns()
	if sum := w.scrubAll(); sum.Bad != 0 || sum.Extra != 0 || sum.Columns != int64(all) {
		t.Errorf("of what is well: %+v, want %d columns", sum, all)
	}
	// In the background a target that cannot read its columns itself is spared.
	if rec, err := w.scrubTarget(t.Context(), w.tgt.snapshot()[0].TargetRecord, false, nil); err != nil || rec.Columns == 0 || rec.Bytes != 0 {
		t.Errorf("in the background: %+v, %v", rec, err)
	}
	w.harm(w.place(0), 0, func(b []byte) []byte { b[9000] ^= 1; return b })
	w.harm(w.place(1), 2, func(b []byte) []byte { return b[:len(b)-4096] })
	w.harm(w.place(2), 1, func([]byte) []byte { return nil })
	foreign := w.place(3)
	w.harm(foreign, 0, func([]byte) []byte {
		o := w.place(2)
		return w.mems[o.Targets[0]].Column(remotetier.Key{Blob: o.Blob, Generation: o.Generation})
	})
	set, err := w.cat.Set(t.Context(), w.ids[1])
	if err != nil {
		t.Fatal(err)
	}
	w.harm(*set.Place, 1, func(b []byte) []byte { b[100] ^= 1; return b })
	rec, err := w.remote.FindSmall(t.Context(), w.ids[2].RecordName(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.harm(rec.Place, 0, func([]byte) []byte { return nil })
	if sum := w.scrubAll(); sum.Bad != 6 || sum.Mended != 6 || sum.Extra != 0 {
		t.Errorf("with six bad columns: %+v", sum)
	}
	if sum := w.scrubAll(); sum.Bad != 0 || w.columns() != all {
		t.Errorf("again: %+v, %d columns, want %d", sum, w.columns(), all)
	}
	for i := range w.ids {
		if err := w.remote.Verify(t.Context(), w.place(i)); err != nil {
			t.Error(err)
		}
	}

	// What nobody names: an older generation, and a second copy of a column.
	p := w.place(0)
	k := remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: 1}
	good := w.mems[p.Targets[1]].Column(k)
	other := ""
	for name := range w.mems {
		if !slices.Contains(p.Targets, name) {
			other = name
		}
	}
	older := k
	older.Generation -= 5
	w.mems[other].SetColumn(k, good)
	w.mems[other].SetColumn(older, good)
	stranger := remotetier.Key{Blob: "elsewhere/000000000001-000001/rank-00000.safetensors", Generation: 3}
	w.mems[other].SetColumn(stranger, good)
	if sum := w.scrubAll(); sum.Bad != 0 || sum.Extra != 2 {
		t.Errorf("with two columns that nobody names: %+v", sum)
	}
	if err := w.removeExtras(t.Context(), time.Now().Add(w.cfg.ScrubGrace/2)); err != nil || w.columns() != all+3 {
		t.Errorf("within the grace: %d columns, want %d, %v", w.columns(), all+3, err)
	}
	w.harm(p, 1, func([]byte) []byte { return nil }) // the second copy is the only one now
	if err := w.removeExtras(t.Context(), time.Now().Add(2*w.cfg.ScrubGrace)); err != nil || w.mems[other].Column(k) == nil || w.mems[other].Column(older) != nil {
		t.Errorf("the last copy of a column went, or the older generation stayed: %v", err)
	}
	w.harm(p, 1, func([]byte) []byte { return good })
	if err := w.removeExtras(t.Context(), time.Now().Add(2*w.cfg.ScrubGrace)); err != nil || w.mems[other].Column(k) != nil || w.mems[other].Column(stranger) == nil {
		t.Errorf("the second copy stayed, or a set's that the catalog does not know went: %v", err)
	}
	if sum := w.scrubAll(); sum.Bad != 0 || sum.Extra != 0 {
		t.Errorf("in the end: %+v", sum)
	}
}

// TestScrubGoesOn: a scrub that is cut short goes on where it was, also on
// another node, and one that was asked for begins anew.
func TestScrubGoesOn(t *testing.T) {
	w := newScrubWorld(t, 3, 6)
	target := w.tgt.snapshot()[0].TargetRecord
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.scrubTarget(ctx, target, false, func(_ catalog.ScrubRecord, done, _ int) {
		if done == 2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a scrub cut short = %v", err)
	}
	rec, err := w.cat.Scrub(t.Context(), target.Name, target.Node)
	if err != nil || !rec.Running() || rec.After != w.ids[1].Dir() {
		t.Errorf("its record %+v, %v; want it after %s", rec, err, w.ids[1].Dir())
	}
	if _, err := w.cat.UpdateScrub(t.Context(), target.Name, target.Node, func(r *catalog.ScrubRecord) error { r.By = "n9"; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.scrubTarget(t.Context(), target, false, nil); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("while another node is at it: %v, want ErrConflict", err)
	}
	if _, err := w.cat.UpdateScrub(t.Context(), target.Name, target.Node, func(r *catalog.ScrubRecord) error {
		r.Seen = time.Now().Add(-time.Hour)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	steps := 0
	done, err := w.scrubTarget(t.Context(), target, false, func(catalog.ScrubRecord, int, int) { steps++ })
	if err != nil || steps != 4 || !done.Started.Equal(rec.Started) || done.Running() || done.Columns <= rec.Columns {
		t.Errorf("it went on over %d sets: %+v, %v; want 4", steps, done, err)
	}
	steps = 0
	if _, err := w.cat.UpdateScrub(t.Context(), target.Name, target.Node, func(r *catalog.ScrubRecord) error { r.Asked = time.Now(); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.scrubTarget(t.Context(), target, false, func(catalog.ScrubRecord, int, int) { steps++ }); err != nil || steps != 6 {
		t.Errorf("asked for: over %d sets, %v; want 6", steps, err)
	}
}

// TestMendFollowsTheRecord: a place that changed under a verification, and
// statements of two nodes about one shard.
func TestMendFollowsTheRecord(t *testing.T) {
	w := newScrubWorld(t, 5, 1)
	id, was := w.ids[0], w.place(0)
	part, err := w.cat.Part(t.Context(), id, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.cat.UpdatePart(t.Context(), id, "n2", func(p *catalog.PartRecord) error { p.Shards = slices.Clone(part.Shards); return nil }); err != nil {
		t.Fatal(err)
	}
	unverified, err := w.cat.UpdatePart(t.Context(), id, "n1", func(p *catalog.PartRecord) error { p.Shards[0].Verified = time.Time{}; return nil })
	if err != nil {
		t.Fatal(err)
	}
	w.inv.setPart(id, unverified) // what this node remembers
	j := mendJob{placed: placed{id, 0, part.Shards[0].Root, was}}
	m, err := w.mendWith(t.Context(), j, remotetier.MendOptions{Leave: func(name string) bool { return name == was.Targets[0] || name == was.Targets[1] }})
	if err != nil || len(m.Columns) != 2 {
		t.Fatalf("mend = %+v, %v", m, err)
	}
	parts, err := w.cat.Parts(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if !samePlace(p.Shards[0].Remote, &m.Place) {
			t.Errorf("%s says %v, want %v", p.Node, p.Shards[0].Remote.Targets, m.Place.Targets)
		}
	}
	w.inv.setPart(id, unverified)
	if _, err := w.mendJobs(t.Context(), w.mendView(), "", nil, &mendedAll{on: map[string]int{}}); err != nil {
		t.Error(err)
	}
	if v, _ := w.inv.get(id); !samePlace(v.part.Shards[0].Remote, &m.Place) {
		t.Error("a look at all sets did not tell the node what became of its own")
	}
	set, err := w.cat.Set(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	stale := part.Shards[0]
	stale.Verified, stale.Remote = time.Time{}, &was
	w.inv.setPart(id, unverified)
	if err := w.verifyShard(t.Context(), set, stale); err != nil {
		t.Errorf("verification with an old statement in mind: %v", err)
	}
	now, err := w.cat.Part(t.Context(), id, "n1")
	if err != nil || now.Shards[0].Verified.IsZero() || !samePlace(now.Shards[0].Remote, &m.Place) {
		t.Errorf("after it: %+v, %v", now.Shards[0], err)
	}
	if _, err := w.mendWith(t.Context(), j, remotetier.MendOptions{Leave: func(name string) bool { return name == was.Targets[0] }}); err != nil {
		t.Errorf("mending by an old plan: %v", err)
	}
}

// TestMendWhileTheCatalogFails: each operation of the catalog fails in turn
// while columns move, before or after it was carried out. The place that is
// recorded then is whole, and moving again ends it.
func TestMendWhileTheCatalogFails(t *testing.T) {
	for _, outcome := range []catalogtest.Outcome{catalogtest.FailBefore, catalogtest.FailAfter} {
		for at := 1; ; at++ {
			w := newScrubWorld(t, 5, 1)
			was, id := w.place(0), w.ids[0]
			leave := func(name string) bool { return name == was.Targets[1] }
			part, err := w.cat.Part(t.Context(), id, "n1")
			if err != nil {
				t.Fatal(err)
			}
			j := mendJob{placed: placed{id, 0, part.Shards[0].Root, was}}
			count := 0
			w.c.fault.Decide(func(_ int, op, key string) catalogtest.Outcome {
				if op == "watch" || !strings.HasPrefix(key, "part") && !strings.HasPrefix(key, "set") {
					return catalogtest.Pass
				}
				if count++; count == at {
					return outcome
				}
				return catalogtest.Pass
			})
			_, merr := w.mendWith(t.Context(), j, remotetier.MendOptions{Leave: leave})
			w.c.fault.Decide(nil)
			what := fmt.Sprintf("outcome %v, operation %d: %v", outcome, at, merr)
			rep, err := w.remote.Check(t.Context(), w.place(0), true)
			if err != nil || !rep.Whole() {
				t.Errorf("%s: %+v, %v", what, rep.Columns, err)
			}
			j.place = w.place(0)
			if _, err := w.mendWith(t.Context(), j, remotetier.MendOptions{Leave: leave}); err != nil {
				t.Errorf("%s: mending again: %v", what, err)
			}
			now := w.place(0)
			if err := w.remote.Verify(t.Context(), now); err != nil || slices.ContainsFunc(now.Targets, leave) {
				t.Errorf("%s: on %v in the end, %v", what, now.Targets, err)
			}
			if count < at {
				t.Logf("outcome %v: %d operations failed in turn", outcome, at-1)
				break
			}
		}
	}
}
