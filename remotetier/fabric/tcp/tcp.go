package tcp

import (
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// Options of a Fabric; the zero value works, on loopback.
type Options struct {
	TLS   *tls.Config // nil: none. A client's, a server's, or one that serves both
	Token string      // both ends must know it; empty: none

	// Of both ends.
	Stall time.Duration // nothing moved for so long: the other side is dead; default 5 s

	// Of a client.
	Conns     int           // connections to one target, over all its addresses; default 16
	Dial      time.Duration // for a connection, TLS and hello included; default 2 s
	Timeout   time.Duration // for one exchange; default 60 s
	KeepAlive time.Duration // between signs of life on an idle connection; default 15 s

	// Of a listener.
	Insecure bool            // allow to listen off loopback without TLS and token
	MaxConns int             // connections at one time; default 1024
	Idle     time.Duration   // a connection silent for so long is closed; default 1 min
	Buffers  *fabric.Buffers // may be shared among listeners; default: fabric.NewBuffers(0, 0) of its own
}

func (o Options) norm() Options {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&o.Stall, 5*time.Second)
	set(&o.Dial, 2*time.Second)
	set(&o.Timeout, time.Minute)
	set(&o.KeepAlive, 15*time.Second)
	set(&o.Idle, time.Minute)
	if o.Conns <= 0 {
		o.Conns = 16
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 1024
	}
	return o
}

// Of the protocol, beside those of frames.
const (
	requestHead = 12                // of a REQUEST's payload, before the request, in bytes
	maxPush     = 1 << 20           // payload of a target's DATA frame, in bytes
	maxAhead    = fabric.MaxRequest // bytes of requests sent before their turn
)

// Fabric reaches targets by TCP.
type Fabric struct{ opt Options }

var _ fabric.Fabric = (*Fabric)(nil)

// New makes a Fabric. It opens nothing.
func New(opt Options) *Fabric { return &Fabric{opt: opt.norm()} }

// CheckListen refuses to let strangers in: off loopback an address needs TLS,
// and a token or certificates of clients.
func (f *Fabric) CheckListen(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("listen %q: %w: want HOST:PORT", addr, catalog.ErrInvalid)
	}
	if len(f.opt.Token) > frame.MaxToken {
		return fmt.Errorf("listen %s: %w: the token has more than %d bytes", addr, catalog.ErrInvalid, frame.MaxToken)
	}
	ip := net.ParseIP(host)
	if host == "localhost" || ip != nil && ip.IsLoopback() || f.opt.Insecure {
		return nil
	}
	known := f.opt.Token != "" || f.opt.TLS != nil && f.opt.TLS.ClientAuth == tls.RequireAndVerifyClientCert
	if f.opt.TLS == nil || !known {
		return fmt.Errorf("listen %s: %w: off loopback this needs TLS and a token (or certificates of clients), or to be told that it may be insecure", addr, catalog.ErrInvalid)
	}
	return nil
}
