package localtier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/ckptd/ckptd/catalog"
)

// waiter is a call of Lend that waits. Arena.mu guards it.
type waiter struct {
	session string
	want    int
	prefer  map[int]bool // segments the client has mapped already
	got     []*Segment
	ready   chan struct{} // closed when got is set, or the arena has closed
}

// Lend lends at least one segment and at most want to a user, and waits until
// there is one. Every call counts as a session of its own; see LendTo.
func (a *Arena) Lend(ctx context.Context, uid uint32, want int) ([]*Segment, error) {
	a.mu.Lock()
	a.mu.calls++
	session := fmt.Sprintf("call %d", a.mu.calls)
	a.mu.Unlock()
	return a.LendTo(ctx, session, uid, want, nil)
}

// LendTo lends at least one segment and at most want to a session of a user.
// Sessions are served in the order of asking; while several ask, none gets
// more than an equal share of the arena, counting what it already has. Free
// segments that it prefers, because it has them mapped, are taken first.
func (a *Arena) LendTo(ctx context.Context, session string, uid uint32, want int, prefer map[int]bool) ([]*Segment, error) {
	if want < 1 {
		return nil, fmt.Errorf("lend: %w: %d segments", catalog.ErrInvalid, want)
	}
	w := &waiter{session: session, want: want, prefer: prefer, ready: make(chan struct{})}
	a.mu.Lock()
	if a.mu.closed {
		a.mu.Unlock()
		return nil, fmt.Errorf("lend: arena: %w", fs.ErrClosed)
	}
	a.mu.queue = append(a.mu.queue, w)
	a.serve()
	a.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
		a.mu.Lock()
		if i := slices.Index(a.mu.queue, w); i >= 0 {
			a.mu.queue = slices.Delete(a.mu.queue, i, i+1)
			a.serve() // others may have waited for this one's turn
		}
		a.mu.Unlock()
		a.Return(w.got...)
		return nil, fmt.Errorf("lend: %w", ctx.Err())
	}
	if w.got == nil {
		return nil, fmt.Errorf("lend: arena: %w", fs.ErrClosed)
	}
	return a.hand(w, uid)
}

// hand makes what w got fit for its user: memory of another user is replaced,
// not wiped, because that user may still have it mapped.
func (a *Arena) hand(w *waiter, uid uint32) ([]*Segment, error) {
	var good, bad []*Segment
	var errs error
	for _, s := range w.got {
		if s.used && s.uid != int64(uid) || !s.whole() {
			if err := a.renew(s); err != nil {
				errs = errors.Join(errs, err)
				bad = append(bad, s)
				continue
			}
		}
		s.uid, s.used = int64(uid), true
		good = append(good, s)
	}
	a.Return(bad...)
	if len(good) == 0 {
		return nil, fmt.Errorf("lend: %w", errs)
	}
	return good, nil
}

// renew gives a lent segment fresh memory.
func (a *Arena) renew(s *Segment) error {
	s.pin.Lock()
	defer s.pin.Unlock()
	// The old memory goes first: a full tmpfs may have no room for both.
	err := s.unmap()
	if e := os.Remove(s.path); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	fresh, err := a.newSegment(s.id)
	if err != nil {
		return err
	}
	s.mem, s.inode, s.uid, s.used = fresh.mem, fresh.inode, unknownUID, false
	return nil
}

// serve gives free segments to those who wait. Arena.mu is held.
func (a *Arena) serve() {
	if a.mu.closed {
		for _, w := range a.mu.queue {
			close(w.ready)
		}
		a.mu.queue = nil
		return
	}
	for len(a.mu.queue) > 0 && len(a.mu.free) > 0 {
		i, n := a.next()
		w := a.mu.queue[i]
		a.mu.queue = slices.Delete(a.mu.queue, i, i+1)
		slices.SortStableFunc(a.mu.free, func(x, y *Segment) int { // false before true
			return boolToInt(!w.prefer[x.id]) - boolToInt(!w.prefer[y.id])
		})
		w.got = slices.Clone(a.mu.free[:n])
		a.mu.free = slices.Delete(a.mu.free, 0, n)
		for _, s := range w.got {
			s.lent, s.session = true, w.session
		}
		a.mu.held[w.session] += n
		close(w.ready)
	}
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// next chooses who is served, and with how many segments.
func (a *Arena) next() (index, n int) {
	sessions := map[string]bool{}
	for _, w := range a.mu.queue {
		sessions[w.session] = true
	}
	waiting := len(sessions)
	for session := range a.mu.held {
		sessions[session] = true
	}
	free := len(a.mu.free)
	if waiting == 1 { // nobody is kept waiting by generosity
		return 0, min(free, a.mu.queue[0].want)
	}
	share := max(1, len(a.mu.segs)/len(sessions))
	for i, w := range a.mu.queue {
		if room := share - a.mu.held[w.session]; room > 0 {
			// One for each of the others, as far as it goes.
			return i, max(1, min(w.want, room, free-(waiting-1)))
		}
	}
	return 0, 1 // all have their share, and nothing may lie idle
}

// Return puts segments back into the pool. Returning one that is not lent is a bug.
func (a *Arena) Return(segs ...*Segment) {
	if len(segs) == 0 {
		return
	}
	var odd []int
	defer func() { a.regrow(odd) }()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range segs {
		if !s.lent {
			panic("localtier: segment returned twice")
		}
		s.lent = false
		if s.session != "" {
			if a.mu.held[s.session]--; a.mu.held[s.session] == 0 {
				delete(a.mu.held, s.session)
			}
		}
		s.session = ""
		switch {
		case a.mu.closed:
		case a.mu.odd[s.id] == s:
			a.drop(s)
			odd = append(odd, s.id)
		default:
			a.mu.free = append(a.mu.free, s)
		}
	}
	a.serve()
}

// drop removes a segment that is not of this arena's shape. Arena.mu is held.
func (a *Arena) drop(s *Segment) {
	delete(a.mu.odd, s.id)
	_ = s.unmap() // the memory is the kernel's again at the latest when the process ends
	os.Remove(s.path)
}

// regrow makes segments of the right shape where others had been in the way.
func (a *Arena) regrow(ids []int) {
	for _, id := range ids {
		if id >= a.mu.want {
			continue
		}
		if err := a.grow(id); err != nil {
			a.shrink(id, err)
		}
	}
}
