package natscatalog

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// EmbedOptions of Embed; the zero value is a server that only this process can reach.
type EmbedOptions struct {
	Name     string       // of the server; "": one made up. A cluster needs names that last
	Listen   string       // "host:port" for clients elsewhere, port 0: any; "": none
	Token    string       // shared secret of all clients; "": none is asked for
	TLS      *tls.Config  // of the listener; nil: plain
	Insecure bool         // allow Listen off loopback without TLS and token
	MaxStore int64        // bytes of the store; 0: three quarters of the free disk
	Cluster  Cluster      // the zero value: a server by itself
	Trace    func(string) // the server's notices, warnings and errors; nil: off
}

// Cluster makes the server one of several.
type Cluster struct {
	Name   string
	Listen string   // "host:port" for the other servers
	Routes []string // "nats://host:port" of the other servers
}

const (
	startPatience = 30 * time.Second // until the store is read and the server answers
	maxMemory     = 64 << 20         // of streams in memory: the catalog has none, only small consumers
	maxPayload    = 1 << 20          // of a message
)

// Server is a NATS server in this process.
type Server struct {
	ns    *server.Server
	lock  *os.File
	token string
}

// Embed starts a NATS server whose store is below dir; it syncs every write.
// A dir that another server has open is ErrConflict.
func Embed(dir string, opt EmbedOptions) (*Server, error) {
	opts := &server.Options{
		ServerName:             opt.Name,
		DontListen:             opt.Listen == "",
		NoSigs:                 true,
		DisableJetStreamBanner: true,
		JetStream:              true,
		StoreDir:               dir,
		SyncAlways:             true,
		JetStreamMaxMemory:     maxMemory,
		JetStreamMaxStore:      opt.MaxStore,
		MaxPayload:             maxPayload,
		Authorization:          opt.Token,
	}
	if opt.Listen != "" {
		host, port, err := listener(opt)
		if err != nil {
			return nil, fmt.Errorf("embed NATS: %w", err)
		}
		opts.Host, opts.Port = host, port
		if opt.TLS != nil {
			opts.TLS, opts.TLSConfig, opts.TLSTimeout = true, opt.TLS.Clone(), 2
		}
	}
	if opt.Cluster.Name != "" {
		if err := cluster(opts, opt.Cluster, opt.Insecure); err != nil {
			return nil, fmt.Errorf("embed NATS: %w", err)
		}
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("embed NATS: %w", err)
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embed NATS: %w: %w", catalog.ErrInvalid, err), lock.Close())
	}
	ns.SetLoggerV2(logger{opt.Trace}, false, false, false)
	s := &Server{ns: ns, lock: lock, token: opt.Token}
	ns.Start()
	if !ns.ReadyForConnections(startPatience) {
		return nil, errors.Join(fmt.Errorf("embed NATS in %s: %w: not ready after %v", dir, catalog.ErrUnavailable, startPatience), s.Close())
	}
	return s, nil
}

// listener checks the rules of listening: loopback, or TLS and a token, or told to be insecure.
func listener(opt EmbedOptions) (string, int, error) {
	host, port, err := hostPort(opt.Listen)
	if err != nil {
		return "", 0, err
	}
	if !loopback(host) && !opt.Insecure && (opt.TLS == nil || opt.Token == "") {
		return "", 0, fmt.Errorf("listen on %s: %w: off loopback this needs TLS and a token, or to be told that insecure is meant", opt.Listen, catalog.ErrInvalid)
	}
	return host, port, nil
}

// hostPort splits "host:port"; NATS wants -1 for any port.
func hostPort(s string) (string, int, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("listen on %q: %w: %w", s, catalog.ErrInvalid, err)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("listen on %q: %w: bad port", s, catalog.ErrInvalid)
	}
	if port == 0 {
		return host, -1, nil
	}
	return host, int(port), nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func cluster(opts *server.Options, c Cluster, insecure bool) error {
	host, port, err := hostPort(c.Listen)
	if err != nil {
		return err
	}
	if !loopback(host) && !insecure {
		return fmt.Errorf("listen on %s for a cluster: %w: routes have neither TLS nor a token here; run nats-server for a cluster off loopback", c.Listen, catalog.ErrInvalid)
	}
	opts.Cluster.Name, opts.Cluster.Host, opts.Cluster.Port = c.Name, host, port
	for _, r := range c.Routes {
		u, err := url.Parse(r)
		if err != nil {
			return fmt.Errorf("route %q: %w: %w", r, catalog.ErrInvalid, err)
		}
		opts.Routes = append(opts.Routes, u)
	}
	return nil
}

// lockDir makes dir, for this user only, and takes its lock.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: another server has it open", catalog.ErrConflict)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// Conn connects from within the process; the caller closes the connection.
func (s *Server) Conn() (*nats.Conn, error) {
	opts := append(options(ConnectOptions{Token: s.token, Node: "embedded"}), nats.InProcessServer(s))
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded NATS: %w: %w", catalog.ErrUnavailable, err)
	}
	return nc, nil
}

// InProcessConn is for nats.InProcessServer.
func (s *Server) InProcessConn() (net.Conn, error) { return s.ns.InProcessConn() }

// ClientURL is where clients elsewhere connect; "" when it does not listen.
func (s *Server) ClientURL() string {
	if s.ns.Addr() == nil {
		return ""
	}
	return s.ns.ClientURL()
}

// Close stops the server and waits until it has. Closing twice is fine.
func (s *Server) Close() error {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
	if err := s.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) { // closing unlocks
		return fmt.Errorf("close embedded NATS: %w", err)
	}
	return nil
}

// logger passes on what an operator may want to read.
type logger struct{ trace func(string) }

func (l logger) say(level, format string, v []any) {
	if l.trace != nil {
		l.trace("NATS " + level + ": " + fmt.Sprintf(format, v...))
	}
}
func (l logger) Noticef(format string, v ...any) { l.say("notice", format, v) }
func (l logger) Warnf(format string, v ...any)   { l.say("warning", format, v) }
func (l logger) Errorf(format string, v ...any)  { l.say("error", format, v) }
func (l logger) Fatalf(format string, v ...any)  { l.say("fatal", format, v) }
func (l logger) Debugf(string, ...any)           {}
func (l logger) Tracef(string, ...any)           {}
