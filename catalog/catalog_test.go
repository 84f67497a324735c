package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

var (
	t0 = time.Unix(1e9, 0).UTC()
	id = catalog.SetID{Run: "llama/7b", Step: 100, Attempt: 1}
)

// open gives a catalog over a store that can fail. Its mirror does not run.
func open(t *testing.T) (*catalog.Catalog, *catalogtest.Fault) {
	t.Helper()
	f := catalogtest.NewFault(catalogtest.Mem())
	return catalog.New(f, f), f
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantClass(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: %v, want %v", what, err, class)
	}
}

func attach(t *testing.T, c *catalog.Catalog, run catalog.Run, launch string) int {
	t.Helper()
	return must(c.Attach(t.Context(), run, launch, t0))(t).Attempt
}

// part is a node's statement that it holds these ranks durably.
func part(of catalog.SetID, node string, ranks ...int) catalog.PartRecord {
	p := catalog.PartRecord{Set: of, Node: node}
	for _, rank := range ranks {
		p.Shards = append(p.Shards, catalog.PartShard{Rank: rank, Size: 1, Root: catalog.Digest{byte(rank + 1)}, Durable: t0, Local: true})
	}
	return p
}

// committed makes a committed set of one rank.
func committed(t *testing.T, c *catalog.Catalog, of catalog.SetID) catalog.SetRecord {
	t.Helper()
	must(c.BeginSealed(t.Context(), of, 1, nil, t0))(t)
	must(c.UpdatePart(t.Context(), of, "n1", func(p *catalog.PartRecord) error { *p = part(of, "n1", 0); return nil }))(t)
	return must(c.Commit(t.Context(), of, catalog.Digest{1}, 1, []string{"n1"}, []catalog.PartRecord{part(of, "n1", 0)}, t0))(t)
}

// Promise 3: all ranks of a launch get one number, and every later launch a larger one.
func TestPromise3Attach(t *testing.T) {
	c, _ := open(t)
	if a, b, again := attach(t, c, "r", "one"), attach(t, c, "r", "two"), attach(t, c, "r", "two"); a != 1 || b != 2 || again != 2 {
		t.Errorf("attempts %d, %d, %d, want 1, 2, 2", a, b, again)
	}
	_, err := c.Attach(t.Context(), "r", "one", t0)
	wantClass(t, "a launch that was replaced", err, catalog.ErrFenced)
	wantClass(t, "CheckAttempt of it", c.CheckAttempt(t.Context(), "r", 1), catalog.ErrFenced)
	if err := c.CheckAttempt(t.Context(), "r", 2); err != nil {
		t.Error(err)
	}
	wantClass(t, "an attempt that never was", c.CheckAttempt(t.Context(), "r", 3), catalog.ErrInvalid)
	wantClass(t, "a run that never was", c.CheckAttempt(t.Context(), "other", 1), fs.ErrNotExist)
	_, err = c.Begin(t.Context(), catalog.SetID{Run: "r", Step: 5, Attempt: 1}, 1, nil, t0)
	wantClass(t, "Begin of an older attempt", err, catalog.ErrFenced)
	if a := attach(t, c, "other", "one"); a != 1 {
		t.Errorf("another run begins at attempt %d", a)
	}
}

// 64 ranks of two launches attach at once while the store loses answers: each
// launch ends with one number, no number is given twice, and the launch that
// came first is fenced.
func TestPromise3AttachAtOnce(t *testing.T) {
	for seed := range 20 {
		c, f := open(t)
		f.Decide(func(n int, op, key string) catalogtest.Outcome {
			return []catalogtest.Outcome{catalogtest.Pass, catalogtest.Pass, catalogtest.FailBefore, catalogtest.FailAfter}[(n*7919+seed*104729)>>3&3]
		})
		var mu sync.Mutex
		got := make(map[string]map[int]bool)
		fencedLaunch := make(map[string]bool)
		var wg sync.WaitGroup
		for rank := range 64 {
			launch := fmt.Sprintf("job-%d", rank%2)
			wg.Go(func() {
				for {
					r, err := c.Attach(t.Context(), "r", launch, t0)
					if errors.Is(err, catalog.ErrUnavailable) {
						continue // as a rank does
					}
					mu.Lock()
					defer mu.Unlock()
					switch {
					case errors.Is(err, catalog.ErrFenced):
						fencedLaunch[launch] = true
					case err != nil:
						t.Error(err)
					default:
						if got[launch] == nil {
							got[launch] = make(map[int]bool)
						}
						got[launch][r.Attempt] = true
					}
					return
				}
			})
		}
		wg.Wait()
		f.Decide(nil)
		attempts := make(map[int]string)
		for launch, numbers := range got {
			if len(numbers) != 1 {
				t.Errorf("seed %d: %s got the attempts %v", seed, launch, numbers)
			}
			for a := range numbers {
				if attempts[a] != "" || a < 1 || a > 2 {
					t.Errorf("seed %d: attempt %d of %s and %s", seed, a, attempts[a], launch)
				}
				attempts[a] = launch
			}
		}
		if newest := attempts[2]; newest == "" || fencedLaunch[newest] {
			t.Errorf("seed %d: the newest launch is %q; fenced are %v", seed, newest, fencedLaunch)
		}
	}
}

