package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/reedsolomon"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// drainSets is how many sets the memory figure drains: 10 GiB when asked for
// the full size.
func drainSets(o Options) int64 {
	if o.Full {
		return max(1, (10<<30+o.Size-1)/o.Size)
	}
	return 4
}

func benchDrain(ctx context.Context, b *bench) error {
	data, err := randomMemory(b.opt.Size, 3)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	if err := b.drainCPU(ctx, data); err != nil {
		return err
	}
	return b.drainMemory(ctx, data)
}

func (b *bench) drainCPU(ctx context.Context, data []byte) (err error) {
	d, err := b.startNetworked(ctx, arenaFor(b.opt.Size))
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	run := "bench/drain"
	var parts []*part
	var product, yard, rate []float64
	var place *catalog.Place
	for i := range b.opt.Pairs + 1 {
		b.logf("drain: pair %d of %d", i, b.opt.Pairs)
		if _, err := d.client.SetPolicy(ctx, run, catalog.Policy{NoDrain: true, NoVerify: true}); err != nil {
			return err
		}
		set, _, err := save(ctx, d.client, run, int64(i), data)
		if err != nil {
			return err
		}
		if err := set.Wait(ctx, ckpt.Local); err != nil {
			return err
		}
		at, err := lookUp(ctx, d.client, set.ID.String(), 0)
		if err != nil {
			return err
		}
		if parts == nil {
			parts = drainParts(at, b.dir, data, layoutK, layoutM)
		}
		parts[0].do = readColumns([]string{at.path}, at.size)
		sum, err := measure(parts, at.size)
		if err != nil {
			return err
		}
		var wall time.Duration
		cpu, err := cpuOf(d.processes(), func() (err error) {
			wall, err = took(func() error { return d.drain(ctx, run, at.ref) })
			return err
		})
		if err != nil {
			return err
		}
		if place, _, err = columns(ctx, d, at); err != nil {
			return err
		}
		p, err := readWhole(ctx, d.client, at, ckpt.From("remote"))
		if err == nil {
			err = errors.Join(same(p[at.header:], data, at.header), unix.Munmap(p))
		}
		if err != nil {
			return err
		}
		if i > 0 {
			product, yard, rate = append(product, perGiB(cpu, at.size)), append(yard, sum), append(rate, perSecond(len(data), wall))
		}
	}
	verify, err := d.verifyAll(ctx, run, b.opt.Pairs+1)
	if err != nil {
		return err
	}
	b.versus("drain.cpu", product, yard, "%s to layout %s, daemon and six target processes over loopback TCP, at %s; alone: %s (medians; with CRC32C counted once the ratio is %.2f, not at all %.2f); reading back to verified costs %.3f s/GiB more",
		amount(float64(len(data)), "B"), place.Layout, amount(median(rate), "B/s"), account(parts), without(product, parts, 1), without(product, parts, 2), perGiB(verify, int64(b.opt.Pairs+1)*b.opt.Size))
	return nil
}

// drainSums is where the passes of CRC32C stand among the parts.
const drainSums = 3

// drainParts are the parts that no drain to k+m columns can avoid.
func drainParts(at *saved, dir string, data []byte, k, m int) []*part {
	return []*part{
		{name: "O_DIRECT read", do: readColumns([]string{at.path}, at.size)},
		{name: "BLAKE3", do: func() error {
			h := blake3.New()
			if _, err := h.Write(data); err != nil {
				return err
			}
			sink += uint64(h.Sum(nil)[0])
			return nil
		}},
		{name: "Reed-Solomon", do: func() error { return encode(data, k, m) }},
		// Promise 7 wants them summed where they are made, and again at the
		// target before it acknowledges them.
		{name: "CRC32C of the columns", do: columnSums(data, k, m)},
		{name: "the same at the targets", do: columnSums(data, k, m)},
		{name: "loopback TCP of the columns", do: sendMemory(data, k, m)},
		{name: "O_DIRECT write of the columns", do: func() error { return writeColumns(dir, data, k, m) }},
	}
}

