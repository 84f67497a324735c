package target_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
)

// TestCheckNamesTheBlock damages a column under a server's feet and asks for
// it whole, and in parts by the protocol's own words.
func TestCheckNamesTheBlock(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	r := s.dial(tcp.Options{})
	tier := remotetier.New([]remotetier.TargetInfo{{Target: r}}, remotetier.Options{})
	place, err := tier.Put(t.Context(), "run/a", bytes.NewReader(random(70<<20, 1)), stripe.Layout{K: 1})
	if err != nil {
		t.Fatal(err)
	}
	k := remotetier.Key{Blob: "run/a", Generation: place.Generation}
	sent := s.server.Stats().BytesOut
	info, err := r.CheckColumn(t.Context(), k, nil)
	if err != nil || info.Key != k || info.Content != place.Content {
		t.Errorf("CheckColumn = %+v, %v", info, err)
	}
	if st := s.server.Stats(); st.BytesOut != sent || st.Checked != 70<<20 {
		t.Errorf("sent %d bytes and checked %d, want none and %d", st.BytesOut-sent, st.Checked, 70<<20)
	}
	const bad = 1100 // a block in the second page of sums
	name := filepath.Join(s.dir, "columns", filepath.FromSlash(k.Path()))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[4096+bad*65536+7] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CheckColumn(t.Context(), k, nil); !errors.Is(err, catalog.ErrCorrupt) || !strings.Contains(err.Error(), "block 1100") {
		t.Errorf("CheckColumn = %v, want ErrCorrupt and the block", err)
	}
	c := s.raw(tcp.Options{})
	for _, q := range []struct {
		off, n uint64
		k      remotetier.Key
		want   error
	}{
		{0, 0, k, nil}, {0, 1000 * 65536, k, nil}, {(bad - 1000) * 65536, 1000 * 65536, k, nil}, {bad * 65536, 1, k, catalog.ErrCorrupt}, {(bad + 1) * 65536, 64 << 20, k, nil}, {1 << 40, 65536, k, nil},
		{(bad - 1) * 65536, 2 * 65536, k, catalog.ErrCorrupt}, {7, 65536, k, catalog.ErrInvalid}, {0, 1 << 30, k, catalog.ErrInvalid},
		{0, 65536, remotetier.Key{Blob: "run/b"}, fs.ErrNotExist},
	} {
		req := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte{10, 0}, q.off), q.n)
		op := &fabric.Op{Request: append(req, keyBytes(q.k)...)}
		if err := c.Do(t.Context(), op); !errors.Is(err, q.want) || q.want == nil && (err != nil || len(op.Reply) != 4128) {
			t.Errorf("check of %d bytes at %d of %v = %v and %d bytes, want %v", q.n, q.off, q.k, err, len(op.Reply), q.want)
		}
	}
}

// TestCheckWaitsForItsTurn: checks leave buffers to those who write.
func TestCheckWaitsForItsTurn(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	r := s.dial(tcp.Options{})
	tier := remotetier.New([]remotetier.TargetInfo{{Target: r}}, remotetier.Options{})
	place, err := tier.Put(t.Context(), "run/a", bytes.NewReader(random(1<<20, 1)), stripe.Layout{K: 1})
	if err != nil {
		t.Fatal(err)
	}
	k := remotetier.Key{Blob: "run/a", Generation: place.Generation}
	done := make(chan error)
	for range 16 {
		go func() { _, err := r.CheckColumn(t.Context(), k, nil); done <- err }()
	}
	for range 16 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.CheckColumn(ctx, k, func(context.Context, int64) error { cancel(); return ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("CheckColumn = %v, want context.Canceled", err)
	}
}
