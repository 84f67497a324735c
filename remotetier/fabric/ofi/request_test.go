package ofi

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

func sample() request {
	return request{
		left: 1500, body: []byte("read"),
		out: []span{{addr: 1 << 40, key: 7, len: 100}, {addr: 4096, key: 1 << 60, len: 1}},
		in:  []span{{addr: 0, key: 9, len: 1 << 20}},
	}
}

func TestRequestRoundTrip(t *testing.T) {
	many := request{body: bytes.Repeat([]byte{1}, fabric.MaxRequest)}
	for i := range maxSpans {
		s := span{addr: uint64(i) << 32, key: ^uint64(0), len: pieceSize}
		many.out, many.in = append(many.out, s), append(many.in, s)
	}
	for _, want := range []request{sample(), many, {out: []span{}, in: []span{}, body: []byte{}}} {
		b := want.appendTo(nil)
		if len(b) > messageSize {
			t.Errorf("a request of %d bytes does not fit a message of %d", len(b), messageSize)
		}
		if got, err := parseRequest(b); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, want)
		}
	}
}

// TestPromise4HostileRequests: what a request promises is held against what it
// has, before anything of it is used.
func TestPromise4HostileRequests(t *testing.T) {
	r := sample()
	good := r.appendTo(nil)
	head := requestHead + 3*spanSize
	for i := range head {
		if _, err := parseRequest(good[:i]); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("cut at %d: %v, want ErrCorrupt", i, err)
		}
	}
	set := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"more to pull than spans":  set(0, 102),
		"less to push than spans":  set(4, 0, 0, 0, 0),
		"huge pull":                set(0, 0xff, 0xff, 0xff, 0xff),
		"huge push":                set(4, 0xff, 0xff, 0xff, 0xff),
		"too many spans":           set(12, maxSpans+1),
		"spans that are not there": set(13, maxSpans),
		"reserved bytes":           set(14, 1),
		"huge span":                set(requestHead+16, 0xff, 0xff, 0xff, 0xff),
		"empty span":               set(requestHead+spanSize+16, 0),
		"span around the end":      set(requestHead, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"long body":                append(bytes.Clone(good), make([]byte, fabric.MaxRequest)...),
	} {
		if _, err := parseRequest(b); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

func TestSpans(t *testing.T) {
	s := spans{list: sample().out, left: 101}
	for _, want := range []span{{1 << 40, 7, 60}, {1<<40 + 60, 7, 40}, {4096, 1 << 60, 1}} {
		if got := s.next(60); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if s.left != 0 {
		t.Errorf("%d bytes are left", s.left)
	}
}

func TestReply(t *testing.T) {
	op := &fabric.Op{In: make([]byte, 10)}
	if err := parseReply(appendReply(nil, 10, []byte("done"), nil), op); err != nil || op.Err != nil || op.N != 10 || string(op.Reply) != "done" {
		t.Errorf("got %q, N = %d, %v, %v", op.Reply, op.N, op.Err, err)
	}
	op = &fabric.Op{In: make([]byte, 10)}
	if err := parseReply(appendReply(nil, 10, nil, catalog.ErrNoSpace), op); err != nil || !errors.Is(op.Err, catalog.ErrNoSpace) || op.N != 0 {
		t.Errorf("N = %d, %v, %v, want ErrNoSpace", op.N, op.Err, err)
	}
	for name, b := range map[string][]byte{
		"empty": {}, "cut": {0, 1, 0, 0}, "more than there was room for": appendReply(nil, 11, nil, nil), "long": make([]byte, replyHead+fabric.MaxRequest+1),
	} {
		if err := parseReply(b, op); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	r := sample()
	f.Add(r.appendTo(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRequest(b); err == nil && !bytes.Equal(r.appendTo(nil), b) {
			t.Errorf("%x was read as %+v", b, r)
		}
	})
}

// TestPromise9PrivateByDefault: no TLS, so off loopback somebody has to say
// that this is meant, and give a token.
func TestPromise9PrivateByDefault(t *testing.T) {
	for _, c := range []struct {
		addr string
		opt  Options
		ok   bool
	}{
		{"127.0.0.1:0", Options{}, true},
		{"[::1]:0", Options{}, true},
		{"localhost:0", Options{Token: "s3cret"}, true},
		{"0.0.0.0:0", Options{}, false},
		{"10.1.2.3:0", Options{Token: "s3cret"}, false},
		{"10.1.2.3:0", Options{Insecure: true}, false},
		{":0", Options{Token: "s3cret"}, false},
		{"10.1.2.3:0", Options{Insecure: true, Token: "s3cret"}, true},
		{"nowhere", Options{Insecure: true, Token: "s3cret"}, false},
		{"127.0.0.1:0", Options{Token: strings.Repeat("x", 257)}, false},
	} {
		if err := c.opt.CheckListen(c.addr); (err == nil) != c.ok || !c.ok && !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("CheckListen(%s) = %v, want ok = %v", c.addr, err, c.ok)
		}
	}
}
