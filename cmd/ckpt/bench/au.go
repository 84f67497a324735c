package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// workload is what one accelerator of MLPerf Storage asks for: a batch, then
// time to compute. part divides bytes and step where a batch would not fit.
type workload struct {
	name   string
	batch  int
	bytes  int64 // of a sample
	step   time.Duration
	part   int
	enough float64 // utilisation to pass
}

var workloads = []workload{
	{"resnet50", 400, 114_660, 224 * time.Millisecond, 1, 0.90}, // H100
	{"unet3d", 7, 146_600_000, 323 * time.Millisecond, 8, 0.90}, // H100
	{"cosmoflow", 1, 2_830_000, 3500 * time.Microsecond, 1, 0.70},
	{"retinanet", 24, 323_000, 47_550 * time.Microsecond, 1, 0.85}, // B200
}

const (
	auReaders     = 4               // threads that read ahead for one accelerator
	auAhead       = 2               // batches that wait for it
	auTime        = 2 * time.Second // of a window, at least
	maxEmulations = 512             // accelerators
)

// scaled is the workload at its part: the same bytes a second.
func (w workload) scaled() workload {
	w.bytes /= int64(w.part)
	w.step /= time.Duration(w.part)
	return w
}

// benchAU finds how many emulated accelerators this node feeds.
func benchAU(ctx context.Context, b *bench) error {
	for _, w := range workloads {
		if err := b.accelerators(ctx, w.scaled()); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// accelerators measures one workload: samples in packs, through the SDK, and
// as plain files, one a sample.
func (b *bench) accelerators(ctx context.Context, w workload) (err error) {
	d, err := b.start(ctx, 256<<20)
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	n := max(int(b.opt.Size/w.bytes), 2*w.batch)
	folder := filepath.Join(b.dir, "files")
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	file := func(i int64) string {
		return filepath.Join(folder, fmt.Sprintf("%04d", i/1000), fmt.Sprintf("%08d.bin", i))
	}
	b.opt.Log(fmt.Sprintf("au: %s, %d samples of %d bytes", w.name, n, w.bytes))
	_, err = d.putDataset(ctx, w.name, n, w.bytes, func(i int, p []byte) error {
		if err := os.MkdirAll(filepath.Dir(file(int64(i))), 0o700); err != nil {
			return err
		}
		return os.WriteFile(file(int64(i)), p, 0o600)
	})
	if err != nil {
		return err
	}
	ds, err := d.client.OpenDataset(ctx, w.name+"@1")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ds.Close()) }()
	product := climb{enough: w.enough, read: func(ctx context.Context, batch []int64, _ []byte) error {
		return ds.Batch(ctx, batch, func(_ int, s ckpt.Sample) error {
			touched.Add(touch(s.Data[0]))
			return nil
		})
	}}
	plain := climb{enough: w.enough, read: func(_ context.Context, batch []int64, buf []byte) error {
		for _, i := range batch {
			f, err := os.Open(file(i))
			if err != nil {
				return err
			}
			n, err := f.ReadAt(buf[:w.bytes], 0)
			f.Close()
			if err != nil {
				return err
			}
			touched.Add(touch(buf[:n]))
		}
		return nil
	}}
	if err := climbTogether(ctx, w, ds, &product, &plain); err != nil {
		return err
	}
	detail := fmt.Sprintf("accelerators at %.0f %% (%.1f %% of %d; plain files: %.1f %% of %d); batches of %d × %d bytes, %v each%s; %s of data (a submission has 5 × memory: %s), so it is in the page cache after once; compute is waited for",
		100*w.enough, 100*product.busy, product.fed, 100*plain.busy, plain.fed, w.batch, w.bytes, w.step, scaleOf(w), amount(float64(int64(n)*w.bytes), "B"), amount(5*memory(), "B"))
	if plain.fed == 0 {
		b.limit("au."+w.name, float64(product.fed), "%s", detail)
	} else {
		b.versus("au."+w.name, []float64{float64(product.fed)}, []float64{float64(plain.fed)}, "%s", detail)
	}
	return nil
}

func scaleOf(w workload) string {
	if w.part == 1 {
		return ""
	}
	return fmt.Sprintf(" (samples and steps are 1/%d of the real ones, the bytes a second are the same)", w.part)
}

// memory is the machine's, in bytes.
func memory() float64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return float64(info.Totalram) * float64(info.Unit)
}

