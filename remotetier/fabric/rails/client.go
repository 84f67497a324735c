// Package rails is the client of a target that is reached over several
// addresses, whatever carries the bytes: it keeps connections, shares the
// exchanges out among the addresses, and knows which are away.
//
//  1. Every address is used, and losing all but one loses no exchange.
//  2. An address that is away costs its time limit once, and is left alone for
//     a while, longer each time. As long as another one works, no exchange
//     waits to find out whether it is back.
//  3. An exchange whose connection broke is tried on another one.
//  4. The last idle connection of an address is kept alive: it keeps the session.
package rails

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

// Conn is a connection to a target. One goroutine at a time has it.
type Conn interface {
	// Exchange carries out ops in order and says how many were answered. A
	// connection that is broken, as it is with every error, is closed by it.
	Exchange(ctx context.Context, ops []*fabric.Op) (done int, broken bool, err error)
	// Ping shows that both ends live.
	Ping(ctx context.Context) error
	Close() error
}

// Dial makes a connection to an address and says hello.
type Dial func(ctx context.Context, addr string) (Conn, error)

// Options of a Client. None may be zero.
type Options struct {
	Conns     int           // connections at one time, over all addresses
	Timeout   time.Duration // for one exchange
	KeepAlive time.Duration // between signs of life on an idle connection
}

// Client reaches one target over connections that it keeps.
type Client struct {
	opt   Options
	dial  Dial
	slots chan struct{} // one for each exchange under way
	rails []*rail
	ctx   context.Context // of everything that goes on; ended by Close
	close context.CancelFunc
	wg    sync.WaitGroup // keep-alive and exchanges

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
	idle    []kept // the last one was used last
	busy    int    // exchanges under way
	fails   int    // since the last success
	probing bool   // somebody is finding out whether it is back
	until   time.Time
	err     error // why it is away

	exchanges, in, out int64 // carried out; bytes that the target pushed and pulled
}

// kept is a connection of a rail.
type kept struct {
	Conn
	rail *rail
	used time.Time
}

// New gives a Client of the target at these addresses, HOST:PORT each.
func New(addrs []string, dial Dial, opt Options) (*Client, error) {
	if len(addrs) == 0 || len(addrs) > maxAddrs {
		return nil, fmt.Errorf("connect to %q: %w: want 1 to %d addresses", addrs, catalog.ErrInvalid, maxAddrs)
	}
	c := &Client{opt: opt, dial: dial, slots: make(chan struct{}, opt.Conns)}
	for _, a := range addrs {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
			return nil, fmt.Errorf("connect to %q: %w: want HOST:PORT", a, catalog.ErrInvalid)
		}
		c.rails = append(c.rails, &rail{addr: a})
	}
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
		done, broken, err := cn.Exchange(ctx, ops)
		c.put(cn, ops[:done], broken, fresh, err, ctx.Err())
		if ops = ops[done:]; err == nil {
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
func (c *Client) get(ctx context.Context) (cn kept, fresh bool, err error) {
	for {
		r, cn, err := c.pick()
		if err != nil {
			return kept{}, false, err
		}
		if cn.Conn != nil {
			return cn, false, nil
		}
		made, err := c.dial(ctx, r.addr)
		if err == nil {
			c.mu.Lock()
			r.fails, r.probing, r.err = 0, false, nil
			c.mu.Unlock()
			return kept{Conn: made, rail: r}, true, nil
		}
		c.mu.Lock()
		r.busy--
		if ctx.Err() == nil {
			c.failed(r, err)
		}
		r.probing = false
		c.mu.Unlock()
		if ctx.Err() != nil {
			return kept{}, false, err
		}
	}
}

// pick chooses the least busy rail that is not known to be away, and a
// connection of it if one is idle. Rails that may be back are looked after on
// the side, unless there is no other.
func (c *Client) pick() (*rail, kept, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var best *rail
	var perhaps []*rail
	var errs []error
	for i := range c.rails {
		r := c.rails[(c.mu.next+i)%len(c.rails)]
		if r.fails > 0 && (r.probing || now.Before(r.until)) {
			errs = append(errs, fmt.Errorf("%s: %w", r.addr, r.err))
			continue
		}
		if r.fails > 0 {
			perhaps = append(perhaps, r)
		} else if best == nil || r.busy < best.busy {
			best = r
		}
	}
	if best == nil && len(perhaps) > 0 {
		best, perhaps = perhaps[0], perhaps[1:]
	}
	for _, r := range perhaps {
		r.probing = true
		c.wg.Go(func() { c.probe(r) }) // the caller is counted, so Close waits
	}
	if best == nil {
		return nil, kept{}, fmt.Errorf("%w: %w", catalog.ErrUnavailable, plain{errors.Join(errs...)})
	}
	c.mu.next++
	best.busy++
	if n := len(best.idle); n > 0 {
		cn := best.idle[n-1]
		best.idle[n-1] = kept{}
		best.idle = best.idle[:n-1]
		return best, cn, nil
	}
	best.probing = best.fails > 0
	return best, kept{}, nil
}

// probe finds out whether a rail is back.
func (c *Client) probe(r *rail) {
	made, err := c.dial(c.ctx, r.addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	r.probing = false
	switch {
	case err != nil:
		c.failed(r, err)
	case c.mu.closed:
		_ = made.Close()
	default:
		r.fails, r.err = 0, nil
		r.idle = append(r.idle, kept{Conn: made, rail: r, used: time.Now()})
	}
}

// put takes a connection back after it carried out ops, and perhaps failed at
// the next.
func (c *Client) put(cn kept, ops []*fabric.Op, broken, fresh bool, err, gaveUp error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := cn.rail
	r.busy--
	for _, op := range ops {
		r.exchanges++
		r.in += int64(op.N)
		if op.Err == nil {
			r.out += int64(len(op.Out))
		}
	}
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

// Rails tells of each address.
func (c *Client) Rails() []fabric.Rail {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]fabric.Rail, len(c.rails))
	for i, r := range c.rails {
		all[i] = fabric.Rail{Addr: r.addr, Exchanges: r.exchanges, In: r.in, Out: r.out}
		if r.fails > 0 {
			all[i].Err = r.err
		}
	}
	return all
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
		if err := cn.Ping(c.ctx); err != nil {
			_ = cn.Close()
			continue
		}
		c.mu.Lock()
		r.idle = append([]kept{cn}, r.idle...)
		c.mu.Unlock()
	}
}

// checkOp reports what no target could do.
func checkOp(op *fabric.Op) error {
	if len(op.Request) > fabric.MaxRequest || len(op.Out) > fabric.MaxTransfer || len(op.In) > fabric.MaxTransfer {
		return fmt.Errorf("exchange of %d bytes with %d to pull and %d to push: %w: too large", len(op.Request), len(op.Out), len(op.In), catalog.ErrInvalid)
	}
	return nil
}
