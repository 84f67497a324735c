package ckptd

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/sdk/wire"
)

func crashID(step int64, attempt int) catalog.SetID {
	return catalog.SetID{Run: crashRun, Step: step, Attempt: attempt}
}

// story is the life of four sets: two are saved, committed, drained and
// verified; one is evicted and one pruned and collected; a third stays
// incomplete and is aborted; a late writer of the first attempt is dropped.
// Errors go to fail, which says whether to go on.
func story(w *world, m *model, fail func(step string, err error) (stop bool)) {
	one, two, three, late := crashID(1, 1), crashID(2, 1), crashID(3, 1), crashID(4, 1)
	attach := func(launch string) error {
		_, err := w.cat.Attach(w.ctx, crashRun, launch, time.Now())
		return errors.Join(err, w.cat.Sync(w.ctx))
	}
	// observe is what a client knows that waits for its set.
	observe := func() error {
		err := w.cat.Sync(w.ctx)
		for _, s := range w.cat.KnownWhere("", func(s *catalog.SetRecord) bool { return s.State == catalog.Committed }) {
			m.mu.Lock()
			if m.sets[s.SetID] == maybe && m.pruning != s.SetID {
				m.sets[s.SetID] = durable
			}
			m.mu.Unlock()
		}
		return err
	}
	save := func(id catalog.SetID) error {
		for rank := range crashWorld {
			if err := w.save(m, id, rank); err != nil {
				return err
			}
		}
		return nil
	}
	vote := func() error { return w.n.voteOnce(w.ctx) }
	drain := func() error { return errors.Join(w.cat.Sync(w.ctx), w.n.drainOnce(w.ctx)) }
	collect := func() error { return errors.Join(w.cat.Sync(w.ctx), w.n.collectOnce(w.ctx)) }
	steps := []struct {
		name string
		do   func() error
	}{
		{"attach", func() error { return attach("launch 1") }},
		{"save 1", func() error { return save(one) }},
		{"vote 1", vote},
		{"commit 1", w.lead},
		{"observe 1", observe},
		{"records 1", w.follow},
		{"save 2", func() error { return save(two) }},
		{"save half of 3", func() error { return w.save(m, three, 0) }},
		{"vote 2", vote},
		{"commit 2", w.lead},
		{"observe 2", observe},
		{"drain", drain},
		{"publish", w.lead},
		{"observe", observe},
		{"records 2", w.follow},
		{"evict", func() error { _, err := w.n.evict(w.ctx, catalog.BlockSize); return err }},
		{"prune", func() error {
			m.mu.Lock()
			if m.sets[two] != absent { // only of what there is
				m.sets[one], m.pruning = maybe, one
			}
			m.mu.Unlock()
			_, gone, err := w.n.prune(w.ctx, crashRun, catalog.Retention{KeepLast: 1}, false)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.pruned = slices.ContainsFunc(gone, func(v catalog.Verdict) bool { return v.Set.SetID == one })
			return err
		}},
		{"records of the pruned", func() error {
			err := w.follow()
			m.mu.Lock()
			defer m.mu.Unlock()
			if err == nil && m.pruned {
				m.sets[one] = absent
			}
			return err
		}},
		{"collect", collect},
		{"stale", w.abort},
		{"collect the aborted", collect},
		{"seal late", func() error { return w.sealLate(late) }},
		{"vote late", vote},
	}
	for _, s := range steps {
		if err := s.do(); err != nil && fail(s.name, err) {
			return
		}
	}
}

// sealLate is a shard that was sealed while the catalog was away, by a launch
// that a newer one had replaced meanwhile.
func (w *world) sealLate(id catalog.SetID) error {
	s, err := w.submit(id, 0)
	if err != nil {
		return err
	}
	if _, err := w.cat.Attach(w.ctx, crashRun, "launch 2", time.Now()); err != nil {
		return errors.Join(err, s.Close())
	}
	return w.seal(s, false)
}

// point is one moment at which the power fails.
type point struct {
	at             string
	fs             *vfstest.Mem
	records, parts *catalogtest.MemDriver
	fates          map[catalog.SetID]fate
	mend           bool // fsck before the check
}

