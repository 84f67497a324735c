//go:build ofi

package ofi

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
	"github.com/ckptd/ckptd/remotetier/fabric/rails"
)

// knock comes with a request for a connection: who knows nothing of it is no
// client of ours.
const knock = "ckptRDMA\x01\x00\x00\x00" // magic, u16 version, u16 0

// conn is a client's connection. One goroutine at a time has it.
type conn struct {
	e      *endpoint
	p      *provider
	number uint32 // of the last exchange
	out    []byte // a request being made
}

var _ rails.Conn = (*conn)(nil)

// Connect gives a Client of the target at these addresses, HOST:PORT each.
func (p *provider) Connect(addrs []string, check func(greeting []byte) error) (fabric.Client, error) {
	if len(p.opt.Token) > frame.MaxToken {
		return nil, fmt.Errorf("connect to %q: %w: a token has at most %d bytes", addrs, catalog.ErrInvalid, frame.MaxToken)
	}
	session := frame.NewSession()
	return rails.New(addrs, func(ctx context.Context, addr string) (rails.Conn, error) {
		c, err := p.dial(ctx, addr, session, check)
		if err != nil {
			return nil, err
		}
		return c, nil
	}, rails.Options{Conns: p.opt.Conns, Timeout: p.opt.Timeout, KeepAlive: p.opt.KeepAlive})
}

// dial makes a connection and says hello.
func (p *provider) dial(ctx context.Context, addr string, session fabric.Session, check func([]byte) error) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opt.Dial)
	defer cancel()
	e, err := lookUp(ctx, p, func() (*endpoint, error) { return p.connect(addr) }, func(e *endpoint) { _ = e.Close() })
	if err != nil {
		return nil, err
	}
	greeting, err := e.hello(ctx, session, p.opt.Token)
	if err == nil && check != nil {
		err = check(greeting)
	}
	if err != nil {
		_ = e.Close()
		return nil, fmt.Errorf("hello: %w", err)
	}
	return &conn{e: e, p: p}, nil
}

// connect begins to make a connection.
func (p *provider) connect(addr string) (*endpoint, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	info, err := p.look(host, port, false)
	if err != nil {
		return nil, err
	}
	defer C.fi_freeinfo(info)
	d, err := p.domainOf(info)
	if err != nil {
		return nil, err
	}
	e, err := d.open(info, p.opt.Stall)
	if err != nil {
		return nil, err
	}
	param := []byte(knock)
	if err := failed(C.ofi_connect(e.mu.ep, info, unsafe.Pointer(&param[0]), C.size_t(len(param)))); err != nil {
		return nil, errors.Join(fmt.Errorf("connect: %w", err), e.Close())
	}
	return e, nil
}

// hello waits for the connection and says hello.
func (e *endpoint) hello(ctx context.Context, session fabric.Session, token string) ([]byte, error) {
	stop := e.during(ctx)
	defer stop()
	select {
	case <-e.up:
	case <-e.ctx.Done():
		return nil, context.Cause(e.ctx)
	}
	greeting, err := frame.Greet(e, session, token)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	return greeting, err
}

func (c *conn) Close() error { return c.e.Close() }

// Exchange carries out ops in order and says how many were answered.
func (c *conn) Exchange(ctx context.Context, ops []*fabric.Op) (done int, broken bool, err error) {
	stop := c.e.during(ctx)
	lent := make([]lent, len(ops))
	done, err = c.run(ctx, ops, lent)
	if broken = !stop() || err != nil; broken {
		_ = c.Close() // first: behind it the target cannot touch what was lent
	}
	for i := range lent {
		lent[i].back(c.p)
	}
	return done, broken, err
}

func (c *conn) run(ctx context.Context, ops []*fabric.Op, lent []lent) (done int, err error) {
	first := c.number + 1
	for sent := 0; done < len(ops); done++ {
		for ; sent < len(ops) && sent-done < maxAhead; sent++ {
			if sent > done && len(ops[sent-1].Out) > 0 {
				break
			}
			// Who waits for memory has none: only the next one may wait.
			ok, err := c.lend(ctx, &lent[sent], ops[sent], sent == done)
			if err != nil {
				return done, err
			}
			if !ok {
				break
			}
			if err := c.ask(ctx, ops[sent], &lent[sent]); err != nil {
				return done, err
			}
		}
		op := ops[done]
		if err := c.finish(op, first+uint32(done)); err != nil {
			return done, err
		}
		lent[done].takeIn(c.p, op)
		lent[done].back(c.p)
	}
	return done, nil
}

