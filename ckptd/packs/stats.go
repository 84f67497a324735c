package packs

import (
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

type counters struct {
	hits, misses, joins, evicted, prefetched, wasted, waits, bad, streamed atomic.Int64
	evictedBytes, prefetchedBytes                                          atomic.Int64
	waited                                                                 atomic.Int64 // ns
	fetched                                                                [kinds]atomic.Int64
	served                                                                 atomic.Int64
}

// Stats are counted since the process began.
type Stats struct {
	Hits       int64 // openings by readers that found the whole shard on this node
	Misses     int64 // that began a fetch
	Joins      int64 // that found it arriving
	Evicted    int64 // copies
	Prefetched int64 // copies that came before anybody opened them
	Wasted     int64 // of those, evicted unused
	Bad        int64 // copies that failed a check
	Waits      int64 // reads that had to wait for bytes
	Waited     time.Duration
	Local      int64 // bytes read by clients through the daemon that were on this node
	Peer       int64 // bytes fetched from other nodes
	Remote     int64 // bytes fetched from the remote tier
	Streamed   int64 // of those, bytes that were not kept for want of room

	Quota, Used, Arriving int64 // bytes
	Copies                int   // whole ones
	Open                  int   // shards that are open or arriving
}

// Stats gives what was counted, and how full the cache is.
func (c *Cache) Stats() Stats {
	s := &c.stats
	out := Stats{
		Hits: s.hits.Load(), Misses: s.misses.Load(), Joins: s.joins.Load(), Evicted: s.evicted.Load(),
		Prefetched: s.prefetched.Load(), Wasted: s.wasted.Load(), Bad: s.bad.Load(),
		Waits: s.waits.Load(), Waited: time.Duration(s.waited.Load()),
		Local: s.served.Load(), Peer: s.fetched[Peer].Load(), Remote: s.fetched[Remote].Load(), Streamed: s.streamed.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out.Quota, out.Used, out.Arriving = c.mu.quota, c.used(), c.mu.arrives
	out.Copies, out.Open = len(c.mu.copies), len(c.mu.open)
	return out
}

// Have says how many bytes of a shard this node has, checked, whether that is
// all, and whether what comes comes first hand.
func (c *Cache) Have(id catalog.SetID) (bytes int64, whole bool) {
	if info, err := c.opt.Local.Stat(Own(id)); err == nil {
		return info.Size, true
	}
	c.mu.Lock()
	e, k := c.mu.open[id], c.mu.copies[id]
	c.mu.Unlock()
	if k != nil {
		return k.size, true
	}
	if e == nil {
		return 0, false
	}
	select {
	case <-e.ready:
	default:
		return 0, false
	}
	if a := e.arrival; a != nil {
		return a.bytes(), false
	}
	return 0, false
}

// Copies lists the sets of which there is a whole copy here.
func (c *Cache) Copies() []catalog.SetID {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]catalog.SetID, 0, len(c.mu.copies))
	for id := range c.mu.copies {
		out = append(out, id)
	}
	return out
}
