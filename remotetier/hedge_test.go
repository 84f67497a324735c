package remotetier

import (
	"testing"
	"time"
)

// TestLate: what is late is learned by size, from enough reads, of which the
// slowest few do not count; and nothing is late very soon.
func TestLate(t *testing.T) {
	h := newHedges()
	for i := range hedgeKnown - 1 {
		h.done("t0", 1<<20, time.Duration(i)*time.Millisecond)
	}
	if after, known := h.late(1 << 20); known {
		t.Errorf("after %d reads: %v", hedgeKnown-1, after)
	}
	for range hedgeSamples {
		h.done("t0", 64<<10, time.Microsecond)
		h.done("t0", 1<<20, 100*time.Millisecond)
	}
	for range hedgeSamples / 32 {
		h.done("t0", 1<<20-5, time.Hour) // of the same class
	}
	for range hedgeRefresh {
		h.done("t0", 1<<20, 100*time.Millisecond)
	}
	for n, want := range map[int64]time.Duration{1 << 20: 100 * time.Millisecond, 1<<19 + 1: 100 * time.Millisecond, 1: hedgeFloor, 64 << 10: hedgeFloor} {
		if after, known := h.late(n); !known || after != want {
			t.Errorf("late(%d) = %v, %v; want %v", n, after, known, want)
		}
	}
	for _, n := range []int64{0, 64<<10 + 1, 1<<20 + 1, 1 << 40} {
		if after, known := h.late(n); known != (n == 0) {
			t.Errorf("late(%d) = %v, %v, and no read of that size was seen", n, after, known)
		}
	}
}

// TestHedgeBudget: hedges are few, and earned by other reads.
func TestHedgeBudget(t *testing.T) {
	h := newHedges()
	count := func() (n int) {
		for h.spend(4) {
			n += 4
		}
		return n
	}
	if got := count(); got != hedgeBurst {
		t.Errorf("at first %d requests, want %d", got, hedgeBurst)
	}
	for range 1000 {
		h.done("t0", 1, 0)
	}
	if got, want := count(), 48; got != want { // of 1000·hedgeShare = 50
		t.Errorf("after 1000 reads %d requests, want %d", got, want)
	}
	for range 1_000_000 {
		h.done("t0", 1, 0)
	}
	if got := count(); got != hedgeBurst {
		t.Errorf("after a million reads %d requests, want %d", got, hedgeBurst)
	}
}

// TestSlowTarget: one that keeps losing is read last for a while, and tried
// again; one that wins in between is not slow.
func TestSlowTarget(t *testing.T) {
	h, now := newHedges(), time.Unix(1000, 0)
	for range 2 {
		h.lost("a", now)
		h.lost("b", now)
		h.done("b", 1, 0)
	}
	if h.last("a", now) || h.last("b", now) || h.last("c", now) {
		t.Error("two losses make no target slow")
	}
	h.lost("a", now)
	if !h.last("a", now.Add(slowFor-1)) || h.last("a", now.Add(slowFor)) || h.last("b", now) {
		t.Error("after three losses a target is slow, for a while")
	}
	h.lost("a", now.Add(slowFor))
	if !h.last("a", now.Add(2*slowFor-1)) {
		t.Error("one more loss when it is tried again is enough")
	}
	for range slowLosses {
		h.done("a", 1, 0)
	}
	h.lost("a", now.Add(3*slowFor))
	if h.last("a", now.Add(3*slowFor)) || len(h.slow) != 1 {
		t.Errorf("a target that did its reads is forgiven; %d remembered", len(h.slow))
	}
}
