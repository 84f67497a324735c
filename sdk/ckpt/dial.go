package ckpt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	helloTimeout = 10 * time.Second // from connect to welcome
	maxIdle      = 64               // sessions kept open between calls
)

// Client talks to the daemon of this node. Close it after use.
type Client struct {
	socket  string
	welcome wire.Message
	http    *http.Client

	idle struct {
		sync.Mutex
		list   []*session
		closed bool
	}
	launches launches
}

// Dial finds the daemon and greets it. The socket is the one given, else
// CKPTD_SOCKET, else the first that answers of $XDG_RUNTIME_DIR/ckptd/ckptd.sock,
// /tmp/ckptd-$UID/ckptd.sock and /run/ckptd/ckptd.sock.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var tried []string
	for _, path := range Sockets(socket) {
		c := &Client{socket: path}
		s, err := c.connect(ctx)
		if err == nil {
			c.welcome = s.welcome
			c.http = c.newHTTP()
			c.put(s)
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("dial %s: %w", path, context.Cause(ctx))
		}
		tried = append(tried, fmt.Sprintf("%s: %v", path, reason(err)))
	}
	err := fmt.Errorf("no daemon found: %w: tried %s", catalog.ErrUnavailable, strings.Join(tried, "; "))
	return nil, wire.WithHint(err, "start one with `ckptd serve`, or name its socket with CKPTD_SOCKET or --socket")
}

// Sockets lists where Dial looks, in order.
func Sockets(socket string) []string {
	if socket == "" {
		socket = os.Getenv("CKPTD_SOCKET")
	}
	if socket != "" {
		return []string{socket} // named on purpose: another daemon would be a surprise
	}
	var list []string
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, filepath.Join(dir, "ckptd", "ckptd.sock"))
	}
	return append(list, fmt.Sprintf("/tmp/ckptd-%d/ckptd.sock", os.Getuid()), "/run/ckptd/ckptd.sock")
}

// Socket is the path of the daemon's socket.
func (c *Client) Socket() string { return c.socket }

// Node is the daemon's name.
func (c *Client) Node() string { return c.welcome.Node }

// Close closes every connection that is not in use; those in use close when
// their Save or Reader does.
func (c *Client) Close() error {
	c.idle.Lock()
	list := c.idle.list
	c.idle.list, c.idle.closed = nil, true
	c.idle.Unlock()
	for _, s := range list {
		s.close()
	}
	c.http.CloseIdleConnections()
	return nil
}

// dialUnix opens a connection to the daemon's socket.
func (c *Client) dialUnix(ctx context.Context) (*net.UnixConn, error) {
	if err := trusted(c.socket); err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// trusted refuses a socket in a folder of /tmp that somebody else made: anyone
// can make one there and wait for our checkpoints.
func trusted(socket string) error {
	dir := filepath.Dir(socket)
	if dir != fmt.Sprintf("/tmp/ckptd-%d", os.Getuid()) {
		return nil
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Getuid() || !info.IsDir() {
		return fmt.Errorf("%s does not belong to this user: %w", dir, wire.ErrUnauthorized)
	}
	return nil
}

// reason is err without the noise of package net.
func reason(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}
