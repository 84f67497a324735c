package target_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier/target"
)

// joiner is a directory whose server is, or wants to be, a member.
type joiner struct {
	dir  *target.Dir
	fs   *vfstest.Mem
	stop context.CancelFunc
	done chan error
	away int
	out  int64 // version of the map that it was taken out of
	mu   sync.Mutex
}

func newJoiner(t *testing.T, name string) *joiner {
	t.Helper()
	j := &joiner{fs: vfstest.New(vfstest.Options{})}
	var err error
	if j.dir, err = target.OpenDir(j.fs, "/t", name); err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *joiner) join(t *testing.T, cat *catalog.Catalog, addr string) {
	t.Helper()
	srv, err := target.NewServer(j.dir, target.ServerOptions{Domain: "rack1"})
	if err != nil {
		t.Fatal(err)
	}
	m := target.NewMember(srv, cat, target.MemberOptions{Scheme: "tcp", Addrs: []string{addr}, Every: time.Second, Trace: target.MemberTrace{
		Away:    func(error, time.Duration) { j.mu.Lock(); j.away++; j.mu.Unlock() },
		Removed: func(v int64) { j.mu.Lock(); j.out = v; j.mu.Unlock() },
	}})
	ctx, cancel := context.WithCancel(t.Context())
	j.stop, j.done = cancel, make(chan error, 1)
	go func() { j.done <- m.Run(ctx) }()
}

// end stops the member and gives what Run returned.
func (j *joiner) end() error {
	j.stop()
	return <-j.done
}

func member(t *testing.T, c *catalog.Catalog, name string) (catalog.TargetRecord, catalog.TargetStatus) {
	t.Helper()
	m, err := c.Targets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := m.Find(name, "")
	if r == nil {
		t.Fatalf("%s is no member", name)
	}
	s, err := c.TargetStatus(t.Context(), name, "")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return *r, s
}

func world() (*catalog.Catalog, *catalogtest.Fault) {
	f := catalogtest.NewFault(catalogtest.Mem())
	return catalog.New(f, f), f
}

func TestPromise7MemberJoinsAndBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat, _ := world()
		j := newJoiner(t, "a")
		j.join(t, cat, "h:1")
		time.Sleep(4500 * time.Millisecond)
		r, s := member(t, cat, "a")
		if r.Domain != "rack1" || r.State != catalog.TargetUp || !r.Beats() || s.Claim != r.Claim {
			t.Errorf("record %+v, status %+v", r, s)
		}
		if s.Beat != 5 || s.Total == 0 || s.Columns != 0 || s.Stopped || time.Since(s.Seen) > time.Second {
			t.Errorf("status after 4.5 s: %+v", s)
		}
		if err := j.end(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if r, s := member(t, cat, "a"); !s.Stopped || r.State != catalog.TargetUp {
			t.Errorf("after a stop: %+v, %+v", r, s)
		}
		// The same directory at another address: no waiting, because the first said that it ended.
		before := time.Now()
		j.join(t, cat, "h:2")
		synctest.Wait()
		if r, s := member(t, cat, "a"); r.Addrs[0] != "h:2" || s.Stopped || time.Since(before) != 0 {
			t.Errorf("started elsewhere: %+v, %+v", r, s)
		}
		_ = j.end()
	})
}

func TestPromise7MemberTakesNoOthersName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat, _ := world()
		a := newJoiner(t, "a")
		a.join(t, cat, "h:1")
		time.Sleep(1500 * time.Millisecond)
		b := newJoiner(t, "a")
		b.join(t, cat, "h:2")
		if err := <-b.done; !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("another directory: %v", err)
		}
		second := &joiner{dir: a.dir}
		second.join(t, cat, "h:2")
		if err := <-second.done; !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("a copy while the first lives: %v", err)
		}
		if r, _ := member(t, cat, "a"); r.Addrs[0] != "h:1" {
			t.Errorf("the map says %v", r.Addrs)
		}
		_ = a.end()
	})
}

// A process that was killed said nothing; its successor elsewhere waits until
// it is sure, one at the same address need not.
func TestPromise7MemberAfterAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat, f := world()
		a := newJoiner(t, "a")
		a.join(t, cat, "h:1")
		time.Sleep(1500 * time.Millisecond)
		f.SetDown(true) // its last word is not heard
		_ = a.end()
		f.SetDown(false)
		a.join(t, cat, "h:1")
		synctest.Wait()
		if _, s := member(t, cat, "a"); s.Stopped || !s.Seen.Equal(time.Now()) {
			t.Errorf("at the same address: %+v", s)
		}
		f.SetDown(true)
		_ = a.end()
		f.SetDown(false)
		begin := time.Now()
		a.join(t, cat, "h:2")
		time.Sleep(2 * time.Second)
		if r, _ := member(t, cat, "a"); r.Addrs[0] != "h:1" {
			t.Errorf("it moved after %v", time.Since(begin))
		}
		time.Sleep(2 * time.Second)
		if r, _ := member(t, cat, "a"); r.Addrs[0] != "h:2" {
			t.Error("it has not moved after 4 s")
		}
		_ = a.end()
	})
}

