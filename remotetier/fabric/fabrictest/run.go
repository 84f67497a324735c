// Package fabrictest checks a fabric: every provider passes the same suite.
package fabrictest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// Run checks every promise of a fabric that needs no knowledge of its wire.
// open gives a new one whose listeners can listen at addr.
func Run(t *testing.T, addr string, open func(t *testing.T) fabric.Fabric) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, r *rig)
	}{
		{"Reply", testReply},
		{"ErrorsKeepTheirClass", testErrors},
		{"PutIsPulled", testPull},
		{"GetIsPushed", testPush},
		{"FileThatEndsEarly", testShortFile},
		{"Batch", testBatch},
		{"Bounds", testBounds},
		{"CancelEndsBothSides", testCancel},
		{"DeadlineReachesTheTarget", testDeadline},
		{"Concurrent", testConcurrent},
		{"SessionsComeAndGo", testSessions},
		{"ClosedClient", testClosed},
		{"TargetGoneAndBack", testBack},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, start(t, addr, open(t))) })
	}
}

// rig is a fabric with a client and a target.
type rig struct {
	t       *testing.T
	fab     fabric.Fabric
	addr    string
	handler *handler
	client  fabric.Client
	stop    func()
}

func start(t *testing.T, addr string, f fabric.Fabric) *rig {
	t.Helper()
	r := &rig{t: t, fab: f, addr: addr, handler: newHandler(t)}
	r.listen()
	t.Cleanup(func() { r.stop() })
	var err error
	if r.client, err = f.Connect([]string{r.addr}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.client.Close() })
	return r
}

func (r *rig) listen() {
	r.t.Helper()
	l, err := r.fab.Listen(r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, r.handler) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := errors.Join(<-done, l.Close()); err != nil {
				r.t.Errorf("stop: %v", err)
			}
		})
	}
}

// Requests of the handler begin with one of these.
const (
	echo    = 'e' // reply with the request
	fail    = 'f' // u8: fail with that class of catalog.Classes
	pull    = 'p' // u32: pull all, so many bytes at a time, and reply with them hashed
	push    = 'g' // u32, u32: push that many bytes of the pattern from there
	file    = 'F' // u32, u32: the same by PushFile
	hang    = 'h' // until the context ends
	pullOne = 'o' // pull one byte, then hang
)

const patternSize = 5<<20 + 12345

// handler is a target that does as it is told.
type handler struct {
	pattern []byte
	file    fabric.OSFile
	hanging chan struct{} // an exchange begins to hang
	hung    chan error    // what ended a hanging exchange

	mu struct {
		sync.Mutex
		conns map[fabric.Session]int
	}
	left chan fabric.Session // a session's last connection went
}

