package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

const mountFiles = 20_000 // small files at most; fewer where the size of the run holds fewer

func smallFiles(size int64) int { return min(mountFiles, int(size/(4*importFile))) }

// readSmall reads every small file of a version through the daemon, and of the
// folder that it was imported from: first with cold caches, then once more.
func (b *bench) readSmall(ctx context.Context, mounted, plain string, n int) error {
	cold := "the page cache dropped before"
	buf := make([]byte, n*importFile)
	var rates [2][2][]float64 // cold or again; product or yardstick
	for pair := range b.opt.Pairs {
		b.logf("mount.small: pair %d of %d", pair+1, b.opt.Pairs)
		files := rand.New(rand.NewPCG(2, uint64(pair))).Perm(n)
		for turn := range 2 {
			which := (turn + pair) % 2
			dir := [2]string{mounted, plain}[which]
			if err := coolDown(&cold); err != nil {
				return err
			}
			for again := range 2 {
				spent, err := filesOnce(ctx, dir, files, buf)
				if err != nil {
					return err
				}
				rates[again][which] = append(rates[again][which], perSecond(n, spent))
			}
		}
	}
	const text = "%d files of 10 KB within a pack, in random order, one after the other, through the daemon; the same files in a folder; %s; every byte was compared"
	b.versus("mount.small", rates[0][0], rates[0][1], text, n, cold)
	b.versusAs("mount.small.cached", "mount.small", rates[1][0], rates[1][1], text, n, "read once more")
	return nil
}

// filesOnce opens, reads and closes files, and compares what came.
func filesOnce(ctx context.Context, dir string, files []int, buf []byte) (time.Duration, error) {
	spent, err := took(func() error {
		for k, i := range files {
			if k%256 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			f, err := os.Open(filepath.Join(dir, importPath(i)))
			if err != nil {
				return err
			}
			got, err := f.ReadAt(buf[k*importFile:(k+1)*importFile], 0)
			f.Close()
			if got != importFile {
				return fmt.Errorf("%s: %d bytes of %d: %w", f.Name(), got, importFile, err)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	want := make([]byte, importFile)
	for k, i := range files {
		fillSample(want, i)
		if err := same(buf[k*importFile:(k+1)*importFile], want, 0); err != nil {
			return 0, fmt.Errorf("%s: %w", filepath.Join(dir, importPath(i)), err)
		}
	}
	return spent, nil
}
