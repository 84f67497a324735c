package catalog_test

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

func TestCondemn(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	_, err := c.Condemn(ctx, id, t0)
	wantClass(t, "Condemn of nothing", err, fs.ErrNotExist)
	must(c.BeginSealed(ctx, id, 1, nil, t0))(t)
	if s := must(c.Condemn(ctx, id, t0))(t); !s.Condemned.IsZero() {
		t.Error("a set that is being written is condemned")
	}
	must(c.Commit(ctx, id, catalog.Digest{1}, 1, nil, []catalog.PartRecord{part(id, "n1", 0)}, t0))(t)
	if err := c.Lease(ctx, id, "early", t0.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	t1 := t0.Add(time.Minute)
	if s := must(c.Condemn(ctx, id, t1))(t); !s.Condemned.Equal(t1) || s.State != catalog.Committed {
		t.Errorf("condemned %v, %s", s.Condemned, s.State)
	}
	if s := must(c.Condemn(ctx, id, t1.Add(time.Hour)))(t); !s.Condemned.Equal(t1) {
		t.Error("condemned anew")
	}
	wantClass(t, "a new lease of a condemned set", c.Lease(ctx, id, "late", t0.Add(time.Hour)), fs.ErrNotExist)
	if err := c.Lease(ctx, id, "early", t0.Add(2*time.Hour)); err != nil {
		t.Errorf("renewal: %v", err)
	}
	_, err = c.TombstoneCondemned(ctx, id, t1, "test", t1)
	wantClass(t, "prune of what is leased", err, catalog.ErrConflict)
	if err := c.Unlease(ctx, id, "early"); err != nil {
		t.Fatal(err)
	}
	_, err = c.TombstoneCondemned(ctx, id, t0, "test", t1)
	wantClass(t, "prune of what was condemned at another time", err, catalog.ErrConflict)
	must(c.Reprieve(ctx, id))(t)
	_, err = c.TombstoneCondemned(ctx, id, t1, "test", t1)
	wantClass(t, "prune of what was reprieved", err, catalog.ErrConflict)
	_, err = c.TombstoneCondemned(ctx, id, time.Time{}, "test", t1)
	wantClass(t, "prune of what was never condemned", err, catalog.ErrConflict)
	if err := c.Lease(ctx, id, "late", t0.Add(time.Minute)); err != nil {
		t.Errorf("lease after the reprieve: %v", err)
	}
	must(c.Update(ctx, id, func(s *catalog.SetRecord) error { s.Pinned = true; return nil }))(t)
	if s := must(c.Condemn(ctx, id, t1))(t); !s.Condemned.IsZero() {
		t.Error("a pinned set is condemned")
	}
	must(c.Update(ctx, id, func(s *catalog.SetRecord) error { s.Pinned = false; return nil }))(t)
	must(c.Condemn(ctx, id, t1))(t)
	if s := must(c.TombstoneCondemned(ctx, id, t1, "test", t1.Add(time.Hour)))(t); s.State != catalog.Pruned {
		t.Errorf("it is %s", s.State)
	}
}

// Promise 6, the race of a collector of packs and an import that names one: the
// whole of one happens between any two steps of the other. Never is there a
// committed version whose pack is pruned.
func TestPromise6PackOrVersion(t *testing.T) {
	packs, _ := catalog.PackRun("pets")
	versions, _ := catalog.DatasetRun("pets")
	pack := catalog.SetID{Run: packs, Step: 7, Attempt: 1}
	version := catalog.SetID{Run: versions, Step: 1, Attempt: 1}
	ctx := t.Context()
	collect := func(c *catalog.Catalog) (pruned bool) {
		s, err := c.Condemn(ctx, pack, t0)
		if err != nil || s.Condemned.IsZero() {
			return false
		}
		if _, err := c.Set(ctx, version); !errors.Is(err, fs.ErrNotExist) {
			_, _ = c.Reprieve(ctx, pack)
			return false
		}
		_, err = c.TombstoneCondemned(ctx, pack, s.Condemned, "test", t0)
		return err == nil
	}
	commit := func(c *catalog.Catalog) (made bool) {
		if _, err := c.BeginSealed(ctx, version, 1, nil, t0); err != nil {
			return false
		}
		if s, err := c.Set(ctx, pack); err != nil || s.State != catalog.Committed || !s.Condemned.IsZero() {
			_, _ = c.Abort(ctx, version, "test", t0)
			return false
		}
		_, err := c.Commit(ctx, version, catalog.Digest{2}, 1, nil, []catalog.PartRecord{part(version, "n1", 0)}, t0)
		return err == nil
	}
	wins := map[bool]int{}
	for _, outer := range []string{"collector", "import"} {
		for n := 1; n <= 12; n++ {
			c, f := open(t)
			committed(t, c, pack)
			other := catalog.New(f, f)
			var pruned, made bool
			start, done := f.Ops(), false
			f.Decide(func(op int, _, _ string) catalogtest.Outcome {
				if op == start+n && !done { // just before operation n of the first, all of the second
					done = true
					if outer == "collector" {
						made = commit(other)
					} else {
						pruned = collect(other)
					}
				}
				return catalogtest.Pass
			})
			if outer == "collector" {
				pruned = collect(c)
			} else {
				made = commit(c)
			}
			if pruned && made {
				t.Errorf("%s at %d: the version is there and its pack is not", outer, n)
			}
			if done {
				wins[made]++
			}
		}
	}
	if wins[true] == 0 || wins[false] == 0 {
		t.Errorf("the version was made %d times and refused %d times; want both", wins[true], wins[false])
	}
}

// Two coordinators collect at once, while a version comes: what one has
// reprieved the other does not prune.
func TestPromise6TwoCollectors(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	committed(t, c, id)
	mine := must(c.Condemn(ctx, id, t0))(t)
	must(c.Reprieve(ctx, id))(t) // the other, which saw the version
	theirs := must(c.Condemn(ctx, id, t0.Add(time.Second)))(t)
	_, err := c.TombstoneCondemned(ctx, id, mine.Condemned, "test", t0)
	wantClass(t, "prune by what was seen before the reprieve", err, catalog.ErrConflict)
	must(c.TombstoneCondemned(ctx, id, theirs.Condemned, "test", t0))(t)
}

func TestNoteRebuild(t *testing.T) {
	c, f := open(t)
	ctx := t.Context()
	if at := must(c.Rebuilt(ctx))(t); !at.IsZero() {
		t.Errorf("a new catalog was rebuilt %v", at)
	}
	if err := errors.Join(c.NoteRebuild(ctx, t0.Add(time.Hour)), c.NoteRebuild(ctx, t0)); err != nil {
		t.Fatal(err)
	}
	if at := must(c.Rebuilt(ctx))(t); !at.Equal(t0.Add(time.Hour)) {
		t.Errorf("rebuilt at %v, want the later time", at)
	}
	f.Decide(func(int, string, string) catalogtest.Outcome { return catalogtest.FailBefore })
	_, err := c.Rebuilt(ctx)
	wantClass(t, "with the store away", err, catalog.ErrUnavailable)
}
