package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// maxAddrs bounds the addresses of one target.
const maxAddrs = 16

// Client reaches one target over connections that it keeps.
type Client struct {
	opt     Options
	session fabric.Session
	check   func([]byte) error
	slots   chan struct{} // one for each exchange under way
	rails   []*rail
	ctx     context.Context // of everything that goes on; ended by Close
	close   context.CancelFunc
	wg      sync.WaitGroup // keep-alive and exchanges

	mu struct {
		sync.Mutex
		next   int // rail to begin with when all are alike
		closed bool
	}
}

var _ fabric.Client = (*Client)(nil)

// rail is one address of the target. The Client's lock guards it.
type rail struct {
	addr    string
	idle    []*conn // the last one was used last
	busy    int     // exchanges under way
	fails   int     // since the last success
	probing bool    // somebody is finding out whether it is back
	until   time.Time
	err     error // why it is away
}

// Connect gives a Client of the target at these addresses, HOST:PORT each.
func (f *Fabric) Connect(addrs []string, check func(greeting []byte) error) (fabric.Client, error) {
	if len(addrs) == 0 || len(addrs) > maxAddrs || len(f.opt.Token) > maxTokenSize {
		return nil, fmt.Errorf("connect to %q: %w: want 1 to %d addresses, and a token of at most %d bytes", addrs, catalog.ErrInvalid, maxAddrs, maxTokenSize)
	}
	c := &Client{opt: f.opt, check: check, slots: make(chan struct{}, f.opt.Conns)}
	for _, a := range addrs {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
			return nil, fmt.Errorf("connect to %q: %w: want HOST:PORT", a, catalog.ErrInvalid)
		}
		c.rails = append(c.rails, &rail{addr: a})
	}
	random(c.session[:])
	c.ctx, c.close = context.WithCancel(context.Background())
	c.wg.Go(c.keepAlive)
	return c, nil
}

// Close ends every exchange and connection.
func (c *Client) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	c.close()
	c.wg.Wait()
	for _, r := range c.rails {
		c.drop(r)
	}
	return nil
}

// Do carries out ops on one connection, and what a broken one left on another.
func (c *Client) Do(ctx context.Context, ops ...*fabric.Op) error {
	var bad error
	for _, op := range ops {
		op.Reply, op.N, op.Err = nil, 0, nil
		bad = errors.Join(bad, checkOp(op))
	}
	if bad == nil && !c.enter() {
		bad = fmt.Errorf("%w: the client is closed", catalog.ErrUnavailable)
	}
	if bad != nil {
		for _, op := range ops {
			op.Err = bad
		}
		return bad
	}
	defer c.wg.Done()
	if err := c.do(ctx, ops); err != nil {
		return err
	}
	for _, op := range ops {
		if op.Err != nil {
			return op.Err
		}
	}
	return nil
}

func (c *Client) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.closed {
		c.wg.Add(1)
	}
	return !c.mu.closed
}

