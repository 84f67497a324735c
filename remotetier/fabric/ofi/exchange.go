//go:build ofi

package ofi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unsafe"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// waitEvery is the longest time between two of a target's signs of life.
const waitEvery = time.Second

// maxExchange bounds an exchange whatever its client says.
const maxExchange = 5 * time.Minute

// exchange is a target's side of one.
type exchange struct {
	*served
	request []byte
	out, in spans
	pushed  int
	broken  bool // the endpoint was closed

	send struct {
		sync.Mutex // held while a message is written
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
	stop := context.AfterFunc(x.ctx, cancel) // the client is gone
	defer stop()
	x.send.Lock()
	x.send.beat = time.AfterFunc(x.beatTime(), x.beat)
	x.send.Unlock()
	reply, err := x.h.Answer(ctx, x.session, x)
	x.send.Lock()
	defer x.send.Unlock()
	x.send.done = true
	x.send.beat.Stop()
	if x.broken {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	_, err = x.Write(frame.Control(nil, frame.Reply, x.number, appendReply(nil, x.pushed, reply, err)))
	return err
}

// beatTime is how often a target says that it is at work.
func (x *exchange) beatTime() time.Duration { return min(waitEvery, x.stall/4) }

// beat says that the target is at work, and does so again later. A client that
// cannot be told is gone: Write has ended the connection.
func (x *exchange) beat() {
	x.send.Lock()
	defer x.send.Unlock()
	if x.send.done {
		return
	}
	if _, err := x.Write(frame.Control(nil, frame.Wait, x.number)); err == nil {
		x.send.beat = time.AfterFunc(x.beatTime(), x.beat)
	}
}

func (x *exchange) Request() []byte { return x.request }
func (x *exchange) Out() int        { return x.out.left }
func (x *exchange) In() int         { return x.in.left }

func (x *exchange) Buffer(ctx context.Context) (*fabric.Buffer, error) { return x.bufs.Get(ctx) }

// access runs f, which accesses the client's memory, for as long as ctx lasts.
// When it fails the endpoint is closed: behind that nothing is under way.
func (x *exchange) access(ctx context.Context, what string, f func() error) error {
	stop := x.during(ctx)
	err := f()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	x.broken = true
	_ = x.Close()
	return fmt.Errorf("%s: %w: %w", what, catalog.ErrUnavailable, err)
}

// lies reports whether p is the Buffers' memory.
func (x *exchange) lies(p []byte) bool {
	arena := x.bufs.Arena()
	from, at := uintptr(unsafe.Pointer(unsafe.SliceData(arena))), uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return at >= from && at+uintptr(len(p)) <= from+uintptr(len(arena))
}

// Pull reads the client's memory: straight into a Buffer, or by way of the
// endpoint's own memory.
func (x *exchange) Pull(ctx context.Context, p []byte) error {
	if len(p) > x.out.left {
		return fmt.Errorf("pull %d bytes: %w: the client announced %d more", len(p), catalog.ErrInvalid, x.out.left)
	}
	if len(p) == 0 {
		return nil
	}
	n := int64(len(p))
	err := x.access(ctx, "pull", func() error {
		if x.lies(p) {
			return x.move(false, &x.out, p, x.d.bufs)
		}
		stage := x.stage()
		for len(p) > 0 {
			part := stage[:min(len(p), len(stage))]
			if err := x.move(false, &x.out, part, x.reg); err != nil {
				return err
			}
			p = p[copy(p, part):]
		}
		return nil
	})
	if err == nil {
		x.d.p.stats.read.Add(n)
	}
	return err
}

// Push writes p into the client's memory.
func (x *exchange) Push(ctx context.Context, p []byte) error {
	if len(p) > x.in.left {
		return fmt.Errorf("push %d bytes: %w: the client has room for %d", len(p), catalog.ErrInvalid, x.in.left)
	}
	if len(p) == 0 {
		return nil
	}
	n := len(p)
	err := x.access(ctx, "push", func() error {
		if x.lies(p) {
			return x.move(true, &x.in, p, x.d.bufs)
		}
		stage := x.stage()
		for len(p) > 0 {
			part := stage[:copy(stage, p)]
			if err := x.move(true, &x.in, part, x.reg); err != nil {
				return err
			}
			p = p[len(part):]
		}
		return nil
	})
	if err == nil {
		x.pushedMore(n)
	}
	return err
}

func (x *exchange) pushedMore(n int) {
	x.pushed += n
	x.d.p.stats.written.Add(int64(n))
}

// move reads or writes all of p, several accesses at a time.
func (x *exchange) move(write bool, far *spans, p []byte, reg *registration) error {
	busy := [rmaSlots]bool{}
	for i := 0; len(p) > 0; i = (i + 1) % rmaSlots {
		if busy[i] {
			if err := x.accessed(i); err != nil {
				return err
			}
		}
		part := far.next(min(len(p), maxRMA))
		if err := x.endpoint.access(write, i, p[:part.len], reg, part); err != nil {
			return err
		}
		busy[i] = true
		p = p[part.len:]
	}
	return x.all(&busy)
}

// all waits for the accesses that are under way.
func (x *exchange) all(busy *[rmaSlots]bool) error {
	for i := range busy {
		if busy[i] {
			if err := x.accessed(i); err != nil {
				return err
			}
			busy[i] = false
		}
	}
	return nil
}

// PushFile reads a part of a file into a Buffer and writes that into the
// client's memory: a piece is read while those before it are under way.
func (x *exchange) PushFile(ctx context.Context, f fabric.File, off, n int64) error {
	if n > int64(x.in.left) || off < 0 || n < 0 {
		return fmt.Errorf("push %d bytes: %w: the client has room for %d", n, catalog.ErrInvalid, x.in.left)
	}
	if n == 0 {
		return nil
	}
	b, err := x.bufs.Get(ctx)
	if err != nil {
		return err
	}
	defer b.Release()
	var unread error
	pushed := 0
	err = x.access(ctx, "push", func() error {
		size := max(min(len(b.Bytes)/rmaSlots, maxRMA), 4096)
		busy := [rmaSlots]bool{}
		pieces := min(rmaSlots, len(b.Bytes)/size)
		for i := 0; n > 0; i = (i + 1) % pieces {
			if busy[i] {
				if err := x.accessed(i); err != nil {
					return err
				}
				busy[i] = false
			}
			p := b.Bytes[i*size:][:min(n, int64(size))]
			var got int
			if got, unread = f.ReadAt(p, off); got < len(p) {
				unread = readError(off+int64(got), unread)
				break
			}
			unread = nil // io.EOF may come with the last bytes
			if err := x.file(i, p); err != nil {
				return err
			}
			busy[i] = true
			off, n, pushed = off+int64(len(p)), n-int64(len(p)), pushed+len(p)
		}
		return x.all(&busy)
	})
	if err != nil {
		return err
	}
	x.pushedMore(pushed)
	return unread
}

// file begins to write p, a piece of a Buffer, by the slot's access. Where it
// goes to several spans, all but the last are waited for.
func (x *exchange) file(slot int, p []byte) error {
	for {
		part := x.in.next(len(p))
		if err := x.endpoint.access(true, slot, p[:part.len], x.d.bufs, part); err != nil {
			return err
		}
		if p = p[part.len:]; len(p) == 0 {
			return nil
		}
		if err := x.accessed(slot); err != nil {
			return err
		}
	}
}

func readError(at int64, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the file ends at %d: %w", at, catalog.ErrCorrupt)
	}
	return fmt.Errorf("read at %d: %w", at, err)
}
