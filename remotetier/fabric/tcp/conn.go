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
)

// conn is a client's connection. One goroutine at a time has it.
type conn struct {
	*wire
	rail    *rail
	number  uint32 // of the last exchange
	used    time.Time
	scratch [scratchSize]byte
	out     []byte // requests being sent
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
	greeting, err := greet(struct {
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

// exchange carries out ops in order and says how many were answered. With an
// error the connection is of no use any more, and neither is it when broken.
func (c *conn) exchange(ctx context.Context, ops []*fabric.Op) (done int, broken bool, err error) {
	stop := c.during(ctx)
	done, err = c.run(ctx, ops)
	return done, !stop() || err != nil, err
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
			size := headSize + requestHead + len(ops[sent].Request)
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
		ahead -= headSize + requestHead + len(ops[done].Request)
	}
	return done, nil
}

func (c *conn) request(b []byte, op *fabric.Op, left uint32) []byte {
	var h [requestHead]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(len(op.Out)))
	binary.LittleEndian.PutUint32(h[4:], uint32(len(op.In)))
	binary.LittleEndian.PutUint32(h[8:], left)
	return control(b, frameRequest, c.number, h[:], op.Request)
}

// finish serves the target until it has answered.
func (c *conn) finish(op *fabric.Op, number uint32) error {
	pulled, pushed := 0, 0
	if err := c.readBy(time.Now().Add(c.stall)); err != nil {
		return err
	}
	for {
		h, payload, err := readFrame(c.br, c.scratch[:])
		if err != nil {
			return err
		}
		if h.number != number {
			return corrupt("an answer to exchange %d, in %d", h.number, number)
		}
		switch h.kind {
		case frameWait:
		case frameData:
			if int64(h.length) > int64(len(op.In)-pushed) {
				return corrupt("%d bytes pushed, %d have room", h.length, len(op.In)-pushed)
			}
			if err := c.readBulk(op.In[pushed:][:h.length]); err != nil {
				return noEOF(err)
			}
			pushed += int(h.length)
		case frameCredit:
			if len(payload) != 4 {
				return corrupt("a credit of %d bytes", len(payload))
			}
			n := int64(binary.LittleEndian.Uint32(payload))
			if n == 0 || n > int64(len(op.Out)-pulled) {
				return corrupt("%d bytes pulled, %d are left", n, len(op.Out)-pulled)
			}
			head := appendFrame(c.scratch[:0], frameData, number, int(n))
			if err := c.writeBoth(head, op.Out[pulled:][:n]); err != nil {
				return err
			}
			pulled += int(n)
		case frameReply:
			if len(payload) == 0 || len(payload) > 1+fabric.MaxRequest {
				return corrupt("a reply of %d bytes", len(payload))
			}
			if op.Err = fabric.ErrorOf(payload[0], string(payload[1:])); op.Err == nil {
				op.Reply, op.N = append([]byte(nil), payload[1:]...), pushed
			}
			return nil
		default:
			return corrupt("type %d from a target", h.kind)
		}
	}
}

// ping shows that both ends live.
func (c *conn) ping() error {
	c.number++
	if _, err := c.Write(control(c.scratch[:0], framePing, c.number)); err != nil {
		return err
	}
	if err := c.readBy(time.Now().Add(c.stall)); err != nil {
		return err
	}
	h, _, err := readFrame(c.br, c.scratch[:])
	if err == nil && (h.kind != frameWait || h.number != c.number) {
		err = corrupt("type %d answers a ping", h.kind)
	}
	return err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkOp reports what no target could do.
func checkOp(op *fabric.Op) error {
	if len(op.Request) > fabric.MaxRequest || len(op.Out) > fabric.MaxTransfer || len(op.In) > fabric.MaxTransfer {
		return fmt.Errorf("exchange of %d bytes with %d to pull and %d to push: %w: too large", len(op.Request), len(op.Out), len(op.In), catalog.ErrInvalid)
	}
	return nil
}
