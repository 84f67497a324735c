package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/target"
)

// link stands in the way to one address, and can fall silent: whatever is
// said, nothing arrives any more, on old connections and on new ones.
type link struct {
	addr  string
	bytes atomic.Int64 // that went through, both ways

	mu struct {
		sync.Mutex
		cut   chan struct{} // closed: silent
		conns map[net.Conn]bool
	}
}

func newLink(t *testing.T, listen, to string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	l := &link{addr: ln.Addr().String()}
	l.mu.cut, l.mu.conns = make(chan struct{}), map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			l.mu.Lock()
			cut := l.mu.cut
			l.mu.conns[c], l.mu.conns[up] = true, true
			l.mu.Unlock()
			wg.Go(func() { l.carry(up, c, cut) })
			wg.Go(func() { l.carry(c, up, cut) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		l.drop()
		wg.Wait()
	})
	return l
}

// carry moves bytes one way, until the link is cut; then it only listens.
func (l *link) carry(to, from net.Conn, cut <-chan struct{}) {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-cut:
			if err != nil {
				return // and the other side is not told
			}
			continue
		default:
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.Close()
				return
			}
			l.bytes.Add(int64(n))
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// silence cuts the link.
func (l *link) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.mu.cut)
}

// heal makes a link that was cut anew; connections that it swallowed end.
func (l *link) heal() {
	l.drop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.cut = make(chan struct{})
}

// drop ends the connections there are.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.mu.conns {
		_ = c.Close()
	}
	clear(l.mu.conns)
}

// TestRails: a target of three addresses is used over all of them. One of them
// is cut, then the other two: they fall silent, or their connections break. No
// error reaches the caller, the bytes go over those that are left, and over
// all of them again when they are back.
func TestRails(t *testing.T) {
	t.Parallel()
	p := startTarget(t, "t0", "--listen", "127.0.0.2:0", "--listen", "127.0.0.3:0")
	if len(p.all) != 3 {
		t.Fatalf("the target listens on %v", p.all)
	}
	var links []*link
	var addrs []string
	for _, to := range p.all {
		l := newLink(t, "127.0.0.1:0", to)
		links, addrs = append(links, l), append(addrs, l.addr)
	}
	r, err := target.Dial(t.Context(), tcp.New(tcp.Options{Stall: time.Second, Dial: time.Second}), addrs, target.RemoteOptions{Name: "t0"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	// Three writers and readers, all the time.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var slowest, done atomic.Int64
	for i := range 3 {
		b := targetBytes(256<<10, byte(i))
		wg.Go(func() {
			for gen := uint64(1); ctx.Err() == nil; gen++ {
				from := time.Now()
				if err := writeAndRead(t.Context(), r, remotetier.Key{Blob: fmt.Sprintf("run/%d", i), Generation: gen}, b); err != nil {
					t.Errorf("writer %d, column %d: %v", i, gen, err)
					return
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(from))))
				done.Add(1)
			}
		})
	}
	defer func() { cancel(); wg.Wait() }()

	// moves waits until each link but those that are away carried something.
	moves := func(what string, away ...int) {
		t.Helper()
		var from [3]int64
		for i, l := range links {
			from[i] = l.bytes.Load()
		}
		eventually(t, what, func() error {
			for i, l := range links {
				if n := l.bytes.Load() - from[i]; !slices.Contains(away, i) && n < 2<<20 {
					return fmt.Errorf("%d bytes went over rail %d", n, i)
				}
			}
			return nil
		})
	}
	moves("all are used")
	for _, cut := range [][]int{{0}, {1, 2}} {
		var at [3]int64
		for _, i := range cut {
			links[i].silence()
		}
		for _, i := range cut {
			eventually(t, "it is known to be away", func() error {
				if r.Rails()[i].Err == nil {
					return errors.New("it is not")
				}
				return nil
			})
			at[i] = links[i].bytes.Load()
		}
		moves(fmt.Sprintf("rails %v are silent", cut), cut...)
		for _, i := range cut {
			if n := links[i].bytes.Load() - at[i]; n != 0 {
				t.Errorf("%d bytes went over rail %d, which is cut", n, i)
			}
			links[i].heal()
		}
		moves(fmt.Sprintf("rails %v are back", cut))
		for _, i := range cut {
			links[i].drop() // connections break, and the address is there
		}
		moves(fmt.Sprintf("rails %v broke", cut))
	}
	cancel()
	wg.Wait()
	t.Logf("%d columns; the slowest took %v; %+v", done.Load(), time.Duration(slowest.Load()), r.Rails())
	if d := time.Duration(slowest.Load()); d > 30*time.Second {
		t.Errorf("a column took %v", d)
	}
	for i, rail := range r.Rails() {
		if rail.In < 2<<20 || rail.Out < 2<<20 || rail.Err != nil {
			t.Errorf("rail %d: %+v", i, rail)
		}
	}
}

// writeAndRead writes a column, reads it back and removes it.
func writeAndRead(ctx context.Context, r remotetier.Target, k remotetier.Key, b []byte) error {
	w, err := r.Create(ctx, k, int64(len(b)), remotetier.CreateNew)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := errors.Join(w.Write(ctx, b), w.Commit(ctx)); err != nil {
		return err
	}
	rd, err := r.Open(ctx, k)
	if err != nil {
		return err
	}
	defer rd.Close()
	got := make([]byte, len(b))
	if _, err := rd.ReadAt(ctx, got, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(got, b) {
		return errors.New("other bytes came back")
	}
	return r.Remove(ctx, k)
}
