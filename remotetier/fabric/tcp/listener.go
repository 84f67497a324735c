package tcp

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// Listener takes connections at one address.
type Listener struct {
	opt  Options
	ln   net.Listener
	bufs *fabric.Buffers
	own  bool // bufs are this listener's alone

	mu struct {
		sync.Mutex
		conns  map[net.Conn]bool
		closed bool
	}
	wg sync.WaitGroup
}

var _ fabric.Listener = (*Listener)(nil)

// Listen opens an address. See CheckListen for what is refused.
func (f *Fabric) Listen(addr string) (fabric.Listener, error) {
	if err := f.CheckListen(addr); err != nil {
		return nil, err
	}
	l := &Listener{opt: f.opt, bufs: f.opt.Buffers}
	if l.bufs == nil {
		var err error
		if l.bufs, err = fabric.NewBuffers(0, 0); err != nil {
			return nil, err
		}
		l.own = true
	}
	l.mu.conns = map[net.Conn]bool{}
	var err error
	if l.ln, err = net.Listen("tcp", addr); err != nil {
		if l.own {
			_ = l.bufs.Close()
		}
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// Addr is the address, with the port where 0 was asked for.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Conns is the number of connections now.
func (l *Listener) Conns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.conns)
}

// Close stops listening and closes every connection.
func (l *Listener) Close() error {
	l.mu.Lock()
	first := !l.mu.closed
	l.mu.closed = true
	for c := range l.mu.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
	if !first {
		return nil
	}
	err := l.ln.Close()
	if errors.Is(err, net.ErrClosed) { // by Serve
		err = nil
	}
	if l.own {
		err = errors.Join(err, l.bufs.Close())
	}
	return err
}

// Serve answers clients until ctx ends, or Close is called.
func (l *Listener) Serve(ctx context.Context, h fabric.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		l.mu.Lock()
		for c := range l.mu.conns {
			_ = c.Close()
		}
		l.mu.Unlock()
		l.wg.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { _ = l.ln.Close() })
	defer stop()
	for {
		c, err := l.ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed): // by Close
			return nil
		case err != nil: // too many open files, for one: it passes
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		case !l.enter(c):
			_ = c.Close()
			continue
		}
		go func() {
			defer l.leave(c)
			l.serve(ctx, c, h)
		}()
	}
}

// enter counts a connection, if there is room for it.
func (l *Listener) enter(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed || len(l.mu.conns) >= l.opt.MaxConns {
		return false
	}
	l.mu.conns[c] = true
	l.wg.Add(1)
	return true
}

func (l *Listener) leave(c net.Conn) {
	_ = c.Close()
	l.mu.Lock()
	delete(l.mu.conns, c)
	l.mu.Unlock()
	l.wg.Done()
}

// serve says hello and answers exchanges, one after the other.
func (l *Listener) serve(ctx context.Context, raw net.Conn, h fabric.Handler) {
	w, session, err := l.welcome(ctx, raw, h.Greeting())
	if err != nil {
		return // the client knows why
	}
	h.Join(session)
	defer h.Leave(session)
	s := &served{wire: w, h: h, session: session, bufs: l.bufs}
	for s.next(ctx, l.opt.Idle) == nil {
	}
}

// welcome does the target's part of the hello, within the stall limit.
func (l *Listener) welcome(ctx context.Context, raw net.Conn, greeting []byte) (*wire, fabric.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, l.opt.Stall)
	defer cancel()
	conn := raw
	if l.opt.TLS != nil {
		t := tls.Server(raw, l.opt.TLS)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, fabric.Session{}, err
		}
		conn = t
	}
	w := newWire(conn, l.opt.Stall)
	stop := w.during(ctx)
	s, c, err := frame.Welcome(struct {
		io.Reader
		io.Writer
	}{w.br, w}, l.opt.Token)
	if aerr := frame.Answer(w, l.opt.Token, &s, &c, greeting, err); err == nil {
		err = aerr
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return w, c.Session, err
}

// served is a target's side of a connection.
type served struct {
	*wire
	h       fabric.Handler
	session fabric.Session
	bufs    *fabric.Buffers
	number  uint32
	scratch [frame.ScratchSize]byte
}

// next answers one frame of a client.
func (s *served) next(ctx context.Context, idle time.Duration) error {
	if err := s.readBy(time.Now().Add(idle)); err != nil {
		return err
	}
	if _, err := s.br.Peek(1); err != nil {
		return err
	}
	if err := s.readBy(time.Now().Add(s.stall)); err != nil { // who begins a frame ends it
		return err
	}
	h, payload, err := frame.Read(s.br, s.scratch[:])
	if err != nil {
		return err
	}
	if s.number++; h.Number != s.number {
		return frame.Corrupt("exchange %d follows %d", h.Number, s.number-1)
	}
	switch {
	case h.Kind == frame.Ping && h.Length == 0:
		_, err := s.Write(frame.Control(nil, frame.Wait, s.number))
		return err
	case h.Kind == frame.Request && len(payload) >= requestHead && len(payload) <= requestHead+fabric.MaxRequest:
		out, in := binary.LittleEndian.Uint32(payload), binary.LittleEndian.Uint32(payload[4:])
		if out > fabric.MaxTransfer || in > fabric.MaxTransfer {
			return frame.Corrupt("%d bytes to pull and %d to push", out, in)
		}
		left := time.Duration(binary.LittleEndian.Uint32(payload[8:])) * time.Millisecond
		x := &exchange{served: s, request: append([]byte(nil), payload[requestHead:]...), out: int(out), in: int(in)}
		return x.serve(ctx, left)
	}
	return frame.Corrupt("type %d with %d bytes from a client", h.Kind, h.Length)
}
