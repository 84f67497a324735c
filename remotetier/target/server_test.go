package target_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// raw speaks to a target as PROTOCOL.md says, without the Remote.
type raw struct {
	t *testing.T
	fabric.Client
}

func (s *served) raw(opt tcp.Options) raw {
	s.t.Helper()
	c, err := tcp.New(opt).Connect([]string{s.addr}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return raw{s.t, c}
}

func keyBytes(k remotetier.Key) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(len(k.Blob)))
	b = append(b, k.Blob...)
	b = binary.LittleEndian.AppendUint64(b, k.Generation)
	return append(b, byte(k.Column))
}

// do sends operation op of a put.
func (r raw) do(op byte, put uint64, more []byte, out []byte) error {
	b := binary.LittleEndian.AppendUint64([]byte{op, 0}, put)
	return r.Do(r.t.Context(), &fabric.Op{Request: append(b, more...), Out: out})
}

func (r raw) create(put uint64, k remotetier.Key, size int) error {
	return r.createAs(put, k, size, 0)
}

func (r raw) createAs(put uint64, k remotetier.Key, size int, mode byte) error {
	b := append(binary.LittleEndian.AppendUint64(nil, uint64(size)), keyBytes(k)...)
	return r.do(1, put, append(b, mode), nil)
}

func (r raw) write(put uint64, off int, p []byte) error {
	return r.do(2, put, binary.LittleEndian.AppendUint64(nil, uint64(off)), p)
}

func (r raw) commit(put uint64) error { return r.do(3, put, nil, nil) }
func (r raw) abort(put uint64) error  { return r.do(4, put, nil, nil) }

func random(n int, seed byte) []byte {
	b := vfs.AlignedBuffer(n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

var aKey = remotetier.Key{Blob: "run/a", Generation: 7, Column: 3}

func readAll(t *testing.T, tg remotetier.Target, k remotetier.Key) []byte {
	t.Helper()
	r, err := tg.Open(t.Context(), k)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, r.Size())
	if _, err := r.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTwiceIsOnce: every request of a put may come twice.
func TestTwiceIsOnce(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	c, b := s.raw(tcp.Options{}), random(3<<20, 1)
	is := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("%s = %v, want %v", what, got, want)
		}
	}
	for range 2 {
		is("create", c.create(1, aKey, len(b)), nil)
	}
	is("create of another column by the same put", c.create(1, remotetier.Key{Blob: "b", Column: 1}, len(b)), catalog.ErrInvalid)
	is("create of the column by another put", c.create(2, aKey, len(b)), fs.ErrExist)
	for range 2 {
		is("write", c.write(1, 0, b[:1<<20]), nil)
	}
	is("write with a gap", c.write(1, 1<<20+4096, b[:4096]), catalog.ErrInvalid)
	is("commit of a part", s.raw(tcp.Options{}).commit(1), catalog.ErrUnavailable) // another session's put 1
	is("write of what is half there", c.write(1, 1<<19, b[1<<19:5<<19]), nil)
	is("write", c.write(1, 5<<19, b[5<<19:]), nil)
	is("write behind the end", c.write(1, len(b), b[:4096]), catalog.ErrInvalid)
	for range 2 {
		is("commit", c.commit(1), nil)
	}
	for range 2 {
		is("abort of a committed column", c.abort(1), nil)
	}
	is("write of a committed column", c.write(1, len(b), b[:4096]), catalog.ErrInvalid)
	if got := readAll(t, s.dial(tcp.Options{}), aKey); !bytes.Equal(got, b) {
		t.Error("the bytes differ")
	}
	is("create of what is committed", c.create(3, aKey, len(b)), fs.ErrExist)
	is("create in an unknown mode", c.createAs(4, aKey, len(b), 2), catalog.ErrInvalid)
	is("create to replace", c.createAs(4, aKey, len(b), 1), nil)
	is("create to replace, again", c.createAs(4, aKey, len(b), 1), nil)
	is("create of the put that replaces, anew", c.createAs(4, aKey, len(b), 0), catalog.ErrInvalid)
	is("create to replace by another put", c.createAs(5, aKey, len(b), 1), fs.ErrExist)
	is("abort", c.abort(4), nil)
	for range 2 {
		is("abort of what was never there", c.abort(99), nil)
	}
	for _, req := range [][]byte{{}, {0}, {99, 0}, {1, 0}, {2, 0, 1}, {5, 0, 255, 255}, append([]byte{5, 6}, keyBytes(aKey)...), append([]byte{7, 0}, append(keyBytes(aKey), 0)...), append([]byte{5, 0}, keyBytes(remotetier.Key{Blob: "../../etc"})...)} {
		if err := c.Do(t.Context(), &fabric.Op{Request: req, In: make([]byte, 8192)}); !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("request %x = %v, want ErrCorrupt or ErrInvalid", req, err)
		}
	}
	if st := s.server.Stats(); st.Columns != 1 || st.Puts != 0 || st.BytesIn != int64(len(b)) {
		t.Errorf("Stats = %+v", st)
	}
}

