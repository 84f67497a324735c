package localtier

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// Every block that a range touches is checked, and no other.
func TestVerifyCachedChecksWhatRangesTouch(t *testing.T) {
	tier, err := Open(vfs.OS, Options{Dirs: []string{t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close()
	const name, blocks = "run/000000000001-000001/rank-00000.safetensors", 11
	data := vfs.AlignedBuffer(blocks * catalog.BlockSize)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	size := int64(len(data) - 100)
	in, err := tier.Reserve(t.Context(), name, size)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.WriteAt(data[:size], 0); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	b, err := tier.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	f, err := b.OpenFile(false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole := [][2]int64{{0, size}}
	if err := b.VerifyCached(t.Context(), f, whole); err != nil {
		t.Errorf("good blob: %v", err)
	}
	const bad = 6 // block
	w, err := os.OpenFile(b.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	at := int64(bad*catalog.BlockSize + 4711)
	if _, err := w.WriteAt([]byte{data[at] ^ 1}, at); err != nil {
		t.Fatal(err)
	}
	if err := b.VerifyCached(t.Context(), f, whole); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("flipped bit: %v, want ErrCorrupt", err)
	}
	for range 200 {
		lo := rng.Int64N(size)
		hi := lo + 1 + rng.Int64N(size-lo)
		touches := lo < (bad+1)*catalog.BlockSize && hi > bad*catalog.BlockSize
		err := b.VerifyCached(t.Context(), f, [][2]int64{{lo, hi - lo}})
		if errors.Is(err, catalog.ErrCorrupt) != touches || err != nil && !touches {
			t.Errorf("range %d to %d: %v, touches the bad block: %v", lo, hi, err, touches)
		}
	}
	// A file that was cut is an error, not the end of the process.
	if err := w.Truncate(3 * catalog.BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := b.VerifyCached(t.Context(), f, [][2]int64{{5 * catalog.BlockSize, 1}}); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("cut file: %v, want ErrCorrupt", err)
	}
}

func TestChunksOfCoverEachBlockOnce(t *testing.T) {
	const mib = catalog.BlockSize
	got := chunksOf([][2]int64{{10, 20}, {mib / 2, mib}, {3 * mib, 6*mib + 1}}, 9*mib+5)
	want := [][2]int64{{0, mib}, {mib, 2 * mib}, {3 * mib, 7 * mib}, {7 * mib, 9*mib + 5}}
	if !slices.Equal(got, want) {
		t.Errorf("chunksOf = %v, want %v", got, want)
	}
}

// An operator's rm -rf of a set's folder costs that set, not the next write.
func TestFoldersRemovedBehindTheTier(t *testing.T) {
	dir := t.TempDir()
	tier, err := Open(vfs.OS, Options{Dirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close()
	const name = "run/000000000001-000001/set.json"
	for i, content := range []string{"one", "two", "three"} {
		if err := tier.Put(t.Context(), name, []byte(content)); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
		if b, err := tier.Get(t.Context(), name); err != nil || string(b) != content {
			t.Errorf("get %d = %q, %v", i, b, err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "shards", "run")); err != nil {
			t.Fatal(err)
		}
	}
}
