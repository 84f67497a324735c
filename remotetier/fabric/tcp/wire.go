package tcp

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a connection that gives up when nothing moves for the stall limit,
// or when it is killed.
type wire struct {
	net.Conn
	raw   syscall.RawConn // nil: TLS, or not TCP at all
	br    *bufio.Reader
	stall time.Duration
	dead  atomic.Bool
	reads time.Time // the deadline that reads have now
	sends time.Time
}

func newWire(c net.Conn, stall time.Duration) *wire {
	w := &wire{Conn: c, stall: stall}
	if t, ok := c.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	w.br = bufio.NewReaderSize(readDeadline{w}, 4096)
	return w
}

// readDeadline reads with a deadline that moves on. It is what br reads, so
// that large reads go past br's buffer.
type readDeadline struct{ w *wire }

func (r readDeadline) Read(p []byte) (int, error) {
	w := r.w
	if now := time.Now(); w.reads.Sub(now) < w.stall*3/4 { // a deadline for each read would cost more than the read
		if err := w.readBy(now.Add(w.stall)); err != nil {
			return 0, err
		}
	}
	return w.Conn.Read(p)
}

// readBy sets the deadline of reads.
func (w *wire) readBy(t time.Time) error {
	w.reads = t
	if err := w.SetReadDeadline(t); err != nil {
		return err
	}
	if w.dead.Load() { // kill may have come just before
		return w.SetReadDeadline(past)
	}
	return nil
}

// writeSoon gives the next write the stall limit.
func (w *wire) writeSoon() error {
	now := time.Now()
	if w.sends.Sub(now) >= w.stall*3/4 {
		return nil
	}
	w.sends = now.Add(w.stall)
	if err := w.SetWriteDeadline(w.sends); err != nil {
		return err
	}
	if w.dead.Load() {
		return w.SetWriteDeadline(past)
	}
	return nil
}

// maxWrite bounds one write, in bytes, so that the stall limit is one of
// progress and not of size.
const maxWrite = 1 << 20

func (w *wire) Write(p []byte) (n int, err error) {
	for {
		if err := w.writeSoon(); err != nil {
			return n, err
		}
		m, err := w.Conn.Write(p[n:min(len(p), n+maxWrite)])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// writeBoth writes a head and what follows it, without a copy.
func (w *wire) writeBoth(head, p []byte) error {
	if err := w.writeSoon(); err != nil {
		return err
	}
	m := min(len(p), maxWrite)
	bufs := net.Buffers{head, p[:m]}
	if _, err := bufs.WriteTo(w.Conn); err != nil {
		return err
	}
	if m == len(p) {
		return nil
	}
	_, err := w.Write(p[m:])
	return err
}

// lowWater is how many bytes at least wake a reader that waits for many: fewer
// wakings cost less than more overlap gains.
const lowWater = 256 << 10

// readBulk fills p.
func (w *wire) readBulk(p []byte) error {
	n := 0
	if w.raw != nil && len(p) >= 2*lowWater {
		w.wakeAt(lowWater)
		var err error
		n, err = io.ReadAtLeast(w.br, p, len(p)-lowWater)
		w.wakeAt(1)
		if err != nil {
			return err
		}
	}
	_, err := io.ReadFull(w.br, p[n:])
	return err
}

// wakeAt sets how many bytes make the connection readable. A system without
// that wakes earlier.
func (w *wire) wakeAt(n int) {
	_ = w.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
}

var past = time.Unix(1, 0)

// kill ends reads and writes, now and later.
func (w *wire) kill() {
	w.dead.Store(true)
	_ = w.SetDeadline(past) // fails only on a closed connection, where nothing is left to end
}

// during kills the connection if ctx ends before stop is called; stop says
// whether it did not.
func (w *wire) during(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, w.kill)
}
