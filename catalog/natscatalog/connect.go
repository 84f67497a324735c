package natscatalog

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/ckptd/ckptd/catalog"
)

// ConnectOptions of Connect; the zero value works.
type ConnectOptions struct {
	Node  string       // name of this node, for the server's list of connections
	Token string       // shared secret
	Creds string       // path of a NATS credentials file
	TLS   *tls.Config  // nil: as the URL says (tls://…), with the system's roots
	Trace func(string) // connections made and lost; nil: off
}

// Connect connects to NATS servers run by others, given as URLs separated by
// commas. It then reconnects for ever, with jitter. When no server can be
// reached now, Connect still returns the connection: it goes on trying, and
// operations on it are ErrUnavailable until it succeeds.
func Connect(url string, opt ConnectOptions) (*nats.Conn, error) {
	opts := options(opt)
	opts = append(opts, nats.RetryOnFailedConnect(true))
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		class := catalog.ErrUnavailable
		if !errors.Is(err, nats.ErrNoServers) && !errors.Is(err, nats.ErrTimeout) {
			class = catalog.ErrInvalid // a bad URL, a missing file
		}
		return nil, fmt.Errorf("connect to NATS: %w: %w", class, err)
	}
	return nc, nil
}

// options are those of every connection of ckptd.
func options(opt ConnectOptions) []nats.Option {
	trace := opt.Trace
	if trace == nil {
		trace = func(string) {}
	}
	name := "ckptd"
	if opt.Node != "" {
		name += " " + opt.Node
	}
	opts := []nats.Option{
		nats.Name(name),
		nats.Timeout(2 * time.Second),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // a server may come back before its secrets do
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 500*time.Millisecond),
		nats.ReconnectBufSize(-1), // see Driver.connected
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { trace(fmt.Sprintf("NATS connection lost: %v", err)) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { trace("NATS connection made again: " + nc.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { trace(fmt.Sprintf("NATS: %v", err)) }),
	}
	if opt.Token != "" {
		opts = append(opts, nats.Token(opt.Token))
	}
	if opt.Creds != "" {
		opts = append(opts, nats.UserCredentials(opt.Creds))
	}
	if opt.TLS != nil {
		opts = append(opts, nats.Secure(opt.TLS))
	}
	return opts
}
