package traffic

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Options of a Gate; the zero value works.
type Options struct {
	Rates   map[Class]int64 // bytes/s; a class that is not there has no limit
	Floor   int64           // bytes/s that move in each class that is held back; default 8 MiB/s
	Linger  time.Duration   // how long an operation that ended still counts; default 50 ms
	MaxWait time.Duration   // the longest that an operation is held back; default 20 s
	Waiting int             // operations that may wait; default 4096
}

const (
	defaultFloor   = 8 << 20
	defaultLinger  = 50 * time.Millisecond
	defaultMaxWait = 20 * time.Second
	defaultWaiting = 4096
	maxBurst       = 16 << 20 // bytes, and at most what moves in a second
)

// Stats of a class: what a Gate let in since it was made.
type Stats struct {
	Ops, Bytes int64
	Held       int64 // operations that had to wait
}

// Gate lets operations in. Its methods may be called concurrently.
type Gate struct {
	waiting int // at most

	mu struct {
		sync.Mutex
		plan
		timer *time.Timer // nil: none was needed yet
		stats [Classes]Stats
	}
}

// New makes a Gate. It needs no closing.
func New(opt Options) *Gate {
	g := &Gate{waiting: opt.Waiting}
	if g.waiting <= 0 {
		g.waiting = defaultWaiting
	}
	if opt.Floor <= 0 {
		opt.Floor = defaultFloor
	}
	g.mu.linger, g.mu.maxWait = opt.Linger, opt.MaxWait
	if g.mu.linger <= 0 {
		g.mu.linger = defaultLinger
	}
	if g.mu.maxWait <= 0 {
		g.mu.maxWait = defaultMaxWait
	}
	for c := range g.mu.classes {
		s := &g.mu.classes[c]
		s.floor = newBucket(opt.Floor, min(opt.Floor, maxBurst))
		if r := opt.Rates[Class(c)]; r > 0 {
			s.rate = newBucket(r, min(r, maxBurst))
		}
	}
	return g
}

// Enter waits until an operation of n bytes may begin. The caller calls leave
// when it has ended, once. The error is the context's, or ErrUnavailable when
// too many wait.
func (g *Gate) Enter(ctx context.Context, c Class, n int64) (leave func(), err error) {
	if c == Unset || int(c) >= Classes || n < 0 {
		return nil, fmt.Errorf("enter %v with %d bytes: %w", c, n, catalog.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	leave = sync.OnceFunc(func() { g.leave(c) })
	g.mu.Lock()
	if g.mu.waiting() >= g.waiting {
		g.mu.Unlock()
		return nil, fmt.Errorf("%w: %d operations wait to begin", catalog.ErrUnavailable, g.waiting)
	}
	w := &waiter{class: c, bytes: n, came: time.Now(), ready: make(chan struct{})}
	g.mu.enter(w)
	g.look()
	g.mu.Unlock()
	select {
	case <-w.ready:
		return leave, nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	gone := g.mu.cancel(w)
	g.look() // who came behind it may be smaller
	g.mu.Unlock()
	if !gone { // it was let in at the same moment
		leave()
	}
	return nil, ctx.Err()
}

// Pass is Enter for what has no end that is worth telling: it counts as at
// work for Options.Linger.
func (g *Gate) Pass(ctx context.Context, c Class, n int64) error {
	leave, err := g.Enter(ctx, c, n)
	if err == nil {
		leave()
	}
	return err
}

func (g *Gate) leave(c Class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.leave(time.Now(), c)
	g.look()
}

// look lets in who may begin, and sets the timer for the next. The lock is held.
func (g *Gate) look() {
	ready, again := g.mu.admit(time.Now())
	for _, w := range ready {
		st := &g.mu.stats[w.class]
		st.Ops++
		st.Bytes += w.bytes
		if w.held {
			st.Held++
		}
		close(w.ready)
	}
	switch {
	case again.IsZero():
		if g.mu.timer != nil {
			g.mu.timer.Stop()
		}
	case g.mu.timer == nil:
		g.mu.timer = time.AfterFunc(time.Until(again), g.wake)
	default:
		g.mu.timer.Reset(time.Until(again))
	}
}

func (g *Gate) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.look()
}

// Stats gives the counters, by class.
func (g *Gate) Stats() [Classes]Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.stats
}
