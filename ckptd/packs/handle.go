package packs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
)

// Handle is a shard that somebody has open. Its methods may be called
// concurrently, but not after Close.
type Handle struct {
	c   *Cache
	ref restore.ShardRef
	why purpose

	mu      sync.Mutex
	e       *entry   // nil: closed, or let go of while it was parked
	file    *os.File // the whole, checked; nil until asked for
	lent    bool
	retries int  // see Retry
	every   bool // see CheckEvery
	parked  bool // nobody reads it for now; see Park
	closed  bool
}

// Size is the shard's, in bytes.
func (h *Handle) Size() int64 { return h.ref.Size }

// Ref is the shard.
func (h *Handle) Ref() restore.ShardRef { return h.ref }

func (h *Handle) entry() *entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.e
}

// Whole says whether all bytes are on this node's disk.
func (h *Handle) Whole() bool { return h.entry().whole() }

// Direct says whether what is still missing comes from one who has it all,
// and not from a node that fetches it in turn.
func (h *Handle) Direct() bool {
	e := h.entry()
	switch {
	case e.arrival != nil:
		return e.arrival.feed.direct()
	case e.stream != nil:
		return e.stream.feed.direct()
	}
	return true
}

// Seal is the shard's, when all of it is here; nil while it is not.
func (h *Handle) Seal() *catalog.Seal {
	e := h.entry()
	if !e.whole() {
		return nil
	}
	return e.blob.Seal()
}