// TestPromise5CreateAfterItsAbort: the client gave up a create with its
// connection and said so on another one, and the target reads them the other
// way round. Nothing is begun that nobody will ever end.
func TestPromise5CreateAfterItsAbort(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	c, b := s.raw(tcp.Options{}), random(1<<20, 1)
	if err := c.abort(1); err != nil {
		t.Fatal(err)
	}
	if err := c.create(1, aKey, len(b)); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("create after its abort = %v, want ErrUnavailable", err)
	}
	if err := errors.Join(c.create(2, aKey, len(b)), c.abort(2)); err != nil {
		t.Fatal(err)
	}
	if err := c.create(2, aKey, len(b)); !errors.Is(err, catalog.ErrUnavailable) { // the same request, delivered late
		t.Errorf("the second create after the abort = %v, want ErrUnavailable", err)
	}
	for id := range uint64(1000) { // what is remembered is bounded
		if err := c.abort(10 + id); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "staging")); err != nil || len(left) > 0 {
		t.Errorf("staging holds %v, %v", left, err)
	}
	if st := s.server.Stats(); st.Puts != 0 {
		t.Errorf("Stats = %+v, want no puts", st)
	}
	if err := errors.Join(c.create(5000, aKey, len(b)), c.write(5000, 0, b), c.commit(5000)); err != nil {
		t.Error(err)
	}
}

// TestSecondWriteEndsTheFirst: a write whose client is silent gives way to the
// same write on another connection.
func TestSecondWriteEndsTheFirst(t *testing.T) {
	s := &served{t: t, fs: vfs.OS, dir: t.TempDir(), name: "t0", addr: "127.0.0.1:0", stall: time.Minute}
	s.start()
	t.Cleanup(func() { s.stop() })
	p := newProxy(t, s.addr)
	b := random(1<<20, 2)
	// One of the two ways is cut in the middle of the bytes, and nobody is told.
	p.limit(100_000, true)
	c, err := tcp.New(tcp.Options{Stall: 300 * time.Millisecond}).Connect([]string{p.addr, s.addr}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, from := raw{t, c}, time.Now()
	for i := range 4 { // whichever address comes first
		k := aKey
		k.Column = i
		if err := errors.Join(r.create(uint64(i), k, len(b)), r.write(uint64(i), 0, b), r.commit(uint64(i))); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, s.dial(tcp.Options{}), k); !bytes.Equal(got, b) {
			t.Errorf("column %d differs", i)
		}
	}
	if d := time.Since(from); d > 20*time.Second {
		t.Errorf("the target waited %v for a connection that is lost", d)
	}
}

// TestPromise5DeadClientLeavesNothing: its staging files go, and its keys are
// free again.
func TestPromise5DeadClientLeavesNothing(t *testing.T) {
	gone := make(chan remotetier.Key, 10)
	s := serve(t, "t0", target.ServerOptions{Grace: 30 * time.Millisecond, Trace: target.ServerTrace{GaveUp: func(k remotetier.Key) { gone <- k }}})
	c, b := s.raw(tcp.Options{}), random(1<<20, 3)
	if err := errors.Join(c.create(1, aKey, len(b)), c.write(1, 0, b[:1<<19])); err != nil {
		t.Fatal(err)
	}
	_ = c.Close() // the connections end, as those of a killed process do
	select {
	case k := <-gone:
		if k != aKey {
			t.Errorf("gave up %v", k)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("what a dead client was writing stays")
	}
	other := s.raw(tcp.Options{})
	if err := errors.Join(other.create(1, aKey, len(b)), other.write(1, 0, b), other.commit(1)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "staging")); err != nil || len(left) > 0 {
		t.Errorf("staging holds %v, %v", left, err)
	}
	if got := readAll(t, s.dial(tcp.Options{}), aKey); !bytes.Equal(got, b) {
		t.Error("the bytes differ")
	}
}