// without gives the product's ratio to the parts less some of the passes of CRC32C.
func without(product []float64, parts []*part, passes int) float64 {
	var sum float64
	for i, p := range parts {
		if i < drainSums || i >= drainSums+passes {
			sum += median(p.v)
		}
	}
	return median(product) / sum
}

// columnSums sums as many bytes as the columns have.
func columnSums(data []byte, k, m int) func() error {
	return func() error { return errors.Join(sumCRC(data)(), sumCRC(data[:len(data)/k*m])()) }
}

// encode computes the parity of data in units.
func encode(data []byte, k, m int) error {
	rs, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithFastOneParityMatrix())
	if err != nil {
		return err
	}
	shards := make([][]byte, k+m)
	for i := k; i < k+m; i++ {
		shards[i] = make([]byte, unit)
	}
	for at := 0; at+k*unit <= len(data); at += k * unit {
		for i := range k {
			shards[i] = data[at+i*unit:][:unit]
		}
		if err := rs.Encode(shards); err != nil {
			return err
		}
	}
	return nil
}

// writeColumns writes k+m columns' worth of bytes past the page cache, a file
// each, and syncs them.
func writeColumns(dir string, data []byte, k, m int) error {
	n := int64(len(data)) / int64(k)
	var g errgroup.Group
	for i := range k + m {
		g.Go(func() error {
			path := filepath.Join(dir, fmt.Sprintf("column-%d", i))
			f, err := openDirect(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
			if err != nil {
				return err
			}
			defer os.Remove(path)
			defer f.Close()
			if err := unix.Fallocate(int(f.Fd()), 0, 0, n); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("fallocate: %w", err)
			}
			const step = 4 << 20
			for off := int64(0); off < n; off += step {
				if _, err := f.WriteAt(data[off:min(n, off+step)], off); err != nil {
					return err
				}
			}
			return unix.Fdatasync(int(f.Fd()))
		})
	}
	return g.Wait()
}

// verifyAll reads the sets 0 … n-1 of a run back and gives the processor time.
func (d *daemon) verifyAll(ctx context.Context, run string, n int) (time.Duration, error) {
	return cpuOf(d.processes(), func() error {
		if _, err := d.client.SetPolicy(ctx, run, catalog.Policy{}); err != nil {
			return err
		}
		if err := d.kick(ctx, fmt.Sprintf("%s@%d", run, n-1)); err != nil {
			return err
		}
		for i := range n {
			if _, err := d.client.Wait(ctx, fmt.Sprintf("%s@%d", run, i), ckpt.Verified); err != nil {
				return err
			}
		}
		return nil
	})
}

// drainMemory drains and verifies several sets in one go and keeps the largest
// memory seen.
func (b *bench) drainMemory(ctx context.Context, data []byte) (err error) {
	d, err := b.startNetworked(ctx, arenaFor(b.opt.Size))
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	run, n := "bench/memory", int(drainSets(b.opt))
	if _, err := d.client.SetPolicy(ctx, run, catalog.Policy{NoDrain: true}); err != nil {
		return err
	}
	for i := range n {
		b.logf("memory: save %d of %d", i+1, n)
		set, _, err := save(ctx, d.client, run, int64(i), data)
		if err != nil {
			return err
		}
		if err := set.Wait(ctx, ckpt.Local); err != nil {
			return err
		}
	}
	b.logf("memory: drain of %d sets", n)
	most, err := d.peak(func() error {
		_, err := d.verifyAll(ctx, run, n)
		return err
	})
	if err != nil {
		return err
	}
	scaled := ""
	if total := int64(n) * b.opt.Size; total < 10<<30 {
		scaled = " (scaled: --full drains 10 GiB)"
	}
	b.limit("daemon.memory", float64(most), "largest of anonymous and file pages, without the arena's, while %s drain and are verified, sampled every 20 ms%s", amount(float64(int64(n)*b.opt.Size), "B"), scaled)
	return nil
}
