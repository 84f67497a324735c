package ofi

import (
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// Options of a Net; the zero value works, on loopback.
type Options struct {
	Provider string // of libfabric: verbs (the default), or tcp for trying
	Token    string // both ends must know it; empty: none

	// Of both ends.
	Stall time.Duration // nothing moved for so long: the other side is dead; default 5 s

	// Of a client.
	Conns     int           // connections to one target, over all its addresses; default 6
	Dial      time.Duration // for a connection, hello included; default 2 s
	Timeout   time.Duration // for one exchange; default 60 s
	KeepAlive time.Duration // between signs of life on an idle connection; default 15 s

	// Of a listener.
	Insecure bool            // allow to listen off loopback, with a token
	MaxConns int             // connections at one time, over all listeners; default 512, 68 KiB of pinned memory each
	Idle     time.Duration   // a connection silent for so long is closed; default 1 min
	Buffers  *fabric.Buffers // default: fabric.NewBuffers(0, 0) of its own
}

// Stats count what a Net did since it was made.
type Stats struct {
	ReadBytes    int64 // by remote memory access, out of a client's memory: a target's pulls
	WrittenBytes int64 // by remote memory access, into a client's memory: a target's pushes
	DirectBytes  int64 // of a client's that were announced where they are, or had room where they belong
	CopiedBytes  int64 // of a client's that went by a copy, because the memory was not registered
	Registered   int64 // bytes of memory registered now, the messages' aside
}

// Net is the fabric. Close it when its clients and listeners are closed.
type Net interface {
	fabric.Fabric
	fabric.Registrar
	io.Closer
	Stats() Stats
}

// CheckListen refuses to let strangers in: off loopback an address needs to be
// told that it may be insecure, and a token.
func (o Options) CheckListen(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("listen %q: %w: want HOST:PORT", addr, catalog.ErrInvalid)
	}
	if len(o.Token) > frame.MaxToken {
		return fmt.Errorf("listen %s: %w: the token has more than %d bytes", addr, catalog.ErrInvalid, frame.MaxToken)
	}
	ip := net.ParseIP(host)
	if host == "localhost" || ip != nil && ip.IsLoopback() || o.Insecure && o.Token != "" {
		return nil
	}
	return fmt.Errorf("listen %s: %w: remote memory access knows no TLS: off loopback it needs a token, and to be told that it may be insecure", addr, catalog.ErrInvalid)
}
