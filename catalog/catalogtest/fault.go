package catalogtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Outcome is what a Fault makes of one operation.
type Outcome int

const (
	Pass       Outcome = iota
	FailBefore         // ErrUnavailable, and nothing happened
	FailAfter          // it happened, and the answer was lost: ErrUnavailable
)

// Fault is a driver that misbehaves on request. Get, Swap, List, Watch and
// Head count as one operation each, when they begin; the first is number 1.
type Fault struct {
	inner catalog.Driver
	mu    struct {
		sync.Mutex
		ops    int
		fail   map[int]Outcome
		decide func(n int, op, key string) Outcome
		delay  time.Duration
		down   bool
		healed chan struct{}              // closed when down ends; nil while up or nobody waits
		cuts   map[*int]func(cause error) // running watches
	}
}

var _ catalog.Driver = (*Fault)(nil)

// NewFault wraps a driver; until told otherwise it passes everything on.
func NewFault(inner catalog.Driver) *Fault {
	f := &Fault{inner: inner}
	f.mu.fail = make(map[int]Outcome)
	f.mu.cuts = make(map[*int]func(error))
	return f
}

// Ops is the number of operations begun so far.
func (f *Fault) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.ops
}

// FailAt decides the outcome of operation n, counted from the beginning.
func (f *Fault) FailAt(n int, o Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.fail[n] = o
}

// Decide lets fn choose every outcome that FailAt has not; nil ends that. The
// op is "get", "swap", "list", "watch" or "head", the key may be a prefix.
func (f *Fault) Decide(fn func(n int, op, key string) Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.decide = fn
}

// SetDelay makes every operation wait before it begins.
func (f *Fault) SetDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.delay = d
}

// SetDown cuts the store off, or heals it. While it is down operations fail
// at once with ErrUnavailable, and running watches stand still.
func (f *Fault) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.down = down
	if !down && f.mu.healed != nil {
		close(f.mu.healed)
		f.mu.healed = nil
	}
}

var errCut = fmt.Errorf("%w: watch cut", catalog.ErrUnavailable)

// CutWatches ends every running watch with ErrUnavailable.
func (f *Fault) CutWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, cut := range f.mu.cuts {
		cut(errCut)
	}
}

// begin counts an operation, waits for its delay, and says what becomes of it.
func (f *Fault) begin(ctx context.Context, op, key string) (Outcome, error) {
	f.mu.Lock()
	f.mu.ops++
	n, delay, decide := f.mu.ops, f.mu.delay, f.mu.decide
	out, told := f.mu.fail[n]
	f.mu.Unlock()
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return Pass, fmt.Errorf("%s %s: %w", op, key, ctx.Err())
		}
	}
	if !told && decide != nil {
		out = decide(n, op, key)
	}
	f.mu.Lock()
	down := f.mu.down
	f.mu.Unlock()
	if down || out == FailBefore {
		return FailBefore, lost(op, key)
	}
	return out, nil
}

func lost(op, key string) error {
	return fmt.Errorf("%s %s: %w: fault", op, key, catalog.ErrUnavailable)
}

// Get implements catalog.Driver.
func (f *Fault) Get(ctx context.Context, key string) (catalog.Record, error) {
	out, err := f.begin(ctx, "get", key)
	if err != nil {
		return catalog.Record{}, err
	}
	r, err := f.inner.Get(ctx, key)
	if out == FailAfter {
		return catalog.Record{}, lost("get", key)
	}
	return r, err
}

// Swap implements catalog.Driver.
func (f *Fault) Swap(ctx context.Context, key string, rev uint64, value []byte) (uint64, error) {
	out, err := f.begin(ctx, "swap", key)
	if err != nil {
		return 0, err
	}
	next, err := f.inner.Swap(ctx, key, rev, value)
	if out == FailAfter {
		return 0, lost("swap", key)
	}
	return next, err
}

// Head implements catalog.Driver.
func (f *Fault) Head(ctx context.Context, prefix string) (uint64, error) {
	out, err := f.begin(ctx, "head", prefix)
	if err != nil {
		return 0, err
	}
	rev, err := f.inner.Head(ctx, prefix)
	if out == FailAfter {
		return 0, lost("head", prefix)
	}
	return rev, err
}

// List implements catalog.Driver; FailAfter fails it once some of it was given.
func (f *Fault) List(ctx context.Context, prefix string) iter.Seq2[catalog.Record, error] {
	return func(yield func(catalog.Record, error) bool) {
		out, err := f.begin(ctx, "list", prefix)
		if err != nil {
			yield(catalog.Record{}, err)
			return
		}
		for r, err := range f.inner.List(ctx, prefix) {
			if !yield(r, err) {
				return
			}
			if out == FailAfter {
				break
			}
		}
		if out == FailAfter {
			yield(catalog.Record{}, lost("list", prefix))
		}
	}
}

// Watch implements catalog.Driver; FailAfter ends it when it is synced.
func (f *Fault) Watch(ctx context.Context, prefix string) iter.Seq2[catalog.Change, error] {
	return func(yield func(catalog.Change, error) bool) {
		out, err := f.begin(ctx, "watch", prefix)
		if err != nil {
			yield(catalog.Change{}, err)
			return
		}
		inner, cut := context.WithCancelCause(ctx)
		defer cut(nil)
		id := new(int)
		f.mu.Lock()
		f.mu.cuts[id] = cut
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.mu.cuts, id)
		}()
		for c, err := range f.inner.Watch(inner, prefix) {
			if err == nil && !f.waitUp(inner) {
				break
			}
			if !yield(c, err) {
				return
			}
			if c.Synced && out == FailAfter {
				cut(errCut)
				break
			}
		}
		if errors.Is(context.Cause(inner), errCut) {
			yield(catalog.Change{}, fmt.Errorf("watch %s: %w", prefix, errCut))
		}
	}
}

// waitUp waits until the store is not cut off; false when ctx ended first.
func (f *Fault) waitUp(ctx context.Context) bool {
	for ctx.Err() == nil {
		f.mu.Lock()
		if !f.mu.down {
			f.mu.Unlock()
			return true
		}
		if f.mu.healed == nil {
			f.mu.healed = make(chan struct{})
		}
		healed := f.mu.healed
		f.mu.Unlock()
		select {
		case <-healed:
		case <-ctx.Done():
		}
	}
	return false
}