// From is where the bytes are, or come from.
func (h *Handle) From() Kind {
	e := h.entry()
	var f *feed
	switch {
	case e.arrival != nil && !e.arrival.whole():
		f = e.arrival.feed
	case e.stream != nil:
		f = e.stream.feed
	default:
		return Local
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.last
}

// Has is how many bytes are here.
func (h *Handle) Has() int64 {
	e := h.entry()
	if e.arrival != nil {
		return e.arrival.bytes()
	}
	if e.blob != nil {
		return h.ref.Size
	}
	return 0
}

// Wait returns when the whole shard is on this node's disk: ErrNoSpace when
// there is no room to keep it.
func (h *Handle) Wait(ctx context.Context) error {
	e := h.entry()
	if e.stream != nil {
		return fmt.Errorf("%v: %w: there is no room to keep a copy; give the cache more, or evict", h.ref, catalog.ErrNoSpace)
	}
	if e.arrival != nil {
		err := e.arrival.end(ctx)
		if errors.Is(err, errNoKeep) {
			err = fmt.Errorf("%w: %w", catalog.ErrNoSpace, err)
		}
		return err
	}
	return nil
}

// Check returns when every block of a whole shard has passed its check in this
// process; it costs something once.
func (h *Handle) Check(ctx context.Context) error {
	e := h.entry()
	err := e.checked(ctx)
	if errors.Is(err, catalog.ErrCorrupt) && ctx.Err() == nil {
		if rerr := h.reopen(ctx, e, err); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	return err
}

// Retry has all sources of what still comes asked again up to n times, instead
// of as often as the cache's settings say; 0 leaves it to those. A shard comes
// once for all who have it open: the last who said something is heeded.
func (h *Handle) Retry(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.retries = n; h.e != nil {
		h.e.retry(n)
	}
}

// CheckEvery has every read of the handle held against the sums of the blocks,
// also where the whole was checked before; there is no Backing then. It is
// called before the handle is shared.
func (h *Handle) CheckEvery() { h.every = true }

// Backing is the file of a whole shard whose every block passed its check; nil
// while it is not: then a check is begun, unless Check was called. It is the handle's: whoever keeps it longer makes a copy.
func (h *Handle) Backing() *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file != nil {
		return h.file
	}
	if h.every || !h.e.whole() {
		return nil
	}
	if h.e.arrival == nil && !h.e.known() {
		h.c.checkLater(h.e)
		return nil
	}
	f, err := h.e.blob.OpenFile(false)
	if err != nil {
		h.c.log.Debug("no file of a pack", "shard", h.ref.String(), "err", err)
		return nil
	}
	h.file = f
	return f
}

// checkLater checks a whole shard while others read it block by block.
func (c *Cache) checkLater(e *entry) {
	c.mu.Lock()
	start := !c.mu.closed && !e.checking && c.mu.open[e.ref.Set] == e
	if start {
		e.checking = true
		e.users++
		c.wg.Add(1)
	}
	c.mu.Unlock()
	if !start {
		return
	}
	go func() {
		defer c.wg.Done()
		defer c.leave(e)
		if err := e.checked(c.ctx); err != nil && c.ctx.Err() == nil {
			// Who reads the bad block next puts the copy aside.
			c.log.Warn("pack failed its check", "shard", e.ref.String(), "err", err)
		}
	}()
}

// Lend is a new descriptor of the whole, checked file, for another process. It
// waits for neither. The copy is evicted after all others, until Close.
func (h *Handle) Lend(ctx context.Context) (*os.File, error) {
	if err := h.Check(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f, err := h.e.blob.OpenFile(false)
	if err == nil && !h.lent {
		h.lent = true
		h.c.lend(h.ref.Set, 1)
	}
	return f, err
}

func (c *Cache) lend(id catalog.SetID, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.mu.copies[id]; k != nil {
		k.lent = max(0, k.lent+n)
	}
}

// ReadAt reads any range, and waits for what is not here yet.
func (h *Handle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %v at %d: %w", h.ref, off, catalog.ErrInvalid)
	}
	if off >= h.ref.Size {
		return 0, io.EOF
	}
	var eof error
	if rest := h.ref.Size - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	for try := 0; ; try++ {
		e, err := h.wake(ctx)
		if err != nil {
			return 0, err
		}
		ended := e.arrival != nil && e.arrival.failed()
		n, err := h.read(ctx, e, p, off)
		if err == nil {
			return n, eof
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		// What is kept here is bad, or could not be kept: read it otherwise.
		// What had stopped arriving before this read, may arrive now.
		bad := e.stream == nil && errors.Is(err, catalog.ErrCorrupt) && e.whole()
		if try == 2 || !bad && !ended && !errors.Is(err, errNoKeep) {
			return 0, fmt.Errorf("read %v: %w", h.ref, err)
		}
		if rerr := h.reopen(ctx, e, err); rerr != nil {
			return 0, errors.Join(err, rerr)
		}
	}
}

func (h *Handle) read(ctx context.Context, e *entry, p []byte, off int64) (int, error) {
	if e.stream != nil {
		return e.stream.readAt(ctx, p, off)
	}
	whole := e.whole()
	if !whole {
		if err := e.arrival.wait(ctx, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	var n int
	var err error
	if f := h.Backing(); f != nil {
		n, err = f.ReadAt(p, off)
		if n < len(p) && (err == nil || errors.Is(err, io.EOF)) {
			err = fmt.Errorf("%w: the file ends early", catalog.ErrCorrupt)
		}
	} else {
		n, err = e.blob.ReadAt(p, off)
	}
	if errors.Is(err, io.EOF) && n == len(p) {
		err = nil
	}
	if err == nil && whole && h.why == forReader {
		h.c.stats.served.Add(int64(n))
	}
	return n, err
}

// reopen leaves an entry that cannot be read from. A bad copy is put aside.
func (h *Handle) reopen(ctx context.Context, e *entry, cause error) error {
	if errors.Is(cause, catalog.ErrCorrupt) && e.whole() {
		switch {
		case !e.own:
			if err := h.c.quarantine(ctx, e, cause); err != nil {
				return err
			}
		default:
			h.c.detach(e)
			if h.c.opt.Bad != nil {
				h.c.opt.Bad(ctx, h.ref, cause)
			}
		}
	}
	var next *Handle
	var err error
	if errors.Is(cause, errNoKeep) { // do not try that again at once
		next = &Handle{e: h.c.streamed(h.ref, h.why == forPeer)}
	} else if next, err = h.c.openFor(ctx, h.ref, h.why); err != nil {
		return err
	}
	h.mu.Lock()
	if h.e != e || h.closed { // another read was faster
		h.mu.Unlock()
		h.c.leave(next.e)
		return nil
	}
	h.e = next.e
	h.e.retry(h.retries)
	if h.file != nil {
		_ = h.file.Close() // only read from
		h.file = nil
	}
	h.mu.Unlock()
	h.c.leave(e)
	return nil
}

// streamed is an entry of one handle alone that keeps nothing.
func (c *Cache) streamed(ref restore.ShardRef, firstHand bool) *entry {
	e := &entry{c: c, ref: ref, users: 1, ready: make(chan struct{}), stream: newStream(c, ref, firstHand)}
	close(e.ready)
	return e
}

// Close ends the use. What arrives goes on arriving.
func (h *Handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.drop()
	return nil
}

// Fetch has a shard come to this node's disk for later, and waits for it.
func (c *Cache) Fetch(ctx context.Context, ref restore.ShardRef) error {
	h, err := c.openFor(ctx, ref, forLater)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Wait(ctx)
}