// A lost answer burns no attempt: the rank that asks again gets its own.
func TestAttachLostAnswer(t *testing.T) {
	c, f := open(t)
	attach(t, c, "r", "one")
	f.FailAt(f.Ops()+2, catalogtest.FailAfter) // the swap of the next Attach
	_, err := c.Attach(t.Context(), "r", "two", t0)
	wantClass(t, "a lost answer", err, catalog.ErrUnavailable)
	if a := attach(t, c, "r", "two"); a != 2 {
		t.Errorf("asked again, attempt %d, want 2", a)
	}
}

func TestPromise10Attach(t *testing.T) {
	c, f := open(t)
	for _, launch := range []string{"", strings.Repeat("x", 257), "a\x00b", "a\nb", "\xff", "a\u202eb"} {
		_, err := c.Attach(t.Context(), "r", launch, t0)
		wantClass(t, fmt.Sprintf("launch %.10q", launch), err, catalog.ErrInvalid)
	}
	_, err := c.Attach(t.Context(), "../r", "one", t0)
	wantClass(t, "a path as run", err, catalog.ErrInvalid)
	if f.Ops() != 0 {
		t.Errorf("the store was asked %d times", f.Ops())
	}
	if a, b := attach(t, c, "r", "größe <&> 東"), attach(t, c, "r", "größe <&> 東"); a != 1 || b != 1 {
		t.Errorf("attempts %d and %d of one launch", a, b)
	}
}

// A run remembers a bounded number of launches; what is older has only its number.
func TestPromise9Launches(t *testing.T) {
	c, _ := open(t)
	for i := range 100 {
		if a := attach(t, c, "r", fmt.Sprintf("job-%d", i)); a != i+1 {
			t.Fatalf("launch %d has attempt %d", i, a)
		}
	}
	for i := 40; i < 99; i++ {
		_, err := c.Attach(t.Context(), "r", fmt.Sprintf("job-%d", i), t0)
		wantClass(t, fmt.Sprintf("launch %d", i), err, catalog.ErrFenced)
	}
	r := must(c.Attach(t.Context(), "r", "job-99", t0))(t)
	if len(r.Launches) != 64 {
		t.Errorf("%d launches are remembered, want 64", len(r.Launches))
	}
}

