package ckptd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/common/config"
	"github.com/cloudwego/hertz/pkg/common/hlog"
	"github.com/cloudwego/hertz/pkg/network/standard"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	helloTimeout = 10 * time.Second
	maxBody      = 4 << 20 // bytes of an HTTP request
)

// listen opens the socket and, when asked, the TCP listener, and returns what
// serves them.
func (n *Node) listen() ([]func(context.Context) error, error) {
	hlog.SetOutput(io.Discard) // the daemon logs its own way
	var servers []func(context.Context) error
	if n.cfg.Socket != "" {
		ln, err := listenUnix(n.cfg.Socket)
		if err != nil {
			return nil, err
		}
		if len(n.cfg.UIDs) > 0 { // welcome looks at who connects
			if err := os.Chmod(n.cfg.Socket, 0o666); err != nil {
				return nil, errors.Join(fmt.Errorf("let other users in: %w", err), ln.Close())
			}
		}
		servers = append(servers, func(ctx context.Context) error { return n.serveSocket(ctx, ln) })
	}
	if n.cfg.Listen != "" {
		serve, err := n.listenTCP()
		if err != nil {
			return nil, err
		}
		servers = append(servers, serve)
	}
	return servers, nil
}

// listenUnix takes the socket's path over from a daemon that died, never from
// one that lives.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if len(path) > 107 {
		return nil, fmt.Errorf("socket %s: %w: the path is longer than the 107 bytes a unix socket may have; give a shorter --socket", path, catalog.ErrInvalid)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: %w: another daemon answers there; give --socket another path or stop it", path, catalog.ErrConflict)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	old := unix.Umask(0o177) // the socket is 0600 from its first moment
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return ln, nil
}

func (n *Node) listenTCP() (func(context.Context) error, error) {
	host, _, err := net.SplitHostPort(n.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w: want HOST:PORT", n.cfg.Listen, catalog.ErrInvalid)
	}
	ip := net.ParseIP(host)
	loopback := host == "localhost" || ip != nil && ip.IsLoopback()
	if !loopback && !n.cfg.Insecure && (n.cfg.TLSCert == "" || n.cfg.Token == "") {
		return nil, fmt.Errorf("--listen %s: %w: off loopback this needs --tls-cert, --tls-key and --token-file, or --insecure", n.cfg.Listen, catalog.ErrInvalid)
	}
	ln, err := net.Listen("tcp", n.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	n.cfg.Listen = ln.Addr().String() // the port, where 0 was asked for
	var conf *tls.Config
	if n.cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(n.cfg.TLSCert, n.cfg.TLSKey)
		if err != nil {
			ln.Close()
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		conf = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	}
	return func(ctx context.Context) error { return n.serveHTTP(ctx, ln, conf, true) }, nil
}

// serveHTTP runs Hertz on a listener until ctx ends.
func (n *Node) serveHTTP(ctx context.Context, ln net.Listener, conf *tls.Config, network bool) error {
	opts := []config.Option{
		server.WithListener(ln), server.WithTransport(standard.NewTransporter),
		server.WithMaxRequestBodySize(maxBody), server.WithStreamBody(network), server.WithDisablePrintRoute(true),
		server.WithReadTimeout(time.Minute), server.WithIdleTimeout(5 * time.Minute), server.WithExitWaitTime(time.Second),
	}
	if conf != nil {
		opts = append(opts, server.WithTLS(conf))
	}
	h := server.New(opts...)
	n.routes(h, network)
	done := make(chan error, 1)
	go func() { done <- h.Run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		ln.Close()
		short, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := h.Shutdown(short); err != nil {
			n.log.Debug("http shutdown", "err", err)
		}
		return ctx.Err()
	}
}

// serveSocket accepts connections and gives each to the half of the protocol
// that its first bytes ask for.
func (n *Node) serveSocket(ctx context.Context, ln *net.UnixListener) error {
	defer ln.Close()
	web := &handoff{conns: make(chan net.Conn), done: make(chan struct{})}
	var wg sync.WaitGroup
	defer wg.Wait()
	httpDone := make(chan error, 1)
	wg.Go(func() { httpDone <- n.serveHTTP(ctx, web, nil, false) })
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			web.Close()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("socket: %w", err)
		}
		wg.Go(func() {
			if err := n.welcome(ctx, c, web); err != nil {
				n.log.Debug("connection", "err", err)
				c.Close()
			}
		})
	}
}

// welcome checks who is there and looks at the first bytes.
func (n *Node) welcome(ctx context.Context, c *net.UnixConn, web *handoff) error {
	uid, err := peerUID(c)
	if err != nil {
		return err
	}
	if me := uint32(os.Getuid()); uid != me && uid != 0 && !slices.Contains(n.cfg.UIDs, uid) {
		wire.RefuseConn(c, fmt.Errorf("user %d: %w: this daemon is of user %d", uid, wire.ErrUnauthorized, me))
		return fmt.Errorf("user %d refused", uid)
	}
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	head := make([]byte, len(wire.Magic))
	if _, err := io.ReadFull(c, head); err != nil {
		return fmt.Errorf("first bytes: %w", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if string(head) != wire.Magic {
		return web.give(&prefixed{Conn: c, head: head, uid: uid})
	}
	defer c.Close()
	if open := n.stats.Sessions.Add(1); open > int64(n.cfg.MaxSessions) {
		n.stats.Sessions.Add(-1)
		wire.RefuseConn(c, fmt.Errorf("%w: %d sessions are open, the most this daemon allows (--max-sessions)", catalog.ErrUnavailable, open-1))
		return nil
	}
	defer n.stats.Sessions.Add(-1)
	return n.session(ctx, c, uid)
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, fmt.Errorf("peer's user: %w", cerr)
	}
	return cred.Uid, nil
}

// handoff is a listener whose connections are given to it.
type handoff struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (h *handoff) give(c net.Conn) error {
	select {
	case h.conns <- c:
		return nil
	case <-h.done:
		return net.ErrClosed
	}
}

func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr does not say "unix", because Hertz would unlink the socket's path.
func (h *handoff) Addr() net.Addr { return handoffAddr{} }

type handoffAddr struct{}

func (handoffAddr) Network() string { return "handoff" }
func (handoffAddr) String() string  { return "handoff" }

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	head []byte
	uid  uint32
}

// RemoteAddr is who asks.
func (p *prefixed) RemoteAddr() net.Addr { return peerAddr(p.uid) }

// peerAddr is the user at the other end of the unix socket.
type peerAddr uint32

func (peerAddr) Network() string  { return "unix" }
func (a peerAddr) String() string { return fmt.Sprintf("uid %d", uint32(a)) }

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		k := copy(b, p.head)
		p.head = p.head[k:]
		return k, nil
	}
	return p.Conn.Read(b)
}
