package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// TestSDKDataset: what was imported is read by the Go SDK in an order, over a
// restart of the daemon, and by a cursor with another number of ranks.
func TestSDKDataset(t *testing.T) {
	d := startDaemon(t)
	src, files := t.TempDir(), map[string][]byte{}
	rng := rand.NewChaCha8([32]byte{1})
	for i := range 300 {
		b := make([]byte, 100+i*37)
		_, _ = rng.Read(b) // never fails
		path := fmt.Sprintf("c%d/\xff%03d.bin", i%7, i)
		files[path] = b
		if err := os.MkdirAll(filepath.Join(src, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, path), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.must("dataset", "import", src, "pets")
	ds, err := d.dial().OpenDataset(t.Context(), "pets@latest")
	if err != nil {
		t.Fatal(err)
	}
	defer ds.Close()
	if ds.Name() != "pets@1" || ds.Len() != 300 {
		t.Fatalf("%s has %d samples, want pets@1 with 300", ds.Name(), ds.Len())
	}
	if err := ds.Index().Check(t.Context()); err != nil {
		t.Errorf("the index that was imported: %v", err)
	}
	seen := map[int64]int{}
	read := func(e *ckpt.Epoch, n int) {
		t.Helper()
		batch, err := e.Take(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		err = ds.Batch(t.Context(), batch, func(_ int, s ckpt.Sample) error {
			seen[s.Number]++
			path, err := ds.Index().Path(s.Fields[0].File)
			if err == nil && !bytes.Equal(s.Data[0], files[string(path)]) {
				err = fmt.Errorf("sample %d is not %q", s.Number, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var cursor order.Cursor
	for rank := range 3 {
		e, err := ds.Epoch(t.Context(), ckpt.EpochOptions{Seed: 4, Epoch: 1, Rank: rank, World: 3})
		if err != nil {
			t.Fatal(err)
		}
		read(e, 25)
		cursor = e.Cursor()
	}
	d.stop(syscall.SIGKILL)
	d.start()
	for rank := range 4 {
		e, err := ds.Resume(t.Context(), cursor, rank, 4)
		if err != nil {
			t.Fatal(err)
		}
		read(e, 1000)
	}
	if len(seen) != 300 {
		t.Errorf("%d samples of 300 were read", len(seen))
	}
	for i, n := range seen {
		if n != 1 {
			t.Errorf("sample %d was read %d times", i, n)
		}
	}
	for path, want := range files {
		f, err := ds.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %d bytes, %v", path, len(got), err)
		}
	}
	if _, err := d.dial().OpenDataset(t.Context(), "cats"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dataset that is not there: %v", err)
	}
}
