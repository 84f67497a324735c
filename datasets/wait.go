package datasets

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

const (
	firstWait = 200 * time.Millisecond
	longest   = 5 * time.Second
)

// Leaving is what a node still has to bring to the remote tier before it can
// give its own copy up.
type Leaving struct {
	Bytes  int64
	Shards int
}

// again does once more what fails for want of a daemon, for Options.Patience,
// and what fails for want of room, as long as the drain makes some.
func again[T any](ctx context.Context, im *importer, do func() (T, error)) (T, error) {
	w := waiting{patience: im.opt.Patience}
	told := false
	for {
		v, err := do()
		now := time.Now()
		if err == nil || ctx.Err() != nil {
			if told {
				im.opt.Waiting(0, nil)
			}
			return v, err
		}
		var left *Leaving
		if errors.Is(err, catalog.ErrNoSpace) {
			if l, lerr := im.store.Leaving(ctx); lerr == nil {
				left = &l
			}
		}
		pause, give := w.next(now, err, left)
		if give != nil {
			return v, give
		}
		if since := now.Sub(w.since); since >= time.Second || told {
			told = true
			im.opt.Waiting(since, err)
		}
		select {
		case <-ctx.Done():
			return v, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// waiting decides how long something that failed is tried again.
type waiting struct {
	patience time.Duration
	since    time.Time // of the first failure
	moved    time.Time // since when nothing changed
	left     Leaving
	pause    time.Duration
}

// next gives the pause before the next try, or the error to give up with. left
// is what leaves the node, nil when that is not known, or not the question.
func (w *waiting) next(now time.Time, err error, left *Leaving) (pause time.Duration, give error) {
	first := w.since.IsZero()
	if first {
		w.since, w.moved, w.pause = now, now, firstWait
	}
	switch {
	case errors.Is(err, catalog.ErrNoSpace):
		// What has just left may have made room since: one more try.
		gone := left != nil && *left == Leaving{} && w.left == Leaving{}
		if left == nil && first || gone && !first {
			return 0, err
		}
		if left != nil && *left != w.left {
			w.left, w.moved = *left, now
		}
		if now.Sub(w.moved) > w.patience {
			return 0, fmt.Errorf("waited %v, and the remote tier took nothing more off this node: %w", now.Sub(w.since).Round(time.Second), err)
		}
	case errors.Is(err, catalog.ErrUnavailable):
		if now.Sub(w.since) > w.patience {
			return 0, fmt.Errorf("waited %v; what is stored is kept, and the import goes on from there when it is run again: %w", now.Sub(w.since).Round(time.Second), err)
		}
	default:
		return 0, err
	}
	pause = w.pause
	w.pause = min(2*w.pause, longest)
	return pause, nil
}
