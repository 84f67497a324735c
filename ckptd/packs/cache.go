package packs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/restore"
)

// Options of a Cache.
type Options struct {
	Local   *localtier.Tier // required
	Sources Sources         // required
	// Seal gives what the committed set says the blocks of its shard must be,
	// checked against its root; nil, nil: it does not say. A nil Seal: none does.
	Seal func(ctx context.Context, ref restore.ShardRef) (*catalog.Seal, error)
	// Quota bounds the copies, in bytes, whole and arriving; default half of
	// the tier's.
	Quota int64
	// Memory bounds what is on its way to the disk, in bytes, and as much again
	// what is read without being kept; default 64 MiB.
	Memory int64
	Policy string // ByNext (default) or ByLRU
	// Retries is how often all sources are asked again for a chunk; default 4.
	Retries int
	// Bad is told that this node's own blob of a shard, one that is not a
	// copy, failed its check. nil: nobody wants to know.
	Bad func(ctx context.Context, ref restore.ShardRef, cause error)
	Log *slog.Logger
}

const (
	chunkBlocks = 4 // fetched at a time
	chunkSize   = chunkBlocks * catalog.BlockSize
	parallel    = 3 // chunks of one shard at a time
)

// MaxRetries bounds Options.Retries.
const MaxRetries = 100

// Cache keeps copies of shards. Its methods may be called concurrently.
type Cache struct {
	opt    Options
	log    *slog.Logger
	memory chan []byte   // a token a chunk, and its memory, nil while nothing arrives
	behind chan struct{} // a place for each chunk that another node may have to fetch first
	shown  chan struct{} // a place for each chunk that a stream keeps
	stats  counters

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // arrivals
	making sync.Mutex     // room for an arrival

	mu struct {
		sync.Mutex
		closed  bool
		quota   int64
		policy  string
		retries int
		copies  map[catalog.SetID]*kept  // whole copies on this node's disks
		open    map[catalog.SetID]*entry // shards that are open or arriving
		arrives int64                    // bytes reserved for arriving copies
		coming  int                      // arrivals
		next    map[catalog.SetID]int64  // see SetNext
		checked map[catalog.SetID]bool   // own blobs whose every block was checked by this process
	}
}

// kept is one whole copy.
type kept struct {
	name       string
	size       int64
	root       catalog.Digest
	used       time.Time
	checked    bool // every block passed its check in this process
	prefetched bool // and not used yet
	lent       int  // clients that were given its file
}

