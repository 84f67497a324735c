//go:build ofi

package ofi

/*
#include "shim.h"
*/
import "C"

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// Messages that may be under way on a connection.
const (
	recvSlots = 4 // receive buffers posted, on both sides
	maxAhead  = recvSlots
)

// Slots of a connection: each stands for an operation that may be under way.
const (
	sendSlots = 2 // messages being sent
	rmaSlots  = 4 // accesses to the other side's memory
	slots     = recvSlots + sendSlots + rmaSlots

	firstSend = recvSlots
	firstRMA  = recvSlots + sendSlots

	maxRMA    = 1 << 20 // bytes of one access, so that the stall limit is one of progress and not of size
	stageSize = 8 << 10 // of an endpoint's own memory, for bytes outside of Buffers
)

// endpoint is one side of a connection. One goroutine at a time reads it and
// accesses memory; several may write.
type endpoint struct {
	d     *domain
	id    uint64
	stall time.Duration
	mem   []byte // receive buffers, send buffers, stage
	reg   *registration

	ctx  context.Context // ends when the connection is of no use any more
	fail context.CancelCauseFunc
	up   chan struct{} // closed when it is connected
	once sync.Once

	recvd chan message       // what has come; never full
	sent  chan int           // send slots that are free
	rma   [rmaSlots]chan int // one when the access of that slot is done
	timer *time.Timer        // of who reads or accesses memory

	now     message // being read
	scratch [frame.ScratchSize]byte

	mu struct {
		sync.RWMutex // held for writing while it is closed
		ep           *C.struct_fid_ep
	}
}

// message is a receive buffer with something in it.
type message struct {
	slot int
	rest []byte // nil: none
}

// open makes an endpoint with its receive buffers posted.
func (d *domain) open(info *C.struct_fi_info, stall time.Duration) (*endpoint, error) {
	e := &endpoint{d: d, stall: stall, up: make(chan struct{}), recvd: make(chan message, recvSlots), sent: make(chan int, sendSlots)}
	e.ctx, e.fail = context.WithCancelCause(context.Background())
	e.timer = time.NewTimer(stall)
	var err error
	if e.mem, err = pages((recvSlots+sendSlots)*messageSize + stageSize); err != nil {
		return nil, err
	}
	if e.reg, err = d.register(e.mem, localAccess); err != nil {
		_ = unix.Munmap(e.mem)
		return nil, err
	}
	if err := failed(C.ofi_endpoint(d.domain, info, d.f.eq, d.cq, &e.mu.ep)); err != nil {
		_ = e.reg.close() // it is being given up
		_ = unix.Munmap(e.mem)
		return nil, fmt.Errorf("open an endpoint: %w", err)
	}
	d.enter(e)
	d.f.own(&e.mu.ep.fid, e)
	for i := range sendSlots {
		e.sent <- firstSend + i
	}
	for i := range e.rma {
		e.rma[i] = make(chan int, 1)
	}
	for i := range recvSlots {
		if err := e.post(i); err != nil {
			e.Close()
			return nil, err
		}
	}
	return e, nil
}

// Close ends everything that is under way: behind it nobody touches memory.
func (e *endpoint) Close() error {
	e.fail(errGone)
	e.once.Do(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		ep := e.mu.ep
		e.mu.ep = nil
		e.d.leave(e)
		_ = C.ofi_shutdown(ep) // the other side may be gone
		_ = e.d.f.shut(&ep.fid)
		_ = e.reg.close()
		_ = unix.Munmap(e.mem)
		e.timer.Stop()
	})
	return nil
}

var errGone = fmt.Errorf("the connection is closed: %w", io.ErrUnexpectedEOF)

// event is told by the fabric's thread.
func (e *endpoint) event(kind C.uint32_t, _ []byte, info *C.struct_fi_info, err error) {
	switch {
	case info != nil:
		C.fi_freeinfo(info)
	case err != nil:
		e.fail(err)
	case kind == C.FI_CONNECTED:
		select {
		case <-e.up:
		default:
			close(e.up)
		}
	case kind == C.FI_SHUTDOWN:
		e.fail(fmt.Errorf("the other side hung up: %w", io.ErrUnexpectedEOF))
	}
}

// completed is told by the domain's thread.
func (e *endpoint) completed(slot, n int, err error) {
	switch {
	case err != nil:
		e.fail(err)
	case slot < firstSend:
		e.recvd <- message{slot: slot, rest: e.mem[slot*messageSize:][:min(n, messageSize)]}
	case slot < firstRMA:
		e.sent <- slot
	default:
		e.rma[slot-firstRMA] <- n
	}
}

func (e *endpoint) context(slot int) C.uint64_t { return C.uint64_t(e.id*slots + uint64(slot)) }

