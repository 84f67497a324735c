package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/order"
)

const (
	orderIndices = 2_000_000 // of each order, far apart
	orderSlice   = 2048      // samples: a pack of 256 MiB with samples of 128 KiB
)

// benchOrder computes indices all over epochs of very different length.
func benchOrder(ctx context.Context, b *bench) error {
	for _, mode := range []order.Mode{order.Global, order.Window(orderSlice, order.DefaultGroup)} {
		var worst float64
		var allocs uint64
		for _, n := range []int64{1_281_167, 1<<30 + 1, 1<<40 + 1} {
			var times []float64
			for pair := range b.opt.Pairs {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				o, err := order.New(n, order.NewKey(catalog.Digest{1}, uint64(pair), 0), mode)
				if err != nil {
					return err
				}
				ns, mallocs, err := timeOrder(o)
				if err != nil {
					return err
				}
				times, allocs = append(times, ns), max(allocs, mallocs)
			}
			worst = max(worst, median(times))
		}
		name := "order.index"
		if mode != order.Global {
			name = "order.index.window"
		}
		b.limit(name, worst, "%v; an index of 1.3 million, 2^30 and 2^40 samples, the slowest; %d allocations in %d indices", mode, allocs, orderIndices)
	}
	return nil
}

// timeOrder is the nanoseconds of an index, each back and forth once outside of what is measured.
func timeOrder(o *order.Order) (ns float64, mallocs uint64, err error) {
	n := o.Len()
	step := int64(float64(n)*0.618) | 1
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	p, sum := int64(0), int64(0)
	for range orderIndices {
		sum += o.At(p)
		if p += step; p >= n {
			p -= n
		}
	}
	spent := time.Since(begin)
	runtime.ReadMemStats(&after)
	for p := int64(0); p < n; p += n/1000 + 1 {
		if got := o.Find(o.At(p)); got != p {
			return 0, 0, fmt.Errorf("order of %d samples: %w: position %d comes back as %d (sum %d)", n, catalog.ErrCorrupt, p, got, sum)
		}
	}
	runtime.KeepAlive(sum)
	return float64(spent.Nanoseconds()) / orderIndices, after.Mallocs - before.Mallocs, nil
}
