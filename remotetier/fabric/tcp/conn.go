package tcp

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
	"github.com/ckptd/ckptd/remotetier/fabric/rails"
)

// conn is a client's connection. One goroutine at a time has it.
type conn struct {
	*wire
	number  uint32 // of the last exchange
	scratch [frame.ScratchSize]byte
	out     []byte // requests being sent
}

// Connect gives a Client of the target at these addresses, HOST:PORT each.
func (f *Fabric) Connect(addrs []string, check func(greeting []byte) error) (fabric.Client, error) {
	if len(f.opt.Token) > frame.MaxToken {
		return nil, fmt.Errorf("connect to %q: %w: a token has at most %d bytes", addrs, catalog.ErrInvalid, frame.MaxToken)
	}
	session := frame.NewSession()
	return rails.New(addrs, func(ctx context.Context, addr string) (rails.Conn, error) {
		c, err := dial(ctx, addr, session, &f.opt, check)
		if err != nil {
			return nil, err
		}
		return c, nil
	}, rails.Options{Conns: f.opt.Conns, Timeout: f.opt.Timeout, KeepAlive: f.opt.KeepAlive})
}

// dial makes a connection and says hello.
func dial(ctx context.Context, addr string, session fabric.Session, opt *Options, check func([]byte) error) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, opt.Dial)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if opt.TLS != nil {
		conf := opt.TLS
		if conf.ServerName == "" && !conf.InsecureSkipVerify {
			conf = conf.Clone()
			conf.ServerName, _, _ = net.SplitHostPort(addr) // addr was good enough to dial
		}
		t := tls.Client(raw, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		raw = t
	}
	c := &conn{wire: newWire(raw, opt.Stall)}
	stop := c.during(ctx)
	greeting, err := frame.Greet(struct {
		io.Reader
		io.Writer
	}{c.br, c.wire}, session, opt.Token)
	if err == nil && check != nil {
		err = check(greeting)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("hello: %w", err)
	}
	return c, nil
}

var _ rails.Conn = (*conn)(nil)

// Exchange carries out ops in order and says how many were answered.
func (c *conn) Exchange(ctx context.Context, ops []*fabric.Op) (done int, broken bool, err error) {
	stop := c.during(ctx)
	done, err = c.run(ctx, ops)
	if broken = !stop() || err != nil; broken {
		_ = c.Close()
	}
	return done, broken, err
}

func (c *conn) run(ctx context.Context, ops []*fabric.Op) (done int, err error) {
	first := c.number + 1
	left := uint32(0)
	if d, ok := ctx.Deadline(); ok {
		left = uint32(min(max(time.Until(d).Milliseconds(), 1), 1<<31))
	}
	for sent, ahead := 0, 0; done < len(ops); done++ {
		c.out = c.out[:0]
		for ; sent < len(ops); sent++ {
			size := frame.HeadSize + requestHead + len(ops[sent].Request)
			if sent > done && (len(ops[sent-1].Out) > 0 || ahead+size > maxAhead) {
				break
			}
			ahead += size
			c.number++
			c.out = c.request(c.out, ops[sent], left)
		}
		if len(c.out) > 0 {
			if _, err := c.Write(c.out); err != nil {
				return done, err
			}
		}
		if err := c.finish(ops[done], first+uint32(done)); err != nil {
			return done, err
		}
		ahead -= frame.HeadSize + requestHead + len(ops[done].Request)
	}
	return done, nil
}

func (c *conn) request(b []byte, op *fabric.Op, left uint32) []byte {
	var h [requestHead]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(len(op.Out)))
	binary.LittleEndian.PutUint32(h[4:], uint32(len(op.In)))
	binary.LittleEndian.PutUint32(h[8:], left)
	return frame.Control(b, frame.Request, c.number, h[:], op.Request)
}

// finish serves the target until it has answered.
func (c *conn) finish(op *fabric.Op, number uint32) error {
	pulled, pushed := 0, 0
	if err := c.readBy(time.Now().Add(c.stall)); err != nil {
		return err
	}
	for {
		h, payload, err := frame.Read(c.br, c.scratch[:])
		if err != nil {
			return err
		}
		if h.Number != number {
			return frame.Corrupt("an answer to exchange %d, in %d", h.Number, number)
		}
		switch h.Kind {
		case frame.Wait:
		case frame.Data:
			if int64(h.Length) > int64(len(op.In)-pushed) {
				return frame.Corrupt("%d bytes pushed, %d have room", h.Length, len(op.In)-pushed)
			}
			if err := c.readBulk(op.In[pushed:][:h.Length]); err != nil {
				return noEOF(err)
			}
			pushed += int(h.Length)
		case frame.Credit:
			if len(payload) != 4 {
				return frame.Corrupt("a credit of %d bytes", len(payload))
			}
			n := int64(binary.LittleEndian.Uint32(payload))
			if n == 0 || n > int64(len(op.Out)-pulled) {
				return frame.Corrupt("%d bytes pulled, %d are left", n, len(op.Out)-pulled)
			}
			head := frame.Append(c.scratch[:0], frame.Data, number, int(n))
			if err := c.writeBoth(head, op.Out[pulled:][:n]); err != nil {
				return err
			}
			pulled += int(n)
		case frame.Reply:
			if len(payload) == 0 || len(payload) > 1+fabric.MaxRequest {
				return frame.Corrupt("a reply of %d bytes", len(payload))
			}
			if op.Err = fabric.ErrorOf(payload[0], string(payload[1:])); op.Err == nil {
				op.Reply, op.N = append([]byte(nil), payload[1:]...), pushed
			}
			return nil
		default:
			return frame.Corrupt("type %d from a target", h.Kind)
		}
	}
}

// Ping shows that both ends live.
func (c *conn) Ping(ctx context.Context) error {
	stop := c.during(ctx)
	err := c.ping()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

func (c *conn) ping() error {
	c.number++
	if _, err := c.Write(frame.Control(c.scratch[:0], frame.Ping, c.number)); err != nil {
		return err
	}
	if err := c.readBy(time.Now().Add(c.stall)); err != nil {
		return err
	}
	h, _, err := frame.Read(c.br, c.scratch[:])
	if err == nil && (h.Kind != frame.Wait || h.Number != c.number) {
		err = frame.Corrupt("type %d answers a ping", h.Kind)
	}
	return err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
