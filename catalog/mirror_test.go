package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

// follow runs the mirror until the test ends.
func follow(t *testing.T, c *catalog.Catalog) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func at(step int64) catalog.SetID { return catalog.SetID{Run: "r", Step: step, Attempt: 1} }

func stepsOf(t *testing.T, c *catalog.Catalog) (got []int64) {
	t.Helper()
	for _, s := range must(c.Sets(t.Context(), ""))(t) {
		got = append(got, s.Step)
	}
	return got
}

// replaceable is a store that can be exchanged for another one under a
// catalog, as when its disk is lost.
type replaceable struct {
	mu sync.Mutex
	catalog.Driver
}

// Lists show every change that returned before they began, of every writer.
func TestListsShowWhatReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := open(t)
		follow(t, c)
		writer := catalog.New(f, f) // on another node
		for step := range int64(50) {
			committed(t, writer, at(step))
			if s, err := c.Resolve(t.Context(), catalog.Ref{Run: "r", Step: catalog.Latest}); err != nil || s.Step != step {
				t.Fatalf("after the commit of step %d latest is %v, %v", step, s.SetID, err)
			}
			if step%5 == 4 {
				must(writer.Tombstone(t.Context(), at(step), "test", t0))(t)
				if err := writer.Forget(t.Context(), at(step)); err != nil {
					t.Fatal(err)
				}
				if got := stepsOf(t, c); slices.Contains(got, step) || int64(len(got)) != (step+1)/5*4 {
					t.Fatalf("after step %d was forgotten: %v", step, got)
				}
			}
		}
	})
}

// Promise 1: only a committed set is found, and only at its level.
func TestPromise1Resolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := open(t)
		follow(t, c)
		ctx := t.Context()
		resolve := func(ref string, want string) {
			t.Helper()
			s, err := c.Resolve(ctx, must(catalog.ParseRef(ref))(t))
			got := s.SetID.String()
			if err != nil {
				got = fmt.Sprint(catalog.ClassOf(err))
			}
			if got != want {
				t.Errorf("%s is %s (%v), want %s", ref, got, err, want)
			}
		}
		missing, incomplete := fs.ErrNotExist.Error(), catalog.ErrIncomplete.Error()
		resolve("r@latest", missing)
		must(c.BeginSealed(ctx, at(10), 1, nil, t0))(t)
		resolve("r@latest", incomplete)
		resolve("r@10", incomplete)
		resolve("r@11", missing)
		committed(t, c, at(10))
		resolve("r@latest", "r@10#1")
		resolve("r@10#1", "r@10#1")
		resolve("r@10#2", missing)
		resolve("r@latest:remote", incomplete)
		committed(t, c, at(20))
		must(c.Update(ctx, at(10), func(s *catalog.SetRecord) error { s.Level = catalog.Verified; return nil }))(t)
		resolve("r@latest:remote", "r@10#1")
		resolve("r@latest", "r@20#1")
		// A later attempt that went back to an older step is the latest.
		committed(t, c, catalog.SetID{Run: "r", Step: 10, Attempt: 2})
		resolve("r@latest", "r@10#2")
		resolve("r@10", "r@10#2")
		resolve("r@10#1", "r@10#1")
		must(c.Tombstone(ctx, catalog.SetID{Run: "r", Step: 10, Attempt: 2}, "test", t0))(t)
		resolve("r@latest", "r@20#1")
		must(c.BeginSealed(ctx, at(30), 1, nil, t0))(t)
		must(c.Abort(ctx, at(30), "test", t0))(t)
		resolve("r@30", missing)
		_, err := c.Sets(ctx, "other")
		wantClass(t, "Sets of no run", err, fs.ErrNotExist)
	})
}

