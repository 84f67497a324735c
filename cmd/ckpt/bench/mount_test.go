package bench

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// TestAccesses: each way to read a file reads it, and other bytes are found out.
func TestAccesses(t *testing.T) {
	const skip = 1000 // not at a block's boundary
	data, err := randomMemory(24<<20, 3)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, flipped bool) string {
		b := append(make([]byte, skip), data...)
		if flipped {
			b[skip+5<<20] ^= 1
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := write("good", false), write("bad", true)
	for _, a := range accesses {
		a.most = 1 << 30 // all of it
		if a.direct && fsName(filepath.Dir(good)) == "tmpfs" {
			a.direct = false // it has none
		}
		rate, err := a.pair(t.Context(), largeFile{mounted: good, plain: good, skip: skip}, data)
		if err != nil || rate[0] <= 0 || rate[1] <= 0 {
			t.Errorf("%s: %v, %v", a.name, rate, err)
		}
		if _, err := a.pair(t.Context(), largeFile{mounted: bad, plain: good, skip: skip}, data); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s of other bytes: %v, want ErrCorrupt", a.name, err)
		}
	}
}

// TestTrees: a tree is the same as itself made again, and not as one that lacks a name.
func TestTrees(t *testing.T) {
	const n = 2*findFolder + 7
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	if err := errors.Join(fillTree(t.Context(), a, n), fillTree(t.Context(), b, n)); err != nil {
		t.Fatal(err)
	}
	if err := sameTrees(t.Context(), a, b, n); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(a, treePath(5)), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sameTrees(t.Context(), a, b, n); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a file of another size: %v, want ErrCorrupt", err)
	}
	if err := errors.Join(removeTree(b), removeTree(b)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(b); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
}
