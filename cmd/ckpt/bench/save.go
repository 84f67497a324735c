package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

const (
	runName   = "bench/save"
	tensorLen = 64 << 20 // bytes of one tensor at most
)

// arenaFor is an arena that holds a whole save, and some.
func arenaFor(size int64) int64 { return (size+size/4)/(32<<20)*(32<<20) + 128<<20 }

// save saves data as one shard of BF16 tensors and tells how long training
// had to wait.
func save(ctx context.Context, c *ckpt.Client, run string, step int64, data []byte, opts ...ckpt.SaveOption) (*ckpt.Set, time.Duration, error) {
	begin := time.Now()
	s, err := c.Save(ctx, ckpt.At(run, step), opts...)
	if err != nil {
		return nil, 0, err
	}
	defer s.Close()
	for i := 0; len(data) > 0; i++ {
		n := min(tensorLen, len(data))
		if err := s.Tensor(fmt.Sprintf("layers.%04d.weight", i), ckpt.BF16, []int64{int64(n) / 2048, 1024}, data[:n]); err != nil {
			return nil, 0, err
		}
		data = data[n:]
	}
	set, err := s.Commit(ctx)
	return set, time.Since(begin), err
}

// saved is a set that is local, with the file of its only shard.
type saved struct {
	ref    string
	path   string
	header int64 // bytes before the data
	size   int64 // of the file
}

// lookUp finds what one save of this run left on the disk.
func lookUp(ctx context.Context, c *ckpt.Client, ref string, rank int) (*saved, error) {
	d, err := c.Set(ctx, ref, false)
	if err != nil {
		return nil, err
	}
	m, err := c.Manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	if rank >= len(d.Shards) || d.Shards[rank].Path == "" {
		return nil, fmt.Errorf("%s: %w: it has no file here", ref, catalog.ErrUnavailable)
	}
	return &saved{ref, d.Shards[rank].Path, m.Shards[rank].Header, m.Shards[rank].Size}, nil
}

func benchSave(ctx context.Context, b *bench) error {
	data, err := randomMemory(b.opt.Size, 1)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	if err := b.saveOne(ctx, data); err != nil {
		return err
	}
	return b.saveMany(ctx, data)
}

// saveOne is one writer: memcpy, save, plain write, in turn.
func (b *bench) saveOne(ctx context.Context, data []byte) (err error) {
	d, err := b.start(ctx, arenaFor(int64(len(data))), "--remote", "none")
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	mapped, err := sharedMemory(int64(len(data)))
	if err != nil {
		return err
	}
	defer unix.Munmap(mapped)
	var stall, copies, one, rate, plain []float64
	for i := range b.opt.Pairs + 1 { // the first warms up, and is not counted
		if err := ctx.Err(); err != nil {
			return err
		}
		b.logf("save: pair %d of %d", i, b.opt.Pairs)
		single, err := took(func() error { return plainCopy(mapped, data, 1) })
		if err != nil {
			return err
		}
		double, err := took(func() error { return plainCopy(mapped, data, 2) })
		if err != nil {
			return err
		}
		begin := time.Now()
		set, stalled, err := save(ctx, d.client, runName, int64(i), data)
		if err != nil {
			return err
		}
		if err := set.Wait(ctx, ckpt.Local); err != nil {
			return err
		}
		local := time.Since(begin)
		path := filepath.Join(b.dir, "plain")
		written, err := took(func() error { return plainWrite(path, data) })
		if err != nil {
			return err
		}
		at, err := lookUp(ctx, d.client, set.ID.String(), 0)
		if err != nil {
			return err
		}
		for _, check := range []error{checkFile(at.path, at.header, data), checkFile(path, 0, data), os.Remove(path)} {
			if check != nil {
				return check
			}
		}
		if i == 0 {
			continue
		}
		stall, copies, one = append(stall, stalled.Seconds()), append(copies, min(single, double).Seconds()), append(one, single.Seconds())
		rate, plain = append(rate, perSecond(len(data), local)), append(plain, perSecond(len(data), written))
	}
	b.versus("save.stall", stall, copies, "%s from Save to the return of Commit, warm arena of the same size and more; memcpy into pages in place by 1 or 2 goroutines, whichever is faster (1: %.0f ms)", amount(float64(len(data)), "B"), median(one)*1e3)
	b.versus("save.durable.1", rate, plain, "%s from Save to the set listed at local; O_DIRECT writes of 8 MiB, 2 in flight, into an allocated file, and fdatasync", amount(float64(len(data)), "B"))
	return nil
}

// saveMany is four writer processes that share the bytes out between them.
func (b *bench) saveMany(ctx context.Context, data []byte) (err error) {
	const writers = 4
	part := int64(len(data)) / writers
	d, err := b.start(ctx, arenaFor(int64(len(data)))+writers*(64<<20), "--remote", "none")
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	run := "bench/many"
	attempt, err := d.client.Attach(ctx, run, "bench", writers)
	if err != nil {
		return err
	}
	crew, err := startCrew(ctx, writers, Worker{Socket: d.socket, To: run, Attempt: attempt, World: writers, Size: part, Dir: b.dir})
	if err != nil {
		return err
	}
	defer crew.stop()
	var rate, plain []float64
	for i := range b.opt.Pairs + 1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.logf("save with %d writers: pair %d of %d", writers, i, b.opt.Pairs)
		local, err := took(func() error {
			if err := crew.all(fmt.Sprintf("save %d", i)); err != nil {
				return err
			}
			_, err := d.client.Wait(ctx, fmt.Sprintf("%s@%d", run, i), ckpt.Local)
			return err
		})
		if err != nil {
			return err
		}
		written, err := took(func() error { return crew.all("write") })
		if err != nil {
			return err
		}
		if err := crew.all("unlink"); err != nil {
			return err
		}
		for rank := range writers {
			at, err := lookUp(ctx, d.client, fmt.Sprintf("%s@%d", run, i), rank)
			if err != nil {
				return err
			}
			want, err := randomMemory(part, workerSeed(rank))
			if err == nil {
				err = checkFile(at.path, at.header, want)
				unix.Munmap(want)
			}
			if err != nil {
				return err
			}
		}
		if i > 0 {
			rate, plain = append(rate, perSecond(len(data), local)), append(plain, perSecond(len(data), written))
		}
	}
	b.versus("save.durable.4", rate, plain, "%d processes of %s each, from the first Save to the set listed at local; the same processes with an O_DIRECT file each, 2 writes of 8 MiB in flight, and fdatasync", writers, amount(float64(part), "B"))
	return nil
}

// sharedMemory gives memory as the arena's: mapped, shared, its pages in place.
func sharedMemory(n int64) ([]byte, error) {
	fd, err := unix.MemfdCreate("ckpt-bench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, n); err != nil {
		return nil, fmt.Errorf("memfd of %d bytes: %w", n, err)
	}
	m, err := unix.Mmap(fd, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	return m, nil
}

func took(do func() error) (time.Duration, error) {
	begin := time.Now()
	err := do()
	return time.Since(begin), err
}

func perSecond(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }
