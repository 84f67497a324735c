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
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// saved is a set on a peer, opened, with the bytes of its file.
func saved(t *testing.T, opts ...OpenOption) (*peer, *Client, *Reader, *peerShard, map[string][]byte) {
	t.Helper()
	p := newPeer(t)
	c := p.dial()
	set, want := save(t, c, 1)
	s, err := p.find(set.ID.String(), 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Open(t.Context(), "a/b@1", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return p, c, r, s, want
}

// eachPlace runs a test with the shard on the node and away.
func eachPlace(t *testing.T, test func(t *testing.T, away bool)) {
	t.Run("local", func(t *testing.T) { test(t, false) })
	t.Run("remote", func(t *testing.T) { test(t, true) })
}

func TestReadEveryWay(t *testing.T) {
	eachPlace(t, func(t *testing.T, away bool) {
		p, _, r, s, want := saved(t)
		p.set(func() { p.away = away })
		for _, tensor := range r.Tensors() {
			data := want[tensor.Name]
			got := make([]byte, len(data))
			if n, err := r.ReadAt(tensor.Name, got, 0); tensor.Name != "piece" && (err != nil || n != len(data) || !bytes.Equal(got, data)) {
				t.Errorf("%s: %d, %v", tensor.Name, n, err)
			}
			if len(data) > 10 && tensor.Name != "piece" {
				if n, err := r.ReadAt(tensor.Name, got[:10], int64(len(data)-5)); n != 5 || err != io.EOF || !bytes.Equal(got[:5], data[len(data)-5:]) {
					t.Errorf("%s at its end: %d, %v", tensor.Name, n, err)
				}
			}
		}
		sh, err := r.Shard(0)
		if err != nil {
			t.Fatal(err)
		}
		defer sh.Close()
		// iotest.TestReader reads in every pattern of sizes.
		if err := iotest.TestReader(io.NewSectionReader(sh, block-3000, 6000), s.whole[block-3000:block+3000]); err != nil {
			t.Error(err)
		}
		for _, span := range [][2]int64{{0, 1}, {block - 1, 2}, {block, block}, {block/2 - 3, 3*block + 7}, {sh.Size() - 1, 1}} {
			got := make([]byte, span[1])
			if n, err := sh.ReadAt(got, span[0]); int64(n) != span[1] || err != nil && err != io.EOF || !bytes.Equal(got, s.whole[span[0]:span[0]+span[1]]) {
				t.Errorf("%v: %d, %v", span, n, err)
			}
		}
		if _, err := sh.ReadAt(make([]byte, 1), sh.Size()); err != io.EOF {
			t.Errorf("past the end: %v", err)
		}
		if all, err := sh.Bytes(); err != nil || !bytes.Equal(all, s.whole) {
			t.Errorf("Bytes: %d of %d, %v", len(all), len(s.whole), err)
		}
		got := make([]byte, sh.Size())
		if err := r.ReadShard(t.Context(), 0, got); err != nil || !bytes.Equal(got, s.whole) {
			t.Errorf("ReadShard: %v", err)
		}
		var file writerAt
		if err := r.CopyShard(t.Context(), 0, &file); err != nil || !bytes.Equal(file.b, s.whole) {
			t.Errorf("CopyShard: %v", err)
		}
	})
}

type writerAt struct {
	sync.Mutex
	b []byte
}

func (w *writerAt) WriteAt(p []byte, off int64) (int, error) {
	w.Lock()
	defer w.Unlock()
	if need := int(off) + len(p); need > len(w.b) {
		w.b = append(w.b, make([]byte, need-len(w.b))...)
	}
	return copy(w.b[off:], p), nil
}

func TestBadBlockComesFromElsewhereAndIsReported(t *testing.T) {
	reads := map[string]func(r *Reader) ([]byte, error){
		"ReadAt": func(r *Reader) ([]byte, error) {
			s, _ := r.Shard(0)
			defer s.Close()
			b := make([]byte, s.Size())
			_, err := s.ReadAt(b, 0)
			return b, err
		},
		"small ReadAt": func(r *Reader) ([]byte, error) {
			s, _ := r.Shard(0)
			defer s.Close()
			return io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
		},
		"ReadShard": func(r *Reader) ([]byte, error) {
			b := make([]byte, r.Manifest().Shards[0].Size)
			return b, r.ReadShard(context.Background(), 0, b)
		},
		"Bytes": func(r *Reader) ([]byte, error) {
			s, _ := r.Shard(0)
			defer s.Close()
			b, err := s.Bytes()
			return bytes.Clone(b), err
		},
	}
	for name, read := range reads {
		for damage, spoil := range map[string]func(f *os.File, size int64){
			"flipped": func(f *os.File, size int64) { f.WriteAt([]byte{1, 2, 3, 4}, 2*block+77) },
			"last":    func(f *os.File, size int64) { f.WriteAt([]byte{1, 2, 3, 4}, size-4) },
			"cut":     func(f *os.File, size int64) { f.Truncate(3*block + 5) },
		} {
			t.Run(name+"/"+damage, func(t *testing.T) {
				p, c, r, s, _ := saved(t)
				f, err := os.OpenFile(s.path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				spoil(f, int64(len(s.whole)))
				f.Close()
				if got, err := read(r); err != nil || !bytes.Equal(got, s.whole) {
					t.Errorf("differs: %v", err)
				}
				p.mu.Lock()
				told := slices.Contains(p.bad, s.set.ShardName(0))
				p.mu.Unlock()
				if !told {
					t.Error("the daemon was not told")
				}
				local, err := c.Open(t.Context(), "a/b@1", From("local"))
				if err != nil {
					t.Fatal(err)
				}
				defer local.Close()
				if got, err := read(local); !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("local only: %d bytes, %v; want ErrCorrupt", len(got), err)
				}
				p.set(func() { s.whole = nil }) // and when no copy is good
				if _, err := read(r); !errors.Is(err, catalog.ErrCorrupt) {
					t.Errorf("no good copy: %v, want ErrCorrupt", err)
				}
			})
		}
	}
}

func TestSealOfOtherBytesIsCorrupt(t *testing.T) {
	p, _, r, s, _ := saved(t)
	p.set(func() { s.seal.CRCs[0]++ })
	b := make([]byte, len(s.whole))
	if err := r.ReadShard(t.Context(), 0, b); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

func TestNoCheckReadsWhatIsThere(t *testing.T) {
	_, _, r, s, _ := saved(t, NoCheck())
	f, _ := os.OpenFile(s.path, os.O_RDWR, 0)
	f.WriteAt([]byte{1, 2, 3, 4}, 2*block)
	f.Close()
	want, _ := os.ReadFile(s.path)
	got := make([]byte, len(want))
	if err := r.ReadShard(t.Context(), 0, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %v", err)
	}
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	p, c, r, _, _ := saved(t)
	for ref, class := range map[string]error{"a/b@7": fs.ErrNotExist, "x@latest": fs.ErrNotExist, "x": catalog.ErrInvalid} {
		if _, err := c.Open(t.Context(), ref); !errors.Is(err, class) {
			t.Errorf("%s: %v, want %v", ref, err, class)
		}
	}
	if _, err := r.ReadAt("nope", make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown tensor: %v", err)
	}
	if _, err := r.Shard(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown rank: %v", err)
	}
	if _, err := c.Open(t.Context(), "a/b@1", From("tape")); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("unknown tier: %v", err)
	}
	sh, _ := r.Shard(0)
	sh.Close()
	if _, err := sh.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	leases := 0
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.asked {
		if m.T == "lease" {
			leases++
		}
	}
	if leases == 0 {
		t.Error("an open set has no lease")
	}
}

func TestReadTensorPutsPiecesTogether(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	// A 6×4×2 tensor of I16, cut into four pieces over dimensions 0 and 1.
	whole := random(6 * 4 * 2 * 2)
	for rank := range 4 {
		s, err := c.Save(t.Context(), At("a", 1), Rank(rank, 4), Launch("l"))
		if err != nil {
			t.Fatal(err)
		}
		r0, c0 := int64(rank/2)*3, int64(rank%2)*2
		var data []byte
		for i := r0; i < r0+3; i++ {
			data = append(data, whole[(i*4+c0)*4:(i*4+c0+2)*4]...)
		}
		if err := s.Piece("t", I16, []int64{3, 2, 2}, data, []int64{6, 4, 2}, []int64{r0, c0, 0}); err != nil {
			t.Fatal(err)
		}
		if rank == 3 { // a replica of rank 0's
			s.Tensor("same", U8, []int64{1}, []byte{7})
		}
		if _, err := s.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	r, err := c.Open(t.Context(), "a@latest")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tensor, err := r.Tensor("t")
	if err != nil || tensor.Rank != -1 || tensor.Size != int64(len(whole)) || fmt.Sprint(tensor.Shape) != "[6 4 2]" {
		t.Errorf("got %+v, %v", tensor, err)
	}
	got := make([]byte, len(whole))
	if err := r.ReadTensor(t.Context(), "t", got); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("got %v\n%x\n%x", err, got, whole)
	}
	if _, err := r.ReadAt("t", got, 0); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("ReadAt of pieces: %v, want ErrInvalid", err)
	}
	if err := r.ReadTensor(t.Context(), "same", got[:1]); err != nil || got[0] != 7 {
		t.Errorf("whole tensor: %v", err)
	}
}

func TestManyReadersAtOnce(t *testing.T) {
	eachPlace(t, func(t *testing.T, away bool) {
		p, _, r, s, _ := saved(t)
		p.set(func() { p.away = away })
		sh, _ := r.Shard(0)
		defer sh.Close()
		var wg sync.WaitGroup
		for i := range int64(8) {
			wg.Go(func() {
				for off := i * 1000; off < sh.Size(); off += block * 3 / 2 {
					got := make([]byte, min(block/3, sh.Size()-off))
					if _, err := sh.ReadAt(got, off); err != nil || !bytes.Equal(got, s.whole[off:off+int64(len(got))]) {
						t.Errorf("at %d: %v", off, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestLines(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	var seen []int64
	res, err := c.Verify(t.Context(), "a@1", false, func(p wire.Progress) { seen = append(seen, p.Done) })
	if err != nil || res.Sets != 3 || !slices.Equal(seen, []int64{1, 2}) {
		t.Errorf("verify: %+v, %v, %v", res, seen, err)
	}
	if _, err := c.Fsck(t.Context(), false, nil); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("an error in a line: %v", err)
	}
	if _, err := c.Rebuild(t.Context(), nil); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("an answer without a result: %v", err)
	}
	var ids []string
	for set, err := range c.Watch(t.Context(), "a") {
		if err != nil {
			t.Fatal(err)
		}
		if ids = append(ids, set.ID); len(ids) == 2 {
			break
		}
	}
	if !slices.Equal(ids, []string{"a@1#1", "a@2#1"}) {
		t.Errorf("watch: %v", ids)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Wait(ctx, "a@1", Remote); !errors.Is(err, context.Canceled) || !errors.Is(err, catalog.ErrIncomplete) {
		t.Errorf("wait: %v", err)
	}
}

// TestReadShardInWindows: a shard of several windows comes through two of them,
// whole and in its own order; a writer that fails ends it.
func TestReadShardInWindows(t *testing.T) {
	p := newPeer(t)
	c := p.dial()
	data := make([]byte, 3*windowSize+12345)
	rand.NewChaCha8([32]byte{7}).Read(data)
	save, err := c.Save(t.Context(), At("a/b", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer save.Close()
	if err := save.Tensor("x", U8, []int64{int64(len(data))}, data); err != nil {
		t.Fatal(err)
	}
	set, err := save.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.find(set.ID.String(), 0)
	if err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.away = true })
	r, err := c.Open(t.Context(), "a/b@1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(s.whole))
	if err := r.ReadShard(t.Context(), 0, got); err != nil || !bytes.Equal(got, s.whole) {
		t.Errorf("ReadShard: %v, equal %v", err, bytes.Equal(got, s.whole))
	}
	var file writerAt
	if err := r.CopyShard(t.Context(), 0, &file); err != nil || !bytes.Equal(file.b, s.whole) {
		t.Errorf("CopyShard: %v, %d of %d bytes", err, len(file.b), len(s.whole))
	}
	full := errors.New("full")
	if err := r.CopyShard(t.Context(), 0, refusing{full}); !errors.Is(err, full) {
		t.Errorf("CopyShard to a writer that fails: %v, want %v", err, full)
	}
}

// refusing takes the first window and nothing after it.
type refusing struct{ err error }

func (w refusing) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 {
		return len(p), nil
	}
	return 0, w.err
}
