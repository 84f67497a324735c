package natscatalog_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

// Promise 3: the server goes and comes back on the same store, twice; the
// client reconnects, and the watch misses neither a change nor a deletion.
func TestWatchOutlivesRestart(t *testing.T) {
	dir, listen := t.TempDir(), ports(t, 1)[0]
	s := embed(t, dir, natscatalog.EmbedOptions{Listen: listen})
	d := open(t, connect(t, s.ClientURL()), "catalog", natscatalog.Options{Timeout: time.Second})
	gone := persist(t, d, "gone", 0, "x")
	want := map[string]string{"gone": "x"}
	m := catalogtest.NewMirror(t, d, "")
	same := func(got map[string]string, _ uint64, synced bool) bool { return synced && maps.Equal(got, want) }
	if err := m.Wait(t.Context(), same); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Swap(t.Context(), "while.away", 0, []byte("x")); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("Swap while the server is away: %v", err)
		}
		s = embed(t, dir, natscatalog.EmbedOptions{Listen: listen})
		// Somebody else is quicker than the watch.
		other := open(t, inProcess(t, s), "catalog", natscatalog.Options{})
		key := fmt.Sprintf("round.%d", round)
		persist(t, other, key, 0, "x")
		want[key] = "x"
		if round == 1 {
			if _, err := other.Swap(t.Context(), "gone", gone, nil); err != nil {
				t.Fatal(err)
			}
			delete(want, "gone")
		}
		if err := m.Wait(t.Context(), same); err != nil {
			t.Fatalf("after restart %d: %v", round, err)
		}
		if got := collect(t, open(t, connect(t, s.ClientURL()), "catalog", natscatalog.Options{})); !maps.Equal(got, want) {
			t.Errorf("after restart %d the store has %v, want %v", round, got, want)
		}
	}
}

// A watch does not go on with a store that is not the one it knew.
func TestWatchOfReplacedStoreEnds(t *testing.T) {
	listen := ports(t, 1)[0]
	s := embed(t, t.TempDir(), natscatalog.EmbedOptions{Listen: listen})
	d := open(t, connect(t, s.ClientURL()), "catalog", natscatalog.Options{})
	persist(t, d, "a", 0, "x")
	m := catalogtest.NewMirror(t, d, "")
	if err := m.Wait(t.Context(), func(_ map[string]string, _ uint64, synced bool) bool { return synced }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = embed(t, t.TempDir(), natscatalog.EmbedOptions{Listen: listen})
	other := open(t, inProcess(t, s), "catalog", natscatalog.Options{})
	persist(t, other, "b", 0, "x")
	err := m.Wait(t.Context(), func(map[string]string, uint64, bool) bool { return false })
	if !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("the watch ended with %v, want ErrUnavailable", err)
	}
}

// Promise 5: the marker of a deletion goes away by itself, also across a
// restart, and the key can be used before and after.
func TestMarkersExpire(t *testing.T) {
	dir := t.TempDir()
	s := embed(t, dir, natscatalog.EmbedOptions{})
	nc := inProcess(t, s)
	opt := natscatalog.Options{MarkerTTL: time.Second}
	d := open(t, nc, "catalog", opt)
	for i := range 10 {
		key := fmt.Sprintf("k.%d", i)
		rev := persist(t, d, key, 0, "x")
		if _, err := d.Swap(t.Context(), key, rev, nil); err != nil {
			t.Fatal(err)
		}
	}
	persist(t, d, "k.0", 0, "again, over the marker")
	if n := stream(t, nc, "catalog").CachedInfo().State.Msgs; n != 10 {
		t.Errorf("%d messages with fresh markers, want 10", n)
	}
	nc.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = embed(t, dir, natscatalog.EmbedOptions{})
	nc = inProcess(t, s)
	d = open(t, nc, "catalog", opt)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond) // the server tells nobody when it expires a message
	defer poll.Stop()
	for stream(t, nc, "catalog").CachedInfo().State.Msgs != 1 {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("the markers are still there")
		}
	}
	// With the last messages gone, heads are those of what remains, and watches synchronise.
	for _, prefix := range []string{"", "k", "k.0"} {
		head, err := d.Head(t.Context(), prefix)
		if err != nil || head == 0 {
			t.Errorf("Head(%q) = %d, %v", prefix, head, err)
		}
		m := catalogtest.NewMirror(t, d, prefix)
		if err := m.Wait(t.Context(), func(got map[string]string, reached uint64, synced bool) bool {
			return synced && reached >= head && len(got) == 1
		}); err != nil {
			t.Errorf("Watch(%q): %v", prefix, err)
		}
	}
	persist(t, d, "k.1", 0, "again, without a marker")
}

// Promise 3: a watch that was cut off while markers expired must end.
func TestWatchEndsWhenCutOffTooLong(t *testing.T) {
	dir, listen := t.TempDir(), ports(t, 1)[0]
	s := embed(t, dir, natscatalog.EmbedOptions{Listen: listen})
	d := open(t, connect(t, s.ClientURL()), "catalog", natscatalog.Options{MarkerTTL: 2 * time.Second})
	persist(t, d, "a", 0, "x")
	m := catalogtest.NewMirror(t, d, "")
	if err := m.Wait(t.Context(), func(_ map[string]string, _ uint64, synced bool) bool { return synced }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := m.Wait(t.Context(), func(map[string]string, uint64, bool) bool { return false })
	if !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("the watch ended with %v, want ErrUnavailable", err)
	}
}