func newHandler(t *testing.T) *handler {
	h := &handler{pattern: make([]byte, patternSize), hanging: make(chan struct{}, 64), hung: make(chan error, 64), left: make(chan fabric.Session, 64)}
	h.mu.conns = map[fabric.Session]int{}
	_, _ = rand.NewChaCha8([32]byte{7}).Read(h.pattern)
	name := filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(name, h.pattern, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	h.file = fabric.OSFile{File: f}
	return h
}

func (h *handler) Greeting() []byte { return []byte("a target of the suite") }

func (h *handler) Join(s fabric.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.conns[s]++
}

func (h *handler) Leave(s fabric.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.conns[s]--; h.mu.conns[s] == 0 {
		delete(h.mu.conns, s)
		h.left <- s
	}
}

func (h *handler) Answer(ctx context.Context, _ fabric.Session, x fabric.Exchange) ([]byte, error) {
	req := x.Request()
	if len(req) == 0 {
		return nil, fmt.Errorf("empty request: %w", catalog.ErrInvalid)
	}
	arg := func(i int) int { return int(binary.LittleEndian.Uint32(req[1+4*i:])) }
	switch req[0] {
	case echo:
		return req[1:], nil
	case fail:
		return nil, fmt.Errorf("told to fail: %w", catalog.Classes[req[1]])
	case pull:
		return h.pull(ctx, x, arg(0))
	case push:
		return nil, x.Push(ctx, h.pattern[arg(0):][:arg(1)])
	case file:
		return nil, x.PushFile(ctx, h.file, int64(arg(0)), int64(arg(1)))
	case pullOne:
		if err := x.Pull(ctx, make([]byte, 1)); err != nil {
			return nil, err
		}
		fallthrough
	case hang:
		h.hanging <- struct{}{}
		<-ctx.Done()
		h.hung <- ctx.Err()
		return nil, ctx.Err()
	}
	return nil, catalog.ErrInvalid
}

// pull takes what was announced and says whether it is the pattern's beginning.
func (h *handler) pull(ctx context.Context, x fabric.Exchange, step int) ([]byte, error) {
	at := 0
	for x.Out() > 0 {
		b, err := x.Buffer(ctx)
		if err != nil {
			return nil, err
		}
		p := b.Bytes[:min(step, x.Out(), len(b.Bytes))]
		err = x.Pull(ctx, p)
		same := err == nil && bytes.Equal(p, h.pattern[at:][:len(p)])
		b.Release()
		if err != nil {
			return nil, err
		}
		if !same {
			return nil, fmt.Errorf("bytes from %d differ: %w", at, catalog.ErrCorrupt)
		}
		at += len(p)
	}
	return binary.LittleEndian.AppendUint32(nil, uint32(at)), nil
}

// ask makes a request.
func ask(kind byte, args ...int) []byte {
	b := []byte{kind}
	for _, a := range args {
		b = binary.LittleEndian.AppendUint32(b, uint32(a))
	}
	return b
}

func testReply(t *testing.T, r *rig) {
	for _, n := range []int{0, 1, 100, fabric.MaxRequest - 1} {
		op := &fabric.Op{Request: append([]byte{echo}, r.handler.pattern[:n]...)}
		if err := r.client.Do(t.Context(), op); err != nil || !bytes.Equal(op.Reply, r.handler.pattern[:n]) {
			t.Errorf("%d bytes: %d came back, %v", n, len(op.Reply), err)
		}
	}
}

func testErrors(t *testing.T, r *rig) {
	for i, class := range catalog.Classes {
		op := &fabric.Op{Request: []byte{fail, byte(i)}}
		if err := r.client.Do(t.Context(), op); !errors.Is(err, class) || catalog.ClassOf(err) != class || op.Err != err {
			t.Errorf("%v came as %v, its class as %v", class, err, catalog.ClassOf(err))
		}
	}
}

func testPull(t *testing.T, r *rig) {
	for _, n := range []int{1, 4096, 1 << 20, patternSize} {
		for _, step := range []int{1 << 16, 1 << 20, 1 << 30} {
			op := &fabric.Op{Request: ask(pull, step), Out: r.handler.pattern[:n]}
			if err := r.client.Do(t.Context(), op); err != nil || int(binary.LittleEndian.Uint32(op.Reply)) != n {
				t.Errorf("%d bytes, %d at a time: %v", n, step, err)
			}
		}
	}
}

func testPush(t *testing.T, r *rig) {
	for _, kind := range []byte{push, file} {
		for _, off := range []int{0, 1, 4096, 70001} {
			for _, n := range []int{0, 1, 4096, 1 << 20, patternSize - 70001} {
				in := make([]byte, n+10)
				op := &fabric.Op{Request: ask(kind, off, n), In: in}
				err := r.client.Do(t.Context(), op)
				if err != nil || op.N != n || !bytes.Equal(in[:n], r.handler.pattern[off:][:n]) || !bytes.Equal(in[n:], make([]byte, 10)) {
					t.Errorf("%c: [%d, +%d): N = %d, %v", kind, off, n, op.N, err)
				}
			}
		}
	}
}

func testShortFile(t *testing.T, r *rig) {
	in := make([]byte, 4<<20)
	for range 3 { // and the client goes on with the same connection
		op := &fabric.Op{Request: ask(file, patternSize-100000, len(in)), In: in}
		if err := r.client.Do(t.Context(), op); !errors.Is(err, catalog.ErrCorrupt) || op.N != 0 {
			t.Errorf("a file that ends early: N = %d, %v, want ErrCorrupt", op.N, err)
		}
		testReply(t, r)
	}
}

func testBatch(t *testing.T, r *rig) {
	var ops []*fabric.Op
	for i := range 200 {
		switch i % 5 {
		case 0, 1:
			ops = append(ops, &fabric.Op{Request: append([]byte{echo, byte(i)}, make([]byte, i*7)...)})
		case 2:
			ops = append(ops, &fabric.Op{Request: ask(push, i, 1000*i), In: make([]byte, 1000*i)})
		case 3:
			ops = append(ops, &fabric.Op{Request: ask(pull, 1<<20), Out: r.handler.pattern[:1000*i]})
		case 4:
			ops = append(ops, &fabric.Op{Request: []byte{fail, byte(i % len(catalog.Classes))}})
		}
	}
	if err := r.client.Do(t.Context(), ops...); !errors.Is(err, catalog.Classes[4%len(catalog.Classes)]) {
		t.Errorf("Do = %v, want the first error", err)
	}
	for i, op := range ops {
		switch i % 5 {
		case 0, 1:
			if op.Err != nil || len(op.Reply) != 1+i*7 || op.Reply[0] != byte(i) {
				t.Errorf("%d: %d bytes, %v", i, len(op.Reply), op.Err)
			}
		case 2:
			if op.Err != nil || !bytes.Equal(op.In, r.handler.pattern[i:][:1000*i]) {
				t.Errorf("%d: %v", i, op.Err)
			}
		case 3:
			if op.Err != nil {
				t.Errorf("%d: %v", i, op.Err)
			}
		case 4:
			if !errors.Is(op.Err, catalog.Classes[i%len(catalog.Classes)]) {
				t.Errorf("%d: %v", i, op.Err)
			}
		}
	}
}

func testBounds(t *testing.T, r *rig) {
	huge := make([]byte, fabric.MaxTransfer+1)
	for name, op := range map[string]*fabric.Op{
		"request": {Request: make([]byte, fabric.MaxRequest+1)}, "out": {Out: huge}, "in": {In: huge},
	} {
		if err := r.client.Do(t.Context(), op); !errors.Is(err, catalog.ErrInvalid) || op.Err == nil {
			t.Errorf("%s too large: %v", name, err)
		}
	}
	// A target cannot push more than there is room for.
	for _, kind := range []byte{push, file} {
		in := make([]byte, 100)
		if err := r.client.Do(t.Context(), &fabric.Op{Request: ask(kind, 0, 101), In: in[:50:100]}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%c of more than there is room for: %v", kind, err)
		}
		if !bytes.Equal(in, make([]byte, 100)) {
			t.Errorf("%c wrote where there was no room", kind)
		}
	}
	testReply(t, r)
}

func testCancel(t *testing.T, r *rig) {
	for _, op := range []*fabric.Op{{Request: []byte{hang}}, {Request: []byte{pullOne}, Out: []byte("ab")}} {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { // when the target has it
			select {
			case <-r.handler.hanging:
			case <-time.After(20 * time.Second):
				t.Error("the exchange does not reach the target")
			}
			cancel()
		})
		if err := r.client.Do(ctx, op); !errors.Is(err, context.Canceled) {
			t.Errorf("Do = %v, want context.Canceled", err)
		}
		wg.Wait()
		select { // the target notices, too
		case <-r.handler.hung:
		case <-time.After(20 * time.Second):
			t.Fatal("the target works on for a client that is gone")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.client.Do(ctx, &fabric.Op{Request: []byte{echo}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Do with an ended context = %v", err)
	}
	testReply(t, r)
}

func testDeadline(t *testing.T, r *rig) {
	for wait := 50 * time.Millisecond; ; wait *= 2 { // until the target has it in time
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		// The target may be a moment quicker to give up.
		if err := r.client.Do(ctx, &fabric.Op{Request: []byte{hang}}); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("Do = %v, want context.DeadlineExceeded or ErrUnavailable", err)
		}
		cancel()
		select {
		case <-r.handler.hanging:
		default:
			if wait > 10*time.Second {
				t.Fatalf("the exchange does not reach the target within %v", wait)
			}
			continue
		}
		break
	}
	select {
	case <-r.handler.hung:
	case <-time.After(20 * time.Second):
		t.Fatal("the target works on behind the deadline")
	}
	testReply(t, r)
}

func testConcurrent(t *testing.T, r *rig) {
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			in := make([]byte, 100000+i)
			for j := range 20 {
				off := (i*20 + j) * 1000
				ops := []*fabric.Op{
					{Request: ask(file, off, len(in)), In: in},
					{Request: ask(pull, 1<<16), Out: r.handler.pattern[:200000+i]},
				}
				if err := r.client.Do(t.Context(), ops...); err != nil || !bytes.Equal(in, r.handler.pattern[off:][:len(in)]) {
					t.Errorf("%d, %d: %v", i, j, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func testSessions(t *testing.T, r *rig) {
	testConcurrent(t, r)
	r.handler.mu.Lock()
	if n := len(r.handler.mu.conns); n != 1 {
		t.Errorf("one client is %d sessions", n)
	}
	r.handler.mu.Unlock()
	other, err := r.fab.Connect([]string{r.addr}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Do(t.Context(), &fabric.Op{Request: []byte{echo}}); err != nil {
		t.Fatal(err)
	}
	r.handler.mu.Lock()
	if n := len(r.handler.mu.conns); n != 2 {
		t.Errorf("two clients are %d sessions", n)
	}
	r.handler.mu.Unlock()
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-r.handler.left:
	case <-time.After(20 * time.Second):
		t.Fatal("the target does not notice that a client is gone")
	}
}

func testClosed(t *testing.T, r *rig) {
	done := make(chan error, 1)
	go func() { done <- r.client.Do(t.Context(), &fabric.Op{Request: []byte{hang}}) }()
	for { // until it hangs there
		r.handler.mu.Lock()
		n := len(r.handler.mu.conns)
		r.handler.mu.Unlock()
		if n > 0 {
			break
		}
	}
	if err := r.client.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Do of a client being closed = %v, want ErrUnavailable", err)
	}
	if err := r.client.Do(t.Context(), &fabric.Op{Request: []byte{echo}}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Do of a closed client = %v, want ErrUnavailable", err)
	}
}

func testBack(t *testing.T, r *rig) {
	testReply(t, r)
	r.stop()
	from := time.Now()
	for range 100 {
		op := &fabric.Op{Request: []byte{echo}}
		if err := r.client.Do(t.Context(), op); !errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) || op.Err != err {
			t.Fatalf("Do of a target that is gone = %v, want ErrUnavailable", err)
		}
	}
	if d := time.Since(from); d > 10*time.Second {
		t.Errorf("100 exchanges with a target that is gone took %v", d)
	}
	r.listen()
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := r.client.Do(t.Context(), &fabric.Op{Request: []byte{echo}})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the target is back, and the client has %v", err)
		}
		time.Sleep(time.Millisecond) // between tries of a client that fails fast
	}
	testReply(t, r)
}
