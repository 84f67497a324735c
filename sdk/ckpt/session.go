package ckpt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	clientName = "go/1"
	// maxSlotSize and maxSegment bound what a daemon may say of its arena, in bytes.
	maxSlotSize = 1 << 30
	maxSegment  = 1 << 36
)

// session is one connection of the protocol. It carries one save or load at a
// time; between them it waits in the client's pool and keeps its mappings.
type session struct {
	conn    wire.Conn
	welcome wire.Message
	fresh   bool // nothing was asked on it yet

	write sync.Mutex // frames are written whole
	segs  map[int]*segment
}

// broken is a failure of the connection, not an answer of the daemon.
type broken struct{ error }

func (b broken) Unwrap() error { return b.error }

func (c *Client) away(err error) error {
	return broken{fmt.Errorf("daemon at %s: %w: %w", c.socket, catalog.ErrUnavailable, err)}
}

// connect opens a new session.
func (c *Client) connect(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	u, err := c.dialUnix(ctx)
	if err != nil {
		return nil, c.away(err)
	}
	s := &session{conn: wire.Conn{U: u}, fresh: true, segs: make(map[int]*segment)}
	err = s.during(ctx, func() error {
		if _, err := u.Write([]byte(wire.Magic)); err != nil {
			return c.away(err)
		}
		reply, _, err := c.roundTrip(s, &wire.Message{T: "hello", Version: wire.Version, Client: clientName}, nil, nil)
		if err != nil {
			return err
		}
		closeFiles(reply.fds)
		s.welcome = *reply.m
		return s.checkWelcome()
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) checkWelcome() error {
	w := &s.welcome
	switch {
	case w.T != "welcome":
		return fmt.Errorf("hello: %w: answered by %q", catalog.ErrUnavailable, w.T)
	case w.Version != wire.Version:
		return fmt.Errorf("hello: %w: the daemon speaks version %d of the protocol, this program %d", catalog.ErrInvalid, w.Version, wire.Version)
	case w.SlotSize <= 0 || w.SlotSize > maxSlotSize || w.SlotSize%4096 != 0:
		return fmt.Errorf("hello: %w: slots of %d bytes", catalog.ErrUnavailable, w.SlotSize)
	}
	return nil
}

// during runs do; when ctx ends first it cuts the connection, so that do
// returns soon, and gives ctx's error.
func (s *session) during(ctx context.Context, do func() error) error {
	stop := context.AfterFunc(ctx, func() { s.conn.U.Close() })
	err := do()
	if !stop() && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// get takes an idle session or opens one.
func (c *Client) get(ctx context.Context) (*session, error) {
	for {
		c.idle.Lock()
		n := len(c.idle.list)
		if n == 0 {
			c.idle.Unlock()
			return c.connect(ctx)
		}
		s := c.idle.list[n-1]
		c.idle.list = c.idle.list[:n-1]
		c.idle.Unlock()
		if s.alive() {
			return s, nil
		}
		s.close()
	}
}

// put gives a session back between two requests.
func (c *Client) put(s *session) {
	s.fresh = false
	c.idle.Lock()
	keep := !c.idle.closed && len(c.idle.list) < maxIdle
	if keep {
		c.idle.list = append(c.idle.list, s)
	}
	c.idle.Unlock()
	if !keep {
		s.close()
	}
}

// alive reports whether the daemon still holds its end, as far as one can see.
func (s *session) alive() bool {
	raw, err := s.conn.U.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ok = err == unix.EAGAIN || err == nil && n > 0
		return true
	})
	return ok && err == nil
}

// close leaves the daemon and drops the mappings. Nobody may be copying.
func (s *session) close() {
	s.conn.U.Close()
	for _, g := range s.segs {
		unix.Munmap(g.mem)
	}
	s.segs = nil
}

// answer is one frame from the daemon; the descriptors are its reader's.
type answer struct {
	m       *wire.Message
	payload []byte
	fds     []*os.File
}

// send writes one frame.
func (c *Client) send(s *session, m *wire.Message, payload []byte, fds ...*os.File) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.conn.Write(m, payload, fds...); errors.Is(err, catalog.ErrInvalid) {
		return err
	} else if err != nil {
		return c.away(err)
	}
	return nil
}

// receive reads one frame; an error message becomes its error.
func (c *Client) receive(s *session) (answer, error) {
	m, payload, fds, err := s.conn.Read()
	if err != nil {
		return answer{}, c.away(err)
	}
	if err := m.Err(); err != nil {
		closeFiles(fds)
		return answer{}, err
	}
	return answer{m, payload, fds}, nil
}

// roundTrip asks and waits for the answer. Slots freed late by the save before
// are not news. told reports whether the daemon answered at all.
func (c *Client) roundTrip(s *session, m *wire.Message, payload []byte, fds []*os.File) (a answer, told bool, err error) {
	if err := c.send(s, m, payload, fds...); err != nil {
		// The daemon may have refused and closed before it read everything.
		if a, rerr := c.receive(s); rerr != nil && !isBroken(rerr) {
			closeFiles(a.fds)
			return answer{}, true, rerr
		}
		return answer{}, false, err
	}
	for {
		a, err := c.receive(s)
		if err != nil {
			return answer{}, !isBroken(err), err
		}
		if a.m.T != "free" {
			return a, true, nil
		}
		closeFiles(a.fds)
	}
}

// ask makes one request on a session of the pool and expects an answer of type
// want. A connection that breaks without an answer is tried once more on a new
// one: the daemon may have restarted, and no request has an effect before its
// answer that the end of the connection does not undo. The session is the
// caller's, to put or to close.
func (c *Client) ask(ctx context.Context, m *wire.Message, payload []byte, fds []*os.File, want string) (*session, answer, error) {
	for try := 0; ; try++ {
		s, err := c.get(ctx)
		if err != nil {
			return nil, answer{}, err
		}
		reused := !s.fresh
		var a answer
		var told bool
		err = s.during(ctx, func() (err error) {
			a, told, err = c.roundTrip(s, m, payload, fds)
			return err
		})
		switch {
		case err == nil && a.m.T == want:
			return s, a, nil
		case err == nil:
			closeFiles(a.fds)
			s.close()
			return nil, answer{}, fmt.Errorf("%s: %w: answered by %q", m.T, catalog.ErrUnavailable, a.m.T)
		case told && ctx.Err() == nil && catalog.ClassOf(err) != catalog.ErrInvalid:
			c.put(s) // it refused, and is ready for the next request
			return nil, answer{}, err
		default:
			s.close()
			if told || !reused || try > 0 || ctx.Err() != nil {
				return nil, answer{}, err
			}
		}
	}
}

func isBroken(err error) bool {
	var b broken
	return errors.As(err, &b)
}

func closeFiles(fds []*os.File) {
	for _, f := range fds {
		f.Close()
	}
}

// lease keeps a set's bytes for d, or until the session ends.
func (c *Client) lease(ctx context.Context, set catalog.SetID, d time.Duration) (*session, error) {
	s, a, err := c.ask(ctx, &wire.Message{T: "lease", Set: set.String(), Seconds: int(d / time.Second)}, nil, nil, "leased")
	closeFiles(a.fds)
	return s, err
}
