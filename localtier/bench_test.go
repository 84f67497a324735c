package localtier

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// source gives incompressible bytes in a mapped file on a tmpfs: what an arena is to the tier.
func source(b *testing.B, size int) []byte {
	f, err := os.Create(filepath.Join(shm(b), "source"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		b.Fatal(err)
	}
	p, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(p) })
	random := pattern(1, 8*mib)
	for n := 0; n < size; n += copy(p[n:], random) {
	}
	return p
}

const slot = 8 * mib

// twoAtOnce calls f for every slot of size bytes, two at a time.
func twoAtOnce(size int, f func(off int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, 2)
	var mu sync.Mutex
	next := 0
	for g := range errs {
		wg.Go(func() {
			for {
				mu.Lock()
				off := next
				next += slot
				mu.Unlock()
				if off >= size || errs[g] != nil {
					return
				}
				errs[g] = f(off)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// plain is the yardstick: O_DIRECT writes of the same bytes, then fdatasync.
func plain(name string, src []byte) error {
	f, err := vfs.OS.Create(name, vfs.Opt{Direct: true})
	if err != nil {
		return err
	}
	defer f.Close()
	err = twoAtOnce(len(src), func(off int) error {
		_, err := f.WriteAt(src[off:min(len(src), off+slot)], int64(off))
		return err
	})
	if err != nil {
		return err
	}
	return f.Sync()
}

func product(b *testing.B, tier *Tier, name string, src []byte) error {
	in, err := tier.Reserve(b.Context(), name, int64(len(src)))
	if err != nil {
		return err
	}
	defer in.Close()
	err = twoAtOnce(len(src), func(off int) error { return in.WriteAt(src[off:min(len(src), off+slot)], int64(off)) })
	if err != nil {
		return err
	}
	_, err = in.Commit(b.Context(), nil)
	return err
}

// timeAll runs f once for each of n writers at once and gives the time until the last is done.
func timeAll(b *testing.B, n int, f func(i int) error) time.Duration {
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			if err := f(i); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

func median(ratios []float64) float64 {
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// BenchmarkDurable compares ingests until Commit with the plain writer, in
// turns: "ratio" is the median of the pairs' ratios of bytes per second.
func BenchmarkDurable(b *testing.B) {
	for _, c := range []struct{ writers, size int }{{1, 512 * mib}, {4, 128 * mib}, {1, 32 * mib}, {4, 32 * mib}} {
		writers := c.writers
		b.Run(fmt.Sprintf("writers=%d/MiB=%d", writers, c.size/mib), func(b *testing.B) {
			src := source(b, c.size)
			tier, dir := openOS(b, Options{})
			var ratios, rates []float64
			for b.Loop() {
				var p, y time.Duration
				yard := func() {
					y = timeAll(b, writers, func(i int) error { return plain(filepath.Join(dir, fmt.Sprint("plain", i)), src) })
				}
				if len(ratios)%2 == 0 {
					yard()
				}
				p = timeAll(b, writers, func(i int) error { return product(b, tier, fmt.Sprint("bench/", i), src) })
				if len(ratios)%2 == 1 {
					yard()
				}
				ratios = append(ratios, y.Seconds()/p.Seconds())
				rates = append(rates, float64(len(src)*writers)/p.Seconds()/1e6)
				b.StopTimer()
				for i := range writers {
					os.Remove(filepath.Join(dir, fmt.Sprint("plain", i)))
					if err := tier.Remove(b.Context(), fmt.Sprint("bench/", i)); err != nil {
						b.Error(err)
					}
				}
				b.StartTimer()
			}
			b.ReportMetric(median(ratios), "ratio")
			b.ReportMetric(median(rates), "MB/s-durable")
		})
	}
}

// BenchmarkRead compares checked reads of a whole blob with plain O_DIRECT reads.
func BenchmarkRead(b *testing.B) {
	src := source(b, 512*mib)
	tier, _ := openOS(b, Options{})
	if err := product(b, tier, "bench/a", src); err != nil {
		b.Fatal(err)
	}
	dst := vfs.AlignedBuffer(len(src))
	blob, err := tier.Open("bench/a")
	if err != nil {
		b.Fatal(err)
	}
	defer blob.Close()
	var ratios, rates []float64
	for b.Loop() {
		start := time.Now()
		if err := twoAtOnce(len(src), func(off int) error { _, err := blob.f.ReadAt(dst[off:off+slot], int64(off)); return err }); err != nil {
			b.Fatal(err)
		}
		y := time.Since(start)
		start = time.Now()
		if err := twoAtOnce(len(src), func(off int) error {
			_, err := blob.ReadBlocks(b.Context(), off/catalog.BlockSize, slot/catalog.BlockSize, dst[off:off+slot])
			return err
		}); err != nil {
			b.Fatal(err)
		}
		p := time.Since(start)
		ratios = append(ratios, y.Seconds()/p.Seconds())
		rates = append(rates, float64(len(src))/p.Seconds()/1e6)
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(rates), "MB/s-checked")
}

func BenchmarkOpenWarm(b *testing.B) {
	dir := shm(b)
	for b.Loop() {
		a := openArena(b, dir, ArenaOptions{Size: 1 << 30})
		a.Close()
	}
}
