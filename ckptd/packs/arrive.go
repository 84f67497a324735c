package packs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/restore"
)

// arrival is a copy on its way to this node's disk.
type arrival struct {
	c    *Cache
	ref  restore.ShardRef
	in   *localtier.Ingest
	blob *localtier.Blob // reads what is there; its entry closes it
	feed *feed
	why  purpose

	mu struct {
		sync.Mutex
		claimed []bool // by chunk: fetched, or being fetched
		here    []bool // by chunk
		urgent  []int  // chunks that a read waits for, the first first
		cursor  int    // what comes next when nothing is urgent
		left    int    // chunks not claimed
		got     int64  // bytes
		done    bool
		err     error
		changed chan struct{} // closed when something came
	}
}

// errNoKeep is why an arrival ends that this node's disk could not take.
var errNoKeep = errors.New("the disk did not take the copy")

func chunksOf(size int64) int { return int((size + chunkSize - 1) / chunkSize) }

// arrive begins the arrival of an entry's shard. want is when it is needed.
func (c *Cache) arrive(ctx context.Context, e *entry, want int64, why purpose) (*arrival, error) {
	ref := e.ref
	if err := c.reserve(ctx, ref, want); err != nil {
		return nil, err
	}
	in, err := c.stage(ctx, ref)
	if err != nil {
		c.unreserve(ref.Size)
		return nil, err
	}
	a := &arrival{c: c, ref: ref, in: in, feed: newFeed(c, ref, why == forPeer), why: why}
	if a.blob, err = in.Open(); err != nil {
		c.unreserve(ref.Size)
		return nil, errors.Join(err, in.Close())
	}
	n := chunksOf(ref.Size)
	a.mu.claimed, a.mu.here, a.mu.left, a.mu.changed = make([]bool, n), make([]bool, n), n, make(chan struct{})
	c.mu.Lock()
	closed := c.mu.closed
	if !closed {
		e.users++ // the arrival's own
		c.mu.coming++
		c.wg.Add(1)
	}
	c.mu.Unlock()
	if closed {
		c.unreserve(ref.Size)
		return nil, errors.Join(fs.ErrClosed, a.blob.Close(), in.Close())
	}
	go func() {
		defer c.wg.Done()
		a.run(e)
	}()
	return a, nil
}

// stage makes room on a disk, at the cost of other copies if need be. It leaves
// the tier below its high water: what would be evicted at once is not fetched.
func (c *Cache) stage(ctx context.Context, ref restore.ShardRef) (*localtier.Ingest, error) {
	if short := ref.Size - c.opt.Local.Usage().ToHigh; short > 0 {
		freed, err := c.Free(ctx, short)
		if err == nil && freed < short {
			err = fmt.Errorf("%w: the local tier would be above its high-water mark by %d bytes", catalog.ErrNoSpace, short-freed)
		}
		if err != nil {
			return nil, err
		}
	}
	return c.opt.Local.Reserve(ctx, Name(ref.Set), ref.Size)
}

