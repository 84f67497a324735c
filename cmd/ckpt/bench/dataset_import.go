package bench

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	"github.com/ckptd/ckptd/datasets/store"
)

const (
	importFile  = 10_000  // bytes of a file
	importFiles = 100_000 // at most; fewer where the size of the run holds fewer
	importArena = 256 << 20
)

// importPath is the path of file i below the folder.
func importPath(i int) string { return fmt.Sprintf("%04d/%08d.bin", i/1000, i) }

// benchImport imports a folder of small files, each time as the first version
// of an empty daemon's dataset, beside tar and fsync to the same disk.
func benchImport(ctx context.Context, b *bench) (err error) {
	n := min(importFiles, int(b.opt.Size/importFile))
	folder, archive := filepath.Join(b.dir, "tree"), filepath.Join(b.dir, "tree.tar")
	defer func() { err = errors.Join(err, os.RemoveAll(folder), os.RemoveAll(archive)) }()
	b.opt.Log(fmt.Sprintf("dataset: a folder of %d files of %d bytes", n, importFile))
	if err := fillFolder(ctx, folder, n); err != nil {
		return err
	}
	cold := "the page cache dropped before each"
	var product, yardstick []float64
	for pair := range b.opt.Pairs {
		for turn := range 2 {
			do := func() (time.Duration, error) { return b.importOnce(ctx, folder, n, &cold) }
			into := &product
			if (turn+pair)%2 == 1 { // who begins takes turns too
				do = func() (time.Duration, error) { return tarOnce(ctx, folder, archive, n, &cold) }
				into = &yardstick
			}
			spent, err := do()
			if err != nil {
				return err
			}
			*into = append(*into, perSecond(n*importFile, spent))
		}
	}
	b.versus("dataset.import", product, yardstick, "%d files of 10 KB, incompressible, made a version that is on the disk; tar cf and fsync of its file; %s; every file was read back through the SDK, and from the tar, and compared", n, cold)
	return nil
}

func fillFolder(ctx context.Context, folder string, n int) error {
	p := make([]byte, importFile)
	for i := range n {
		path := filepath.Join(folder, importPath(i))
		if i%1000 == 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return err
			}
		}
		fillSample(p, i)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// coolDown writes back what is dirty and drops the page cache, where this user
// may; where not, told says so.
func coolDown(told *string) error {
	unix.Sync()
	err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		*told = "the page cache warm, as only root may drop it"
		return nil
	}
	return err
}

// importOnce is the time of one import into a daemon of its own.
func (b *bench) importOnce(ctx context.Context, folder string, n int, cold *string) (spent time.Duration, err error) {
	d, err := b.start(ctx, importArena)
	if err != nil {
		return 0, err
	}
	defer func() { err = d.finish(err) }()
	if err := coolDown(cold); err != nil {
		return 0, err
	}
	var v datasets.Version
	spent, err = took(func() error {
		st, err := store.New(d.client, "tree")
		if err != nil {
			return err
		}
		src, err := source.Open(folder, source.Options{Format: source.Tree})
		if err != nil {
			return err
		}
		defer src.Close()
		if v, err = datasets.Import(ctx, src, st, datasets.Options{}); err != nil {
			return err
		}
		_, err = d.client.Wait(ctx, v.Set.String(), catalog.Local)
		return err
	})
	if err != nil {
		return 0, err
	}
	return spent, d.checkImport(ctx, n)
}

// checkImport compares every file of the version, by its path.
func (d *daemon) checkImport(ctx context.Context, n int) (err error) {
	ds, err := d.client.OpenDataset(ctx, "tree@1")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ds.Close()) }()
	if ds.Len() != int64(n) {
		return fmt.Errorf("the version: %w: %d samples of %d", catalog.ErrCorrupt, ds.Len(), n)
	}
	seen, want := make([]bool, n), make([]byte, importFile)
	for i := range ds.Len() {
		s, err := ds.Sample(ctx, i)
		if err != nil {
			return err
		}
		path, err := ds.Index().Path(s.Fields[0].File)
		if err != nil {
			return err
		}
		if err := checkNamed(string(path), s.Data[0], seen, want); err != nil {
			return err
		}
	}
	return nil
}

// checkNamed compares a file that was found by its path, and ticks it off.
func checkNamed(path string, got []byte, seen []bool, want []byte) error {
	var dir, i int
	if _, err := fmt.Sscanf(path, "%d/%d.bin", &dir, &i); err != nil || i < 0 || i >= len(seen) || seen[i] || path != importPath(i) {
		return fmt.Errorf("%q: %w: not one of the folder's files, or there twice", path, catalog.ErrCorrupt)
	}
	seen[i] = true
	fillSample(want, i)
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%q: %w: it has other bytes", path, catalog.ErrCorrupt)
	}
	return nil
}

// tarOnce is the time of tar, and of the fsync that makes its file as durable.
func tarOnce(ctx context.Context, folder, archive string, n int, cold *string) (time.Duration, error) {
	if err := os.Remove(archive); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	if err := coolDown(cold); err != nil {
		return 0, err
	}
	spent, err := took(func() error {
		if out, err := exec.CommandContext(ctx, "tar", "cf", archive, "-C", folder, ".").CombinedOutput(); err != nil {
			return fmt.Errorf("tar: %w: %s", err, out)
		}
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return 0, err
	}
	return spent, checkTar(archive, n)
}

func checkTar(archive string, n int) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(bufio.NewReaderSize(f, 1<<20))
	seen, want, got, files := make([]bool, n), make([]byte, importFile), make([]byte, importFile), 0
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if _, err := io.ReadFull(r, got); err != nil {
			return err
		}
		if err := checkNamed(filepath.Clean(h.Name), got, seen, want); err != nil {
			return err
		}
		files++
	}
	if files != n {
		return fmt.Errorf("%s: %w: %d files of %d", archive, catalog.ErrCorrupt, files, n)
	}
	return nil
}
