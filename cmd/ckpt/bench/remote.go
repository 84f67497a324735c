package bench

import (
	"context"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/klauspost/reedsolomon"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// unit is the stripe unit of the daemons measured, their default, in bytes.
const unit = 1 << 20

// perGiB is processor time for n bytes, in seconds a GiB.
func perGiB(d time.Duration, n int64) float64 { return d.Seconds() * (1 << 30) / float64(n) }

// part is one unavoidable part of some work, measured alone.
type part struct {
	name string
	do   func() error
	v    []float64 // seconds of processor time a GiB of the shard, run by run
}

// measure runs every part once and gives the sum.
func measure(parts []*part, size int64) (sum float64, err error) {
	for _, p := range parts {
		cpu, err := cpuOf(nil, p.do)
		if err != nil {
			return 0, fmt.Errorf("yardstick %s: %w", p.name, err)
		}
		p.v = append(p.v, perGiB(cpu, size))
		sum += perGiB(cpu, size)
	}
	return sum, nil
}

// account tells the parts' medians.
func account(parts []*part) string {
	var s []string
	for _, p := range parts {
		s = append(s, fmt.Sprintf("%s %.3f", p.name, median(p.v)))
	}
	return strings.Join(s, " + ")
}

// readColumns reads files past the page cache into reused memory.
func readColumns(files []string, n int64) func() error {
	return func() error {
		buf, err := mapMemory(plainIO)
		if err != nil {
			return err
		}
		defer unix.Munmap(buf)
		for _, path := range files {
			f, err := openDirect(path, unix.O_RDONLY)
			if err != nil {
				return err
			}
			for off := int64(0); off < n && err == nil; off += plainIO {
				err = readDirect(f, buf[:min(plainIO, (n-off+4095)/4096*4096)], off)
			}
			f.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// copyOver copies reused memory over all of to, which is left cleared.
func copyOver(to []byte) func() error {
	return func() error {
		from, err := mapMemory(plainIO)
		if err != nil {
			return err
		}
		defer unix.Munmap(from)
		clear(from)
		for off := 0; off < len(to); off += plainIO {
			copy(to[off:min(len(to), off+plainIO)], from)
		}
		return nil
	}
}

// sink keeps the compiler from dropping a sum nobody asks for; it is read, so
// that it is not dropped itself.
var sink uint64

func init() { _ = sink }

func sumCRC(data []byte) func() error {
	return func() error {
		for at := 0; at < len(data); at += 64 << 10 {
			sink += uint64(crc32.Checksum(data[at:min(len(data), at+64<<10)], catalog.Castagnoli))
		}
		return nil
	}
}

// rebuildFirst reconstructs the first lost data columns of k+m from the other
// columns, in units.
func rebuildFirst(data []byte, k, m, lost int) func() error {
	return func() error {
		rs, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithFastOneParityMatrix())
		if err != nil {
			return err
		}
		spare := make([]byte, lost*unit)
		need := make([]bool, k+m)
		for i := range lost {
			need[i] = true
		}
		for at := 0; at+k*unit <= len(data); at += k * unit {
			shards := make([][]byte, k+m)
			for i := range lost {
				shards[i] = spare[i*unit:][:0:unit]
				shards[k+i] = data[at+i*unit:][:unit] // any bytes take the same time
			}
			for i := lost; i < k; i++ {
				shards[i] = data[at+i*unit:][:unit]
			}
			if err := rs.ReconstructSome(shards, need); err != nil {
				return err
			}
		}
		return nil
	}
}

// restoreRemote is the processor time, of client, daemon and targets together,
// of restoring from the targets; then without those of two data columns.
func (b *bench) restoreRemote(ctx context.Context, d *daemon, at *saved, data []byte) error {
	place, files, err := columns(ctx, d, at)
	if err != nil {
		return err
	}
	const k, m = layoutK, layoutM
	n := at.size / k
	// The caller's memory is there already: whether the system gives fresh pages
	// large or small, and has them at hand, is no merit of a remote tier.
	p, err := mapMemory(at.size)
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	crc, give := &part{name: "CRC32C", do: sumCRC(data)}, &part{name: "copy to the caller", do: copyOver(p)} // which also wipes what the last restore left
	healthy := []*part{{name: "sendfile over loopback TCP", do: sendFiles(files[:k], n)}, crc, give}
	if err := b.remoteCPU(ctx, d, at, p, data, "restore.remote.cpu", healthy, fmt.Sprintf("layout %s, no target missing", place.Layout)); err != nil {
		return err
	}
	for _, name := range place.Targets[:m] {
		t, err := d.target(name)
		if err != nil {
			return err
		}
		t.lose()
	}
	crc.v, give.v = nil, nil
	degraded := []*part{{name: "sendfile over loopback TCP", do: sendFiles(files[m:], n)}, crc, {name: "Reed-Solomon", do: rebuildFirst(data, k, m, m)}, give}
	return b.remoteCPU(ctx, d, at, p, data, "restore.degraded.cpu", degraded, fmt.Sprintf("layout %s, two targets killed, each with a data column", place.Layout))
}

func (b *bench) remoteCPU(ctx context.Context, d *daemon, at *saved, p, data []byte, bar string, parts []*part, what string) error {
	var product, yard, rate []float64
	for i := range b.opt.Pairs + 1 {
		b.logf("%s: pair %d of %d", bar, i, b.opt.Pairs)
		if err := ctx.Err(); err != nil {
			return err
		}
		sum, err := measure(parts, at.size)
		if err != nil {
			return err
		}
		begin := time.Now()
		cpu, err := cpuOf(d.processes(), func() error { return readInto(ctx, d.client, at, p, ckpt.From("remote")) })
		if err != nil {
			return err
		}
		r := perSecond(len(data), time.Since(begin))
		if err := same(p[at.header:], data, at.header); err != nil {
			return err
		}
		if i > 0 {
			product, yard, rate = append(product, perGiB(cpu, at.size)), append(yard, sum), append(rate, r)
		}
	}
	b.versus(bar, product, yard, "%s; client, daemon and targets, %s over loopback TCP, at %s; alone: %s", what, amount(float64(at.size), "B"), amount(median(rate), "B/s"), account(parts))
	return nil
}
