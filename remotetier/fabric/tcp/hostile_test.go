package tcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// puller pulls all it is offered, and pushes ten bytes where there is room.
type puller struct{}

func (puller) Greeting() []byte     { return []byte("puller") }
func (puller) Join(fabric.Session)  {}
func (puller) Leave(fabric.Session) {}
func (puller) Answer(ctx context.Context, _ fabric.Session, x fabric.Exchange) ([]byte, error) {
	if x.Out() > 0 {
		b, err := x.Buffer(ctx)
		if err != nil {
			return nil, err
		}
		defer b.Release()
		if err := x.Pull(ctx, b.Bytes[:min(x.Out(), len(b.Bytes))]); err != nil {
			return nil, err
		}
	}
	if x.In() >= 10 {
		if err := x.Push(ctx, make([]byte, 10)); err != nil {
			return nil, err
		}
	}
	return []byte("pulled"), nil
}

// conversation is what a client says, in parts that wait for an answer.
func conversation() [][]byte {
	c := frame.ClientHello{}
	out := make([]byte, requestHead)
	binary.LittleEndian.PutUint32(out, 20)
	in := make([]byte, requestHead)
	binary.LittleEndian.PutUint32(in[4:], 10)
	return [][]byte{
		c.Bytes(),
		frame.Control(nil, frame.Request, 1, out, []byte("please pull")),
		append(frame.Append(nil, frame.Data, 1, 20), make([]byte, 20)...),
		frame.Control(frame.Control(nil, frame.Ping, 2), frame.Request, 3, in, []byte("please push")),
	}
}

// TestPromise4HostileClients: a conversation cut at every length and flipped
// at every byte, and heads that promise too much, harm nobody but their sender.
func TestPromise4HostileClients(t *testing.T) {
	l, err := New(Options{Stall: 200 * time.Millisecond, MaxConns: 64}).Listen("127.0.0.1:0")
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
	good := bytes.Join(conversation(), nil)
	say := func(b []byte, hangUp bool) (answer []byte) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write(b) // the target may have hung up by then
		if hangUp {
			_ = c.(*net.TCPConn).CloseWrite()
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		answer, err = io.ReadAll(c)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the target keeps a connection that said %x", b)
		}
		return answer
	}
	whole := len(say(good, true))
	if whole != 211 {
		t.Fatalf("the good conversation got %d bytes of answers", whole)
	}
	data := len(good) - len(conversation()[3]) - 20 // flips there are the column's business
	for i := range good {
		say(good[:i], true)
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if n := len(say(bad, true)); n >= whole && (i < data || i >= data+20) {
			t.Errorf("byte %d flipped, and %d bytes of answers", i, n)
		}
	}
	hello := conversation()[0]
	for name, frame := range map[string][]byte{
		"huge control frame": frame.Append(nil, frame.Request, 1, 1<<31),
		"huge data frame":    frame.Append(nil, frame.Data, 1, 1<<31),
		"data unasked":       append(frame.Append(nil, frame.Data, 1, 20), make([]byte, 20)...),
		"short request":      frame.Control(nil, frame.Request, 1, make([]byte, requestHead-1)),
		"huge transfer":      frame.Control(nil, frame.Request, 1, bytes.Repeat([]byte{0xff}, requestHead)),
		"wrong number":       frame.Control(nil, frame.Request, 2, make([]byte, requestHead)),
		"frame of a target":  frame.Control(nil, frame.Reply, 1, []byte{0}),
		"fat ping":           frame.Control(nil, frame.Ping, 1, []byte{0}),
	} {
		if n := len(say(append(bytes.Clone(hello), frame...), true)); n > 103 {
			t.Errorf("%s: %d bytes of answers", name, n)
		}
	}
	from := time.Now()
	say(good[:len(good)-3], false) // and then silence
	if d := time.Since(from); d > 5*time.Second {
		t.Errorf("a silent client was put out after %v", d)
	}
	// Good clients are served as ever.
	c, err := New(Options{}).Connect([]string{l.Addr().String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Do(t.Context(), &fabric.Op{Request: []byte("x"), Out: make([]byte, 100)}); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	cancel()
	served.Wait()
	if err := l.Close(); err != nil { // every Buffer is back
		t.Error(err)
	}
}

// TestPromise4HostileTargets: what a target says, cut and flipped, gives an
// error, and nothing is written where there was no room.
func TestPromise4HostileTargets(t *testing.T) {
	first := frame.ServerHello{}
	hello := append(append([]byte{0}, make([]byte, frame.ProofSize)...), "greeting"...)
	parts := [][]byte{
		first.Bytes(),
		frame.Control(nil, frame.Reply, 0, hello),
		frame.Control(nil, frame.Wait, 1),
		frame.Control(nil, frame.Credit, 1, []byte{4, 0, 0, 0}),
		append(frame.Append(nil, frame.Data, 1, 6), "abcdef"...),
		frame.Control(nil, frame.Reply, 1, []byte("\x00done")),
	}
	good := bytes.Join(parts, nil)
	dataAt := len(good) - len(parts[5]) - 6
	ask := func(answer []byte) (*fabric.Op, []byte, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = l.Close()
			_, _ = c.Write(answer)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		})
		defer wg.Wait()
		defer l.Close()
		c, err := New(Options{Stall: time.Second}).Connect([]string{l.Addr().String()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		memory := make([]byte, 16)
		op := &fabric.Op{Request: []byte("x"), Out: []byte("wxyz"), In: memory[4:10:10]}
		err = c.Do(t.Context(), op)
		return op, memory, err
	}
	op, memory, err := ask(good)
	if err != nil || string(op.Reply) != "done" || string(memory) != "\x00\x00\x00\x00abcdef\x00\x00\x00\x00\x00\x00" {
		t.Fatalf("the good answer: %q, %q, %v", op.Reply, memory, err)
	}
	check := func(what string, at int, b []byte) {
		op, memory, err := ask(b)
		isData := what == "flipped" && at >= dataAt && at < dataAt+6
		if err == nil != isData || err != nil && !errors.Is(err, catalog.ErrUnavailable) || err != nil && op.N != 0 {
			t.Errorf("%s at %d: N = %d, %v", what, at, op.N, err)
		}
		if !bytes.Equal(memory[:4], make([]byte, 4)) || !bytes.Equal(memory[10:], make([]byte, 6)) {
			t.Errorf("%s at %d: wrote behind the buffer: %q", what, at, memory)
		}
	}
	for i := range good {
		check("cut", i, good[:i])
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		check("flipped", i, bad)
	}
	for _, frame := range [][]byte{
		append(frame.Append(nil, frame.Data, 1, 7), "abcdefg"...),             // more than there is room for
		frame.Control(nil, frame.Credit, 1, []byte{5, 0, 0, 0}),               // more than was announced
		frame.Control(nil, frame.Credit, 1, []byte{0, 0, 0, 0}),               //
		frame.Control(nil, frame.Credit, 1, []byte{1}),                        //
		frame.Control(nil, frame.Reply, 1),                                    // no code
		frame.Control(nil, frame.Reply, 2, []byte{0}),                         // of another exchange
		frame.Control(nil, frame.Request, 1, make([]byte, 20)),                // a client's
		frame.Control(nil, frame.Reply, 1, make([]byte, fabric.MaxRequest+2)), //
	} {
		check("frame", len(frame), append(bytes.Join(parts[:3], nil), frame...))
	}
}