// TestPromise4ColumnThatDoesNotFitItsSums: a bit that flips anywhere between
// the coder and the target's disk is met before the column is acknowledged.
func TestPromise4ColumnThatDoesNotFitItsSums(t *testing.T) {
	golden, err := os.ReadFile("../testdata/column-c02.golden")
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, "t0", target.ServerOptions{})
	c := s.raw(tcp.Options{})
	put := func(n uint64, b []byte) error {
		k := aKey
		k.Generation = n
		return errors.Join(c.create(n, k, len(b)), c.write(n, 0, b), c.commit(n))
	}
	if err := put(1, golden); err != nil {
		t.Fatalf("a good column: %v", err)
	}
	n := uint64(1)
	for at := 8; at < len(golden); at += 1009 {
		n++
		bad := bytes.Clone(golden)
		bad[at] ^= 0x10
		if err := put(n, bad); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("byte %d flipped: %v, want ErrCorrupt", at, err)
		}
	}
	n++
	if err := put(n, golden[:len(golden)-4096]); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a column without its end: %v, want ErrCorrupt", err)
	}
	cols := 0
	for _, err := range s.dial(tcp.Options{}).List(t.Context(), "") {
		if cols++; err != nil {
			t.Error(err)
		}
	}
	if st := s.server.Stats(); cols != 1 || st.Corrupt != int64(n-1) || st.Puts != 0 {
		t.Errorf("%d columns are there, Stats = %+v", cols, st)
	}
}

// TestTargetRestarts: a Remote finds its target again, and what was not
// committed is lost, loudly.
func TestTargetRestarts(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	r, b := s.dial(tcp.Options{}), random(1<<20, 4)
	put := func(k remotetier.Key, before, middle func()) error {
		w, err := r.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
		if err != nil {
			return err
		}
		defer w.Close()
		before()
		if err := w.Write(t.Context(), b); err != nil {
			return err
		}
		middle()
		return w.Commit(t.Context())
	}
	nothing := func() {}
	restart := func() { s.stop(); s.start() }
	if err := put(aKey, nothing, nothing); err != nil {
		t.Fatal(err)
	}
	rd, err := r.Open(t.Context(), aKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"before the bytes", "before the commit"} {
		before, middle := restart, nothing
		if when == "before the commit" {
			before, middle = nothing, restart
		}
		k := aKey
		k.Column++
		if err := put(k, before, middle); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("restarted %s: %v, want ErrUnavailable", when, err)
		}
		got := make([]byte, len(b))
		if _, err := rd.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("restarted %s: a reader goes on with %v", when, err)
		}
		if readAll(t, r, k) != nil {
			t.Error("a column that was not committed is there")
		}
	}
	s.stop()
	from := time.Now()
	for range 100 {
		if _, err := rd.ReadAt(t.Context(), make([]byte, 8192), 4096); !errors.Is(err, catalog.ErrUnavailable) {
			t.Fatalf("a target that is gone: %v, want ErrUnavailable", err)
		}
	}
	if d := time.Since(from); d > 5*time.Second {
		t.Errorf("100 reads of a target that is gone took %v", d)
	}
}

