//go:build ofi

package ofi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
)

// mover pulls all it is offered into Buffers, and fills all the room there is
// with what a Buffer holds.
type mover struct {
	served atomic.Int64
	begun  chan struct{} // not nil: told when a push begins
	ended  chan error    // not nil: told how it ended
}

func (*mover) Greeting() []byte     { return []byte("mover") }
func (*mover) Join(fabric.Session)  {}
func (*mover) Leave(fabric.Session) {}
func (m *mover) Answer(ctx context.Context, _ fabric.Session, x fabric.Exchange) ([]byte, error) {
	m.served.Add(1)
	for x.Out() > 0 {
		b, err := x.Buffer(ctx)
		if err != nil {
			return nil, err
		}
		err = x.Pull(ctx, b.Bytes[:min(len(b.Bytes), x.Out())])
		b.Release()
		if err != nil {
			return nil, err
		}
	}
	if x.In() == 0 {
		return nil, nil
	}
	b, err := x.Buffer(ctx)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	for i := range b.Bytes {
		b.Bytes[i] = 0xaa
	}
	if m.begun != nil {
		m.begun <- struct{}{}
	}
	for x.In() > 0 && err == nil {
		err = x.Push(ctx, b.Bytes[:min(len(b.Bytes), x.In())])
	}
	if m.ended != nil {
		m.ended <- err
	}
	return nil, err
}

// serve runs a listener for the test's time.
func serve(t testing.TB, n ofi.Net, h fabric.Handler) fabric.Listener {
	t.Helper()
	l, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func connect(t testing.TB, n ofi.Net, addrs ...string) fabric.Client {
	t.Helper()
	c, err := n.Connect(addrs, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// mapped is memory outside of Go's heap.
func mapped(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// TestPromise7RegisteredOnce: what was registered is not copied, whether the
// domain was there before it or not; what was not is.
func TestPromise7RegisteredOnce(t *testing.T) {
	n := open(t, ofi.Options{})
	early, late, never := mapped(t, 6<<20), mapped(t, 6<<20), mapped(t, 6<<20)
	register := func(mem []byte) func() {
		un, err := n.Register(mem)
		if err != nil {
			t.Fatal(err)
		}
		return un
	}
	unEarly := register(early)
	c := connect(t, n, serve(t, n, &mover{}).Addr().String())
	do := func(mem []byte) (copied int64) {
		before := n.Stats()
		part := mem[4096 : len(mem)-4096]
		op := &fabric.Op{Request: []byte("x"), Out: part[:1<<20], In: part[1<<20:]}
		if err := c.Do(t.Context(), op); err != nil || op.N != len(op.In) {
			t.Fatalf("N = %d, %v", op.N, err)
		}
		if !bytes.Equal(op.In, bytes.Repeat([]byte{0xaa}, len(op.In))) || mem[0] != 0 || mem[len(mem)-1] != 0 {
			t.Error("the bytes are not where they belong")
		}
		st := n.Stats()
		if r, w := st.ReadBytes-before.ReadBytes, st.WrittenBytes-before.WrittenBytes; r != 1<<20 || w != int64(len(op.In)) {
			t.Errorf("%d bytes read and %d written by remote memory access", r, w)
		}
		return st.CopiedBytes - before.CopiedBytes
	}
	if n := do(early); n != 0 {
		t.Errorf("%d bytes of registered memory were copied", n)
	}
	unLate := register(late)
	if n := do(late); n != 0 {
		t.Errorf("%d bytes of memory that was registered later were copied", n)
	}
	if got, want := do(never), int64(len(never)-8192); got != want {
		t.Errorf("%d bytes of memory nobody registered were copied, want %d", got, want)
	}
	unEarly()
	if got, want := do(early), int64(len(early)-8192); got != want {
		t.Errorf("%d bytes of memory that is not registered any more were copied, want %d", got, want)
	}
	unLate()
}

// TestPromise8GivenUp: once Do has returned, its memory is its caller's again,
// although the target goes on.
func TestPromise8GivenUp(t *testing.T) {
	n := open(t, ofi.Options{})
	m := &mover{begun: make(chan struct{}, 1), ended: make(chan error, 1)}
	c := connect(t, n, serve(t, n, m).Addr().String())
	mem := mapped(t, 32<<20)
	un, err := n.Register(mem)
	if err != nil {
		t.Fatal(err)
	}
	defer un()
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { <-m.begun; cancel() })
		err := c.Do(ctx, &fabric.Op{Request: []byte("x"), In: mem})
		for i := range mem {
			mem[i] = 0x55
		}
		wg.Wait()
		if pushed := <-m.ended; err == nil && pushed != nil {
			t.Errorf("Do = nil, but the target had %v", pushed)
		}
		if i := bytes.IndexByte(mem, 0xaa); i >= 0 {
			t.Fatalf("byte %d was written after Do had returned %v", i, err)
		}
	}
}

func TestPromise9WhoIsLetIn(t *testing.T) {
	for _, c := range []struct {
		name           string
		server, client string
		ok             bool
	}{
		{"SameToken", "a", "a", true},
		{"OtherToken", "a", "b", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &mover{}
			l := serve(t, open(t, ofi.Options{Token: c.server}), h)
			err := connect(t, open(t, ofi.Options{Token: c.client}), l.Addr().String()).Do(t.Context(), &fabric.Op{Request: []byte("x")})
			if (err == nil) != c.ok || !c.ok && (!errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "token")) {
				t.Errorf("Do = %v, want ok = %v", err, c.ok)
			}
			if n := h.served.Load(); (n > 0) != c.ok {
				t.Errorf("%d exchanges were served", n)
			}
		})
	}
}

