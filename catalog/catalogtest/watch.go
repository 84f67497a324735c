package catalogtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// Mirror is a copy of the records under a prefix, kept by a watch, for tests.
type Mirror struct {
	stop context.CancelFunc
	done chan struct{}
	mu   struct {
		sync.Mutex
		records map[string]catalog.Record
		reached uint64
		synced  bool
		err     error
		moved   chan struct{} // closed at the next change
	}
}

// NewMirror starts a watch, which ends with the test or with Stop.
func NewMirror(t testing.TB, d catalog.Driver, prefix string) *Mirror {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mirror{stop: cancel, done: make(chan struct{})}
	m.mu.records = make(map[string]catalog.Record)
	m.mu.moved = make(chan struct{})
	go func() {
		defer close(m.done)
		for c, err := range d.Watch(ctx, prefix) {
			m.take(t, c, err)
		}
	}()
	t.Cleanup(m.Stop)
	return m
}

// Stop ends the watch and waits for it.
func (m *Mirror) Stop() {
	m.stop()
	<-m.done
}

func (m *Mirror) take(t testing.TB, c catalog.Change, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
		m.mu.err = err
	case c.Synced:
		if m.mu.synced {
			t.Errorf("Watch: synced twice")
		}
		m.mu.synced = true
	default:
		if old := m.mu.records[c.Key]; c.Rev <= old.Rev {
			t.Errorf("Watch gives %s at %d after %d", c.Key, c.Rev, old.Rev)
		}
		m.mu.records[c.Key] = c.Record
	}
	m.mu.reached = max(m.mu.reached, c.Rev)
	close(m.mu.moved)
	m.mu.moved = make(chan struct{})
}

// Wait blocks until ok, which sees the mirror's live records, how far the
// watch came, and whether it is synced; it gives up after half a minute or
// when the watch ended.
func (m *Mirror) Wait(ctx context.Context, ok func(records map[string]string, reached uint64, synced bool) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		m.mu.Lock()
		live := make(map[string]string)
		for k, r := range m.mu.records {
			if r.Value != nil {
				live[k] = string(r.Value)
			}
		}
		fine, moved, err := ok(live, m.mu.reached, m.mu.synced), m.mu.moved, m.mu.err
		state := fmt.Sprintf("%d records at %d, synced %v", len(live), m.mu.reached, m.mu.synced)
		m.mu.Unlock()
		if fine {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-moved:
		case <-m.done:
			return errors.New("the watch ended with " + state)
		case <-ctx.Done():
			return fmt.Errorf("%w with %s", ctx.Err(), state)
		}
	}
}

func (m *Mirror) wait(t testing.TB, what string, ok func(map[string]string, uint64, bool) bool) {
	t.Helper()
	if err := m.Wait(t.Context(), ok); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

func testWatch(t *testing.T, d catalog.Driver) {
	r := swap(t, d, "w.a", 0, "1")
	b := swap(t, d, "w.b", 0, "")
	swap(t, d, "wx.c", 0, "not covered")
	m := NewMirror(t, d, "w")
	m.wait(t, "what exists", func(got map[string]string, reached uint64, synced bool) bool {
		if !synced {
			return false
		}
		if reached < b {
			t.Errorf("at Synced the watch says it came to %d, want %d or more", reached, b)
		}
		if want := (map[string]string{"w.a": "1", "w.b": ""}); !maps.Equal(got, want) {
			t.Errorf("at Synced the watch gave %v, want %v", got, want)
		}
		return true
	})
	r = swap(t, d, "w.a", r, "2")
	m.wait(t, "an update", func(got map[string]string, _ uint64, _ bool) bool { return got["w.a"] == "2" })
	remove(t, d, "w.a", r)
	m.wait(t, "a deletion", func(got map[string]string, _ uint64, _ bool) bool { _, ok := got["w.a"]; return !ok })
	swap(t, d, "w.a", 0, "3")
	swap(t, d, "w.new.deep", 0, "4")
	swap(t, d, "w", 0, "5")
	want := map[string]string{"w.a": "3", "w.b": "", "w.new.deep": "4", "w": "5"}
	m.wait(t, "three more", func(got map[string]string, _ uint64, _ bool) bool { return maps.Equal(got, want) })

	// An empty store and prefix are synced too.
	e := NewMirror(t, d, "empty")
	e.wait(t, "Synced of nothing", func(got map[string]string, _ uint64, synced bool) bool { return synced && len(got) == 0 })
	swap(t, d, "empty.no.more", 0, "x")
	e.wait(t, "the first record", func(got map[string]string, _ uint64, _ bool) bool { return len(got) == 1 })
}

// testWatchResume: a second watch begins with everything that is there, and
// without what was deleted between the two.
func testWatchResume(t *testing.T, d catalog.Driver) {
	a := swap(t, d, "r.a", 0, "1")
	swap(t, d, "r.b", 0, "1")
	m := NewMirror(t, d, "")
	m.wait(t, "two", func(got map[string]string, _ uint64, synced bool) bool { return synced && len(got) == 2 })
	m.Stop()
	remove(t, d, "r.a", a)
	swap(t, d, "r.c", 0, "1")
	m = NewMirror(t, d, "")
	m.wait(t, "b and c", func(got map[string]string, _ uint64, synced bool) bool {
		return synced && maps.Equal(got, map[string]string{"r.b": "1", "r.c": "1"})
	})
	// A watch may be left in the middle.
	for range d.Watch(t.Context(), "") {
		break
	}
	for range d.List(t.Context(), "") {
		break
	}
}

func testWatchManyWriters(t *testing.T, d catalog.Driver) {
	m := NewMirror(t, d, "many")
	want := make(map[string]string)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rev := uint64(0)
			key := fmt.Sprintf("many.%d", w)
			for i := range 30 {
				value := []byte(strconv.Itoa(i))
				if i%10 == 9 {
					value = nil
				}
				next, err := d.Swap(t.Context(), key, rev, value)
				if err != nil {
					t.Errorf("Swap(%s, %d): %v", key, rev, err)
					return
				}
				rev = next
				if value == nil {
					rev = 0
				}
			}
			if w%2 == 0 {
				if _, err := d.Swap(t.Context(), key, 0, []byte("end")); err != nil {
					t.Errorf("Swap(%s): %v", key, err)
				}
				mu.Lock()
				defer mu.Unlock()
				want[key] = "end"
			}
		})
	}
	wg.Wait()
	m.wait(t, "the last state", func(got map[string]string, _ uint64, _ bool) bool { return maps.Equal(got, want) })
	if got := list(t, d, "many"); !maps.Equal(got, want) {
		t.Errorf("List = %v, want %v", got, want)
	}
}