func TestBegin(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	_, err := c.Begin(ctx, id, 2, nil, t0)
	wantClass(t, "Begin of a run that never attached", err, fs.ErrNotExist)
	attach(t, c, id.Run, "one")
	s := must(c.Begin(ctx, id, 2, map[string]float64{"loss": 2}, t0))(t)
	if s.State != catalog.Writing || s.World != 2 || s.Level != catalog.Staged || s.Metrics["loss"] != 2 {
		t.Errorf("begun as %+v", s)
	}
	// Any rank may begin, with metrics of its own; what is said first stays.
	s = must(c.Begin(ctx, id, 2, map[string]float64{"loss": 3, "acc": 1}, t0.Add(time.Hour)))(t)
	if s.Metrics["loss"] != 2 || s.Metrics["acc"] != 1 || !s.Begun.Equal(t0) {
		t.Errorf("begun again as %+v", s)
	}
	version := s.Version
	if s = must(c.Begin(ctx, id, 2, nil, t0))(t); s.Version != version {
		t.Errorf("Begin without news makes version %d of %d", s.Version, version)
	}
	_, err = c.Begin(ctx, id, 3, nil, t0)
	wantClass(t, "another world size", err, catalog.ErrInvalid)
	must(c.Abort(ctx, id, "test", t0))(t)
	_, err = c.Begin(ctx, id, 2, nil, t0)
	wantClass(t, "Begin of an aborted set", err, catalog.ErrConflict)
	next := id
	next.Step++
	committed(t, c, next)
	_, err = c.Begin(ctx, next, 1, nil, t0)
	wantClass(t, "Begin of a committed set", err, fs.ErrExist)
	many := make(map[string]float64)
	for i := range 300 {
		many[fmt.Sprint(i)] = 1
	}
	for what, err := range map[string]error{
		"world 0":         second(c.Begin(ctx, id, 0, nil, t0)),
		"world too large": second(c.BeginSealed(ctx, id, catalog.MaxWorld+1, nil, t0)),
		"attempt 0":       second(c.BeginSealed(ctx, catalog.SetID{Run: "r", Step: 1}, 1, nil, t0)),
		"step -1":         second(c.Begin(ctx, catalog.SetID{Run: "r", Step: -1, Attempt: 1}, 1, nil, t0)),
		"NaN":             second(c.BeginSealed(ctx, id, 2, map[string]float64{"loss": math.NaN()}, t0)),
		"many metrics":    second(c.BeginSealed(ctx, id, 2, many, t0)),
		"metric's name":   second(c.BeginSealed(ctx, id, 2, map[string]float64{"\xff": 1}, t0)),
	} {
		wantClass(t, what, err, catalog.ErrInvalid)
	}
}

func second[T any](_ T, err error) error { return err }

// Promise 1: a set commits with a durable, good shard of every rank, once.
func TestPromise1Commit(t *testing.T) {
	c, f := open(t)
	ctx := t.Context()
	commit := func(root byte, parts ...catalog.PartRecord) (catalog.SetRecord, error) {
		return c.Commit(ctx, id, catalog.Digest{root}, 10, []string{"n1"}, parts, t0)
	}
	_, err := commit(1, part(id, "n1", 0, 1))
	wantClass(t, "a set that was not begun", err, fs.ErrNotExist)
	must(c.BeginSealed(ctx, id, 2, nil, t0))(t)
	_, err = commit(1, part(id, "n1", 0))
	wantClass(t, "a missing rank", err, catalog.ErrIncomplete)
	sealed := part(id, "n2", 1)
	sealed.Shards[0].Durable = time.Time{}
	_, err = commit(1, part(id, "n1", 0), sealed)
	wantClass(t, "a shard that is only sealed", err, catalog.ErrIncomplete)
	bad := part(id, "n2", 1)
	bad.Shards[0].Local, bad.Shards[0].Bad = false, "CRC32C differs"
	_, err = commit(1, part(id, "n1", 0), bad)
	wantClass(t, "a shard that went bad", err, catalog.ErrIncomplete)
	other := id
	other.Step++
	_, err = commit(1, part(id, "n1", 0), part(other, "n2", 1))
	wantClass(t, "votes of another set", err, catalog.ErrInvalid)
	_, err = commit(0, part(id, "n1", 0, 1))
	wantClass(t, "no manifest", err, catalog.ErrInvalid)
	if s := must(c.Set(ctx, id))(t); s.State != catalog.Writing || !s.Manifest.IsZero() {
		t.Errorf("after refusals it is %+v", s)
	}

	// The swap happened and its answer was lost: committing again is the same.
	f.FailAt(f.Ops()+2, catalogtest.FailAfter)
	_, err = commit(1, part(id, "n1", 0), part(id, "n2", 1))
	wantClass(t, "a lost answer", err, catalog.ErrUnavailable)
	s := must(commit(1, part(id, "n1", 0), part(id, "n2", 1)))(t)
	if s.State != catalog.Committed || s.Manifest != (catalog.Digest{1}) || s.Level != catalog.Local || s.Size != 10 || s.Version != 2 {
		t.Errorf("committed as %+v", s)
	}
	// Promise 4: nothing changes it any more.
	_, err = commit(2, part(id, "n1", 0, 1))
	wantClass(t, "another manifest", err, catalog.ErrConflict)
	_, err = c.Abort(ctx, id, "too late", t0)
	wantClass(t, "Abort of a committed set", err, catalog.ErrConflict)
	if again := must(c.Set(ctx, id))(t); again.Version != s.Version || again.Manifest != s.Manifest {
		t.Errorf("it is now %+v", again)
	}
}

