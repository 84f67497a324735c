//go:build ofi

package ofi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// netOf makes a Net of the provider under test, as open does for the others.
func netOf(t *testing.T, opt Options) (n *provider, addr string) {
	t.Helper()
	opt.Provider, addr = os.Getenv("CKPTD_OFI_PROVIDER"), os.Getenv("CKPTD_OFI_ADDR")
	if opt.Provider == "" {
		opt.Provider, addr = "tcp", "127.0.0.1:0"
	}
	opt.Token, opt.Insecure, opt.Dial = "s3cret", true, 10*time.Second
	made, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := made.Close(); err != nil { // every Buffer is back
			t.Error(err)
		}
	})
	return made.(*provider), addr
}

// puller pulls all it is offered.
type puller struct{}

func (puller) Greeting() []byte     { return []byte("puller") }
func (puller) Join(fabric.Session)  {}
func (puller) Leave(fabric.Session) {}
func (puller) Answer(ctx context.Context, _ fabric.Session, x fabric.Exchange) ([]byte, error) {
	b, err := x.Buffer(ctx)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	return nil, x.Pull(ctx, b.Bytes[:min(x.Out(), len(b.Bytes))])
}

// TestPromise4HostileClients: messages that break a rule, and memory that is
// not there, end their connection and nothing else.
func TestPromise4HostileClients(t *testing.T) {
	n, addr := netOf(t, Options{Stall: 2 * time.Second})
	l, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := l.Serve(ctx, puller{}); err != nil {
			t.Error(err)
		}
	})
	// say tells what the target's answer to a message is; 0: it hung up.
	say := func(message []byte) (kind byte) {
		c, err := n.dial(t.Context(), l.Addr().String(), frame.NewSession(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.e.Write(message); err != nil {
			return 0
		}
		h, _, err := c.e.frame(20 * time.Second)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the target keeps a connection that said %x", message)
		}
		return h.Kind
	}
	ask := func(r request) []byte { return frame.Control(nil, frame.Request, 1, r.appendTo(nil)) }
	good := ask(request{body: []byte("please")})
	if kind := say(good); kind != frame.Reply {
		t.Fatalf("a good request got type %d", kind)
	}
	for i := 0; i < len(good); i += 3 { // a connection for each
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if kind := say(bad); kind != 0 {
			t.Errorf("byte %d flipped: type %d", i, kind)
		}
	}
	for name, m := range map[string][]byte{
		"cut":                good[:len(good)-1],
		"two frames":         append(bytes.Clone(good), good...),
		"a byte behind":      append(bytes.Clone(good), 0),
		"data":               append(frame.Append(nil, frame.Data, 1, 4), "abcd"...),
		"wrong number":       frame.Control(nil, frame.Ping, 2),
		"frame of a target":  frame.Control(nil, frame.Reply, 1, []byte{0}),
		"fat ping":           frame.Control(nil, frame.Ping, 1, []byte{0}),
		"huge transfer":      frame.Control(nil, frame.Request, 1, bytes.Repeat([]byte{0xff}, requestHead)),
		"memory not there":   ask(request{out: []span{{addr: 1 << 40, key: 12345, len: 1 << 20}}}),
		"memory at the end":  ask(request{out: []span{{addr: ^uint64(0) - 1<<20, key: ^uint64(0), len: 1 << 20}}}),
		"message of nothing": {},
	} {
		if kind := say(m); kind != 0 {
			t.Errorf("%s: type %d", name, kind)
		}
	}
	// Good clients are served as ever.
	c, err := n.Connect([]string{l.Addr().String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Do(t.Context(), &fabric.Op{Request: []byte("x"), Out: make([]byte, 100)}); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	cancel()
	served.Wait()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestPromise4HostileTargets: what a target says that breaks a rule gives an
// error, and nothing counts as pushed.
func TestPromise4HostileTargets(t *testing.T) {
	n, addr := netOf(t, Options{Stall: 2 * time.Second})
	reply := func(number uint32, pushed int) []byte {
		return frame.Control(nil, frame.Reply, number, appendReply(nil, pushed, []byte("done"), nil))
	}
	for name, c := range map[string]struct {
		answer []byte
		ok     bool
	}{
		"good":                    {reply(1, 10), true},
		"pushed more than room":   {reply(1, 11), false},
		"of another exchange":     {reply(2, 10), false},
		"no code":                 {frame.Control(nil, frame.Reply, 1), false},
		"no number":               {frame.Control(nil, frame.Reply, 1, []byte{0, 1, 2}), false},
		"long":                    {frame.Control(nil, frame.Reply, 1, make([]byte, replyHead+fabric.MaxRequest+1)), false},
		"credit":                  {frame.Control(nil, frame.Credit, 1, binary.LittleEndian.AppendUint32(nil, 4)), false},
		"data":                    {append(frame.Append(nil, frame.Data, 1, 4), "abcd"...), false},
		"request":                 {frame.Control(nil, frame.Request, 1, make([]byte, requestHead)), false},
		"fat wait":                {frame.Control(nil, frame.Wait, 1, []byte{0}), false},
		"cut":                     {reply(1, 10)[:20], false},
		"flipped":                 {append([]byte{7}, reply(1, 10)[1:]...), false},
		"two frames in a message": {append(reply(1, 10), reply(1, 10)...), false},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := n.listen(addr)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() { // tells every client that, until the listener is closed
				for {
					select {
					case <-l.ctx.Done():
						return
					case info := <-l.came:
						e, err := l.accept(l.ctx, info)
						if err != nil {
							continue
						}
						if _, err := e.welcome(l.ctx, "s3cret", nil); err == nil {
							if _, _, err := e.frame(10 * time.Second); err == nil {
								_, _ = e.Write(c.answer)
								_ = e.next(10 * time.Second) // until the client hangs up
							}
						}
						_ = e.Close()
					}
				}
			})
			client, err := n.Connect([]string{l.Addr().String()}, nil)
			if err != nil {
				t.Fatal(err)
			}
			op := &fabric.Op{Request: []byte("x"), In: make([]byte, 10)}
			err = client.Do(t.Context(), op)
			if (err == nil) != c.ok || !c.ok && (!errors.Is(err, catalog.ErrUnavailable) || op.N != 0) || c.ok && (op.N != 10 || string(op.Reply) != "done") {
				t.Errorf("N = %d, reply %q, %v", op.N, op.Reply, err)
			}
			_ = client.Close()
			l.end()
			wg.Wait()
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPromise7SpareIsBounded: memory for what is not registered has a limit;
// who wants several pieces gets all or none.
func TestPromise7SpareIsBounded(t *testing.T) {
	n, _ := netOf(t, Options{})
	all, ok, err := n.spare.take(t.Context(), maxSpare*pieceSize, true)
	if err != nil || !ok || len(all) != maxSpare {
		t.Fatalf("%d pieces, %v, %v", len(all), ok, err)
	}
	if p, ok, err := n.spare.take(t.Context(), 1, false); ok || err != nil {
		t.Errorf("%d pieces beyond the limit, %v", len(p), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := n.spare.take(ctx, 1, true); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting with an ended context: %v", err)
	}
	n.spare.give(all)
	if p, ok, err := n.spare.take(t.Context(), pieceSize+1, true); !ok || err != nil || len(p) != 2 {
		t.Errorf("%d pieces after all came back, %v", len(p), err)
	} else {
		n.spare.give(p)
	}
}