// start begins an operation, again when there is no room for it at the moment.
func (e *endpoint) start(what string, op func(ep *C.struct_fid_ep) C.int) error {
	begun := time.Now()
	for {
		e.mu.RLock()
		rc := C.int(-C.FI_ESHUTDOWN)
		if e.mu.ep != nil {
			rc = op(e.mu.ep)
		}
		e.mu.RUnlock()
		switch {
		case rc >= 0:
			return nil
		case e.ctx.Err() != nil:
			return context.Cause(e.ctx)
		case rc != -C.FI_EAGAIN:
			err := fmt.Errorf("%s: %w: %w", what, io.ErrUnexpectedEOF, failed(rc))
			e.fail(err)
			return err
		case time.Since(begun) > e.stall:
			err := fmt.Errorf("%s: %w", what, os.ErrDeadlineExceeded)
			e.fail(err)
			return err
		}
		select {
		case <-e.ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

// at gives a slot's buffer.
func (e *endpoint) at(slot int) []byte { return e.mem[slot*messageSize:][:messageSize:messageSize] }

func (e *endpoint) stage() []byte { return e.mem[(recvSlots+sendSlots)*messageSize:] }

// post makes a receive buffer ready for the next message.
func (e *endpoint) post(slot int) error {
	return e.start("receive", func(ep *C.struct_fid_ep) C.int {
		return C.ofi_recv(ep, unsafe.Pointer(&e.mem[slot*messageSize]), messageSize, e.reg.c.desc, e.context(slot))
	})
}

// wait takes what c gives, within the time.
func wait[T any](e *endpoint, c <-chan T, what string, d time.Duration) (v T, err error) {
	select {
	case v = <-c:
		return v, nil
	default:
	}
	e.timer.Reset(d)
	select {
	case v = <-c:
		return v, nil
	case <-e.timer.C:
		err = fmt.Errorf("%s: nothing for %v: %w", what, d, os.ErrDeadlineExceeded)
		e.fail(err)
		return v, err
	case <-e.ctx.Done():
	}
	select { // what came before it ended
	case v = <-c:
		return v, nil
	default:
		return v, context.Cause(e.ctx)
	}
}

// Read gives the bytes of messages in order. It is for the hello.
func (e *endpoint) Read(p []byte) (int, error) {
	if err := e.next(e.stall); err != nil {
		return 0, err
	}
	n := copy(p, e.now.rest)
	e.now.rest = e.now.rest[n:]
	if len(e.now.rest) > 0 {
		return n, nil
	}
	return n, e.taken()
}

// next waits for a message, if none is being read.
func (e *endpoint) next(d time.Duration) (err error) {
	if e.now.rest == nil {
		e.now, err = wait(e, e.recvd, "receive", d)
	}
	return err
}

// taken gives the buffer of the message back.
func (e *endpoint) taken() error {
	slot := e.now.slot
	e.now = message{}
	return e.post(slot)
}

// frame reads a message, which is one frame. The payload is valid until the
// next call.
func (e *endpoint) frame(d time.Duration) (h frame.Head, payload []byte, err error) {
	if err := e.next(d); err != nil {
		return h, nil, err
	}
	r := bytes.NewReader(e.now.rest)
	h, payload, err = frame.Read(r, e.scratch[:])
	if err == nil && (r.Len() > 0 || h.Kind == frame.Data) {
		err = frame.Corrupt("%d bytes behind a frame of type %d", r.Len(), h.Kind)
	}
	if err != nil {
		return h, nil, err
	}
	return h, payload, e.taken()
}

// Write sends a message.
func (e *endpoint) Write(p []byte) (int, error) {
	if len(p) > messageSize {
		return 0, frame.Corrupt("a message of %d bytes", len(p))
	}
	var slot int
	select {
	case slot = <-e.sent:
	default:
		timer := time.NewTimer(e.stall)
		defer timer.Stop()
		select {
		case slot = <-e.sent:
		case <-timer.C:
			err := fmt.Errorf("send: nothing for %v: %w", e.stall, os.ErrDeadlineExceeded)
			e.fail(err)
			return 0, err
		case <-e.ctx.Done():
			return 0, context.Cause(e.ctx)
		}
	}
	err := e.start("send", func(ep *C.struct_fid_ep) C.int {
		// The lock is held: the memory is there while the endpoint is.
		n := copy(e.at(slot), p)
		return C.ofi_send(ep, unsafe.Pointer(&e.mem[slot*messageSize]), C.size_t(n), e.reg.c.desc, e.context(slot))
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush waits until what was written is sent.
func (e *endpoint) flush() error {
	var held []int
	for range sendSlots {
		slot, err := wait(e, e.sent, "send", e.stall)
		if err != nil {
			return err
		}
		held = append(held, slot)
	}
	for _, slot := range held {
		e.sent <- slot
	}
	return nil
}

// access begins to read the other side's memory into p, or to write p there.
// The slot must be free; p is registered, as reg says.
func (e *endpoint) access(write bool, slot int, p []byte, reg *registration, far span) error {
	at := unsafe.Pointer(unsafe.SliceData(p))
	return e.start("remote memory access", func(ep *C.struct_fid_ep) C.int {
		if write {
			return C.ofi_write(ep, at, C.size_t(len(p)), reg.c.desc, C.uint64_t(far.addr), C.uint64_t(far.key), e.context(firstRMA+slot))
		}
		return C.ofi_read(ep, at, C.size_t(len(p)), reg.c.desc, C.uint64_t(far.addr), C.uint64_t(far.key), e.context(firstRMA+slot))
	})
}

// accessed waits until an access is done.
func (e *endpoint) accessed(slot int) error {
	_, err := wait(e, e.rma[slot], "remote memory access", e.stall)
	return err
}

// during ends the connection if ctx ends before stop is called; stop says
// whether it did not.
func (e *endpoint) during(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { e.fail(context.Cause(ctx)) })
}