// TestPromise6NameIsForEver: another target at the address is not used.
func TestPromise6NameIsForEver(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{Domain: "rack7"})
	r, err := target.Dial(t.Context(), tcp.New(tcp.Options{}), []string{s.addr}, target.RemoteOptions{})
	if err != nil || r.Name() != "t0" || r.Domain() != "rack7" {
		t.Fatalf("Dial = %v, %v", r, err)
	}
	defer r.Close()
	if _, err := target.Dial(t.Context(), tcp.New(tcp.Options{}), []string{s.addr}, target.RemoteOptions{Name: "t1"}); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("Dial of a target with another name = %v, want ErrConflict", err)
	}
	s.stop()
	s.dir, s.name = t.TempDir(), "t9"
	s.start()
	if _, err := r.Space(t.Context()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Space of a target that became another = %v, want ErrUnavailable", err)
	}
	gone := closedAddr(t)
	if _, err := target.Dial(t.Context(), tcp.New(tcp.Options{}), []string{gone}, target.RemoteOptions{}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Dial of nobody, without a name = %v, want ErrUnavailable", err)
	}
	away, err := target.Dial(t.Context(), tcp.New(tcp.Options{}), []string{gone}, target.RemoteOptions{Name: "t5"})
	if err != nil || away.Name() != "t5" {
		t.Fatalf("Dial of a target that is away, with its name = %v", err)
	}
	_ = away.Close()
}

