package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// pair gives both ends of a unix stream socket.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *Conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return &Conn{U: c.(*net.UnixConn)}
	}
	return conn(fds[0]), conn(fds[1])
}

// feed writes raw bytes to a fresh connection, hangs up, and gives the reading end.
func feed(t testing.TB, raw []byte) *Conn {
	a, b := pair(t)
	go func() {
		a.U.Write(raw)
		a.U.Close()
	}()
	return b
}

func frame(json string, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(json)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(append(b, json...), payload...)
}

func TestFrameRoundTrip(t *testing.T) {
	a, b := pair(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, c := range []struct {
		m       Message
		payload []byte
		fds     int
	}{
		{Message{T: "hello", Version: 1, Client: "test"}, nil, 0},
		{Message{T: "save", Run: "llama/7b", Step: 1200, Attempt: 3, Rank: 7, World: 8, Size: 1 << 40, Metrics: map[string]float64{"loss": 1.5}}, big, 0},
		{Message{T: "lend", Segments: []Segment{{ID: 1, Gen: 9, Size: 32 << 20}, {ID: 2, Gen: 1, Size: 32 << 20, Held: true}}}, nil, 1},
		{Message{T: "load", Set: "a@1#1", Ranges: [][2]int64{{0, 5}, {1 << 40, 7}}, NoCheck: true, Seal: true}, []byte("x"), MaxFDs},
		{Message{T: "free"}, nil, 0},
	} {
		var files []*os.File
		for i := range c.fds {
			f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fmt.Fprintf(f, "file %d", i)
			files = append(files, f)
		}
		sent := make(chan error, 1)
		go func() { sent <- a.Write(&c.m, c.payload, files...) }()
		m, payload, fds, err := b.Read()
		if err != nil {
			t.Fatalf("%s: %v", c.m.T, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*m, c.m) {
			t.Errorf("%s: got %+v, want %+v", c.m.T, *m, c.m)
		}
		if !bytes.Equal(payload, c.payload) {
			t.Errorf("%s: payload of %d bytes, want %d", c.m.T, len(payload), len(c.payload))
		}
		if len(fds) != c.fds {
			t.Fatalf("%s: %d descriptors, want %d", c.m.T, len(fds), c.fds)
		}
		for i, f := range fds {
			got := make([]byte, 16)
			n, _ := f.ReadAt(got, 0)
			if want := fmt.Sprintf("file %d", i); string(got[:n]) != want {
				t.Errorf("descriptor %d reads %q, want %q", i, got[:n], want)
			}
			f.Close()
		}
	}
}

func TestFrameTruncatedAtEveryByte(t *testing.T) {
	whole := frame(`{"t":"save","run":"a","size":12}`, []byte("the header"))
	for n := range whole {
		_, _, _, err := feed(t, whole[:n]).Read()
		if n == 0 && !errors.Is(err, io.EOF) {
			t.Errorf("cut at 0: %v, want EOF", err)
		}
		if n > 0 && (!errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)) {
			t.Errorf("cut at %d: %v, want unexpected EOF", n, err)
		}
	}
	if _, _, _, err := feed(t, whole).Read(); err != nil {
		t.Errorf("whole: %v", err)
	}
}

func TestFrameOverLimitIsInvalidAndAllocatesNothing(t *testing.T) {
	for _, head := range [][2]uint32{{MaxJSON + 1, 0}, {2, MaxPayload + 1}, {1<<32 - 1, 1<<32 - 1}} {
		raw := binary.LittleEndian.AppendUint32(nil, head[0])
		raw = binary.LittleEndian.AppendUint32(raw, head[1])
		_, _, _, err := feed(t, append(raw, "{}"...)).Read()
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%v: %v, want ErrInvalid", head, err)
		}
	}
	// A claim within the limit that never comes costs what came.
	raw := frame(`{"t":"save"}`, nil)
	binary.LittleEndian.PutUint32(raw[4:], MaxPayload)
	c := feed(t, append(raw, make([]byte, 100)...))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, _, err := c.Read()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("missing payload: %v", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("a claim of %d bytes allocated %d", MaxPayload, got)
	}
}

func TestFrameBadJSON(t *testing.T) {
	for _, s := range []string{``, `{`, `[]`, `"hello"`, `{"t":5}`, `{"t":"x","ranges":[["a"]]}`, "\x00\xff", `{"t":"slot","off":1e300}`, `{"t":"x","step":9223372036854775808}`} {
		if _, _, _, err := feed(t, frame(s, nil)).Read(); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", s, err)
		}
	}
	if m, _, _, err := feed(t, frame(`{"t":"free","new_field":[1,{}]}`, nil)).Read(); err != nil || m.T != "free" {
		t.Errorf("unknown fields are ignored: %v %v", m, err)
	}
}

func TestFrameDescriptorsAreCountedAndClosed(t *testing.T) {
	// A pipe's write end passed with a frame that announces another count must
	// not stay open in the receiver.
	for _, announced := range []string{`{"t":"load"}`, `{"t":"load","fds":2}`, `{"t":"load","fds":-1}`} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		a, b := pair(t)
		if _, _, err := a.U.WriteMsgUnix(frame(announced, nil), unix.UnixRights(int(w.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if _, _, fds, err := b.Read(); !errors.Is(err, catalog.ErrInvalid) || fds != nil {
			t.Errorf("%s: %v, %d descriptors; want ErrInvalid and none", announced, err, len(fds))
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: the descriptor is still open somewhere: %d, %v", announced, n, err)
		}
		r.Close()
	}
	if _, _, _, err := feed(t, frame(`{"t":"lend","fds":1}`, nil)).Read(); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("announced and not sent: %v, want ErrInvalid", err)
	}
}

func TestWriteRefusesWhatReadWould(t *testing.T) {
	a, _ := pair(t)
	f, err := os.Open("frame_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	many := make([]*os.File, MaxFDs+1)
	for i := range many {
		many[i] = f
	}
	for name, err := range map[string]error{
		"json":        a.Write(&Message{T: strings.Repeat("x", MaxJSON)}, nil),
		"payload":     a.Write(&Message{T: "save"}, make([]byte, MaxPayload+1)),
		"descriptors": a.Write(&Message{T: "lend"}, nil, many...),
	} {
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(frame(`{"t":"hello","version":1}`, nil))
	f.Add(frame(`{"t":"save","size":4096}`, make([]byte, 64)))
	f.Add(frame(`{"t":"lend","fds":1,"segments":[{"id":1}]}`, nil))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := feed(t, raw)
		for range 8 {
			m, payload, fds, err := c.Read()
			if err != nil {
				return
			}
			if len(fds) != 0 || m.FDs != 0 {
				t.Fatalf("descriptors out of nothing: %d", len(fds))
			}
			// What was read can be sent on, and reads the same.
			a, b := pair(t)
			go a.Write(m, payload)
			again, payload2, _, err := b.Read()
			if err != nil || !reflect.DeepEqual(m, again) || !bytes.Equal(payload, payload2) {
				t.Fatalf("%+v came back as %+v, %v", m, again, err)
			}
		}
	})
}