// testHead: a watcher reaches the head, and the head covers every swap that
// returned, under its own prefix only.
func testHead(t *testing.T, d catalog.Driver) {
	head := func(prefix string) uint64 {
		t.Helper()
		rev, err := d.Head(t.Context(), prefix)
		if err != nil {
			t.Fatalf("Head(%q): %v", prefix, err)
		}
		return rev
	}
	if got := head("h"); got != 0 {
		t.Errorf("Head of nothing = %d", got)
	}
	m, all := NewMirror(t, d, "h"), NewMirror(t, d, "")
	rev := uint64(0)
	for i := range 30 {
		rev = swap(t, d, "h.x", rev, strconv.Itoa(i))
		if got := head("h"); got != rev {
			t.Fatalf("Head after a swap to %d = %d", rev, got)
		}
		want := strconv.Itoa(i)
		m.wait(t, "the head", func(_ map[string]string, reached uint64, _ bool) bool { return reached >= rev })
		m.wait(t, "the value at the head", func(got map[string]string, _ uint64, _ bool) bool { return got["h.x"] == want })
		last := rev
		for j := range i % 12 { // sometimes more than a few
			last = swap(t, d, fmt.Sprintf("elsewhere.%d.%d", i, j), 0, "x")
		}
		if got := head("h"); got != rev {
			t.Fatalf("Head after swaps under other prefixes = %d, want %d", got, rev)
		}
		if got := head("h.x"); got != rev {
			t.Fatalf("Head of the key itself = %d, want %d", got, rev)
		}
		if got := head(""); got != last {
			t.Fatalf("Head of everything = %d, want %d", got, last)
		}
		all.wait(t, "the head of everything", func(_ map[string]string, reached uint64, _ bool) bool { return reached >= last })
	}
	for j := range 20 {
		rev = swap(t, d, fmt.Sprintf("h.y.%d", j), 0, "x")
	}
	if got := head("h"); got != rev {
		t.Errorf("Head after 20 swaps = %d, want %d", got, rev)
	}
}

// testHeadOfDeletion: also when the last change is a deletion, the head
// covers it and both an old and a new watcher reach it.
func testHeadOfDeletion(t *testing.T, d catalog.Driver) {
	m := NewMirror(t, d, "d")
	for i := range 5 {
		rev := remove(t, d, "d.x", swap(t, d, "d.x", 0, strconv.Itoa(i)))
		head, err := d.Head(t.Context(), "d")
		if err != nil || head < rev {
			t.Fatalf("Head after a deletion at %d = %d, %v", rev, head, err)
		}
		m.wait(t, "the deletion", func(got map[string]string, reached uint64, _ bool) bool { return reached >= head && len(got) == 0 })
		fresh := NewMirror(t, d, "d")
		fresh.wait(t, "the deletion, anew", func(got map[string]string, reached uint64, synced bool) bool {
			return synced && reached >= head && len(got) == 0
		})
		fresh.Stop()
	}
}
