package packs

import (
	"context"
	"fmt"
	"io/fs"
	"time"
)

// Park says that nobody reads the handle for now, and that it may be read again
// soon: the shard stays open, but its copy can be evicted like one that is not,
// and a later ReadAt opens the shard anew. Nothing of the handle may be under
// way; what follows may only be ReadAt, Park and Close.
func (h *Handle) Park() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.e == nil || h.parked {
		return
	}
	h.parked = true
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.e.parked == nil {
		h.e.parked = make(map[*Handle]bool)
	}
	h.e.parked[h] = true
}

// streamAgain is how long a shard that found no room is read without being kept
// before it is tried again.
const streamAgain = 2 * time.Second

// wake gives the entry to read from: the one there is, or, when it was let go
// of, or may find room by now, a new one.
func (h *Handle) wake(ctx context.Context) (*entry, error) {
	h.mu.Lock()
	if h.parked {
		h.unpark()
	}
	e, closed := h.e, h.closed
	h.mu.Unlock()
	switch {
	case closed:
		return nil, fmt.Errorf("read %v: %w", h.ref, fs.ErrClosed)
	case e != nil && (e.stream == nil || time.Since(e.stream.since) < streamAgain):
		return e, nil
	case e != nil:
		h.c.detach(e)
	}
	next, err := h.c.openFor(ctx, h.ref, h.why)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.e
	if old != e || h.closed { // another read was faster
		h.c.leave(next.e)
		if h.closed {
			return nil, fmt.Errorf("read %v: %w", h.ref, fs.ErrClosed)
		}
		return old, nil
	}
	h.e = next.e
	h.e.retry(h.retries)
	if old != nil {
		h.c.leave(old)
	}
	return h.e, nil
}

// unpark notes a use; the handle's lock is held.
func (h *Handle) unpark() {
	h.parked = false
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.e != nil {
		delete(h.e.parked, h)
	}
	if k := h.c.mu.copies[h.ref.Set]; k != nil {
		k.used = time.Now()
	}
}

// letGo closes what a parked handle holds, so that its copy can be evicted.
func (h *Handle) letGo() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.parked {
		h.drop()
	}
}

// drop lets go of the entry and the file; the lock is held.
func (h *Handle) drop() {
	if h.parked {
		h.c.mu.Lock()
		delete(h.e.parked, h)
		h.c.mu.Unlock()
		h.parked = false
	}
	if h.e == nil {
		return
	}
	if h.lent {
		h.c.lend(h.ref.Set, -1)
		h.lent = false
	}
	if h.file != nil {
		_ = h.file.Close() // only read from
		h.file = nil
	}
	h.c.leave(h.e)
	h.e = nil
}
