package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
)

const (
	findEntries = 1_000_000 // at most; fewer where the size of the run is below 1 GB
	findFolder  = 1000      // entries of a folder
	findTime    = 1_700_000_000
	findPairs   = 3 // at most: a cold walk of a disk takes long
	watchEvery  = 10 * time.Millisecond
)

// walk is a way to go through a tree.
type walk struct {
	row  string
	args []string // of find
	text string
}

var walks = []walk{
	{"dataset.find", nil, "find"},
	{"dataset.find.stat", []string{"-size", "+1M"}, "find -size +1M, which asks for every file's size"},
}

// benchFind goes through the mounted tree of a version and through the same
// tree on the disk, and watches the daemon's memory meanwhile.
func benchFind(ctx context.Context, b *bench) (err error) {
	n := min(findEntries, int(b.opt.Size/1000))
	b.logf("dataset: a tree of %d files and folders", n)
	folder := filepath.Join(b.dir, "find")
	defer func() { err = errors.Join(err, removeTree(folder)) }()
	if err := fillTree(ctx, folder, n); err != nil {
		return err
	}
	d, err := b.start(ctx, 128<<20)
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	if err := d.putTree(ctx, "find", n); err != nil {
		return err
	}
	f := &findBench{bench: b, d: d, folder: folder, n: n, cold: "both cold, the kernel's caches dropped before"}
	if err := f.compare(ctx); err != nil {
		return err
	}
	for _, w := range walks {
		if err := f.measure(ctx, w); err != nil {
			return err
		}
	}
	b.limit("dataset.find.memory", float64(f.grown), "by which the daemon grew at most over what it had before it opened the version, in two walks after each other; what it touches of the mapped index is counted (RssAnon and RssFile)")
	return nil
}

// findBench is what the walks have in common.
type findBench struct {
	*bench
	d      *daemon
	folder string // the tree on the disk
	n      int    // its entries
	cold   string
	grown  int64 // bytes
}

// mountAnew gives the tree in a fresh mount: neither the kernel nor the daemon
// has anything of it.
func (f *findBench) mountAnew(ctx context.Context) (tree string, err error) {
	if f.d.mounted != "" {
		if err := f.d.client.Unmount(ctx, f.d.mounted); err != nil {
			return "", err
		}
	}
	if err := coolDown(&f.cold); err != nil {
		return "", err
	}
	at, _, err := f.mount(ctx, f.d)
	return filepath.Join(at, "datasets/find/1"), err
}

// compare holds the mounted tree against the one on the disk.
func (f *findBench) compare(ctx context.Context) error {
	tree, err := f.mountAnew(ctx)
	if err != nil {
		return err
	}
	return sameTrees(ctx, tree, f.folder, f.n)
}

// measure walks in one way, twice each time.
func (f *findBench) measure(ctx context.Context, w walk) error {
	var rates [2][2][]float64 // first or again; product or yardstick
	pairs := min(f.opt.Pairs, findPairs)
	for pair := range pairs {
		f.logf("%s: pair %d of %d", w.row, pair+1, pairs)
		for turn := range 2 {
			which := (turn + pair) % 2 // who begins takes turns too
			tree, err := f.mountAnew(ctx)
			if err != nil {
				return err
			}
			more, err := f.d.growth(func() error {
				for again := range 2 {
					spent, err := took(func() error { return find(ctx, [2]string{tree, f.folder}[which], w.args, nil) })
					if err != nil {
						return err
					}
					rates[again][which] = append(rates[again][which], perSecond(f.n, spent))
				}
				return nil
			})
			if err != nil {
				return err
			}
			f.grown = max(f.grown, more)
		}
	}
	const text = "%s over %d entries in folders of %d, mounted; over the same on the disk; %s; names, types and sizes were compared"
	f.versusAs(w.row, "dataset.find", rates[0][0], rates[0][1], text, w.text, f.n, findFolder, f.cold)
	f.versusAs(w.row+".again", "dataset.find", rates[1][0], rates[1][1], text, w.text, f.n, findFolder, "once more, with what the kernel kept of the first walk")
	return nil
}

