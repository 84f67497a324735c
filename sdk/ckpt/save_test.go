package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n)})
	rng.Read(b)
	return b
}

// tensors adds a mix of everything a shard can hold and returns the bytes by name.
func tensors(t testing.TB, s *Save) map[string][]byte {
	t.Helper()
	want := map[string][]byte{
		"u8": random(3_333_333), "bf16": random(2 * 1_000_003), "empty": {}, "scalar": random(8),
		"f64": random(8 * 70_000), "reader": random(5 << 20), "piece": random(4 * 6),
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(s.Tensor("u8", U8, []int64{3, 1_111_111}, want["u8"]))
	check(s.Tensor("bf16", BF16, []int64{1_000_003}, want["bf16"]))
	check(s.Tensor("empty", F32, []int64{0, 7}, want["empty"]))
	check(s.Tensor("scalar", I64, nil, want["scalar"]))
	check(s.Tensor("f64", F64, []int64{70_000}, want["f64"]))
	check(s.Tensor("reader", I8, []int64{5 << 20}, bytes.NewReader(want["reader"])))
	check(s.Piece("piece", F32, []int64{2, 3}, want["piece"], []int64{4, 3}, []int64{2, 0}))
	s.Meta("who", "test")
	return want
}

func save(t testing.TB, c *Client, step int64, opts ...SaveOption) (*Set, map[string][]byte) {
	t.Helper()
	s, err := c.Save(t.Context(), At("a/b", step), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := tensors(t, s)
	set, err := s.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return set, want
}

func TestSaveBringsEveryByte(t *testing.T) {
	for _, segments := range []int{1, 2, 16} { // smaller and larger than the shard
		t.Run(fmt.Sprint(segments, "segments"), func(t *testing.T) {
			p := newPeer(t)
			p.segments = segments
			c := p.dial()
			for step := range int64(3) {
				set, want := save(t, c, step)
				if set.Level != Staged || set.Stall <= 0 || set.ID != (catalog.SetID{Run: "a/b", Step: step, Attempt: 1}) {
					t.Errorf("got %+v", set)
				}
				s, _ := p.find(set.ID.String(), 0)
				r, err := shardfile.NewReader(bytes.NewReader(s.whole), int64(len(s.whole)))
				if err != nil {
					t.Fatal(err)
				}
				for name, data := range want {
					got := make([]byte, len(data))
					if err := r.ReadTensor(name, got); err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s differs: %v", name, err)
					}
				}
				if got, _ := r.Tensor("piece"); got.Global[0] != 4 || got.Start[0] != 2 {
					t.Errorf("piece is %+v", got)
				}
				if r.Header().Meta["who"] != "test" {
					t.Errorf("meta is %v", r.Header().Meta)
				}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.held == 0 {
				t.Error("the second save did not use the mappings of the first")
			}
		})
	}
}

func TestHeaderIsTheOneOfShardfile(t *testing.T) {
	specs := []shardfile.Spec{
		{Name: `quote " back \ tab`, DType: "U8", Shape: []int64{3}},
		{Name: "ünï", DType: "BF16", Shape: []int64{4, 2}, Global: []int64{8, 2}, Start: []int64{4, 0}},
		{Name: "z", DType: "F64", Shape: []int64{}},
		{Name: "f4", DType: "F4", Shape: []int64{4}},
		{Name: "a", DType: "F32", Shape: []int64{0}},
	}
	var parts []part
	for _, s := range specs {
		t1 := catalog.Tensor{Name: s.Name, DType: s.DType, Shape: s.Shape, Global: s.Global, Start: s.Start}
		if err := checkTensor(&t1); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part{Tensor: t1})
	}
	meta := map[string]string{"k": "v", "ckptd.state": `{"x":1}`}
	got, size, err := layout(parts, meta)
	if err != nil {
		t.Fatal(err)
	}
	shardfile.Arrange(specs)
	want, err := shardfile.NewHeader(specs, meta)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) || size != want.FileSize {
		t.Errorf("got\n%s\nwant\n%s", bytes.TrimSpace(got[8:]), bytes.TrimSpace(want.Bytes()[8:]))
	}
	for i := range parts {
		if parts[i].Offset != want.Tensors[i].Offset {
			t.Errorf("%s at %d, want %d", parts[i].Name, parts[i].Offset, want.Tensors[i].Offset)
		}
	}
}

