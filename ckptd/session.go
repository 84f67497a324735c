package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// session serves one connection of an SDK: saves and loads, one at a time.
type session struct {
	n    *Node
	uid  uint32
	conn wire.Conn

	write sync.Mutex // frames go out from writers' goroutines too

	saving *saving
	mapped map[int]uint64 // segments the client has been given: id -> generation
	leases []catalog.SetID
	holder string // of this connection's leases
	last   remembered
	data   dataSession
}

// saveIdle is how long a save may stand still before its memory and its room
// on disk are taken back.
const saveIdle = 10 * time.Minute

var sessionSeq struct {
	sync.Mutex
	n int
}

func (n *Node) session(ctx context.Context, c *net.UnixConn, uid uint32) error {
	sessionSeq.Lock()
	sessionSeq.n++
	seq := sessionSeq.n
	sessionSeq.Unlock()
	s := &session{n: n, uid: uid, conn: wire.Conn{U: c}, mapped: make(map[int]uint64),
		holder: fmt.Sprintf("%s-%d-%d", n.cfg.Name, os.Getpid(), seq)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The daemon's end cuts the connection, which ends the read below.
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer s.giveUp()
	defer s.unlease()
	defer s.last.forget()
	defer s.data.close(n)
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	for first := true; ; first = false {
		if !first {
			// A rank that hangs between two slots must not hold memory for ever.
			var until time.Time
			if s.saving != nil {
				until = time.Now().Add(saveIdle)
			}
			if err := c.SetReadDeadline(until); err != nil {
				return err
			}
		}
		m, payload, fds, err := s.conn.Read()
		if err != nil {
			if errors.Is(err, catalog.ErrInvalid) {
				_ = s.send(wire.ErrorMessage(err), nil) // the connection ends either way
			}
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		if first {
			if m.T != "hello" || m.Version != wire.Version {
				return s.send(wire.ErrorMessage(fmt.Errorf("%w: want hello of version %d, got %s of version %d; update the SDK or the daemon", catalog.ErrInvalid, wire.Version, m.T, m.Version)), nil)
			}
		}
		err = s.handle(ctx, m, payload, fds)
		for _, f := range fds {
			f.Close()
		}
		if err != nil {
			if err := s.send(wire.ErrorMessage(err), nil); err != nil {
				return err
			}
		}
	}
}

// sendTimeout is how long a client may leave its end of the socket unread: one
// that is stopped must not hold the writers of its shard for ever.
const sendTimeout = time.Minute

func (s *session) send(m *wire.Message, payload []byte, fds ...*os.File) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.conn.U.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	return s.conn.Write(m, payload, fds...)
}

// whileThere calls f with a context that ends when the client leaves: during a
// long answer nobody reads the connection.
func (s *session) whileThere(ctx context.Context, f func(context.Context) error) error {
	raw, err := s.conn.U.SyscallConn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Ends by itself when something arrives, and by the deadline below.
		_ = raw.Read(func(fd uintptr) bool {
			var b [1]byte
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if n == 0 || err != nil {
				cancel()
			}
			return true
		})
	}()
	err = f(ctx)
	if derr := s.conn.U.SetReadDeadline(time.Unix(1, 0)); derr != nil {
		return errors.Join(err, derr)
	}
	<-done
	return errors.Join(err, s.conn.U.SetReadDeadline(time.Time{}))
}

func (s *session) handle(ctx context.Context, m *wire.Message, payload []byte, fds []*os.File) error {
	if m.T != "load" {
		s.last.forget()
	}
	switch m.T {
	case "hello":
		return s.send(&wire.Message{T: "welcome", Version: wire.Version, Node: s.n.cfg.Name, Daemon: s.n.cfg.Version,
			SlotSize: s.n.arena.SlotSize(), SegmentSize: s.n.arena.SegmentSize(), MaxHeader: shardfile.MaxHeader}, nil)
	case "save":
		return s.whileThere(ctx, func(ctx context.Context) error { return s.save(ctx, m, payload) })
	case "slot":
		if err := s.slot(m); err != nil {
			s.giveUp()
			return err
		}
		return nil
	case "seal":
		return s.seal(ctx, m)
	case "abort":
		s.giveUp()
		return s.send(&wire.Message{T: "aborted"}, nil)
	case "load":
		return s.whileThere(ctx, func(ctx context.Context) error { return s.load(ctx, m, fds) })
	case "lease":
		return s.lease(ctx, m)
	case "dataset":
		return s.whileThere(ctx, func(ctx context.Context) error { return s.dataset(ctx, m) })
	case "pack":
		return s.whileThere(ctx, func(ctx context.Context) error { return s.pack(ctx, m) })
	case "reader":
		return s.reader(m)
	}
	return fmt.Errorf("message %q: %w: unknown type", m.T, catalog.ErrInvalid)
}

func (s *session) lease(ctx context.Context, m *wire.Message) error {
	ref, err := catalog.ParseRef(m.Set)
	if err != nil {
		return err
	}
	rec, err := s.n.cat.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	const most = 24 * 60 * 60
	if m.Seconds < 1 || m.Seconds > most {
		return fmt.Errorf("lease of %d s: %w: want 1 to %d", m.Seconds, catalog.ErrInvalid, most)
	}
	err = s.n.cat.Lease(ctx, rec.SetID, s.holder, time.Now().Add(time.Duration(m.Seconds)*time.Second))
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	} // with the catalog away nothing can be pruned either
	s.leases = append(s.leases, rec.SetID)
	return s.send(&wire.Message{T: "leased", Set: rec.SetID.String()}, nil)
}

func (s *session) unlease() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, id := range s.leases {
		if err := s.n.cat.Unlease(ctx, id, s.holder); err != nil {
			s.n.log.Debug("lease left to run out", "set", id.String(), "err", err)
		}
	}
}