// TestPowerLoss attacks promises 1, 5, 6 and 8. It loses power before and
// after every operation of the file system in the life of a node and its
// targets, with what was not synced lost, kept, or torn; then also loses power
// during the recovery; and does all that once more with the catalog lost too.
func TestPowerLoss(t *testing.T) {
	fsys := vfstest.New(vfstest.Options{})
	records, parts := catalogtest.Mem(), catalogtest.Mem()
	m := newModel()
	base := time.Now().UnixNano()
	if env := os.Getenv("CKPTD_CRASH_SEED"); env != "" {
		n, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		base = int64(n) // any 64 bits are a seed
	}
	t.Logf("seed %d (CKPTD_CRASH_SEED); operations side by side may still swap their numbers", base)
	points := make(chan point, 64)
	var ops, ran atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for p := range points {
				if t.Failed() {
					continue
				}
				ran.Add(1)
				if err := p.recover(t); err != nil {
					t.Errorf("power lost at %s: %v", p.at, err)
				}
			}
		})
	}
	w, err := boot(t.Context(), fsys, records, parts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	var order sync.Mutex // columns are written side by side
	crash := func(i int, op, name string) {
		order.Lock()
		defer order.Unlock()
		for seed, mode := range []vfstest.Mode{vfstest.Lose, vfstest.Keep, vfstest.Torn, vfstest.Torn} {
			at := fmt.Sprintf("operation %d, %s %s (%v, %d)", i, op, name, mode, seed)
			r := rand.New(rand.NewSource(base + int64(10*i+seed)))
			m.mu.Lock()
			p := point{at: at, records: records.Clone(), parts: parts.Clone(), fs: fsys.Crash(mode, r)}
			m.mu.Unlock()
			p.fates = m.fates(false)
			if seed == 3 { // and again, while it comes up
				p.again(t, r)
			}
			points <- p
			if seed != 1 {
				continue
			}
			lost := p
			lost.at += ", catalog lost"
			lost.fates = m.fates(true)
			lost.fs = p.fs.Crash(vfstest.Keep, r)
			lost.records, lost.parts = catalogtest.Mem(), catalogtest.Mem()
			points <- lost
		}
	}
	fsys.OnOp(func(i int, op, name string) error {
		ops.Add(1)
		if i%thin == 0 {
			crash(i, op, name)
		}
		return nil
	})
	story(w, m, func(step string, err error) bool {
		t.Errorf("%s: %v", step, err)
		return true
	})
	crash(int(ops.Load())+1, "end", "")
	close(points)
	wg.Wait()
	t.Logf("%d crash points over %d operations", ran.Load(), ops.Load())
}

// again loses power a second time, while the node recovers from the first.
func (p *point) again(t *testing.T, r *rand.Rand) {
	n := 1 + r.Intn(60)
	second := *p
	var once sync.Mutex
	p.fs.OnOp(func(i int, op, name string) error {
		once.Lock()
		defer once.Unlock()
		if i == n {
			second.records, second.parts, second.fs = p.records.Clone(), p.parts.Clone(), p.fs.Crash(vfstest.Torn, r)
			second.at += fmt.Sprintf(" and again at its operation %d, %s %s", i, op, name)
		}
		return nil
	})
	if w, err := boot(t.Context(), p.fs, p.records, p.parts); err != nil {
		t.Errorf("power lost at %s: %v", p.at, err)
	} else {
		_ = w.duties() // what it could not do is done after the second crash
		w.stop()
	}
	*p = second
}

// recover boots after a crash, lets the node do its duties, and checks.
func (p *point) recover(t *testing.T) error {
	w, err := boot(t.Context(), p.fs, p.records, p.parts)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	defer w.stop()
	if strings.HasSuffix(p.at, "catalog lost") {
		if err := w.rebuild(); err != nil {
			return fmt.Errorf("rebuild: %w", err)
		}
	}
	if err := w.settle(p.state(w)); err != nil {
		return err
	}
	if err := w.abort(); err != nil {
		return err
	}
	if err := w.settle(p.state(w)); err != nil {
		return err
	}
	if p.mend { // what a broken disk or a silent catalog kept from being tidied
		if _, err := w.n.fsck(w.ctx, true, func(wire.Progress) {}); err != nil {
			return fmt.Errorf("fsck: %w", err)
		}
	}
	return w.check(p.fates)
}

func (p *point) state(w *world) func() string {
	return func() string {
		records, _ := p.records.Head(w.ctx, "set")
		parts, _ := p.parts.Head(w.ctx, "part")
		return fmt.Sprint(records, " ", parts, " ")
	}
}