// TestPromise3ConnectionsAreBounded: connections beyond the limit are refused,
// and taken again when others have gone.
func TestPromise3ConnectionsAreBounded(t *testing.T) {
	server := open(t, ofi.Options{MaxConns: 2})
	at := serve(t, server, &mover{}).Addr().String()
	n := open(t, ofi.Options{})
	op := func() *fabric.Op { return &fabric.Op{Request: []byte("x")} }
	first, second := connect(t, n, at), connect(t, n, at)
	if err := errors.Join(first.Do(t.Context(), op()), second.Do(t.Context(), op())); err != nil {
		t.Fatal(err)
	}
	if err := connect(t, n, at).Do(t.Context(), op()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("a third connection of two: %v, want ErrUnavailable", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	third := connect(t, n, at)
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := third.Do(t.Context(), op())
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one went: %v", err)
		}
		time.Sleep(time.Millisecond) // between tries of a client that fails fast
	}
}

// silent is an address where nobody ever answers.
func silent(t *testing.T) string {
	if provider != "tcp" {
		return "10.0.2.77:9" // no such machine
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// TestPromise1Silent: an address that says nothing costs its limit once, and
// with another way to the target no exchange is lost.
func TestPromise1Silent(t *testing.T) {
	n := open(t, ofi.Options{Dial: 2 * time.Second})
	bad := silent(t)
	c := connect(t, n, bad)
	from := time.Now()
	for range 20 {
		if err := c.Do(t.Context(), &fabric.Op{Request: []byte("x")}); !errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Do = %v, want ErrUnavailable", err)
		}
	}
	if d := time.Since(from); d > 15*time.Second {
		t.Errorf("20 exchanges with a silent target took %v, want the limit of 2s once", d)
	}
	h := []*mover{{}, {}}
	two := connect(t, open(t, ofi.Options{}), serve(t, n, h[0]).Addr().String(), serve(t, n, h[1]).Addr().String())
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if err := two.Do(t.Context(), &fabric.Op{Request: []byte("x")}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if a, b := h[0].served.Load(), h[1].served.Load(); a < 5 || b < 5 {
		t.Errorf("the addresses served %d and %d exchanges, want both to be used", a, b)
	}
}
