// Package fabric moves columns between a client and a target.
//
// It is server-driven, so that TCP and remote memory access fit one interface:
// a client announces bytes, and the target pulls them when it has room; a
// client names a buffer, and the target pushes into it. Package tcp is the
// fabric over TCP; PROTOCOL.md has the bytes; package target speaks over any
// fabric; package fabrictest checks one.
//
//  1. An exchange ends: with the target's answer, when its context does, or
//     soon after the target has shown no sign of life. What cannot be reached
//     is catalog.ErrUnavailable, at once while it is known to be away.
//  2. When Do returned, nobody touches the memory of its Ops any more.
//  3. A target's memory is bounded by its Buffers, and a small amount for each
//     connection, of which there is a limit: clients beyond wait or are refused.
//  4. Hostile bytes end a connection, and nothing else.
//  5. An exchange whose connection broke is tried again on another one. A
//     Handler meets the same request twice, perhaps at the same time, and must
//     do the same as for one.
package fabric

import (
	"context"
	"net"
	"os"
)

// Limits of an exchange, in bytes.
const (
	MaxRequest  = 8192     // of a request, of a reply, of a greeting
	MaxTransfer = 64 << 20 // announced in one exchange, either way
)

// Client is one client's side of the way to one target. Its methods may be
// called concurrently.
type Client interface {
	// Do carries out exchanges, as a batch where there are several: in order,
	// without waiting a round trip for each. It returns the first error met;
	// each Op has its own.
	Do(ctx context.Context, ops ...*Op) error

	// Rails tells of each address, in the order they were given.
	Rails() []Rail

	// Close ends every exchange. The session ends with it.
	Close() error
}

// Rail is an address of a target, and what went over it.
type Rail struct {
	Addr      string
	Exchanges int64 // that the target answered
	In, Out   int64 // bytes that the target pushed, and pulled
	Err       error // why it is not used now, if so
}

// Op is an exchange as a client sees it.
type Op struct {
	Request []byte // at most MaxRequest
	Out     []byte // what the target may pull, in order
	In      []byte // where the target may push, in order

	Reply []byte // of the target
	N     int    // bytes of In that were pushed
	Err   error  // what the target answered, or why it did not; wraps a class of package catalog
}

// Session names a client on all its connections. It is random: knowing it is
// being it.
type Session [16]byte

// Listener takes connections of clients.
type Listener interface {
	// Serve answers them until ctx ends, then closes everything and returns
	// nil; or the error that made it stop.
	Serve(ctx context.Context, h Handler) error
	Addr() net.Addr
	Close() error
}

// Handler answers clients. Its methods are called concurrently.
type Handler interface {
	// Greeting is what every client is told first, at most MaxRequest bytes.
	Greeting() []byte
	// Join and Leave are called as connections of a session come and go.
	Join(Session)
	Leave(Session)
	// Answer answers one exchange. The context ends when the client is gone, or
	// will not wait any longer. An error's class reaches the client.
	Answer(ctx context.Context, s Session, x Exchange) (reply []byte, err error)
}

// Exchange is an exchange as a target sees it. It is used by one goroutine, as
// long as Answer runs.
type Exchange interface {
	Request() []byte // valid while Answer runs
	Out() int        // bytes that may still be pulled
	In() int         // bytes that may still be pushed

	// Buffer lends memory of the listener's Buffers, when there is some.
	// Buffers are lent one at a time: who waits holds none.
	Buffer(ctx context.Context) (*Buffer, error)
	// Pull fills p with the next bytes of what the client announced. It is
	// fastest when p is a Buffer's.
	Pull(ctx context.Context, p []byte) error
	// Push appends to what is in the client's buffer.
	Push(ctx context.Context, p []byte) error
	// PushFile pushes n bytes of a file from off, without touching them where
	// the fabric can. A file that is too short is catalog.ErrCorrupt. A Buffer
	// must not be held meanwhile.
	PushFile(ctx context.Context, f File, off, n int64) error
}

// File is what PushFile reads: vfs.File is one, and *os.File nearly.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	Fd() (fd uintptr, ok bool) // valid until the file is closed
}

// OSFile makes a File of an *os.File.
type OSFile struct{ *os.File }

// Fd gives the descriptor.
func (f OSFile) Fd() (uintptr, bool) { return f.File.Fd(), true }

// Fabric is a way to reach targets, and to be one.
type Fabric interface {
	// Connect gives a Client of the target at these addresses. It does not
	// wait: connections are made when they are needed. The greeting of each is
	// given to check (nil: any will do), whose error refuses it.
	Connect(addrs []string, check func(greeting []byte) error) (Client, error)
	// Listen opens an address for clients.
	Listen(addr string) (Listener, error)
}

// Registrar is a Fabric with remote memory access: it moves bytes without a
// copy to and from memory it was told of.
type Registrar interface {
	// Register makes memory known, which lies outside of Go's heap and may be
	// announced by any client of the fabric. It stays where it is until
	// unregister was called, once, when no exchange uses it any more.
	Register(mem []byte) (unregister func(), err error)
}