// do is Do without the answers: its error is set on what was not answered.
func (c *Client) do(caller context.Context, ops []*fabric.Op) (err error) {
	ctx, cancel := context.WithTimeout(caller, c.opt.Timeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	defer func() {
		if err == nil {
			return
		}
		if cerr := caller.Err(); cerr != nil {
			err = cerr
		} else if !errors.Is(err, catalog.ErrUnavailable) {
			err = fmt.Errorf("%w: %w", catalog.ErrUnavailable, plain{err})
		}
		for _, op := range ops {
			op.Err = err
		}
	}()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for try := 0; ; try++ {
		cn, fresh, err := c.get(ctx)
		if err != nil {
			return err
		}
		done, broken, err := cn.exchange(ctx, ops)
		ops = ops[done:]
		if c.put(cn, broken, fresh, err, ctx.Err()); err == nil {
			return nil
		}
		if ctx.Err() != nil || try > len(c.rails) {
			return fmt.Errorf("%s: %w", cn.rail.addr, err)
		}
	}
}

// plain keeps an error's text but not its class: a timeout of a connection is
// not one of the caller.
type plain struct{ err error }

func (p plain) Error() string { return p.err.Error() }

// get gives a connection: an idle one, or a new one.
func (c *Client) get(ctx context.Context) (cn *conn, fresh bool, err error) {
	for {
		r, cn, err := c.pick()
		if err != nil {
			return nil, false, err
		}
		if cn != nil {
			return cn, false, nil
		}
		cn, err = dial(ctx, r.addr, c.session, &c.opt, c.check)
		if err == nil {
			cn.rail = r
			c.mu.Lock()
			r.fails, r.probing, r.err = 0, false, nil
			c.mu.Unlock()
			return cn, true, nil
		}
		c.mu.Lock()
		r.busy--
		if ctx.Err() == nil {
			c.failed(r, err)
		}
		r.probing = false
		c.mu.Unlock()
		if ctx.Err() != nil {
			return nil, false, err
		}
	}
}

// pick chooses the least busy rail that is not known to be away, and a
// connection of it if one is idle.
func (c *Client) pick() (*rail, *conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var best *rail
	var errs []error
	for i := range c.rails {
		r := c.rails[(c.mu.next+i)%len(c.rails)]
		if r.fails > 0 && (r.probing || now.Before(r.until)) {
			errs = append(errs, fmt.Errorf("%s: %w", r.addr, r.err))
			continue
		}
		if best == nil || r.busy < best.busy {
			best = r
		}
	}
	if best == nil {
		return nil, nil, fmt.Errorf("%w: %w", catalog.ErrUnavailable, plain{errors.Join(errs...)})
	}
	c.mu.next++
	best.busy++
	if n := len(best.idle); n > 0 {
		cn := best.idle[n-1]
		best.idle[n-1] = nil
		best.idle = best.idle[:n-1]
		return best, cn, nil
	}
	best.probing = best.fails > 0
	return best, nil, nil
}

// put takes a connection back after an exchange.
func (c *Client) put(cn *conn, broken, fresh bool, err, gaveUp error) {
	if broken {
		_ = cn.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := cn.rail
	r.busy--
	switch {
	case !broken && !c.mu.closed:
		cn.used, r.fails = time.Now(), 0
		r.idle = append(r.idle, cn)
	case !broken:
		_ = cn.Close()
	case err == nil || gaveUp != nil: // it says nothing about the rail
	case !fresh && hungUp(err):
		c.dropIdle(r) // the target was restarted: they are all stale
	default:
		c.failed(r, err)
	}
}

// hungUp reports whether the other side closed the connection, rather than
// fell silent.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Bounds of the time in which an address that failed is left alone.
const (
	minAway = 50 * time.Millisecond
	maxAway = 5 * time.Second
)

// failed notes that a rail is away; longer each time, and longer for one that
// keeps its callers waiting. The lock is held.
func (c *Client) failed(r *rail, err error) {
	away := min(minAway<<min(r.fails, 10), maxAway)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		away = maxAway
	}
	r.fails++
	r.until, r.err = time.Now().Add(away), err
	c.dropIdle(r)
}

// dropIdle closes what lies idle; the lock is held.
func (c *Client) dropIdle(r *rail) {
	for _, cn := range r.idle {
		_ = cn.Close()
	}
	r.idle = nil
}

func (c *Client) drop(r *rail) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropIdle(r)
}

// idleClose is how long a connection is kept without use, unless it is the
// last one: that keeps the session.
const idleClose = time.Minute

// keepAlive shows signs of life on idle connections, until Close.
func (c *Client) keepAlive() {
	tick := time.NewTicker(c.opt.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		for _, r := range c.rails {
			c.pingIdle(r)
		}
	}
}

// pingIdle pings each connection that lies idle, and closes those too many.
func (c *Client) pingIdle(r *rail) {
	c.mu.Lock()
	old := r.idle
	r.idle = nil
	c.mu.Unlock()
	for i, cn := range old {
		last := i == len(old)-1
		if !last && time.Since(cn.used) > idleClose {
			_ = cn.Close()
			continue
		}
		stop := cn.during(c.ctx)
		err := cn.ping()
		if !stop() || err != nil {
			_ = cn.Close()
			continue
		}
		c.mu.Lock()
		r.idle = append([]*conn{cn}, r.idle...)
		c.mu.Unlock()
	}
}
