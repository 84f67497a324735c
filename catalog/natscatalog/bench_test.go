package natscatalog_test

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

// quantiles reports p50 and p99 of durations.
func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
}

// record is about as large as a set's record.
var record = []byte(fmt.Sprintf("%0400d", 1))

func BenchmarkCreate(b *testing.B) {
	d := open(b, inProcess(b, embed(b, b.TempDir(), natscatalog.EmbedOptions{})), "catalog", natscatalog.Options{})
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := d.Swap(b.Context(), fmt.Sprintf("set.run.%d", len(took)), 0, record); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	quantiles(b, took)
}

func BenchmarkCreateParallel(b *testing.B) {
	d := open(b, inProcess(b, embed(b, b.TempDir(), natscatalog.EmbedOptions{})), "catalog", natscatalog.Options{})
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := d.Swap(b.Context(), fmt.Sprintf("set.run.%d", n.Add(1)), 0, record); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "swaps/s")
}

// large fills a bucket with 100 runs of 1,000 sets.
func large(b *testing.B) *natscatalog.Driver {
	b.Helper()
	d := open(b, inProcess(b, embed(b, b.TempDir(), natscatalog.EmbedOptions{})), "catalog", natscatalog.Options{})
	var g errgroup.Group
	g.SetLimit(64)
	for run := range 100 {
		g.Go(func() error {
			for step := range 1000 {
				if _, err := d.Swap(b.Context(), fmt.Sprintf("set.run%d.%012d", run, step), 0, record); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return d
}

// BenchmarkLarge measures a bucket of 100,000 records.
func BenchmarkLarge(b *testing.B) {
	d := large(b)
	b.Run("Get", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.Get(b.Context(), "set.run50.000000000500"); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, prefix := range map[string]string{"HeadAll": "", "HeadSet": "set", "HeadRun": "set.run50"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := d.Head(b.Context(), prefix); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// The head of a prefix when something was written in between, there or elsewhere.
	for name, key := range map[string]string{"HeadSetAfterSwap": "set.new", "HeadSetAfterSwapElsewhere": "node.new"} {
		b.Run(name, func(b *testing.B) {
			rev, n := uint64(0), 0
			if r, err := d.Get(b.Context(), key); err == nil {
				rev = r.Rev
			}
			for b.Loop() {
				b.StopTimer()
				var err error
				if rev, err = d.Swap(b.Context(), key, rev, record); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := d.Head(b.Context(), "set"); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
	}
	b.Run("HeadSetCold", func(b *testing.B) { // the last under the prefix is a marker, and there is more behind it
		rev, err := d.Swap(b.Context(), "set.gone", 0, record)
		if err == nil {
			_, err = d.Swap(b.Context(), "set.gone", rev, nil)
		}
		if err == nil {
			_, err = d.Swap(b.Context(), fmt.Sprintf("node.%d", rev), 0, record)
		}
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := d.Head(b.Context(), "set"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("List1000", func(b *testing.B) {
		for b.Loop() {
			n := 0
			for _, err := range d.List(b.Context(), "set.run50") {
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
			if n != 1000 {
				b.Fatalf("%d records", n)
			}
		}
	})
	b.Run("WatchAll", func(b *testing.B) {
		peak := uint64(0)
		for b.Loop() {
			runtime.GC()
			var before, now runtime.MemStats
			runtime.ReadMemStats(&before)
			n := 0
			for c, err := range d.Watch(b.Context(), "set") {
				if err != nil {
					b.Fatal(err)
				}
				if c.Synced {
					break
				}
				if n++; n%20_000 == 0 {
					runtime.ReadMemStats(&now)
					peak = max(peak, now.HeapAlloc-min(now.HeapAlloc, before.HeapAlloc))
				}
			}
			if n < 100_000 {
				b.Fatalf("%d records", n)
			}
		}
		b.ReportMetric(float64(peak)/(1<<20), "MiB-peak-heap")
	})
}

var _ catalog.Driver = (*natscatalog.Driver)(nil)