// Two coordinators that race commit one manifest, exactly once.
func TestPromise1TwoCoordinators(t *testing.T) {
	for range 50 {
		c, _ := open(t)
		must(c.BeginSealed(t.Context(), id, 1, nil, t0))(t)
		var won [8]bool
		var wg sync.WaitGroup
		for i := range won {
			wg.Go(func() {
				_, err := c.Commit(t.Context(), id, catalog.Digest{byte(1 + i%2)}, 1, nil, []catalog.PartRecord{part(id, "n1", 0)}, t0)
				won[i] = err == nil
				if err != nil && !errors.Is(err, catalog.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s := must(c.Set(t.Context(), id))(t)
		for i := range won {
			if won[i] != (s.Manifest == catalog.Digest{byte(1 + i%2)}) {
				t.Errorf("coordinator %d was told %v, and the manifest is %v", i, won[i], s.Manifest)
			}
		}
		if s.Version != 2 {
			t.Errorf("the record changed %d times", s.Version-1)
		}
	}
}

// Promise 4: Update cannot change what never changes.
func TestPromise4Update(t *testing.T) {
	c, _ := open(t)
	committed(t, c, id)
	for name, edit := range map[string]func(*catalog.SetRecord){
		"ID":       func(s *catalog.SetRecord) { s.Step++ },
		"World":    func(s *catalog.SetRecord) { s.World++ },
		"Manifest": func(s *catalog.SetRecord) { s.Manifest[0]++ },
		"Writing":  func(s *catalog.SetRecord) { s.State = catalog.Writing },
		"Aborted":  func(s *catalog.SetRecord) { s.State = catalog.Aborted },
	} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.HasPrefix(fmt.Sprint(p), "catalog: ") {
					t.Errorf("%s: panic %v", name, p)
				}
			}()
			c.Update(t.Context(), id, func(s *catalog.SetRecord) error { edit(s); return nil })
		}()
	}
	s := must(c.Update(t.Context(), id, func(s *catalog.SetRecord) error { s.Pinned = true; return nil }))(t)
	if !s.Pinned || s.Version != 3 {
		t.Errorf("pinned as %+v", s)
	}
	s = must(c.Update(t.Context(), id, func(*catalog.SetRecord) error { return catalog.ErrSame }))(t)
	if s.Version != 3 {
		t.Errorf("no change makes version %d", s.Version)
	}
	_, err := c.Tombstone(t.Context(), id, "test", t0)
	wantClass(t, "Tombstone of a pinned set", err, catalog.ErrConflict)
}

// Promise 6: a prune has two phases, and a crash between any two steps of the
// second leaves a tombstone that the next try finishes.
func TestPromise6Forget(t *testing.T) {
	ctx := t.Context()
	prepare := func(t *testing.T) (*catalog.Catalog, *catalogtest.Fault) {
		c, f := open(t)
		committed(t, c, id)
		neighbour := id
		neighbour.Step++
		committed(t, c, neighbour)
		must(c.UpdatePart(ctx, id, "n2", func(*catalog.PartRecord) error { return nil }))(t)
		if err := c.Log(ctx, id, catalog.Event{What: "x"}); err != nil {
			t.Fatal(err)
		}
		return c, f
	}
	c, f := prepare(t)
	wantClass(t, "Forget of a committed set", c.Forget(ctx, id), catalog.ErrConflict)
	s := must(c.Tombstone(ctx, id, "old", t0))(t)
	if s.State != catalog.Pruned || s.Reason != "old" || s.Manifest.IsZero() {
		t.Errorf("the tombstone is %+v", s)
	}
	must(c.Tombstone(ctx, id, "again", t0))(t)
	before := f.Ops()
	if err := c.Forget(ctx, id); err != nil {
		t.Fatal(err)
	}
	steps := f.Ops() - before
	for n := 1; n <= steps; n++ {
		for _, o := range []catalogtest.Outcome{catalogtest.FailBefore, catalogtest.FailAfter} {
			c, f := prepare(t)
			must(c.Tombstone(ctx, id, "old", t0))(t)
			f.FailAt(f.Ops()+n, o)
			err := c.Forget(ctx, id)
			wantClass(t, fmt.Sprintf("step %d", n), err, catalog.ErrUnavailable)
			if s, err := c.Set(ctx, id); err == nil && s.State != catalog.Pruned {
				t.Errorf("step %d: it is %s", n, s.State)
			} else if parts := must(c.Parts(ctx, id))(t); errors.Is(err, fs.ErrNotExist) && len(parts) > 0 {
				t.Errorf("step %d: the tombstone went before %d statements", n, len(parts))
			}
			if err := c.Forget(ctx, id); err != nil {
				t.Errorf("step %d, again: %v", n, err)
			}
			for rec, err := range f.List(ctx, "") {
				if err != nil || strings.Contains(rec.Key, fmt.Sprintf("%012d", id.Step)) {
					t.Errorf("step %d: %s is left, %v", n, rec.Key, err)
				}
			}
			neighbour := id
			neighbour.Step++
			if s := must(c.Set(ctx, neighbour))(t); s.State != catalog.Committed || len(must(c.Parts(ctx, neighbour))(t)) != 1 {
				t.Errorf("step %d: the next set is %+v", n, s)
			}
		}
	}
}

func TestBulk(t *testing.T) {
	c, f := open(t)
	ctx := t.Context()
	const chunk = 512 << 10
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk} {
		b := []byte(strings.Repeat("x", size))
		f.FailAt(f.Ops()+1, catalogtest.FailAfter) // and done again
		if _, err := c.PutBulk(ctx, b); !errors.Is(err, catalog.ErrUnavailable) {
			t.Error(err)
		}
		d := must(c.PutBulk(ctx, b))(t)
		if got := must(c.GetBulk(ctx, d))(t); string(got) != string(b) {
			t.Errorf("%d bytes come back as %d", size, len(got))
		}
		if err := errors.Join(c.DropBulk(ctx, d), c.DropBulk(ctx, d)); err != nil {
			t.Error(err)
		}
		_, err := c.GetBulk(ctx, d)
		wantClass(t, "a bulk that was dropped", err, fs.ErrNotExist)
	}
	for rec, err := range f.List(ctx, "") {
		t.Errorf("left is %s, %v", rec.Key, err)
	}
	d := must(c.PutBulk(ctx, []byte("good")))(t)
	rec := must(f.Get(ctx, "bulk."+d.String()+".000000"))(t)
	must(f.Swap(ctx, rec.Key, rec.Rev, []byte("bad!")))(t)
	_, err := c.GetBulk(ctx, d)
	wantClass(t, "a bulk that was changed", err, catalog.ErrCorrupt)
}

