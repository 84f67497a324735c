package target_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// served is a target in this process that can be stopped and started again.
type served struct {
	t      *testing.T
	fs     vfs.FS
	dir    string
	name   string
	addr   string
	opt    target.ServerOptions
	stall  time.Duration // of the target's network
	server *target.Server
	bufs   *fabric.Buffers
	stop   func()
}

// serve starts a target on a new directory.
func serve(t *testing.T, name string, opt target.ServerOptions) *served {
	t.Helper()
	s := &served{t: t, fs: vfs.OS, dir: t.TempDir(), name: name, addr: "127.0.0.1:0", opt: opt}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// start serves the directory, at the address it had before.
func (s *served) start() {
	t := s.t
	t.Helper()
	dir, err := target.OpenDir(s.fs, s.dir, s.name)
	if err != nil {
		t.Fatal(err)
	}
	if s.bufs, err = fabric.NewBuffers(4<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	if s.server, err = target.NewServer(dir, s.opt); err != nil {
		t.Fatal(err)
	}
	l, err := tcp.New(tcp.Options{Buffers: s.bufs, Stall: max(s.stall, time.Second)}).Listen(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(ctx, l) }()
	bufs := s.bufs
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		for _, err := range []error{l.Close(), bufs.Close(), dir.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
		s.stop = func() {}
	}
}

// dial gives a client of the target.
func (s *served) dial(opt tcp.Options, addrs ...string) *target.Remote {
	s.t.Helper()
	if len(addrs) == 0 {
		addrs = []string{s.addr}
	}
	r, err := target.Dial(s.t.Context(), tcp.New(opt), addrs, target.RemoteOptions{Name: s.name})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestRemoteIsATarget(t *testing.T) {
	targettest.Run(t, func(t *testing.T) remotetier.Target {
		s := serve(t, "t0", target.ServerOptions{})
		return s.dial(tcp.Options{})
	})
}

// closedAddr is an address where nobody listens.
func closedAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
