package remotetier

import (
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/ckptd/ckptd/remotetier/stripe"
)

// A read of a column that takes longer than nearly all reads of its size do is
// hedged: its bytes are rebuilt from other columns meanwhile, and what comes
// first counts. hedges decides when; hedged.go does it.
const (
	hedgeSamples = 128                   // of one size class that are remembered
	hedgeKnown   = 24                    // of them before the class can tell what is late
	hedgeRefresh = 16                    // of them between two looks at what is late
	hedgeQuota   = 0.95                  // of the reads are not late
	hedgeFloor   = 50 * time.Millisecond // nothing is late before
	hedgeClasses = 10                    // by powers of two, from one block to 32 MiB and more
	hedgeShare   = 0.05                  // requests for hedges that a request earns
	hedgeBurst   = 64                    // such requests at most at once

	slowLosses = 3               // reads that a target lost to a rebuild make it slow
	slowFor    = 5 * time.Second // it is then read last for so long
	slowMost   = 1024            // targets remembered
)

// hedges watches the reads of a Tier. It is safe for concurrent use.
type hedges struct {
	sync.Mutex
	class [hedgeClasses]lateness
	spent float64 // requests of hedges beyond what was earned; at most hedgeBurst
	slow  map[string]*slowness
}

// lateness is what the last reads of one size class took.
type lateness struct {
	took  [hedgeSamples]time.Duration
	n     int64 // seen in all
	limit time.Duration
}

// slowness is how a target fares against rebuilds.
type slowness struct {
	losses int
	until  time.Time // it is read last
}

func newHedges() *hedges { return &hedges{slow: map[string]*slowness{}} }

// sizeClass of a read of n bytes.
func sizeClass(n int64) int {
	return min(bits.Len64(uint64(max(n, 1)-1)/stripe.Block), hedgeClasses-1)
}

// late is when a read of n bytes is late; false while that is not known.
func (h *hedges) late(n int64) (after time.Duration, known bool) {
	h.Lock()
	defer h.Unlock()
	c := &h.class[sizeClass(n)]
	return c.limit, c.n >= hedgeKnown
}

// done notes a read of n bytes that a target finished, hedged or not. One that
// was cut short by its hedge says nothing about how long reads take.
func (h *hedges) done(target string, n int64, took time.Duration) {
	h.Lock()
	defer h.Unlock()
	h.class[sizeClass(n)].add(took)
	h.spent = max(h.spent-hedgeShare, 0)
	if s := h.slow[target]; s != nil {
		if s.losses--; s.losses <= 0 {
			delete(h.slow, target)
		}
	}
}

func (c *lateness) add(took time.Duration) {
	c.took[c.n%hedgeSamples] = took
	c.n++
	if c.n == hedgeKnown || c.n%hedgeRefresh == 0 {
		seen := slices.Clone(c.took[:min(c.n, hedgeSamples)])
		slices.Sort(seen)
		c.limit = max(seen[int(hedgeQuota*float64(len(seen)-1))], hedgeFloor)
	}
}

// spend takes so many requests from the budget, or none.
func (h *hedges) spend(requests int) bool {
	h.Lock()
	defer h.Unlock()
	if h.spent+float64(requests) > hedgeBurst {
		return false
	}
	h.spent += float64(requests)
	return true
}

// lost notes that a rebuild came before a target's own bytes.
func (h *hedges) lost(target string, now time.Time) {
	h.Lock()
	defer h.Unlock()
	s := h.slow[target]
	if s == nil {
		if len(h.slow) >= slowMost {
			return
		}
		s = &slowness{}
		h.slow[target] = s
	}
	if s.losses++; s.losses >= slowLosses {
		s.losses = slowLosses - 1 // when it is tried again, one more is enough
		s.until = now.Add(slowFor)
	}
}

// last says whether a target is to be read last.
func (h *hedges) last(target string, now time.Time) bool {
	h.Lock()
	defer h.Unlock()
	s := h.slow[target]
	return s != nil && now.Before(s.until)
}