// proxy stands between clients and a target, and can hurt them.
type proxy struct {
	addr string
	mu   struct {
		sync.Mutex
		bytes  func() int64  // that a connection may carry; nil: any number
		silent bool          // it then falls silent, rather than closing
		mute   bool          // nothing comes back, whatever is said
		pace   time.Duration // waited for each 64 KiB, either way
	}
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var wg sync.WaitGroup
	var all sync.Map
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			all.Store(c, up)
			var dumb atomic.Bool
			p.mu.Lock()
			n, silent, pace := int64(1<<60), p.mu.silent, p.mu.pace
			dumb.Store(p.mu.mute)
			if p.mu.bytes != nil {
				n = p.mu.bytes()
			}
			p.mu.Unlock()
			wg.Go(func() {
				_, _ = io.Copy(up, io.LimitReader(slow{c, pace}, n))
				if silent { // no side hears more of the other
					dumb.Store(true)
					_, _ = io.Copy(io.Discard, c)
				}
				_, _ = c.Close(), up.Close()
			})
			wg.Go(func() { _, _ = io.Copy(deaf{c, &dumb}, slow{up, pace}); _, _ = c.Close(), up.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Range(func(c, up any) bool { _, _ = c.(net.Conn).Close(), up.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return p
}

// deaf is a connection that takes no more when it is dumb.
type deaf struct {
	io.Writer
	dumb *atomic.Bool
}

func (d deaf) Write(p []byte) (int, error) {
	if d.dumb.Load() {
		return len(p), nil
	}
	return d.Writer.Write(p)
}

// slow is a link of 64 KiB in each pace.
type slow struct {
	io.Reader
	pace time.Duration
}

func (s slow) Read(p []byte) (int, error) {
	if s.pace > 0 {
		time.Sleep(s.pace) // this is the link, not a test that waits
		p = p[:min(len(p), 64<<10)]
	}
	return s.Reader.Read(p)
}

// cut sets how many bytes of a client each connection carries, and whether it
// then falls silent.
func (p *proxy) cut(bytes func() int64, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.bytes, p.mu.silent = bytes, silent
}

func (p *proxy) limit(n int64, silent bool) { p.cut(func() int64 { return n }, silent) }

// TestPromise4CutAnywhere: connections that break at random places give whole
// columns or none, and what was acknowledged is there.
func TestPromise4CutAnywhere(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	p := newProxy(t, s.addr)
	rnd := rand.New(rand.NewPCG(1, 2))
	p.cut(func() int64 { return rnd.Int64N(1_500_000) }, false)
	r := s.dial(tcp.Options{}, p.addr, s.addr) // every second connection is good
	direct := s.dial(tcp.Options{})
	good := 0
	for i := range 60 {
		k := aKey
		k.Generation = uint64(i)
		b := random(1<<20, byte(i))
		w, err := r.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
		if err == nil {
			err = errors.Join(w.Write(t.Context(), b[:1<<19]), w.Write(t.Context(), b[1<<19:]))
		}
		if err == nil {
			err = w.Commit(t.Context())
		}
		if w != nil {
			_ = w.Close()
		}
		got := readAll(t, direct, k)
		switch {
		case err == nil:
			if good++; !bytes.Equal(got, b) {
				t.Errorf("column %d was acknowledged and has %d bytes", i, len(got))
			}
		case got != nil && !bytes.Equal(got, b):
			t.Errorf("column %d failed with %v, and is there with other bytes", i, err)
		case !errors.Is(err, catalog.ErrUnavailable) && !errors.Is(err, fs.ErrExist):
			t.Errorf("column %d: %v", i, err)
		}
		for range 3 {
			if rd, err := r.Open(t.Context(), k); err == nil {
				b2 := make([]byte, len(b))
				if _, err := rd.ReadAt(t.Context(), b2, 0); err == nil && !bytes.Equal(b2, b) {
					t.Errorf("column %d reads other bytes", i)
				}
			}
		}
	}
	if good < 30 {
		t.Errorf("%d of 60 columns got through", good)
	}
	t.Logf("%d of 60 columns got through", good)
}

// TestPromise6SilentTargetsCostTheirDeadline: two of six targets accept and never
// answer; a blob is read, and written to the six others.
func TestPromise6SilentTargetsCostTheirDeadline(t *testing.T) {
	opt := tcp.Options{Dial: time.Second, Stall: time.Second}
	var infos []remotetier.TargetInfo
	var proxies []*proxy
	for i := range 8 {
		s := serve(t, string(rune('a'+i)), target.ServerOptions{})
		p := newProxy(t, s.addr)
		proxies = append(proxies, p)
		infos = append(infos, remotetier.TargetInfo{Target: s.dial(opt, p.addr)})
	}
	tier := remotetier.New(infos, remotetier.Options{})
	layout := stripe.Layout{K: 4, M: 2, Unit: 65536}
	b := random(3_000_000, 5)
	place, err := tier.Put(t.Context(), "run/a", bytes.NewReader(b), layout)
	if err != nil {
		t.Fatal(err)
	}
	r, err := tier.Open(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range place.Targets[:2] { // data columns
		proxies[name[0]-'a'].limit(0, true)
	}
	for i := range proxies { // connections that are open fall silent as well
		if name := string(rune('a' + i)); name == place.Targets[0] || name == place.Targets[1] {
			for _, ti := range infos {
				if ti.Name() == name {
					_ = ti.Target.(*target.Remote).Close()
				}
			}
			infos[i].Target = dialAway(t, opt, proxies[i].addr, name)
		}
	}
	tier = remotetier.New(infos, remotetier.Options{})
	from := time.Now()
	for range 5 {
		r, err := tier.Open(t.Context(), place)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(b))
		if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("two targets are silent: %v", err)
		}
		_ = r.Close()
	}
	place2, err := tier.Put(t.Context(), "run/b", bytes.NewReader(b), layout)
	if err != nil {
		t.Fatal(err)
	}
	if err := tier.Verify(t.Context(), place2); err != nil {
		t.Error(err)
	}
	if d := time.Since(from); d > 20*time.Second {
		t.Errorf("five reads and a write took %v with two silent targets", d)
	} else {
		t.Logf("five reads and a write took %v with two silent targets", d)
	}
}

// TestPartitions: one of seven targets hears its clients and is not heard, is
// heard and does not hear, or is at the end of a slow link. Blobs are written
// and read, every byte of them, and nothing waits beyond its deadline.
func TestPartitions(t *testing.T) {
	opt := tcp.Options{Dial: time.Second, Stall: time.Second}
	layout := stripe.Layout{K: 4, M: 2, Unit: 65536}
	for name, hurt := range map[string]func(p *proxy){
		"NotHeard":     func(p *proxy) { p.mu.mute = true },
		"DoesNotHear":  func(p *proxy) { p.mu.silent = true; p.mu.bytes = func() int64 { return 0 } },
		"SilentMidway": func(p *proxy) { p.mu.silent = true; p.mu.bytes = func() int64 { return 200_000 } },
		"ClosesMidway": func(p *proxy) { p.mu.bytes = func() int64 { return 200_000 } },
		"Slow":         func(p *proxy) { p.mu.pace = 5 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			var infos []remotetier.TargetInfo
			for i := range 7 {
				s := serve(t, string(rune('a'+i)), target.ServerOptions{})
				addr := s.addr
				if i == 0 {
					p := newProxy(t, s.addr)
					p.mu.Lock()
					hurt(p)
					p.mu.Unlock()
					addr = p.addr
				}
				infos = append(infos, remotetier.TargetInfo{Target: dialAway(t, opt, addr, s.name)})
			}
			tier := remotetier.New(infos, remotetier.Options{})
			from := time.Now()
			for i := range 3 {
				b := random(3_000_000, byte(i))
				place, err := tier.Put(t.Context(), fmt.Sprintf("run/%d", i), bytes.NewReader(b), layout)
				if err != nil {
					t.Fatal(err)
				}
				r, err := tier.Open(t.Context(), place)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(b))
				if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
					t.Errorf("blob %d: equal = %v, %v", i, bytes.Equal(got, b), err)
				}
				_ = r.Close()
			}
			if d := time.Since(from); d > 30*time.Second {
				t.Errorf("three writes and reads took %v", d)
			} else {
				t.Logf("three writes and reads took %v", d)
			}
		})
	}
}

