package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// countedSource says how far a Put has come.
type countedSource struct {
	*bytes.Reader
	read *atomic.Int64
}

func (s countedSource) ReadAt(p []byte, off int64) (int, error) {
	s.read.Add(int64(len(p)))
	return s.Reader.ReadAt(p, off)
}

// drainer drains over and over, as a node does that has much to drain.
type drainer struct {
	tier *remotetier.Tier
	blob []byte
	read atomic.Int64 // bytes that it took from its source
}

// run drains until stop is called, which returns when it has ended.
func (d *drainer) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for lane := range 2 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("drain/%d", lane)
				_, err := d.tier.Put(ctx, name, countedSource{bytes.NewReader(d.blob), &d.read}, stripe.Layout{K: 4, M: 2})
				if err != nil && ctx.Err() == nil {
					t.Errorf("drain: %v", err)
					return
				}
				if err := d.tier.Remove(t.Context(), name, nil); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	from := d.read.Load()
	eventually(t, "the drain is under way", func() error {
		if n := d.read.Load() - from; n < int64(len(d.blob)) {
			return fmt.Errorf("it has moved %d bytes", n)
		}
		return nil
	})
	return func() { cancel(); wg.Wait() }
}

// TestRestoreDuringFullRateDrain: a node that restores gets at least 80 % of
// what it gets alone while another node drains to the same targets as fast as
// it can; and the drain goes on, at its floor and at full rate when the
// restore is over. Restores with and without a drain take turns, because the
// machine is never equally busy for long.
func TestRestoreDuringFullRateDrain(t *testing.T) {
	targets, restorer := targetCluster(t, 6)
	var infos []remotetier.TargetInfo
	for _, p := range targets {
		infos = append(infos, remotetier.TargetInfo{Target: p.dial()})
	}
	d := &drainer{tier: remotetier.New(infos, remotetier.Options{}), blob: targetBytes(32<<20, 2)}
	const times = 8 // over a blob that fits any memory, for a restore that takes its time
	b := targetBytes(128<<20, 1)
	place, err := restorer.Put(t.Context(), "run/a", bytes.NewReader(b), stripe.Layout{K: 4, M: 2})
	if err != nil {
		t.Fatal(err)
	}
	got := targetBytes(len(b), 3)
	var beside int64 // bytes that were drained while restores ran
	restore := func() time.Duration {
		clear(got)
		from, drained := time.Now(), d.read.Load()
		r, err := restorer.Open(t.Context(), place)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		const piece = 8 << 20 // as the daemon reads
		for range times {
			for off := 0; off < len(got); off += piece {
				if _, err := r.ReadAtContext(t.Context(), got[off:min(off+piece, len(got))], int64(off)); err != nil {
					t.Fatal(err)
				}
			}
		}
		took := time.Since(from)
		beside += d.read.Load() - drained
		if !bytes.Equal(got, b) {
			t.Error("the bytes differ")
		}
		return took
	}
	restore() // the pages of the columns are in memory from here on
	var ratios []float64
	const bar, rounds = 0.80, 5
	for tries := range 4 {
		for range rounds {
			alone := restore()
			stop := d.run(t)
			with := restore()
			stop()
			alone = (alone + restore()) / 2
			ratios = append(ratios, alone.Seconds()/with.Seconds())
			t.Logf("alone %v, during a drain %v", alone, with)
		}
		slices.Sort(ratios)
		median := ratios[len(ratios)/2]
		t.Logf("median of %d: %.2f; %d bytes were drained beside the restores", len(ratios), median, beside)
		if median >= bar {
			return
		}
		if tries == 3 {
			t.Errorf("a restore during a drain gets %.2f of what it gets alone, want %.2f", median, bar)
		}
	}
}