func TestLogIsBounded(t *testing.T) {
	c, _ := open(t)
	for i := range 200 {
		if err := c.Log(t.Context(), id, catalog.Event{What: fmt.Sprint(i), Detail: strings.Repeat("ä", 100000)}); err != nil {
			t.Fatal(err)
		}
	}
	events := must(c.Events(t.Context(), id))(t)
	if len(events) != 64 || events[0].What != "0" || events[63].What != "199" || len(events[63].Detail) > 2048 {
		t.Errorf("%d events from %s to %s", len(events), events[0].What, events[len(events)-1].What)
	}
	none := must(c.Events(t.Context(), catalog.SetID{Run: "r", Step: 1, Attempt: 1}))(t)
	if len(none) != 0 {
		t.Errorf("a story of nothing: %v", none)
	}
}

// TestLogOfManyNodes: every node tells its own part, so none loses a race.
func TestLogOfManyNodes(t *testing.T) {
	c, _ := open(t)
	begin := time.Unix(1000, 0)
	var wg sync.WaitGroup
	for n := range 200 {
		wg.Go(func() {
			for i := range 3 {
				e := catalog.Event{Time: begin.Add(time.Duration(i) * time.Second), Node: fmt.Sprintf("n%03d.x", n), What: fmt.Sprint(i)}
				if err := c.Log(t.Context(), id, e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	events := must(c.Events(t.Context(), id))(t)
	if len(events) != 600 {
		t.Fatalf("%d events", len(events))
	}
	for i, e := range events {
		if want := fmt.Sprintf("n%03d.x", i%200); e.What != fmt.Sprint(i/200) || e.Node != want {
			t.Fatalf("event %d is %s of %s, want %d of %s", i, e.What, e.Node, i/200, want)
		}
	}
}

func TestPolicy(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	_, err := c.Policy(ctx, "r")
	wantClass(t, "no run", err, fs.ErrNotExist)
	p := catalog.Policy{Layout: "4+2", Retention: catalog.Retention{KeepLast: 3}}
	if err := c.SetPolicy(ctx, "r", p, t0); err != nil {
		t.Fatal(err)
	}
	if a := attach(t, c, "r", "one"); a != 1 {
		t.Errorf("a policy made attempt %d", a)
	}
	if got := must(c.Policy(ctx, "r"))(t); got != p {
		t.Errorf("policy %+v, want %+v", got, p)
	}
	wantClass(t, "a bad rule", c.SetPolicy(ctx, "r", catalog.Policy{Retention: catalog.Retention{KeepLast: -1}}, t0), catalog.ErrInvalid)
}

// Promise 12: a record that breaks its rules, or stands where another belongs, is ErrCorrupt.
func TestPromise12Records(t *testing.T) {
	for name, value := range map[string]string{
		"NoJSON":      `{`,
		"WorldHuge":   `{"run":"llama/7b","step":100,"attempt":1,"state":"writing","world":1152921504606846976,"level":"staged"}`,
		"WorldMinus":  `{"run":"llama/7b","step":100,"attempt":1,"state":"writing","world":-1,"level":"staged"}`,
		"StateOdd":    `{"run":"llama/7b","step":100,"attempt":1,"state":"odd","world":1,"level":"staged"}`,
		"LevelOdd":    `{"run":"llama/7b","step":100,"attempt":1,"state":"writing","world":1,"level":"odd"}`,
		"OfAnother":   `{"run":"llama/7b","step":101,"attempt":1,"state":"writing","world":1,"level":"staged"}`,
		"PathInName":  `{"run":"../llama/7b","step":100,"attempt":1,"state":"writing","world":1,"level":"staged"}`,
		"SizeMinus":   `{"run":"llama/7b","step":100,"attempt":1,"state":"writing","world":1,"level":"staged","size":-1}`,
		"DigestShort": `{"run":"llama/7b","step":100,"attempt":1,"state":"writing","world":1,"level":"staged","manifest":"00"}`,
	} {
		t.Run(name, func(t *testing.T) {
			c, f := open(t)
			key := "set.llama/7b.000000000100-000001"
			must(f.Swap(t.Context(), key, 0, []byte(value)))(t)
			_, err := c.Set(t.Context(), id)
			wantClass(t, "Set", err, catalog.ErrCorrupt)
			_, err = c.BeginSealed(t.Context(), id, 1, nil, t0)
			wantClass(t, "BeginSealed", err, catalog.ErrCorrupt)
			if got := must(f.Get(t.Context(), key))(t); string(got.Value) != value {
				t.Error("the damaged record was written over")
			}
		})
	}
	c, f := open(t)
	must(f.Swap(t.Context(), "part.llama/7b.000000000100-000001.n1", 0, []byte(`{"set":{"run":"llama/7b","step":100,"attempt":1},"node":"n2"}`)))(t)
	_, err := c.Parts(t.Context(), id)
	wantClass(t, "a statement in another's name", err, catalog.ErrCorrupt)
}

// One damaged statement must not keep a coordinator from the others.
func TestWatchPartsPassesOverDamage(t *testing.T) {
	c, f := open(t)
	must(f.Swap(t.Context(), "part.a.000000000100-000001.n1", 0, []byte("?")))(t)
	must(c.UpdatePart(t.Context(), id, "n1", func(p *catalog.PartRecord) error { return nil }))(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen []string
	err := c.WatchParts(ctx, func(p *catalog.PartRecord, synced bool) error {
		if synced {
			cancel()
		} else if p != nil {
			seen = append(seen, p.Node)
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || len(seen) != 1 {
		t.Errorf("saw %v, ended with %v", seen, err)
	}
}