// While the store is away lists show what was seen last; when it is back they
// catch up, deletions included.
func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := catalogtest.Mem()
		f := catalogtest.NewFault(mem)
		c, writer := catalog.New(f, f), catalog.New(mem, mem)
		f.SetDown(true)
		follow(t, c)
		_, err := c.Sets(t.Context(), "")
		wantClass(t, "before the store was ever reached", err, catalog.ErrUnavailable)
		f.SetDown(false)
		for step := range int64(4) {
			committed(t, writer, at(step))
		}
		attach(t, writer, "r", "one")
		if got := stepsOf(t, c); len(got) != 4 {
			t.Errorf("sets %v, want 4", got)
		}
		f.SetDown(true)
		f.CutWatches()
		must(writer.Tombstone(t.Context(), at(1), "test", t0))(t)
		if err := writer.Forget(t.Context(), at(1)); err != nil {
			t.Fatal(err)
		}
		committed(t, writer, at(9))
		attach(t, writer, "r", "two")
		if got := fmt.Sprint(stepsOf(t, c)); got != "[3 2 1 0]" {
			t.Errorf("while the store is away: %s", got)
		}
		wantClass(t, "Sync", c.Sync(t.Context()), catalog.ErrUnavailable)
		f.SetDown(false)
		if got := fmt.Sprint(stepsOf(t, c)); got != "[9 3 2 0]" {
			t.Errorf("when it is back: %s", got)
		}
		// Promise 3 with the store away: what the mirror knows fences already.
		f.SetDown(true)
		wantClass(t, "CheckAttempt", c.CheckAttempt(t.Context(), "r", 1), catalog.ErrFenced)
		wantClass(t, "CheckAttempt", c.CheckAttempt(t.Context(), "r", 2), catalog.ErrUnavailable)
		f.SetDown(false)
	})
}

func (r *replaceable) replace(d catalog.Driver) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Driver = d
}

func (r *replaceable) now() catalog.Driver {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Driver
}

func (r *replaceable) Get(ctx context.Context, key string) (catalog.Record, error) {
	return r.now().Get(ctx, key)
}
func (r *replaceable) Head(ctx context.Context, prefix string) (uint64, error) {
	return r.now().Head(ctx, prefix)
}
func (r *replaceable) Watch(ctx context.Context, prefix string) iter.Seq2[catalog.Change, error] {
	return func(yield func(catalog.Change, error) bool) { r.now().Watch(ctx, prefix)(yield) }
}

// The catalog's disk is lost and another store takes its place, whose
// revisions begin anew: lists must not take the old store's for the new one's.
func TestStoreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := catalogtest.NewFault(catalogtest.Mem())
		r := &replaceable{Driver: old}
		c := catalog.New(r, r)
		follow(t, c)
		writer := catalog.New(old, old)
		for step := range int64(20) {
			committed(t, writer, at(step))
		}
		if got := stepsOf(t, c); len(got) != 20 {
			t.Fatalf("sets %v, want 20", got)
		}
		mem := catalogtest.Mem()
		r.replace(mem)
		old.CutWatches()
		synctest.Wait() // until the mirror has noticed
		committed(t, catalog.New(mem, mem), at(77))
		if got := fmt.Sprint(stepsOf(t, c)); got != "[77]" {
			t.Errorf("after the store was replaced: %s", got)
		}
	})
}

func TestDamagedRecordsAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := open(t)
		follow(t, c)
		committed(t, c, at(1))
		if got := stepsOf(t, c); len(got) != 1 {
			t.Errorf("lists %v", got)
		}
		rec := must(f.Get(t.Context(), "set.r.000000000001-000001"))(t)
		rev := must(f.Swap(t.Context(), rec.Key, rec.Rev, []byte("?")))(t)
		if got := stepsOf(t, c); len(got) != 1 || fmt.Sprint(c.Damaged()) != "["+rec.Key+"]" {
			t.Errorf("lists %v, damaged %v", got, c.Damaged())
		}
		must(f.Swap(t.Context(), rec.Key, rev, rec.Value))(t)
		if stepsOf(t, c); len(c.Damaged()) != 0 {
			t.Errorf("mended, still named: %v", c.Damaged())
		}
	})
}

// Watch gives what exists, then each change, and a set that is forgotten as pruned.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := open(t)
		follow(t, c)
		committed(t, c, at(1))
		committed(t, c, catalog.SetID{Run: "other", Step: 1, Attempt: 1})
		if err := c.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		all, mine, news := c.Watch(ctx, "", true), c.Watch(ctx, "r", true), c.Watch(ctx, "r", false)
		next := func(ch <-chan catalog.SetRecord) string {
			synctest.Wait()
			select {
			case s, ok := <-ch:
				if !ok {
					return "closed"
				}
				return fmt.Sprintf("%v %s", s.SetID, s.State)
			default:
				return "nothing"
			}
		}
		expect := func(ch <-chan catalog.SetRecord, want string) {
			t.Helper()
			if got := next(ch); got != want {
				t.Errorf("the watch gives %s, want %s", got, want)
			}
		}
		expect(all, "other@1#1 committed")
		expect(all, "r@1#1 committed")
		expect(mine, "r@1#1 committed")
		expect(mine, "nothing")
		expect(news, "nothing")
		must(c.BeginSealed(t.Context(), at(2), 1, nil, t0))(t)
		expect(news, "r@2#1 writing")
		must(c.Abort(t.Context(), at(2), "test", t0))(t)
		expect(news, "r@2#1 aborted")
		if err := c.Forget(t.Context(), at(2)); err != nil {
			t.Fatal(err)
		}
		expect(news, "r@2#1 pruned")
		// A new watch of the driver gives everything again; the watchers know it.
		f.CutWatches()
		synctest.Wait()
		if err := c.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect(news, "nothing")
		cancel()
		expect(news, "closed")
	})
}