func TestPromise7CatalogAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat, f := world()
		f.SetDown(true)
		a := newJoiner(t, "a")
		a.join(t, cat, "h:1")
		time.Sleep(time.Minute)
		if a.mu.Lock(); a.away < 20 || a.away > 150 { // about one a heartbeat
			t.Errorf("%d tries in a minute", a.away)
		}
		a.mu.Unlock()
		f.SetDown(false)
		time.Sleep(maxPause)
		if _, s := member(t, cat, "a"); s.Beat == 0 {
			t.Errorf("after it came: %+v", s)
		}
		// Every answer is lost for a while: done twice does no harm.
		f.Decide(func(int, string, string) catalogtest.Outcome { return catalogtest.FailAfter })
		time.Sleep(time.Minute)
		f.Decide(nil)
		time.Sleep(maxPause)
		if r, s := member(t, cat, "a"); time.Since(s.Seen) > time.Second || r.Claim != s.Claim {
			t.Errorf("after it came again: %+v", s)
		}
		_ = a.end()
	})
}

// maxPause is more than a Member waits between two tries.
const maxPause = 25 * time.Second

// Who was taken out stays out; who lost the catalog joins the new one.
func TestPromise7MemberTakenOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat, f := world()
		a, b := newJoiner(t, "a"), newJoiner(t, "b")
		a.join(t, cat, "h:1")
		b.join(t, cat, "h:2")
		time.Sleep(1500 * time.Millisecond)
		now, err := cat.UpdateTargets(t.Context(), func(m *catalog.TargetMap) error { return m.Remove("a", "", true) })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if m, _ := cat.Targets(t.Context()); m.Find("a", "") != nil || m.Version != now.Version {
			t.Errorf("the one that was taken out: %+v", m)
		}
		if a.mu.Lock(); a.out != now.Version {
			t.Errorf("it was taken out of version %d, and knows of %d", now.Version, a.out)
		}
		a.mu.Unlock()
		rec, err := f.Get(t.Context(), "targets")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Swap(t.Context(), "targets", rec.Rev, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if _, s := member(t, cat, "b"); time.Since(s.Seen) > time.Second {
			t.Errorf("after the catalog was lost: %+v", s)
		}
		_, _ = a.end(), b.end()
	})
}

func TestUID(t *testing.T) {
	a, b := newJoiner(t, "a"), newJoiner(t, "a")
	ids := map[string]bool{}
	for _, d := range []*joiner{a, a, b} {
		uid, err := d.dir.UID()
		if err != nil {
			t.Fatal(err)
		}
		ids[uid] = true
	}
	if len(ids) != 2 {
		t.Errorf("two directories have %d ids", len(ids))
	}
	f, err := a.fs.OpenWrite("/t/target.uid", vfs.Opt{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("?"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := a.dir.UID(); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a damaged id: %v", err)
	}
}

// The mount point of a disk that is gone is no target.
func TestPromise7DiskGone(t *testing.T) {
	j := newJoiner(t, "a")
	if _, err := j.dir.Space(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := j.fs.Remove("/t/target.id"); err != nil {
		t.Fatal(err)
	}
	if _, err := j.dir.Space(t.Context()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("without the disk: %v", err)
	}
}

// Hundreds start at once, as after a power failure: all are members.
func TestPromise7ManyJoinAtOnce(t *testing.T) {
	cat, _ := world()
	const n = 200
	var all []*joiner
	for i := range n {
		j := newJoiner(t, fmt.Sprintf("t%03d", i))
		all = append(all, j)
		j.join(t, cat, fmt.Sprintf("h:%d", i+1))
	}
	deadline := time.After(time.Minute)
	for {
		m, err := cat.Targets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Targets) == n {
			if m.Version != n {
				t.Errorf("version %d of %d targets", m.Version, n)
			}
			break
		}
		select {
		case <-deadline:
			t.Fatalf("%d of %d are members after a minute", len(m.Targets), n)
		case <-time.After(10 * time.Millisecond):
		}
	}
	for _, j := range all {
		j.stop()
	}
	for _, j := range all {
		if err := <-j.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}
