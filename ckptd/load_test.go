package ckptd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// loader is a session of a node, and the client's end of it.
type loader struct {
	*testing.T
	s      *session
	client wire.Conn
}

func newLoader(t *testing.T, n *Node) *loader {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "session")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	l := &loader{t, &session{n: n, conn: wire.Conn{U: conns[0]}}, wire.Conn{U: conns[1]}}
	t.Cleanup(l.s.last.forget)
	return l
}

func (l *loader) memory(size int64) *os.File {
	l.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		l.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	l.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		l.Fatal(err)
	}
	return f
}

// load asks for ranges from the remote tier and gives the memory's bytes.
func (l *loader) load(id catalog.SetID, mem *os.File, base int64, ranges ...[2]int64) ([]byte, error) {
	l.Helper()
	if err := l.s.load(l.Context(), &wire.Message{T: "load", Set: id.String(), From: "remote", Off: base, Ranges: ranges}, []*os.File{mem}); err != nil {
		return nil, err
	}
	if m, _, _, err := l.client.Read(); err != nil || m.T != "loaded" || m.From != "remote" {
		l.Fatalf("answered by %+v, %v", m, err)
	}
	st, err := mem.Stat()
	if err != nil {
		l.Fatal(err)
	}
	b := make([]byte, st.Size())
	if _, err := mem.ReadAt(b, 0); err != nil {
		l.Fatal(err)
	}
	return b, nil
}

// TestLoadPieceByPiece: memory smaller than the shard is filled with one part
// after the other. The session looks the shard up once and maps the memory once,
// and forgets both.
func TestLoadPieceByPiece(t *testing.T) {
	w, _, rec := committed(t)
	drainOnly(t, w)
	_, want := crashShard(rec.SetID, 0)
	l, size := newLoader(t, w.n), int64(len(want))
	mem, half := l.memory(size/2), size/2
	if got, err := l.load(rec.SetID, mem, 0, [2]int64{0, half}); err != nil || !bytes.Equal(got, want[:half]) {
		t.Fatalf("first half: %v, equal %v", err, bytes.Equal(got, want[:half]))
	}
	shard := l.s.last.shard
	if got, err := l.load(rec.SetID, mem, size-half, [2]int64{size - half, half}); err != nil || !bytes.Equal(got, want[size-half:]) {
		t.Fatalf("second half: %v, equal %v", err, bytes.Equal(got, want[size-half:]))
	}
	if l.s.last.shard != shard || len(l.s.last.memory) != 1 {
		t.Errorf("a second look-up %v, %d mappings", l.s.last.shard != shard, len(l.s.last.memory))
	}
	if len(w.n.reading.of) != 0 {
		t.Errorf("after the last byte the session still counts as a reader: %v", w.n.reading.of)
	}
	for range 3 {
		if _, err := l.load(rec.SetID, l.memory(size), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(l.s.last.memory); got != keptMemories {
		t.Errorf("%d mappings are kept, want %d", got, keptMemories)
	}
	l.s.last.expire()
	if l.s.last.shard != nil || l.s.last.memory != nil {
		t.Errorf("after a while: %+v", &l.s.last)
	}
	for _, c := range []struct {
		base   int64
		ranges [][2]int64
	}{
		{-1, [][2]int64{{0, 1}}}, {size + 1, nil}, {1, nil}, {half, [][2]int64{{0, 1}}}, // before the memory
		{0, [][2]int64{{0, half + 1}}}, // behind it
	} {
		if _, err := l.load(rec.SetID, mem, c.base, c.ranges...); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("base %d, ranges %v: %v, want ErrInvalid", c.base, c.ranges, err)
		}
	}
}

// failing is a source that knows nothing any more.
type failing struct{ asked int }

func (*failing) Name() string { return "remote" }
func (f *failing) ReadRanges(context.Context, restore.ShardRef, [][2]int64, io.WriterAt) (restore.Report, error) {
	f.asked++
	return restore.Report{}, catalog.ErrUnavailable
}

// TestLoadLooksAgain: where the copies were at the last load is no promise.
func TestLoadLooksAgain(t *testing.T) {
	w, _, rec := committed(t)
	drainOnly(t, w)
	_, want := crashShard(rec.SetID, 1)
	l := newLoader(t, w.n)
	mem := l.memory(int64(len(want)))
	where, err := w.n.locate(w.ctx, rec, 1)
	if err != nil {
		t.Fatal(err)
	}
	stale, closed := &failing{}, false
	l.s.last.key = loadKey{rec.SetID.String(), 1, "remote"}
	l.s.last.shard = &asked{rec: rec, copies: &copies{where: where, sources: []restore.Source{stale}, close: func() { closed = true }}}
	err = l.s.load(t.Context(), &wire.Message{T: "load", Set: rec.SetID.String(), Rank: 1, From: "remote"}, []*os.File{mem})
	got := make([]byte, len(want))
	if _, rerr := mem.ReadAt(got, 0); err != nil || rerr != nil || !bytes.Equal(got, want) {
		t.Errorf("load: %v, %v, equal %v", err, rerr, bytes.Equal(got, want))
	}
	if stale.asked != 1 || !closed {
		t.Errorf("the stale copies were asked %d times, and closed %v", stale.asked, closed)
	}
}