// counting is a context that knows how many wait for its end.
type counting struct {
	context.Context
	waiting atomic.Int64
}

// Value hides the context inside, so that AfterFunc is asked.
func (c *counting) Value(any) any { return nil }

func (c *counting) AfterFunc(f func()) (stop func() bool) {
	c.waiting.Add(1)
	inner := context.AfterFunc(c.Context, f)
	return func() bool { c.waiting.Add(-1); return inner() }
}

// Promise 9: a reader that falls behind costs a bounded queue, and is told by
// the closed channel; the others go on.
func TestPromise9SlowWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := open(t)
		follow(t, c)
		must(c.BeginSealed(t.Context(), at(1), 1, nil, t0))(t)
		if err := c.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		inner, cancel := context.WithCancel(t.Context())
		ctx := &counting{Context: inner}
		slow, fast := c.Watch(ctx, "r", false), c.Watch(ctx, "r", false)
		const changes = 3000
		for i := range changes {
			must(c.Update(t.Context(), at(1), func(s *catalog.SetRecord) error { s.Size = int64(i); return nil }))(t)
			if s := <-fast; s.Size != int64(i) {
				t.Fatalf("change %d is given as %d", i, s.Size)
			}
		}
		n := 0
		for range slow {
			n++
		}
		if got := ctx.waiting.Load(); got != 1 {
			t.Errorf("%d watches wait for the context's end, want the fast one alone", got)
		}
		if n < 1000 || n >= changes {
			t.Errorf("the slow reader had %d changes before its channel was closed", n)
		}
		cancel()
		if _, ok := <-fast; ok {
			t.Error("a change after the context ended")
		}
	})
}

// fill adopts a large catalog, of runs with so many sets each.
func fill(t testing.TB, c *catalog.Catalog, runs, each int) {
	t.Helper()
	for r := range runs {
		for i := range each {
			s := catalog.SetRecord{SetID: catalog.SetID{Run: catalog.Run(fmt.Sprintf("team/run-%d", r)), Step: int64(i) * 1000, Attempt: 1},
				State: catalog.Committed, World: 64, Begun: t0, Committed: t0, Level: catalog.Verified, Manifest: catalog.Digest{1, byte(i)},
				Size: 1 << 40, Nodes: []string{"node-1", "node-2"}, Version: 5, Metrics: map[string]float64{"loss": 2.5},
				Place: &catalog.Place{Blob: "manifest.json", Layout: "1+2", Targets: []string{"t1", "t2", "t3"}, Size: 100000}}
			if err := c.AdoptSet(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// measure says what the mirror of a filled store costs.
func measure(t testing.TB, mem catalog.Driver) (bytes int64, synced time.Duration) {
	t.Helper()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	c := catalog.New(mem, mem)
	ctx, cancel := context.WithCancel(context.Background())
	before, start := heap(), time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for { // the first state of so many may take longer than a list waits
		if err := c.Sync(t.Context()); err == nil {
			break
		} else if !errors.Is(err, catalog.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	synced = time.Since(start)
	bytes = heap() - before
	if s, err := c.Resolve(t.Context(), catalog.Ref{Run: "team/run-7", Step: catalog.Latest}); err != nil || s.Step == 0 {
		t.Errorf("latest is %v, %v", s.SetID, err)
	}
	return bytes, synced
}

// Promise 9: what a set costs every node.
func TestPromise9MirrorMemory(t *testing.T) {
	mem := catalogtest.Mem()
	fill(t, catalog.New(mem, mem), 50, 100)
	if bytes, _ := measure(t, mem); bytes > 5000*2500 {
		t.Errorf("%d bytes a set", bytes/5000)
	}
}

// What a catalog of 100,000 sets costs a node that starts.
func BenchmarkMirror(b *testing.B) {
	mem := catalogtest.Mem()
	fill(b, catalog.New(mem, mem), 100, 1000)
	for b.Loop() {
		bytes, synced := measure(b, mem)
		b.ReportMetric(float64(bytes)/1e5, "B/set")
		b.ReportMetric(synced.Seconds(), "s-to-sync")
	}
}
