package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// largeFile is a file that is whole on this node: where it is mounted, where it
// lies, and how many bytes come before the data.
type largeFile struct {
	row, what      string
	mounted, plain string
	skip           int64
}

// access is a way to read a file.
type access struct {
	name, goal string
	step       int  // bytes of one read
	random     bool // in random order, by two at once; otherwise one after the other
	cold       bool
	direct     bool
	slice      int // bytes that one side reads before it is the other's turn
	most       int // bytes that each side reads in a pair
	text       string
}

const (
	block     = 4 << 10
	readJobs  = 2
	largeMost = 1 << 30
)

var accesses = []access{
	{"seq", "mount.seq", 1 << 20, false, true, false, 64 << 20, largeMost, "1 MiB reads one after the other, the page cache dropped before"},
	{"seq.cached", "mount.seq", 1 << 20, false, false, false, 8 << 20, largeMost, "1 MiB reads one after the other, from the page cache"},
	{"rand4k", "mount.rand4k", block, true, true, true, 512 * block, 8192 * block, "4 KiB reads in random order by O_DIRECT, two at once"},
	{"rand4k.cached", "mount.rand4k", block, true, false, false, 512 * block, largeMost, "4 KiB reads in random order from the page cache, two at once"},
}

// readLarge reads a file in all ways, through the mount and where it lies.
func (b *bench) readLarge(ctx context.Context, l largeFile, data []byte, how string) error {
	for _, a := range accesses {
		var rates [2][]float64
		for pair := range b.opt.Pairs + 1 {
			b.logf("%s.%s: pair %d of %d", l.row, a.name, pair, b.opt.Pairs)
			rate, err := a.pair(ctx, l, data)
			if err != nil {
				return err
			}
			if pair > 0 {
				rates[0], rates[1] = append(rates[0], rate[0]), append(rates[1], rate[1])
			}
		}
		b.versusAs(l.row+"."+a.name, a.goal, rates[0], rates[1], "%s through a daemon's mount (%s), and its own file: %s; in turn, %d MiB at a time, the median of them; every byte was compared", l.what, how, a.text, a.slice>>20)
	}
	return nil
}

// pair reads the same parts of a file through the mount and where it lies, in
// turn, a slice at a time: what else the machine does falls on both.
func (a access) pair(ctx context.Context, l largeFile, data []byte) (rate [2]float64, err error) {
	parts := a.parts(len(data))
	buf, err := mapMemory(int64(a.slice))
	if err != nil {
		return rate, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(buf)) }()
	if !a.cold {
		if err := warmCache(l.plain); err != nil {
			return rate, err
		}
	}
	var files [2][]*os.File
	for k, path := range [2]string{l.mounted, l.plain} {
		opened, err := a.open(path)
		if err != nil {
			return rate, err
		}
		defer closeAll(opened)
		files[k] = opened
	}
	var rates [2][]float64
	for n, turn := 0, 0; n < len(parts); n += a.slice / a.step {
		some := parts[n:min(len(parts), n+a.slice/a.step)]
		for k := range 2 {
			which := (turn + k) % 2 // who begins takes turns too
			if a.cold {
				if err := dropCache(l.plain); err != nil {
					return rate, err
				}
			}
			took, err := a.read(ctx, files[which], some, buf[:len(some)*a.step])
			if err == nil {
				err = l.compare(some, a.step, buf, data)
			}
			if err != nil {
				return rate, fmt.Errorf("%s: %w", files[which][0].Name(), err)
			}
			rates[which] = append(rates[which], perSecond(len(some)*a.step, took))
		}
		turn++
	}
	for k := range rate {
		rate[k] = median(rates[k]) // of the slices: one that had to wait for a processor says nothing
	}
	return rate, nil
}

// parts are the offsets of what is read.
func (a access) parts(size int) []int64 {
	parts := make([]int64, size/a.step)
	for i := range parts {
		parts[i] = int64(i) * int64(a.step)
	}
	if a.random {
		rand.New(rand.NewPCG(1, uint64(size))).Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	}
	return parts[:min(len(parts), a.most/a.step)]
}

// open opens a file once for each that reads it: what a kernel counts of an
// open file would otherwise be counted by both.
func (a access) open(path string) (files []*os.File, err error) {
	flag, jobs := os.O_RDONLY, 1
	if a.direct {
		flag |= unix.O_DIRECT
	}
	if a.random {
		jobs = readJobs
	}
	for range jobs {
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// read fills p with parts of a file, in as many goroutines as it is open.
func (a access) read(ctx context.Context, files []*os.File, parts []int64, p []byte) (time.Duration, error) {
	clear(p)
	return took(func() error {
		var g errgroup.Group
		for j, f := range files {
			g.Go(func() error {
				fd := int(f.Fd())
				for i := j; i < len(parts); i += len(files) {
					if i%1024 == j && ctx.Err() != nil {
						return context.Cause(ctx)
					}
					if err := readFrom(f, fd, p[i*a.step:(i+1)*a.step], parts[i]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return g.Wait()
	})
}

// compare holds what came against the data; what is before it, the daemon made.
func (l largeFile) compare(parts []int64, step int, got, data []byte) error {
	for i, at := range parts {
		p := got[i*step : (i+1)*step]
		if at < l.skip {
			n := min(l.skip-at, int64(step))
			p, at = p[n:], at+n
		}
		if err := same(p, data[at-l.skip:at-l.skip+int64(len(p))], at); err != nil {
			return err
		}
	}
	return nil
}