// lent is what an exchange may access.
type lent struct {
	out, in []span
	copies  [][]byte // registered memory for what is not
	inFrom  int      // the first of copies that In is filled from; -1: it is filled itself
}

// lend names the memory of an exchange, registered or copied.
func (c *conn) lend(ctx context.Context, l *lent, op *fabric.Op, wait bool) (ok bool, err error) {
	l.inFrom = -1
	need := 0
	out, outKnown := c.p.known(c.e.d, op.Out)
	in, inKnown := c.p.known(c.e.d, op.In)
	if !outKnown {
		need += roundUp(len(op.Out))
	}
	if !inKnown {
		need += roundUp(len(op.In))
	}
	if need > 0 {
		if l.copies, ok, err = c.p.spare.take(ctx, need, wait); !ok {
			return false, err
		}
	}
	pieces := l.copies
	name := func(n int) (list []span, err error) {
		for n > 0 {
			s, known := c.p.known(c.e.d, pieces[0][:min(n, pieceSize)])
			if !known {
				return nil, errClosed
			}
			list, pieces, n = append(list, s), pieces[1:], n-s.len
		}
		return list, nil
	}
	switch {
	case len(op.Out) == 0:
	case outKnown:
		c.p.stats.direct.Add(int64(len(op.Out)))
		l.out = []span{out}
	default:
		for i, p := 0, op.Out; len(p) > 0; i++ {
			p = p[copy(pieces[i], p):]
		}
		c.p.stats.copied.Add(int64(len(op.Out)))
		if l.out, err = name(len(op.Out)); err != nil {
			return false, err
		}
	}
	switch {
	case len(op.In) == 0:
	case inKnown:
		l.in = []span{in}
	default:
		l.inFrom = len(l.copies) - len(pieces)
		if l.in, err = name(len(op.In)); err != nil {
			return false, err
		}
	}
	return true, nil
}

// roundUp gives whole pieces.
func roundUp(n int) int { return (n + pieceSize - 1) / pieceSize * pieceSize }

// takeIn copies what was pushed to where it belongs.
func (l *lent) takeIn(p *provider, op *fabric.Op) {
	if l.inFrom < 0 {
		p.stats.direct.Add(int64(op.N))
		return
	}
	p.stats.copied.Add(int64(op.N))
	for i, in := l.inFrom, op.In[:op.N]; len(in) > 0; i++ {
		in = in[copy(in, l.copies[i]):]
	}
}

func (l *lent) back(p *provider) {
	if l.copies != nil {
		p.spare.give(l.copies)
		l.copies = nil
	}
}

// ask sends a request.
func (c *conn) ask(ctx context.Context, op *fabric.Op, l *lent) error {
	r := request{out: l.out, in: l.in, body: op.Request}
	if d, ok := ctx.Deadline(); ok {
		r.left = uint32(min(max(time.Until(d).Milliseconds(), 1), 1<<31))
	}
	c.number++
	c.out = frame.Control(c.out[:0], frame.Request, c.number, r.appendTo(nil))
	_, err := c.e.Write(c.out)
	return err
}

// finish waits until the target has answered.
func (c *conn) finish(op *fabric.Op, number uint32) error {
	for {
		h, payload, err := c.e.frame(c.e.stall)
		if err != nil {
			return err
		}
		switch {
		case h.Number != number:
			return frame.Corrupt("an answer to exchange %d, in %d", h.Number, number)
		case h.Kind == frame.Wait && h.Length == 0:
		case h.Kind == frame.Reply:
			return parseReply(payload, op)
		default:
			return frame.Corrupt("type %d from a target", h.Kind)
		}
	}
}

// Ping shows that both ends live.
func (c *conn) Ping(ctx context.Context) error {
	stop := c.e.during(ctx)
	err := c.ping()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

func (c *conn) ping() error {
	c.number++
	if _, err := c.e.Write(frame.Control(nil, frame.Ping, c.number)); err != nil {
		return err
	}
	h, _, err := c.e.frame(c.e.stall)
	if err == nil && (h.Kind != frame.Wait || h.Number != c.number) {
		err = frame.Corrupt("type %d answers a ping", h.Kind)
	}
	return err
}
