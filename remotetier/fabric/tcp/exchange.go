package tcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// waitEvery is the longest time between two of a target's signs of life.
const waitEvery = time.Second

// maxExchange bounds an exchange whatever its client says: it may trickle, and
// hold a Buffer.
const maxExchange = 5 * time.Minute

// exchange is a target's side of one.
type exchange struct {
	*served
	request []byte
	out, in int
	broken  bool // the connection is in the middle of something

	send struct {
		sync.Mutex // held while a frame is written
		done       bool
		beat       *time.Timer
	}
}

var _ fabric.Exchange = (*exchange)(nil)

// serve has the handler answer, and says meanwhile that it is at work.
func (x *exchange) serve(ctx context.Context, left time.Duration) error {
	if left <= 0 {
		left = maxExchange
	}
	ctx, cancel := context.WithTimeout(ctx, min(left, maxExchange))
	defer cancel()
	x.send.Lock()
	x.send.beat = time.AfterFunc(x.beatTime(), func() { x.beat(cancel) })
	x.send.Unlock()
	reply, err := x.h.Answer(ctx, x.session, x)
	x.send.Lock()
	defer x.send.Unlock()
	x.send.done = true
	x.send.beat.Stop()
	if x.broken {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	payload := []byte{fabric.CodeOf(err)}
	if err != nil {
		payload = append(payload, frame.Cut(err.Error())...)
	} else {
		payload = append(payload, reply[:min(len(reply), fabric.MaxRequest)]...)
	}
	_, err = x.Write(frame.Control(nil, frame.Reply, x.number, payload))
	return err
}

// beatTime is how often a target says that it is at work.
func (x *exchange) beatTime() time.Duration { return min(waitEvery, x.stall/4) }

// beat says that the target is at work, and does so again later. A client that
// cannot be told is gone.
func (x *exchange) beat(gone context.CancelFunc) {
	if !x.send.TryLock() { // bytes are under way: a sign of life
		time.AfterFunc(x.beatTime(), func() { x.beat(gone) }) // finds done, if that is so by then
		return
	}
	defer x.send.Unlock()
	if x.send.done {
		return
	}
	if _, err := x.Write(frame.Control(nil, frame.Wait, x.number)); err != nil {
		gone()
		return
	}
	x.send.beat = time.AfterFunc(x.beatTime(), func() { x.beat(gone) })
}

func (x *exchange) Request() []byte { return x.request }
func (x *exchange) Out() int        { return x.out }
func (x *exchange) In() int         { return x.in }

func (x *exchange) Buffer(ctx context.Context) (*fabric.Buffer, error) { return x.bufs.Get(ctx) }

// frame writes one frame of a few bytes.
func (x *exchange) say(kind byte, payload ...[]byte) error {
	x.send.Lock()
	defer x.send.Unlock()
	_, err := x.Write(frame.Control(nil, kind, x.number, payload...))
	return err
}

// fail marks the connection as useless.
func (x *exchange) fail(what string, err error) error {
	x.broken = true
	return fmt.Errorf("%s: %w: %w", what, catalog.ErrUnavailable, err)
}

// Pull grants the client credit for p and takes what it sends.
func (x *exchange) Pull(ctx context.Context, p []byte) error {
	if len(p) > x.out {
		return fmt.Errorf("pull %d bytes: %w: the client announced %d more", len(p), catalog.ErrInvalid, x.out)
	}
	if len(p) == 0 {
		return nil
	}
	stop := x.during(ctx)
	err := x.pull(p)
	if !stop() {
		x.broken = true
		if err == nil {
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return x.fail("pull", err)
	}
	x.out -= len(p)
	return nil
}

func (x *exchange) pull(p []byte) error {
	if err := x.say(frame.Credit, binary.LittleEndian.AppendUint32(nil, uint32(len(p)))); err != nil {
		return err
	}
	if err := x.readBy(time.Now().Add(x.stall)); err != nil {
		return err
	}
	h, _, err := frame.Read(x.br, x.scratch[:])
	if err != nil {
		return err
	}
	if h.Kind != frame.Data || h.Number != x.number || int64(h.Length) != int64(len(p)) {
		return frame.Corrupt("type %d with %d bytes for a credit of %d", h.Kind, h.Length, len(p))
	}
	return x.readBulk(p)
}

// Push sends p.
func (x *exchange) Push(ctx context.Context, p []byte) error {
	if len(p) > x.in {
		return fmt.Errorf("push %d bytes: %w: the client has room for %d", len(p), catalog.ErrInvalid, x.in)
	}
	stop := x.during(ctx)
	defer func() {
		if !stop() {
			x.broken = true
		}
	}()
	for len(p) > 0 {
		n := min(len(p), maxPush)
		if err := x.data(p[:n]); err != nil {
			return x.fail("push", err)
		}
		p = p[n:]
		x.in -= n
	}
	return nil
}

// data writes one DATA frame.
func (x *exchange) data(p []byte) error {
	x.send.Lock()
	defer x.send.Unlock()
	return x.writeBoth(frame.Append(nil, frame.Data, x.number, len(p)), p)
}

// PushFile sends a part of a file: by sendfile, or with TLS by way of a Buffer.
func (x *exchange) PushFile(ctx context.Context, f fabric.File, off, n int64) error {
	if n > int64(x.in) || off < 0 || n < 0 {
		return fmt.Errorf("push %d bytes: %w: the client has room for %d", n, catalog.ErrInvalid, x.in)
	}
	fd, real := f.Fd()
	if x.raw == nil || !real {
		return x.pushVia(ctx, f, off, n)
	}
	stop := x.during(ctx)
	defer func() {
		if !stop() {
			x.broken = true
		}
	}()
	for n > 0 {
		m := min(n, maxPush)
		if err := x.sendFile(f, int(fd), off, int(m)); err != nil {
			return err
		}
		off, n, x.in = off+m, n-m, x.in-int(m)
	}
	return nil
}

// pushVia reads into a Buffer and sends that.
func (x *exchange) pushVia(ctx context.Context, f fabric.File, off, n int64) error {
	if n == 0 {
		return nil
	}
	b, err := x.bufs.Get(ctx)
	if err != nil {
		return err
	}
	defer b.Release()
	for n > 0 {
		p := b.Bytes[:min(n, maxPush, int64(len(b.Bytes)))]
		if got, err := f.ReadAt(p, off); got < len(p) {
			return readError(off+int64(got), err)
		}
		if err := x.Push(ctx, p); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func readError(at int64, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the file ends at %d: %w", at, catalog.ErrCorrupt)
	}
	return fmt.Errorf("read at %d: %w", at, err)
}

// sendFile writes one DATA frame of a file's bytes. What cannot be read is
// made up by zeros, so that the answer can still be said.
func (x *exchange) sendFile(f fabric.File, fd int, off int64, n int) error {
	x.send.Lock()
	defer x.send.Unlock()
	if err := x.headFirst(frame.Append(nil, frame.Data, x.number, n)); err != nil {
		return x.fail("push", err)
	}
	at := off
	for n > 0 {
		if err := x.writeSoon(); err != nil {
			return x.fail("push", err)
		}
		var got int
		var errno error
		err := x.raw.Write(func(sock uintptr) bool {
			got, errno = unix.Sendfile(int(sock), fd, &at, n)
			return errno != unix.EAGAIN && errno != unix.EINTR
		})
		switch {
		case err != nil:
			return x.fail("push", err)
		case errno == nil && got > 0:
			n -= got
			continue
		case errno == unix.EINVAL || errno == unix.ENOSYS:
			return x.copyFile(f, at, n) // a file system without it
		case errno == nil:
			errno = io.EOF
		}
		return x.fill(n, readError(at, errno))
	}
	return nil
}

// headFirst writes a head that more follows: it waits for that, and leaves with it.
func (x *exchange) headFirst(head []byte) error {
	if err := x.writeSoon(); err != nil {
		return err
	}
	var errno error
	err := x.raw.Write(func(sock uintptr) bool {
		for len(head) > 0 {
			var n int
			n, errno = unix.SendmsgN(int(sock), head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if errno == unix.EAGAIN || errno == unix.EINTR {
				return false
			}
			if errno != nil {
				return true
			}
			head = head[n:]
		}
		return true
	})
	return errors.Join(err, errno)
}

const copySize = 64 << 10

// copyFile sends the rest of a frame without sendfile.
func (x *exchange) copyFile(f fabric.File, off int64, n int) error {
	buf := make([]byte, copySize)
	for n > 0 {
		p := buf[:min(n, copySize)]
		if got, err := f.ReadAt(p, off); got < len(p) {
			return x.fill(n, readError(off+int64(got), err))
		}
		if _, err := x.Write(p); err != nil {
			return x.fail("push", err)
		}
		off, n = off+int64(len(p)), n-len(p)
	}
	return nil
}

var zeros [copySize]byte

// fill makes up for n bytes that cannot be read, because of cause.
func (x *exchange) fill(n int, cause error) error {
	for n > 0 {
		m := min(n, len(zeros))
		if _, err := x.Write(zeros[:m]); err != nil {
			return x.fail("push", err)
		}
		n -= m
	}
	return cause
}