// TestDiskFaults fails every operation of the file system in turn. The node
// goes on, and after a restart all is as the contract wants it.
func TestDiskFaults(t *testing.T) {
	for name, fault := range map[string]struct {
		cause error
		gone  bool // nothing works from then on
	}{
		"EIO":    {fmt.Errorf("disk: %w", syscall.EIO), false},
		"ENOSPC": {fmt.Errorf("disk: %w", catalog.ErrNoSpace), false},
		"Gone":   {fmt.Errorf("disk: %w", syscall.EIO), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, step := stride(t, 2)
			tried := 0
			for n := first; ; n += step {
				fsys, records, parts := vfstest.New(vfstest.Options{}), catalogtest.Mem(), catalogtest.Mem()
				hit := ""
				var mu sync.Mutex
				fsys.OnOp(func(i int, op, name string) error {
					if i < n || i > n && !fault.gone {
						return nil
					}
					mu.Lock()
					defer mu.Unlock()
					hit = fmt.Sprintf("operation %d, %s %s", i, op, name)
					return fmt.Errorf("%s %s: %w", op, name, fault.cause)
				})
				m := newModel()
				if err := faulty(t, fsys, records, parts, m); err != nil {
					t.Fatalf("%s failed: %v", hit, err)
				}
				mu.Lock()
				over := hit == ""
				mu.Unlock()
				if over {
					t.Logf("%d operations failed in turn", tried)
					return
				}
				tried++
			}
		})
	}
}

// stride is which operations a test tries: every one with CKPTD_CRASH_KILLS
// set, as make crash does; otherwise each run others, one of every few.
func stride(t *testing.T, few int) (first, step int) {
	if os.Getenv("CKPTD_CRASH_KILLS") != "" {
		return 1, 1
	}
	few *= thin
	first = 1 + rand.Intn(few)
	t.Logf("from operation %d, every %d", first, few)
	return first, few
}

// faulty tells the story over a file system or a catalog that fails once, and
// checks what is left after a restart.
func faulty(t *testing.T, fsys *vfstest.Mem, records, parts catalog.Driver, m *model) error {
	if w, err := boot(t.Context(), fsys, records, parts); err == nil { // a node that does not start has promised nothing
		story(w, m, func(string, error) bool { return false })
		w.stop()
	}
	fsys.OnOp(nil)
	p := point{fs: fsys.Crash(vfstest.Keep, nil), fates: m.fates(false), mend: true}
	p.records, p.parts = inner(records), inner(parts)
	return p.recover(t)
}

func inner(d catalog.Driver) *catalogtest.MemDriver {
	if f, ok := d.(faultDriver); ok {
		return f.mem.Clone()
	}
	return d.(*catalogtest.MemDriver).Clone()
}

// faultDriver remembers what it wraps.
type faultDriver struct {
	*catalogtest.Fault
	mem *catalogtest.MemDriver
}

// TestCatalogFaults loses every request to the catalog in turn, before or
// after it had its effect.
func TestCatalogFaults(t *testing.T) {
	for name, outcome := range map[string]catalogtest.Outcome{"Before": catalogtest.FailBefore, "After": catalogtest.FailAfter} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				fsys := vfstest.New(vfstest.Options{})
				records, parts := catalogtest.Mem(), catalogtest.Mem()
				fr := faultDriver{catalogtest.NewFault(records), records}
				fp := faultDriver{catalogtest.NewFault(parts), parts}
				var count, hit atomic.Int64
				what := ""
				decide := func(_ int, op, key string) catalogtest.Outcome {
					if op == "head" || op == "watch" { // asked again, and how often depends on the time
						return catalogtest.Pass
					}
					if count.Add(1) != int64(n) {
						return catalogtest.Pass
					}
					what = fmt.Sprintf("request %d, %s %s", n, op, key)
					hit.Store(1)
					return outcome
				}
				fr.Decide(decide)
				fp.Decide(decide)
				m := newModel()
				if err := faulty(t, fsys, fr, fp, m); err != nil {
					t.Fatalf("%s was lost: %v", what, err)
				}
				if hit.Load() == 0 {
					t.Logf("%d requests were lost in turn", n-1)
					return
				}
			}
		})
	}
}
