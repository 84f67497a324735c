package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// replicas is how many ranks of one node restore the same shard.
const replicas = 8

// amplification has several ranks of a node restore the same shard from the
// targets at the same time, and compares what left the targets with its size.
func (b *bench) amplification(ctx context.Context, d *daemon, at *saved, data []byte) error {
	var most float64
	for i := range b.opt.Pairs {
		b.logf("restore.amplification: run %d of %d", i+1, b.opt.Pairs)
		before, err := d.sent()
		if err != nil {
			return err
		}
		var g errgroup.Group
		for range replicas {
			g.Go(func() error { return compareWhole(ctx, d, at, data) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		after, err := d.sent()
		if err != nil {
			return err
		}
		most = max(most, float64(after-before)/float64(at.size))
	}
	b.limit("restore.amplification", most, "bytes that left the targets, as the kernel counts them, for each byte of a shard of %s that %d ranks of a node restore at once; the worst of %d runs", amount(float64(at.size), "B"), replicas, b.opt.Pairs)
	return nil
}

// compareWhole restores a shard over a connection of its own, in memory that
// does not grow with it, and compares every byte.
func compareWhole(ctx context.Context, d *daemon, at *saved, data []byte) error {
	c, err := ckpt.Dial(ctx, d.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := c.Open(ctx, at.ref, ckpt.From("remote"))
	if err != nil {
		return err
	}
	defer r.Close()
	return r.CopyShard(ctx, 0, comparing{data, at.header})
}

// comparing takes a shard's bytes and drops them when they are right.
type comparing struct {
	data   []byte
	header int64 // bytes of the shard before data
}

func (c comparing) WriteAt(p []byte, off int64) (int, error) {
	n := len(p)
	if off < c.header {
		skip := min(c.header-off, int64(n))
		p, off = p[skip:], off+skip
	}
	at := max(off-c.header, 0)
	if at+int64(len(p)) > int64(len(c.data)) {
		return 0, fmt.Errorf("bytes at %d: %w: the shard is longer than what was saved", off, catalog.ErrCorrupt)
	}
	return n, same(p, c.data[at:][:len(p)], off)
}

// sent is how many bytes the targets have written so far, to their connections
// above all: sendfile counts.
func (d *daemon) sent() (sum int64, err error) {
	for _, p := range d.processes()[1:] {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "wchar: "); ok {
				n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				if err != nil {
					return 0, fmt.Errorf("io of a target: %w", err)
				}
				sum += n
			}
		}
	}
	return sum, nil
}
