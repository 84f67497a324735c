package remotetier_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/reedsolomon"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
)

// benchSize is the blob of the benchmarks, in bytes. They use the disk under
// the test's temporary directory: TMPDIR chooses it.
const benchSize = 512 << 20

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spent is the processor time of f.
func spent(b *testing.B, f func() error) time.Duration {
	b.Helper()
	from := cpu()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return cpu() - from
}

// fileSource is a file read with O_DIRECT, with its seal.
type fileSource struct {
	vfs.File
	seal *catalog.Seal
}

func (f fileSource) Size() int64         { return f.seal.Size }
func (f fileSource) Seal() *catalog.Seal { return f.seal }

func newSource(b *testing.B, dir string) fileSource {
	b.Helper()
	f, err := vfs.OS.Create(filepath.Join(dir, "source"), vfs.Opt{Direct: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	seal := &catalog.Seal{Name: "source", Size: benchSize}
	buf, r := vfs.AlignedBuffer(catalog.BlockSize), rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < benchSize; off += catalog.BlockSize {
		_, _ = r.Read(buf)
		seal.CRCs = append(seal.CRCs, crcOf(buf))
		if _, err := f.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	return fileSource{f, seal}
}

func median(d []float64) float64 {
	slices.Sort(d)
	return d[len(d)/2]
}

// parts measures what a Put cannot do without, each by itself: O_DIRECT read,
// BLAKE3, Reed-Solomon, O_DIRECT write of the coded bytes.
func parts(b *testing.B, src fileSource, dir string, l stripe.Layout) (read, hash, code, write time.Duration) {
	unit := int(l.Unit)
	units := make([][]byte, l.Columns())
	for i := range units {
		units[i] = vfs.AlignedBuffer(8 * unit) // more than the cache, as the bytes of a stream are
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(units[i])
	}
	at := func(i, s int) []byte { return units[i][s%8*unit:][:unit] }
	stripes := benchSize / (l.K * unit)
	read = spent(b, func() error {
		for s := range stripes * l.K {
			if _, err := src.ReadAt(at(s%l.K, s/l.K), int64(s*unit)); err != nil && err != io.EOF {
				return err
			}
		}
		return nil
	})
	hash = spent(b, func() error {
		h := blake3.New()
		for s := range stripes * l.K {
			_, _ = h.Write(at(s%l.K, s/l.K))
		}
		h.Sum(nil)
		return nil
	})
	rs, err := reedsolomon.New(l.K, l.M, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithFastOneParityMatrix())
	if err != nil {
		b.Fatal(err)
	}
	code = spent(b, func() error {
		row := make([][]byte, l.Columns())
		for s := range stripes {
			for i := range row {
				row[i] = at(i, s)
			}
			if err := rs.Encode(row); err != nil {
				return err
			}
		}
		return nil
	})
	write = spent(b, func() error {
		var g errgroup.Group
		for i := range l.Columns() {
			g.Go(func() error {
				name := filepath.Join(dir, fmt.Sprintf("plain%d", i))
				f, err := vfs.OS.Create(name, vfs.Opt{Direct: true})
				if err != nil {
					return err
				}
				defer vfs.OS.Remove(name)
				defer f.Close()
				if err := f.Allocate(int64(stripes * unit)); err != nil {
					return err
				}
				for s := range stripes {
					if _, err := f.WriteAt(at(i, s), int64(s*unit)); err != nil {
						return err
					}
				}
				return f.Sync()
			})
		}
		return g.Wait()
	})
	return read, hash, code, write
}

func benchTier(b *testing.B, dir string, n int) *remotetier.Tier {
	b.Helper()
	var infos []remotetier.TargetInfo
	for i := range n {
		d, err := target.OpenDir(vfs.OS, filepath.Join(dir, fmt.Sprintf("t%d", i)), fmt.Sprintf("t%d", i))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = d.Close() })
		infos = append(infos, remotetier.TargetInfo{Target: d})
	}
	return remotetier.New(infos, remotetier.Options{})
}

// BenchmarkPutCPU compares the processor time of a Put, seal check and CRCs
// included, with the sum of its parts, in turn; the bar is a ratio of 1.2.
func BenchmarkPutCPU(b *testing.B) {
	for _, l := range []stripe.Layout{{K: 2, M: 1, Unit: 1 << 20}, {K: 4, M: 2, Unit: 1 << 20}} {
		b.Run(l.String(), func(b *testing.B) {
			dir := b.TempDir()
			src, tier := newSource(b, dir), benchTier(b, dir, l.Columns())
			var ratio, product, yard, rate [][]float64 = make([][]float64, 1), make([][]float64, 1), make([][]float64, 5), make([][]float64, 1)
			gib := float64(benchSize) / (1 << 30)
			for b.Loop() {
				begin := time.Now()
				var p catalog.Place
				put := spent(b, func() (err error) { p, err = tier.Put(b.Context(), "bench", src, l); return err })
				rate[0] = append(rate[0], benchSize/1e6/time.Since(begin).Seconds())
				if err := tier.Remove(b.Context(), p.Blob, nil); err != nil {
					b.Fatal(err)
				}
				r, h, c, w := parts(b, src, dir, l)
				sum := r + h + c + w
				for i, d := range []time.Duration{sum, r, h, c, w} {
					yard[i] = append(yard[i], d.Seconds()/gib)
				}
				product[0] = append(product[0], put.Seconds()/gib)
				ratio[0] = append(ratio[0], put.Seconds()/sum.Seconds())
			}
			b.ReportMetric(median(ratio[0]), "ratio")
			b.ReportMetric(median(product[0]), "put-cpu-s/GiB")
			b.ReportMetric(median(rate[0]), "put-MB/s")
			for i, name := range []string{"sum", "read", "hash", "code", "write"} {
				b.ReportMetric(median(yard[i]), name+"-cpu-s/GiB")
			}
		})
	}
}

// BenchmarkReadCPU compares the processor time of reading a blob whole, with
// none and with m columns missing, with O_DIRECT reads, CRC32C and (when
// degraded) reconstruction of the same bytes.
func BenchmarkReadCPU(b *testing.B) {
	l := stripe.Layout{K: 4, M: 2, Unit: 1 << 20}
	for _, missing := range []int{0, 2} {
		b.Run(fmt.Sprintf("%v-%d", l, missing), func(b *testing.B) {
			dir := b.TempDir()
			src, tier := newSource(b, dir), benchTier(b, dir, l.Columns())
			p, err := tier.Put(b.Context(), "bench", src, l)
			if err != nil {
				b.Fatal(err)
			}
			for i := range missing {
				name := filepath.Join(dir, p.Targets[i], "columns", filepath.FromSlash(remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: i}.Path()))
				if err := vfs.OS.Remove(name); err != nil {
					b.Fatal(err)
				}
			}
			rs, err := reedsolomon.New(l.K, l.M, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithFastOneParityMatrix())
			if err != nil {
				b.Fatal(err)
			}
			const chunk = 32 << 20
			buf, extra := vfs.AlignedBuffer(chunk), vfs.AlignedBuffer(2<<20)
			var ratio, product, rate []float64
			for b.Loop() {
				r, err := tier.Open(b.Context(), p)
				if err != nil {
					b.Fatal(err)
				}
				begin := time.Now()
				read := spent(b, func() error {
					for off := int64(0); off < benchSize; off += chunk {
						if _, err := r.ReadAt(buf, off); err != nil {
							return err
						}
					}
					return nil
				})
				rate = append(rate, benchSize/1e6/time.Since(begin).Seconds())
				_ = r.Close()
				yard := spent(b, func() error {
					for off := int64(0); off < benchSize; off += chunk {
						for unit := range slices.Chunk(buf, 1<<20) { // as the columns are read
							if _, err := src.ReadAt(unit, off); err != nil && err != io.EOF {
								return err
							}
							for part := range slices.Chunk(unit, stripe.Block) {
								crcOf(part)
							}
						}
						for s := 0; missing > 0 && s < chunk; s += 4 << 20 {
							units := [][]byte{buf[s:][: 0 : 1<<20], buf[s+1<<20:][: 0 : 1<<20], buf[s+2<<20:][:1<<20], buf[s+3<<20:][:1<<20], extra[:1<<20], extra[1<<20:]}
							if err := rs.ReconstructData(units); err != nil {
								return err
							}
						}
					}
					return nil
				})
				product = append(product, read.Seconds()*2)
				ratio = append(ratio, read.Seconds()/yard.Seconds())
			}
			b.ReportMetric(median(ratio), "ratio")
			b.ReportMetric(median(product), "read-cpu-s/GiB")
			b.ReportMetric(median(rate), "read-MB/s")
		})
	}
}
