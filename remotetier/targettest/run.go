// Package targettest checks an implementation of remotetier.Target, and has
// one in memory that can fail.
package targettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// Run checks every promise a Target makes; open gives a new, empty one.
func Run(t *testing.T, open func(t *testing.T) remotetier.Target) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, tg remotetier.Target)
	}{
		{"Name", testName},
		{"CommitMakesVisible", testCommit},
		{"CloseLeavesNothing", testClose},
		{"CommitNeedsAllBytes", testShort},
		{"OneWriterAKey", testOneWriter},
		{"ReplaceIsOldOrNew", testReplace},
		{"ColumnsOfOneBlob", testColumns},
		{"ReplaceByTheSame", testReplaceColumn},
		{"ReadAnyRange", testRanges},
		{"OpenMissing", testMissing},
		{"CheckWhereItLies", testCheck},
		{"Remove", testRemove},
		{"ReadWhileRemoved", testReadWhileRemoved},
		{"ListInOrder", testList},
		{"ListEndsEarly", testListEnds},
		{"RefuseBadNames", testBadNames},
		{"Space", testSpace},
		{"ContextEnds", testContext},
		{"Concurrent", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func key(blob string, gen uint64, col int) remotetier.Key {
	return remotetier.Key{Blob: blob, Generation: gen, Column: col}
}

// pages gives page-aligned random bytes.
func pages(n int, seed uint64) []byte {
	b := make([]byte, (n+1)*4096)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 4095)
	b = b[skip : skip+n*4096]
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// put writes a whole column.
func put(t *testing.T, tg remotetier.Target, k remotetier.Key, b []byte) {
	t.Helper()
	w, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	defer w.Close()
	for part := range slices.Chunk(b, 3*4096) {
		if err := w.Write(t.Context(), part); err != nil {
			t.Fatalf("Write: %v", err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// get reads a whole column, nil when it is not there.
func get(t *testing.T, tg remotetier.Target, k remotetier.Key) []byte {
	t.Helper()
	r, err := tg.Open(t.Context(), k)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	b := make([]byte, r.Size())
	if n, err := r.ReadAt(t.Context(), b, 0); n != len(b) || err != nil && err != io.EOF {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	return b
}

func list(t *testing.T, tg remotetier.Target, prefix string) (keys []remotetier.Key) {
	t.Helper()
	for e, err := range tg.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		keys = append(keys, e.Key)
	}
	return keys
}

func testName(t *testing.T, tg remotetier.Target) {
	if err := remotetier.CheckTargetName(tg.Name()); err != nil {
		t.Error(err)
	}
}

func testCommit(t *testing.T, tg remotetier.Target) {
	k, b := key("run/000000000001-000001/rank-00000.safetensors", 7, 2), pages(10, 1)
	w, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if get(t, tg, k) != nil || len(list(t, tg, "")) != 0 {
		t.Error("the column is visible before Commit")
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("Close after Commit: %v", err)
	}
	if !bytes.Equal(get(t, tg, k), b) {
		t.Error("the bytes differ")
	}
	for e, err := range tg.List(t.Context(), "run") {
		if err != nil || e.Key != k || e.Size != int64(len(b)) {
			t.Errorf("List gives %v, %v", e, err)
		}
	}
}

func testClose(t *testing.T, tg remotetier.Target) {
	k, b := key("a", 1, 0), pages(4, 2)
	w, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if get(t, tg, k) != nil || len(list(t, tg, "")) != 0 {
		t.Error("Close without Commit left a column")
	}
	put(t, tg, k, b) // the name is free again
	if err := w.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if !bytes.Equal(get(t, tg, k), b) {
		t.Error("a second Close touched the next writer's column")
	}
}

func testShort(t *testing.T, tg remotetier.Target) {
	k, b := key("a", 1, 0), pages(4, 3)
	w, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Write(t.Context(), b[:8192]); err != nil {
		t.Fatal(err)
	}
	if w.Commit(t.Context()) == nil {
		t.Error("Commit took half of the bytes")
	}
	_ = w.Close()
	if get(t, tg, k) != nil {
		t.Error("a failed Commit left a column")
	}
	w, err = tg.Create(t.Context(), k, 4096, remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.Write(t.Context(), b) == nil {
		t.Error("Write took more than the size")
	}
}

func testOneWriter(t *testing.T, tg remotetier.Target) {
	k, b := key("a/b", 1, 0), pages(2, 4)
	w, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create = %v, want fs.ErrExist", err)
	}
	_ = w.Close()
	put(t, tg, k, b)
	if _, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create of a committed key = %v, want fs.ErrExist", err)
	}
}

// testReplace reads a key all the time while it is replaced, and gives one
// replacement up.
func testReplace(t *testing.T, tg remotetier.Target) {
	k := key("a/b", 1, 0)
	create := func(size int) remotetier.ColumnWriter {
		w, err := tg.Create(t.Context(), k, int64(size), remotetier.CreateReplace)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	old, other := pages(3, 15), pages(5, 16) // a column that was cut gets longer
	w := create(len(old))                    // there is nothing to replace
	if err := errors.Join(w.Write(t.Context(), old), w.Commit(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	w = create(len(other))
	if _, err := tg.Create(t.Context(), k, int64(len(old)), remotetier.CreateReplace); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create of a key being replaced = %v, want fs.ErrExist", err)
	}
	if err := errors.Join(w.Write(t.Context(), other), w.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, tg, k), old) {
		t.Error("a replacement given up touched the column")
	}
	stop, wg := make(chan struct{}), sync.WaitGroup{}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			r, err := tg.Open(t.Context(), k)
			if err != nil {
				t.Errorf("Open while the key is replaced: %v", err)
				return
			}
			if n := r.Size(); n != int64(len(old)) && n != int64(len(other)) {
				t.Errorf("a column of %d bytes", n)
			}
			_ = r.Close()
		}
	})
	for i := range 6 {
		b := [][]byte{other, old}[i%2]
		w := create(len(b))
		if err := errors.Join(w.Write(t.Context(), b), w.Commit(t.Context()), w.Close()); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(get(t, tg, k), b) {
			t.Errorf("replacement %d: the bytes differ", i)
		}
	}
	close(stop)
	wg.Wait()
	if got := list(t, tg, ""); !slices.Equal(got, []remotetier.Key{k}) {
		t.Errorf("List = %v, want %v", got, k)
	}
	if _, err := tg.Create(t.Context(), k, 4096, 2); err == nil {
		t.Error("Create took mode 2")
	}
}

func testRanges(t *testing.T, tg remotetier.Target) {
	k, b := key("a", 1, 0), pages(40, 5)
	put(t, tg, k, b)
	r, err := tg.Open(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Size() != int64(len(b)) {
		t.Fatalf("Size = %d, want %d", r.Size(), len(b))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		lo := rnd.IntN(len(b))
		hi := lo + 1 + rnd.IntN(len(b)-lo)
		p := make([]byte, hi-lo)
		if n, err := r.ReadAt(t.Context(), p, int64(lo)); n != len(p) || err != nil && err != io.EOF || !bytes.Equal(p, b[lo:hi]) {
			t.Fatalf("ReadAt [%d, %d) = %d, %v", lo, hi, n, err)
		}
	}
	p := pages(8, 0)
	if n, err := r.ReadAt(t.Context(), p, 36*4096); n != 4*4096 || err != io.EOF || !bytes.Equal(p[:n], b[36*4096:]) {
		t.Errorf("ReadAt over the end = %d, %v, want %d, EOF", n, err, 4*4096)
	}
}

func testMissing(t *testing.T, tg remotetier.Target) {
	put(t, tg, key("a", 1, 0), pages(1, 6))
	for _, k := range []remotetier.Key{key("a", 1, 1), key("a", 2, 0), key("a/b", 1, 0), key("b", 1, 0)} {
		if _, err := tg.Open(t.Context(), k); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%v) = %v, want fs.ErrNotExist", k, err)
		}
	}
}

// testCheck checks a column of more than one piece, by whatever way there is.
func testCheck(t *testing.T, tg remotetier.Target) {
	tier := remotetier.New([]remotetier.TargetInfo{{Target: tg}}, remotetier.Options{})
	const size = remotetier.CheckPiece + 70_001
	place, err := tier.Put(t.Context(), "a/b", bytes.NewReader(pages(size/4096+1, 17)[:size]), stripe.Layout{K: 1})
	if err != nil {
		t.Fatal(err)
	}
	k, buf := key("a/b", place.Generation, 0), pages(16, 0)
	paced := int64(0)
	info, err := remotetier.CheckTarget(t.Context(), tg, k, buf, func(_ context.Context, n int64) error { paced += n; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if info.Key != k || info.Size != size || info.Content != place.Content || !slices.Equal(info.Targets, place.Targets) || info.Layout.K != 1 {
		t.Errorf("CheckTarget = %+v, want what is said of %+v", info, place)
	}
	if paced < size || paced > size+65536 {
		t.Errorf("the pace was told of %d bytes, want %d and some pages", paced, size)
	}
	if _, err := remotetier.CheckTarget(t.Context(), tg, key("a/b", place.Generation, 1), buf, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CheckTarget of nothing = %v, want fs.ErrNotExist", err)
	}
	stop := errors.New("enough")
	if _, err := remotetier.CheckTarget(t.Context(), tg, k, buf, func(context.Context, int64) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("CheckTarget with a pace that ends = %v, want its error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := remotetier.CheckTarget(ctx, tg, k, buf, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("CheckTarget = %v, want context.Canceled", err)
	}
}

func testRemove(t *testing.T, tg remotetier.Target) {
	a, b := key("x/y", 1, 0), key("x/y/z", 1, 0)
	put(t, tg, a, pages(1, 7))
	put(t, tg, b, pages(1, 8))
	for range 2 { // a missing one is no error
		if err := tg.Remove(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if got := list(t, tg, ""); !slices.Equal(got, []remotetier.Key{b}) {
		t.Errorf("List = %v, want %v", got, b)
	}
	if err := tg.Remove(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	put(t, tg, a, pages(1, 9))
	if err := tg.Remove(t.Context(), key("never/was", 3, 1)); err != nil {
		t.Errorf("Remove of a missing column: %v", err)
	}
}

func testReadWhileRemoved(t *testing.T, tg remotetier.Target) {
	k, b := key("a", 1, 0), pages(4, 10)
	put(t, tg, k, b)
	r, err := tg.Open(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := tg.Remove(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	p := pages(4, 0)
	if n, err := r.ReadAt(t.Context(), p, 0); err == nil && (n != len(p) || !bytes.Equal(p, b)) {
		t.Error("a removed column gave other bytes")
	}
}

func testList(t *testing.T, tg remotetier.Target) {
	all := []remotetier.Key{
		key("a", 1, 0), key("a", 2, 0), key("a", 16, 3), key("a", 1<<63, 11), key("a/b", 1, 0), key("a/b/c", 5, 1), key("a/b-c", 5, 1),
		key("a-b", 1, 0), key("a.b/c", 1, 0), key("ab", 1, 0), key("ab/c", 1, 0), key("b/g", 9, 9),
	}
	if !slices.IsSortedFunc(all, remotetier.Key.Compare) {
		t.Fatal("the test's own order is wrong")
	}
	for i := range all {
		put(t, tg, all[(i*5)%len(all)], pages(1, 11))
	}
	for _, prefix := range []string{"", "a", "a/b", "a/b/c", "a-b", "ab", "b", "b/g", "c", "a/b/c/d"} {
		var want []remotetier.Key
		for _, k := range all {
			if remotetier.Under(k.Blob, prefix) {
				want = append(want, k)
			}
		}
		if got := list(t, tg, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q) =\n%v, want\n%v", prefix, got, want)
		}
	}
}

func testListEnds(t *testing.T, tg remotetier.Target) {
	for i := range 5 {
		put(t, tg, key("a", uint64(i), 0), pages(1, 12))
	}
	n := 0
	for range tg.List(t.Context(), "") {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("List went on for %d", n)
	}
}

func testBadNames(t *testing.T, tg remotetier.Target) {
	for _, blob := range []string{"", "/a", "a/", "a//b", "..", "a/../b", ".a", "a/.b", "a b", "a\x00", "a/g0000000000000001.c00.col", "ü"} {
		if _, err := tg.Create(t.Context(), key(blob, 1, 0), 4096, remotetier.CreateNew); err == nil {
			t.Errorf("Create took the name %q", blob)
		}
	}
	if _, err := tg.Create(t.Context(), key("a", 1, 40), 4096, remotetier.CreateNew); err == nil {
		t.Error("Create took column 40")
	}
}

func testSpace(t *testing.T, tg remotetier.Target) {
	s, err := tg.Space(t.Context())
	if err != nil || s.Total <= 0 || s.Free < 0 || s.Free > s.Total {
		t.Errorf("Space = %+v, %v", s, err)
	}
	if w, err := tg.Create(t.Context(), key("a", 1, 0), 1<<55, remotetier.CreateNew); err == nil {
		_ = w.Close()
		t.Error("Create promised 32 PiB")
	}
	put(t, tg, key("a", 1, 0), pages(1, 13)) // and kept nothing of it
}

func testContext(t *testing.T, tg remotetier.Target) {
	k := key("a", 1, 0)
	put(t, tg, k, pages(1, 14))
	r, err := tg.Open(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt = %v, want context.Canceled", err)
	}
	if _, err := tg.Create(ctx, key("a", 2, 0), 4096, remotetier.CreateNew); !errors.Is(err, context.Canceled) {
		t.Errorf("Create = %v, want context.Canceled", err)
	}
	for _, err := range tg.List(ctx, "") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("List = %v, want context.Canceled", err)
		}
	}
}

// testConcurrent writes, reads and removes neighbours, so that folders come and go.
func testConcurrent(t *testing.T, tg remotetier.Target) {
	var wg sync.WaitGroup
	for i := range 4 {
		b := pages(2, uint64(20+i))
		wg.Go(func() {
			for gen := range uint64(20) {
				k := key("run/step", gen, i)
				w, err := tg.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
				if err == nil {
					err = errors.Join(w.Write(t.Context(), b), w.Commit(t.Context()), w.Close())
				}
				if err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(get(t, tg, k), b) {
					t.Errorf("%v: the bytes differ", k)
				}
				if err := tg.Remove(t.Context(), k); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := list(t, tg, ""); len(got) != 0 {
		t.Errorf("List = %v, want nothing", got)
	}
}
