package packs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/restore"
)

// entry is a shard that is open: this node's own blob, a copy, one that
// arrives, or one that is read without being kept.
type entry struct {
	c     *Cache
	ref   restore.ShardRef
	users int // under Cache.mu
	// checking: a goroutine checks all of it; under Cache.mu.
	checking bool
	parked   map[*Handle]bool // users that read nothing for now; under Cache.mu

	ready chan struct{} // closed when what follows is set
	err   error
	own   bool            // the blob is this node's own, not a copy
	blob  *localtier.Blob // nil: read without being kept
	// arrival is set for what came, or comes, while this entry is open.
	arrival *arrival
	stream  *stream // set when there was no room for a copy

	check sync.Mutex // one at a time
}

// begin finds the shard here, or lets it come.
func (e *entry) begin(ctx context.Context, why purpose) {
	c := e.c
	if e.blob, e.err = e.here(ctx); e.blob != nil || e.err != nil {
		return
	}
	want := NotKnown
	if why == forLater {
		c.mu.Lock()
		if next, ok := c.mu.next[e.ref.Set]; ok {
			want = next
		}
		c.mu.Unlock()
	}
	e.arrival, e.err = c.arrive(ctx, e, want, why)
	if errors.Is(e.err, catalog.ErrNoSpace) && why != forLater {
		c.log.Debug("read without keeping a copy", "shard", e.ref.String(), "err", e.err)
		e.stream, e.err = newStream(c, e.ref, why == forPeer), nil
		return
	}
	if e.err == nil {
		e.blob = e.arrival.blob
	}
}

// here opens what this node's disks have; nil, nil: nothing that is good.
func (e *entry) here(ctx context.Context) (*localtier.Blob, error) {
	c := e.c
	for _, name := range []string{Own(e.ref.Set), Name(e.ref.Set)} {
		b, err := c.opt.Local.Open(name)
		if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrCorrupt) {
			continue
		}
		own := !Is(name)
		if err == nil && (b.Seal().Root() != e.ref.Root || b.Size() != e.ref.Size) {
			err = errors.Join(fmt.Errorf("%s: %w: it is not the shard that was committed", name, catalog.ErrCorrupt), b.Close())
		}
		if err == nil {
			e.own = own
			return b, nil
		}
		if own {
			if c.opt.Bad != nil && errors.Is(err, catalog.ErrCorrupt) {
				c.opt.Bad(ctx, e.ref, err)
			}
			continue
		}
		if qerr := c.quarantineName(ctx, e.ref.Set, err); qerr != nil {
			return nil, qerr
		}
	}
	return nil, nil
}

func (c *Cache) quarantineName(ctx context.Context, id catalog.SetID, cause error) error {
	c.stats.bad.Add(1)
	c.mu.Lock()
	delete(c.mu.copies, id)
	c.mu.Unlock()
	return c.opt.Local.Quarantine(context.WithoutCancel(ctx), Name(id), cause)
}

// whole says whether every byte is on this node.
func (e *entry) whole() bool {
	switch {
	case e.blob == nil:
		return false
	case e.arrival != nil:
		return e.arrival.whole()
	}
	return true
}

// close ends the last use; what arrives is a use.
func (e *entry) close() {
	if e.stream != nil {
		e.stream.close()
	}
	if e.blob != nil {
		_ = e.blob.Close() // only read from
	}
}

// checked sees to it that every block passed its check in this process, so
// that the file can be given away.
func (e *entry) checked(ctx context.Context) error {
	if !e.whole() {
		return fmt.Errorf("%v: %w: it is still arriving", e.ref, catalog.ErrIncomplete)
	}
	if e.arrival != nil || e.known() {
		return nil
	}
	e.check.Lock()
	defer e.check.Unlock()
	if e.known() {
		return nil
	}
	f, err := e.blob.OpenFile(false)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := e.blob.VerifyCached(ctx, f, e.ref.Whole()); err != nil {
		return err
	}
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	if e.own {
		if len(e.c.mu.checked) > maxKnown {
			clear(e.c.mu.checked)
		}
		e.c.mu.checked[e.ref.Set] = true
	} else if k := e.c.mu.copies[e.ref.Set]; k != nil {
		k.checked = true
	}
	return nil
}

// maxKnown bounds how many own blobs are remembered as checked.
const maxKnown = 1 << 16

func (e *entry) known() bool {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	if e.own {
		return e.c.mu.checked[e.ref.Set]
	}
	k := e.c.mu.copies[e.ref.Set]
	return k != nil && k.checked
}

// keep makes a copy that came whole one of those kept.
func (c *Cache) keep(ref restore.ShardRef, prefetched bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.arrives -= ref.Size
	c.mu.copies[ref.Set] = &kept{name: Name(ref.Set), size: ref.Size, root: ref.Root, used: time.Now(), checked: true, prefetched: prefetched}
}

// retry sets the budget of what comes; 0: as it is.
func (e *entry) retry(n int) {
	switch {
	case n <= 0:
	case e.arrival != nil:
		e.arrival.feed.budget.Store(int64(n))
	case e.stream != nil:
		e.stream.feed.budget.Store(int64(n))
	}
}