// TestFullTargetIsPassedBy: a target without room says so, and the blob goes to others.
func TestFullTargetIsPassedBy(t *testing.T) {
	var infos []remotetier.TargetInfo
	for i := range 4 {
		opt := vfstest.Options{}
		if i == 0 {
			opt.Total = 600 << 10
		}
		s := &served{t: t, fs: vfstest.New(opt), dir: "/t", name: string(rune('a' + i)), addr: "127.0.0.1:0"}
		s.start()
		t.Cleanup(func() { s.stop() })
		r := s.dial(tcp.Options{})
		if i == 0 {
			if _, err := r.Create(t.Context(), aKey, 1<<20, remotetier.CreateNew); !errors.Is(err, catalog.ErrNoSpace) {
				t.Errorf("Create on a full target = %v, want ErrNoSpace", err)
			}
		}
		infos = append(infos, remotetier.TargetInfo{Target: r})
	}
	tier := remotetier.New(infos, remotetier.Options{})
	for i := range 6 { // about 260 KiB a column: the small one is full after two at most
		b := random(500_000, byte(i))
		place, err := tier.Put(t.Context(), fmt.Sprintf("run/%d", i), bytes.NewReader(b), stripe.Layout{K: 2, M: 1, Unit: 65536})
		if err != nil {
			t.Fatal(err)
		}
		if err := tier.Verify(t.Context(), place); err != nil {
			t.Error(err)
		}
	}
}

func dialAway(t *testing.T, opt tcp.Options, addr, name string) *target.Remote {
	t.Helper()
	r, err := target.Dial(t.Context(), tcp.New(opt), []string{addr}, target.RemoteOptions{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestPromise4AckIsDurable: a target that loses power right after it
// acknowledged has the column; the file system has no descriptors to send from.
func TestPromise4AckIsDurable(t *testing.T) {
	m := vfstest.New(vfstest.Options{})
	s := &served{t: t, fs: m, dir: "/t0", name: "t0", addr: "127.0.0.1:0"}
	s.start()
	defer func() { s.stop() }()
	r := s.dial(tcp.Options{})
	var keys []remotetier.Key
	for i := range 5 {
		k := aKey
		k.Column = i
		b := random(300*4096, byte(i))
		w, err := r.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Write(t.Context(), b), w.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, r, k); !bytes.Equal(got, b) {
			t.Errorf("column %d differs", i)
		}
		keys = append(keys, k)
		after, err := target.OpenDir(m.Crash(vfstest.Lose, nil), "/t0", "t0")
		if err != nil {
			t.Fatal(err)
		}
		for j, k := range keys {
			if got := readAll(t, after, k); !bytes.Equal(got, random(300*4096, byte(j))) {
				t.Errorf("power lost after column %d: column %d has %d bytes", i, j, len(got))
			}
		}
	}
}

func TestRemoteOfAFileSystemWithoutDescriptors(t *testing.T) {
	targettest.Run(t, func(t *testing.T) remotetier.Target {
		s := &served{t: t, fs: vfstest.New(vfstest.Options{}), dir: "/t0", name: "t0", addr: "127.0.0.1:0"}
		s.start()
		t.Cleanup(func() { s.stop() })
		return s.dial(tcp.Options{})
	})
}