// New takes stock of the copies that are there.
func New(opt Options) *Cache {
	if opt.Quota <= 0 {
		opt.Quota = opt.Local.Usage().Quota / 2
	}
	if opt.Memory <= 0 {
		opt.Memory = 64 << 20
	}
	if opt.Policy == "" {
		opt.Policy = ByNext
	}
	if opt.Retries <= 0 {
		opt.Retries = 4
	}
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	c := &Cache{opt: opt, log: opt.Log, memory: make(chan []byte, max(2, opt.Memory/chunkSize))}
	c.behind = make(chan struct{}, cap(c.memory)/2)
	c.shown = make(chan struct{}, cap(c.memory))
	for range cap(c.memory) {
		c.memory <- nil
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.mu.quota, c.mu.policy, c.mu.retries = opt.Quota, opt.Policy, opt.Retries
	c.mu.copies, c.mu.open = map[catalog.SetID]*kept{}, map[catalog.SetID]*entry{}
	c.mu.next, c.mu.checked = map[catalog.SetID]int64{}, map[catalog.SetID]bool{}
	for info := range opt.Local.List(Prefix) {
		if id, ok := ParseName(info.Name); ok {
			c.mu.copies[id] = &kept{name: info.Name, size: info.Size, root: info.Root, used: info.ModTime}
		}
	}
	return c
}

// Close ends what is arriving, and waits for it. Handles that are open go on
// with what they have.
func (c *Cache) Close() {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// Open gives a handle on a shard: of this node's own blob or copy, or of one
// that begins to arrive.
func (c *Cache) Open(ctx context.Context, ref restore.ShardRef) (*Handle, error) {
	return c.openFor(ctx, ref, forReader)
}

// OpenFirstHand is Open for another node that is to get the bytes: what is not
// here is fetched from those only that have the whole of it.
func (c *Cache) OpenFirstHand(ctx context.Context, ref restore.ShardRef) (*Handle, error) {
	return c.openFor(ctx, ref, forPeer)
}

// purpose is who wants a shard.
type purpose int

const (
	forReader purpose = iota
	forPeer
	forLater // prefetch, warm
)

func (c *Cache) openFor(ctx context.Context, ref restore.ShardRef, why purpose) (*Handle, error) {
	if ref.Rank != 0 || ref.Size < 0 || ref.Size > catalog.MaxShardSize || ref.Root.IsZero() {
		return nil, fmt.Errorf("open %v: %w: want rank 0, with its size and root", ref, catalog.ErrInvalid)
	}
	for {
		e, mine, err := c.enter(ref, why)
		if err != nil {
			return nil, fmt.Errorf("open %v: %w", ref, err)
		}
		if mine {
			e.begin(ctx, why)
			close(e.ready)
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.leave(e)
			return nil, ctx.Err()
		}
		if e.err != nil {
			c.leave(e)
			left := errors.Is(e.err, context.Canceled)                       // the one who opened it
			later := errors.Is(e.err, catalog.ErrNoSpace) && why != forLater // he wanted a copy or nothing
			if !mine && ctx.Err() == nil && (left || later) {
				c.detach(e)
				continue
			}
			return nil, fmt.Errorf("open %v: %w", ref, e.err)
		}
		if why == forReader {
			c.count(e, mine)
		}
		return &Handle{c: c, ref: ref, e: e, why: why}, nil
	}
}

// enter joins the users of an open shard, or becomes the one who opens it.
func (c *Cache) enter(ref restore.ShardRef, why purpose) (e *entry, mine bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, false, fs.ErrClosed
	}
	if e = c.mu.open[ref.Set]; e == nil {
		e = &entry{c: c, ref: ref, ready: make(chan struct{})}
		c.mu.open[ref.Set] = e
		mine = true
	} else if e.ref.Root != ref.Root || e.ref.Size != ref.Size {
		return nil, false, fmt.Errorf("%w: it is open with another root or size", catalog.ErrCorrupt)
	}
	e.users++
	if k := c.mu.copies[ref.Set]; k != nil && why != forLater {
		k.used = time.Now()
	}
	return e, mine, nil
}

// Known is the shard of a set as this node has it, open, arriving or whole.
func (c *Cache) Known(id catalog.SetID) (restore.ShardRef, bool) {
	c.mu.Lock()
	e, k := c.mu.open[id], c.mu.copies[id]
	c.mu.Unlock()
	switch {
	case e != nil:
		return e.ref, true
	case k != nil:
		return restore.ShardRef{Set: id, Size: k.size, Root: k.root}, true
	}
	info, err := c.opt.Local.Stat(Own(id))
	return restore.ShardRef{Set: id, Size: info.Size, Root: info.Root}, err == nil
}

// leave ends one use of an open shard; the last one closes it.
func (c *Cache) leave(e *entry) {
	c.mu.Lock()
	e.users--
	last := e.users == 0
	if last && c.mu.open[e.ref.Set] == e {
		delete(c.mu.open, e.ref.Set)
	}
	c.mu.Unlock()
	if last {
		e.close()
	}
}

// detach takes an entry whose bytes turned bad, or are not kept, off the open
// ones: whoever opens the shard now begins anew.
func (c *Cache) detach(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.open[e.ref.Set] == e {
		delete(c.mu.open, e.ref.Set)
	}
}

// count tells a reader's opening apart: a hit finds every byte on this node.
func (c *Cache) count(e *entry, mine bool) {
	if e.whole() {
		c.stats.hits.Add(1)
	} else if mine {
		c.stats.misses.Add(1)
	} else {
		c.stats.joins.Add(1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.mu.copies[e.ref.Set]; k != nil {
		k.used = time.Now()
		k.prefetched = false
	}
}

// Settings are what can be changed at run time; zero fields mean no change.
type Settings struct {
	Quota   int64
	Policy  string
	Retries int
}

// Configure changes settings, and makes room when the quota shrank.
func (c *Cache) Configure(ctx context.Context, s Settings) error {
	switch {
	case s.Quota < 0:
		return fmt.Errorf("cache of %d bytes: %w: want a positive size", s.Quota, catalog.ErrInvalid)
	case s.Policy != "" && s.Policy != ByNext && s.Policy != ByLRU:
		return fmt.Errorf("cache policy %.40q: %w: want %s or %s", s.Policy, catalog.ErrInvalid, ByNext, ByLRU)
	case s.Retries < 0 || s.Retries > MaxRetries:
		return fmt.Errorf("retries %d: %w: want 1 to %d", s.Retries, catalog.ErrInvalid, MaxRetries)
	}
	c.mu.Lock()
	if s.Quota > 0 {
		c.mu.quota = s.Quota
	}
	if s.Policy != "" {
		c.mu.policy = s.Policy
	}
	if s.Retries > 0 {
		c.mu.retries = s.Retries
	}
	over := c.used() - c.mu.quota
	c.mu.Unlock()
	if over > 0 {
		_, err := c.Free(ctx, over)
		return err
	}
	return nil
}

// Settings are those in force.
func (c *Cache) Settings() Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Settings{Quota: c.mu.quota, Policy: c.mu.policy, Retries: c.mu.retries}
}

// used is what counts against the quota, in bytes; the lock is held.
func (c *Cache) used() int64 {
	n := c.mu.arrives
	for _, k := range c.mu.copies {
		n += k.size
	}
	return n
}