func TestSaveRefusesEarly(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	for name, err := range map[string]error{
		"run":   second(c.Save(t.Context(), At("..", 1))),
		"step":  second(c.Save(t.Context(), At("a", -1))),
		"rank":  second(c.Save(t.Context(), At("a", 1), Rank(2, 2))),
		"world": second(c.Save(t.Context(), At("a", 1), Rank(0, 0))),
	} {
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	t.Setenv("SLURM_JOB_ID", "")
	t.Setenv("TORCHELASTIC_RUN_ID", "none")
	_, err := c.Save(t.Context(), At("a", 1), Rank(0, 2))
	if e := wire.ErrorOf(err); e == nil || e.Code != "invalid" || !strings.Contains(e.Hint, "CKPTD_LAUNCH") {
		t.Errorf("two ranks without a launch: %+v", e)
	}
	s, err := c.Save(t.Context(), At("a", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Tensor("twice", U8, nil, []byte{1})
	for name, err := range map[string]error{
		"dtype":    s.Tensor("x", "F128", nil, []byte{1}),
		"size":     s.Tensor("x", F32, []int64{2}, make([]byte, 7)),
		"negative": s.Tensor("x", F32, []int64{-1}, nil),
		"overflow": s.Tensor("x", F32, []int64{1 << 40, 1 << 40}, nil),
		"bits":     s.Tensor("x", F4, []int64{3}, []byte{1, 2}),
		"outside":  s.Piece("x", U8, []int64{2}, []byte{1, 2}, []int64{3}, []int64{2}),
		"dims":     s.Piece("x", U8, []int64{2}, []byte{1, 2}, []int64{3, 3}, []int64{0, 0}),
		"twice":    s.Tensor("twice", U8, nil, []byte{1}),
		"type":     s.Tensor("x", U8, nil, 5),
		"reserved": s.Tensor("__metadata__", U8, nil, []byte{1}),
	} {
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestSaveKeepsTheClassOfARefusal(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	save(t, c, 1)
	if _, err := commit(t.Context(), c, 1, []byte("x")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: %v, want ErrExist", err)
	}
	p.set(func() {
		p.admit = func(*wire.Message) error {
			return wire.WithHint(fmt.Errorf("%w: 3 GB short", catalog.ErrNoSpace), "prune it")
		}
	})
	_, err := commit(t.Context(), c, 2, []byte("x"))
	if e := wire.ErrorOf(err); !errors.Is(err, catalog.ErrNoSpace) || e.Hint != "prune it" {
		t.Errorf("got %v, hint %q", err, e.Hint)
	}
	p.set(func() { p.admit = nil })
	// A failure in the middle is told too, though the client is still sending.
	p.set(func() {
		p.slotf = func(n int, _ *wire.Message) error {
			if n == 2 {
				return fmt.Errorf("the disk died: %w", catalog.ErrNoSpace)
			}
			return nil
		}
	})
	if _, err := commit(t.Context(), c, 3, random(20<<20)); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("in the middle: %v, want ErrNoSpace", err)
	}
	p.set(func() { p.slotf = nil })
	save(t, c, 3) // and the client goes on
}

func commit(ctx context.Context, c *Client, step int64, data any) (*Set, error) {
	s, err := c.Save(ctx, At("a/b", step))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	n := 0
	switch d := data.(type) {
	case []byte:
		n = len(d)
	case sized:
		n = d.n
	}
	if err := s.Tensor("x", U8, []int64{int64(n)}, data); err != nil {
		return nil, err
	}
	return s.Commit(ctx)
}

// sized is a reader that is said to have n bytes.
type sized struct {
	io.ReaderAt
	n int
}

type readAtFunc func(p []byte, off int64) (int, error)

func (f readAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestSaveTellsOfDataThatFails(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	if _, err := commit(t.Context(), c, 1, sized{bytes.NewReader(random(5 << 20)), 6 << 20}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("short data: %v, want ErrInvalid", err)
	}
	boom := errors.New("boom")
	if _, err := commit(t.Context(), c, 1, sized{readAtFunc(func([]byte, int64) (int, error) { return 0, boom }), 6 << 20}); !errors.Is(err, boom) {
		t.Errorf("failing data: %v, want boom", err)
	}
	if _, err := p.find("a/b@1#1", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a failed save left a shard")
	}
}

func TestCancelledSaveReturnsAtOnceAndLeavesNothing(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	ctx, cancel := context.WithCancel(t.Context())
	p.set(func() {
		p.slotf = func(n int, _ *wire.Message) error {
			if n == 1 {
				cancel()
				<-ctx.Done()
				return errHangUp
			}
			return nil
		}
	})
	if _, err := commit(ctx, c, 1, random(20<<20)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	if _, err := p.find("a/b@1#1", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a cancelled save left a shard")
	}
	p.set(func() { p.slotf = nil })
	save(t, c, 1)
}

func TestManySavesAtOnce(t *testing.T) {
	p := newPeer(t)
	p.segments = 3
	c := p.dial()
	var wg sync.WaitGroup
	for rank := range 8 {
		wg.Go(func() {
			s, err := c.Save(t.Context(), At("a", 1), Rank(rank, 8), Launch("one"))
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			s.Tensor("x", U8, []int64{3 << 20}, random(3<<20))
			if _, err := s.Commit(t.Context()); err != nil {
				t.Errorf("rank %d: %v", rank, err)
			}
		})
	}
	wg.Wait()
	r, err := c.Open(t.Context(), "a@latest")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := len(r.Manifest().Shards); got != 8 {
		t.Errorf("%d shards, want 8", got)
	}
}

func TestRestartedDaemonIsFoundAgain(t *testing.T) {
	p := newPeer(t)
	os.Remove(p.socket)
	stop := p.serve() // the socket's new owner
	c := p.dial()
	save(t, c, 1)
	stop()
	if _, err := c.Save(t.Context(), At("new", 1)); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("daemon away: %v, want ErrUnavailable", err)
	}
	p.serve()
	save(t, c, 2) // over connections the client believed alive
}

func TestDialNamesEverySocketTried(t *testing.T) {
	t.Setenv("CKPTD_SOCKET", "")
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	_, err := Dial(t.Context(), "")
	for _, path := range Sockets("") {
		if !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("%v does not name %s", err, path)
		}
	}
	if e := wire.ErrorOf(err); e == nil || e.Code != "unavailable" || !strings.Contains(e.Hint, "ckptd serve") {
		t.Errorf("got %+v", e)
	}
	if got := Sockets("/x"); len(got) != 1 || got[0] != "/x" {
		t.Errorf("a socket named on purpose: %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := Dial(ctx, "/x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
}