// growth is by how much the daemon's memory was larger, at most, while do ran.
func (d *daemon) growth(do func() error) (int64, error) {
	before, err := d.memory()
	if err != nil {
		return 0, err
	}
	stop := make(chan struct{})
	var watch errgroup.Group
	most := before
	watch.Go(func() error {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			now, err := d.memory()
			if err != nil {
				return err
			}
			most = max(most, now)
			select {
			case <-stop:
				return nil
			case <-tick.C:
			}
		}
	})
	err = do()
	close(stop)
	return most - before, errors.Join(err, watch.Wait())
}

// find runs find(1) in a folder.
func find(ctx context.Context, dir string, args []string, out io.Writer) error {
	cmd := exec.CommandContext(ctx, "find", append([]string{"."}, args...)...)
	cmd.Dir, cmd.Stdout = dir, out
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("find in %s: %w: %s", dir, err, said.String())
	}
	return ctx.Err()
}

// sameTrees compares what find says of names, types and sizes of both trees.
func sameTrees(ctx context.Context, a, b string, n int) error {
	seed := maphash.MakeSeed()
	sum := func(dir string) (sum uint64, lines int, err error) {
		r, w := io.Pipe()
		var g errgroup.Group
		g.Go(func() error {
			err := find(ctx, dir, []string{"-mindepth", "1", "(", "-type", "d", "-printf", "%P d\n", "-o", "-printf", "%P %y %s\n", ")"}, w)
			w.CloseWithError(err)
			return err
		})
		s := bufio.NewScanner(r)
		for s.Scan() {
			sum += maphash.Bytes(seed, s.Bytes()) // in whatever order
			lines++
		}
		return sum, lines, errors.Join(s.Err(), g.Wait())
	}
	first, names, err := sum(a)
	if err != nil {
		return err
	}
	second, also, err := sum(b)
	if err != nil {
		return err
	}
	if first != second || names != also || names != n {
		return fmt.Errorf("the mounted tree: %w: %d names of %d, or other sizes", catalog.ErrCorrupt, names, n)
	}
	return nil
}

// treePath is entry i: a folder, then the files in it, then the next folder.
func treePath(i int) string {
	if i%findFolder == 0 {
		return fmt.Sprintf("%04d", i/findFolder)
	}
	return fmt.Sprintf("%04d/%08d.bin", i/findFolder, i)
}

// fillTree makes the tree on the disk. Its files are empty: nobody reads them.
func fillTree(ctx context.Context, folder string, n int) error {
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	for i := range n {
		path := filepath.Join(folder, treePath(i))
		if i%findFolder == 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := unix.Mknod(path, unix.S_IFREG|0o644, 0); err != nil {
			return fmt.Errorf("make %s: %w", path, err)
		}
	}
	return nil
}

// removeTree removes the tree, several folders at once: it is the slowest part.
func removeTree(folder string) error {
	subs, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(4)
	for _, s := range subs {
		g.Go(func() error { return os.RemoveAll(filepath.Join(folder, s.Name())) })
	}
	return errors.Join(g.Wait(), os.RemoveAll(folder))
}

// putTree keeps the tree as version 1 of a dataset. Without bytes in any file it
// has no pack.
func (d *daemon) putTree(ctx context.Context, name string, n int) error {
	versions, err := catalog.DatasetRun(name)
	if err != nil {
		return err
	}
	ix, nothing := index.NewBuilder(), catalog.Digest(blake3.Sum256(nil))
	for i := range n {
		a := index.Add{Path: treePath(i), Kind: index.File, Mode: 0o644, Mtime: time.Unix(findTime, 0), Pack: index.NoPack, Hash: nothing}
		if i%findFolder == 0 {
			a.Kind, a.Mode, a.Pack, a.Hash = index.Folder, 0o755, 0, catalog.Digest{}
		}
		if _, err := ix.Add(a); err != nil {
			return err
		}
	}
	var out bytes.Buffer
	if _, err := ix.WriteTo(&out); err != nil {
		return err
	}
	_, _, _, err = d.putRaw(ctx, versions, 1, "index", out.Bytes(), nil)
	return err
}