// run fetches everything, and publishes the copy.
func (a *arrival) run(e *entry) {
	c := a.c
	defer c.ended()
	defer c.leave(e)
	defer a.feed.close()
	err := a.fetch(c.ctx)
	if err == nil {
		err = a.commit(c.ctx)
	}
	if err != nil {
		c.detach(e)
		c.unreserve(a.ref.Size)
		if cerr := a.in.Close(); cerr != nil {
			c.log.Warn("copy given up", "shard", a.ref.String(), "err", cerr)
		}
		if !errors.Is(err, context.Canceled) {
			c.log.Warn("pack did not arrive", "shard", a.ref.String(), "err", err)
		}
	} else {
		c.keep(a.ref, a.why == forLater)
		if a.why == forLater {
			c.stats.prefetched.Add(1)
			c.stats.prefetchedBytes.Add(a.ref.Size)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.done, a.mu.err = err == nil, err
	close(a.mu.changed)
	a.mu.changed = nil
}

// fetch brings every chunk. Where the whole turns out not to be the shard,
// the peers that passed it on are left and it is fetched once more.
func (a *arrival) fetch(ctx context.Context) error {
	for again := 0; ; again++ {
		g, ctx := errgroup.WithContext(ctx)
		for range min(parallel, len(a.mu.here)) {
			g.Go(func() error { return a.work(ctx) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if a.in.Root() == a.ref.Root {
			return nil
		}
		err := fmt.Errorf("%v: %w: what came does not give its root", a.ref, catalog.ErrCorrupt)
		if again > 0 {
			return err
		}
		a.feed.blameAll(err)
		a.restart()
	}
}

func (a *arrival) restart() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.mu.claimed)
	clear(a.mu.here)
	a.mu.left, a.mu.cursor, a.mu.got = len(a.mu.here), 0, 0
}

// work fetches chunks until none is left.
func (a *arrival) work(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = a.some(ctx); err != nil {
			return err
		}
	}
	return nil
}

// some fetches one chunk, if one is left.
func (a *arrival) some(ctx context.Context) (more bool, err error) {
	buf, done, err := a.c.take(ctx, a.feed)
	if err != nil {
		return false, err
	}
	defer func() { done(buf) }()
	i, ok := a.next()
	if !ok {
		return false, nil
	}
	off := int64(i) * chunkSize
	n := min(chunkSize, a.ref.Size-off)
	if int64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	p := buf[:n]
	if err := a.feed.read(ctx, p, off); err != nil {
		return false, err
	}
	if err := a.in.WriteAt(p, off); err != nil {
		return false, fmt.Errorf("%w: %w", errNoKeep, err)
	}
	a.came(i, n)
	return true, nil
}

// take waits for memory of a chunk; what it gives may have to be made larger,
// and goes back by give, for the next one. No more than half of all is lent to
// reads that wait for another node, which may wait for this one in turn: the
// rest is for what comes first hand.
func (c *Cache) take(ctx context.Context, f *feed) (b []byte, give func([]byte), err error) {
	waits := f.waits()
	if waits {
		select {
		case c.behind <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	give = func(b []byte) {
		c.memory <- b
		if waits {
			<-c.behind
		}
	}
	select {
	case b = <-c.memory:
		return b, give, nil
	case <-ctx.Done():
		if waits {
			<-c.behind
		}
		return nil, nil, ctx.Err()
	}
}

// ended counts an arrival out; after the last one nothing needs memory.
func (c *Cache) ended() {
	c.mu.Lock()
	c.mu.coming--
	last := c.mu.coming == 0
	c.mu.Unlock()
	if last {
		c.forget()
	}
}

// forget lets go of the memory that nobody uses.
func (c *Cache) forget() {
	for range cap(c.memory) {
		select {
		case <-c.memory:
			c.memory <- nil
		default:
			return
		}
	}
}

// next claims the chunk to fetch: one that a read waits for, else the one
// after the last.
func (a *arrival) next() (int, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.mu.urgent) > 0 {
		i := a.mu.urgent[0]
		a.mu.urgent = a.mu.urgent[1:]
		if !a.mu.claimed[i] {
			return a.claim(i), true
		}
	}
	if a.mu.left == 0 {
		return 0, false
	}
	for i := a.mu.cursor; ; i++ {
		if i %= len(a.mu.claimed); !a.mu.claimed[i] {
			return a.claim(i), true
		}
	}
}

// claim takes a chunk; the lock is held.
func (a *arrival) claim(i int) int {
	a.mu.claimed[i] = true
	a.mu.left--
	a.mu.cursor = i + 1
	return i
}

func (a *arrival) came(i int, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.here[i] = true
	a.mu.got += bytes
	close(a.mu.changed)
	a.mu.changed = make(chan struct{})
}

// maxUrgent bounds the chunks that are brought to the front; a read that waits
// for more gets them in their order.
const maxUrgent = 1024

// wait returns when n bytes at off are there.
func (a *arrival) wait(ctx context.Context, off, n int64) error {
	asked := false
	var since time.Time
	for {
		a.mu.Lock()
		if a.mu.err != nil || a.mu.done {
			defer a.mu.Unlock()
			return a.mu.err
		}
		missing := false
		for i := int(off / chunkSize); i < chunksOf(off+n); i++ {
			if a.mu.here[i] {
				continue
			}
			missing = true
			if !asked && !a.mu.claimed[i] && len(a.mu.urgent) < maxUrgent {
				a.mu.urgent = append(a.mu.urgent, i)
			}
		}
		asked = true
		changed := a.mu.changed
		a.mu.Unlock()
		if !missing {
			if !since.IsZero() {
				a.c.stats.waited.Add(int64(time.Since(since)))
			}
			return nil
		}
		if since.IsZero() {
			since = time.Now()
			a.c.stats.waits.Add(1)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// end waits until the copy is whole, or will never be.
func (a *arrival) end(ctx context.Context) error {
	for {
		a.mu.Lock()
		done, err, changed := a.mu.done, a.mu.err, a.mu.changed
		a.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *arrival) whole() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.done
}

// failed says whether it ended without being whole.
func (a *arrival) failed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.err != nil
}

func (a *arrival) bytes() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.got
}

// commit makes the copy durable and visible.
func (a *arrival) commit(ctx context.Context) error {
	info, err := json.Marshal(catalog.ShardInfo{Set: a.ref.Set, World: 1, Sealed: time.Now()})
	if err != nil {
		return err
	}
	if _, err := a.in.Commit(ctx, info); err != nil {
		return fmt.Errorf("%w: %w", errNoKeep, err)
	}
	return nil
}