// touched takes the sums, so that no read of memory is removed.
var touched atomic.Uint64

type readBatch func(ctx context.Context, batch []int64, buf []byte) error

// climb finds how many accelerators one way of reading keeps busy enough: it
// doubles their number until it is too large, and then halves the distance.
type climb struct {
	enough float64
	read   readBatch

	fed  int     // accelerators that are busy enough
	busy float64 // how busy so many are
	bad  int     // the smallest number that was too large; 0: none yet
}

// next is the number to try; false when it is known well enough.
func (c *climb) next() (k int, more bool) {
	if c.bad == 0 {
		k = max(1, 2*c.fed)
		return k, k <= maxEmulations
	}
	// Finer is within what a run differs from the next.
	return (c.fed + c.bad) / 2, c.bad-c.fed > max(1, c.fed/16)
}

// learn takes how busy k accelerators were.
func (c *climb) learn(k int, busy float64) {
	if busy >= c.enough {
		c.fed, c.busy = k, busy
	} else {
		c.bad = k
	}
}

// climbTogether lets both climb in turn, so that what else the machine does
// meets them alike.
func climbTogether(ctx context.Context, w workload, ds *ckpt.Dataset, both ...*climb) error {
	for _, c := range both { // once, so that the data is in memory
		if _, err := emulate(ctx, w, ds, 1, c.read); err != nil {
			return err
		}
	}
	for again := true; again; {
		again = false
		for _, c := range both {
			k, more := c.next()
			if !more {
				continue
			}
			again = true
			busy, err := emulate(ctx, w, ds, k, c.read)
			if err != nil {
				return err
			}
			c.learn(k, busy)
		}
	}
	return nil
}

// emulate runs k accelerators beside each other, each with an order of its own
// over all samples, and gives their utilisation: the time all of them computed
// within one window, which opens when what was read ahead at the start is used up.
func emulate(ctx context.Context, w workload, ds *ckpt.Dataset, k int, read readBatch) (float64, error) {
	from := time.Now().Add(max(auTime/2, 2*(auReaders+auAhead)*w.step))
	to := from.Add(max(auTime, 10*w.step))
	var done atomic.Bool
	busy := make([]time.Duration, k)
	readers, rctx := errgroup.WithContext(ctx)
	rctx, stop := context.WithCancel(rctx)
	defer stop()
	var computing errgroup.Group
	for a := range k {
		o, err := order.New(ds.Len(), order.NewKey(ds.Index().Digest(), uint64(a), 0), order.Global)
		if err != nil {
			return 0, err
		}
		ready := make(chan time.Time, auAhead)
		var next atomic.Int64 // batch
		for range auReaders {
			readers.Go(func() error {
				buf, batch := make([]byte, w.bytes), make([]int64, w.batch)
				for !done.Load() {
					t := next.Add(1) - 1
					for i := range batch {
						batch[i] = o.At((t*int64(w.batch) + int64(i)) % o.Len())
					}
					if err := read(rctx, batch, buf); err != nil {
						if done.Load() {
							return nil // it was stopped
						}
						return err
					}
					select {
					case ready <- time.Now():
					case <-rctx.Done():
						return nil
					}
				}
				return nil
			})
		}
		computing.Go(func() error {
			busy[a] = compute(rctx, w.step, ready, from, to)
			return nil
		})
	}
	_ = computing.Wait() // they do not fail
	done.Store(true)
	stop()
	if err := readers.Wait(); err != nil {
		return 0, err
	}
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	var all time.Duration
	for _, b := range busy {
		all += b
	}
	return float64(all) / (float64(k) * float64(to.Sub(from))), nil
}

// compute takes batches and waits a step for each, until to; it gives the time
// of the steps that is between from and to. A step begins when the one before
// has ended and its batch is there; timers that are late count for nobody.
func compute(ctx context.Context, step time.Duration, ready <-chan time.Time, from, to time.Time) (busy time.Duration) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var end time.Time
	for end.Before(to) {
		timer.Reset(time.Until(to))
		select {
		case at := <-ready:
			if at.After(end) {
				end = at
			}
		case <-timer.C:
			return busy
		case <-ctx.Done():
			return busy
		}
		begin := end
		end = end.Add(step)
		busy += max(0, earlier(end, to).Sub(later(begin, from)))
		timer.Reset(time.Until(end))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return busy
		}
	}
	return busy
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
