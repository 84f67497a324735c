package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	datasetstore "github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// imageTree makes a folder of files: many small ones, some empty, and some that
// are packs by themselves. It gives their bytes by path.
func imageTree(t *testing.T, r *rand.Rand) (dir string, files map[string][]byte) {
	t.Helper()
	dir, files = t.TempDir(), map[string][]byte{}
	for i := range 200 {
		size := r.IntN(40_000)
		switch {
		case i%50 == 0:
			size = 0
		case i%20 == 0:
			size = 1<<20 + r.IntN(1<<19)
		}
		b := make([]byte, size)
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		name := fmt.Sprintf("class %d/im\xff%03d.jpg", i%7, i)
		files[name] = b
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, files
}

// importTree makes a folder the next version of a dataset.
func importTree(ctx context.Context, socket, dir, name string) (datasets.Version, error) {
	c, err := ckpt.Dial(ctx, socket)
	if err != nil {
		return datasets.Version{}, err
	}
	defer c.Close()
	st, err := datasetstore.New(c, name)
	if err != nil {
		return datasets.Version{}, err
	}
	src, err := source.Open(dir, source.Options{Format: source.Tree})
	if err != nil {
		return datasets.Version{}, err
	}
	defer src.Close()
	return datasets.Import(ctx, src, st, datasets.Options{PackSize: 64 << 20, RawFrom: 1 << 20})
}

// readSample holds one sample, which is a file, against what it was made of.
func readSample(ctx context.Context, d *ckpt.Dataset, files map[string][]byte, i int64) error {
	s, err := d.Sample(ctx, i)
	if err != nil {
		return err
	}
	path, err := d.Index().Path(s.Fields[0].File)
	if err != nil {
		return err
	}
	if want, ok := files[string(path)]; !ok || len(s.Data) != 1 || !bytes.Equal(s.Data[0], want) {
		return fmt.Errorf("%w: sample %d, %q, has other bytes than its file", errWrongBytes, i, path)
	}
	return nil
}

var errWrongBytes = errors.New("wrong bytes")

// TestKill9DuringImport: the daemon is killed at random moments while a folder
// is imported. No version is visible before it is whole, what is visible has
// the right bytes, and the import that is let through ends with all of them.
func TestKill9DuringImport(t *testing.T) {
	rounds, seed := crashKills(t, 8), crashSeed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	dir, files := imageTree(t, r)
	d := newDaemon(t, "n1")
	cut, whole := 0, 0
	for range rounds {
		c, name := d.start().dial(), fmt.Sprint("pets", whole)
		version, err := c.OpenDataset(t.Context(), name)
		switch {
		case err == nil:
			whole++ // and on with the next one
			name = fmt.Sprint("pets", whole)
			for i := range version.Len() {
				if err := readSample(t.Context(), version, files, i); err != nil {
					t.Error(err)
				}
			}
			if version.Len() != int64(len(files)) {
				t.Errorf("a version of %d samples is visible, want %d", version.Len(), len(files))
			}
			if err := version.Close(); err != nil {
				t.Error(err)
			}
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrIncomplete):
			t.Errorf("opening what is not whole: %v, want that it does not exist, or not yet", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		done := make(chan error, 1)
		go func() {
			_, err := importTree(ctx, d.socket, dir, name)
			done <- err
		}()
		select {
		case err = <-done:
		case <-time.After(time.Duration(r.IntN(600)) * time.Millisecond): // when it is killed
			d.kill()
			cancel() // or it waits for the daemon to come back
			cut++
			err = <-done
		}
		cancel()
		if err != nil && catalog.ClassOf(err) == nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the import that was cut: %v, want an error of a class", err)
		}
		d.kill()
	}
	c, name := d.start().dial(), fmt.Sprint("pets", whole)
	if _, err := importTree(t.Context(), d.socket, dir, name); err != nil {
		t.Fatal(err)
	}
	version, err := c.OpenDataset(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer version.Close()
	if version.Len() != int64(len(files)) {
		t.Errorf("%d samples, want %d", version.Len(), len(files))
	}
	for i := range version.Len() {
		if err := readSample(t.Context(), version, files, i); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of %d imports were cut; a version was visible in %d rounds; at last %s", cut, rounds, whole, version.Name())
}

// TestKill9BesideReaders: readers of a shuffled epoch go on while the daemon is
// killed and comes back: each sample has the right bytes, or there is an error,
// and in the end all of them are read.
func TestKill9BesideReaders(t *testing.T) {
	kills, seed := crashKills(t, 5), crashSeed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	dir, files := imageTree(t, r)
	d := newDaemon(t, "n1")
	d.start()
	if _, err := importTree(t.Context(), d.socket, dir, "pets"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	type tally struct{ right, failed int }
	tallies := make([]tally, 3)
	for k := range tallies {
		c := d.dial()
		version, err := c.OpenDataset(ctx, "pets", ckpt.MaxMappedPacks(2))
		if err != nil {
			t.Fatal(err)
		}
		mine := rand.New(rand.NewPCG(seed, uint64(k)+3))
		wg.Go(func() {
			defer version.Close()
			for ctx.Err() == nil {
				switch err := readSample(ctx, version, files, mine.Int64N(version.Len())); {
				case err == nil:
					tallies[k].right++
				case ctx.Err() != nil:
				case errors.Is(err, errWrongBytes) || catalog.ClassOf(err) == nil || errors.Is(err, catalog.ErrCorrupt):
					t.Error(err)
				default:
					tallies[k].failed++
				}
			}
			for i := range version.Len() { // the daemon is there again
				if err := readSample(t.Context(), version, files, i); err != nil {
					t.Errorf("after all kills: %v", err)
				}
			}
		})
	}
	for range kills {
		d.kill()
		d.start()
	}
	cancel()
	wg.Wait()
	t.Logf("right and failed reads: %v", tallies)
}
