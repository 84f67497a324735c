package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Eight readers of one shard at once cost the bytes of one.
func TestFlightReadsOnce(t *testing.T) {
	w, shard := oneShard(3*BatchBytes + 777)
	remote := &memSource{t: t, w: w, name: "remote"}
	f := NewFlight(FlightOptions{Memory: 4 * BatchBytes})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got := make(bytesAt, shard.Size)
			r, err := Fetch(t.Context(), shard, shard.Whole(), got, []Source{f.Share(remote)}, Trace{})
			if err != nil || r.From != "remote" || !bytes.Equal(got, w.shards[0]) {
				t.Errorf("result %+v, error %v", r, err)
			}
		})
	}
	wg.Wait()
	if got := remote.bytes.Load(); got != shard.Size {
		t.Errorf("remote gave %d bytes for a shard of %d", got, shard.Size)
	}
}

// Promise 9: memory stays within its bound, and readers that find none left
// still get their bytes.
func TestFlightMemory(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w, shard := oneShard(1 << 20)
	remote := &memSource{t: t, w: w, name: "remote"}
	f := NewFlight(FlightOptions{Memory: 600_000})
	var wg sync.WaitGroup
	for i := range 8 {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for range 200 {
				off := rnd.Int64N(8) * 100_000
				ranges := [][2]int64{{off, 1 + rnd.Int64N(60_000)}, {off + 80_000, 1 + rnd.Int64N(20)}}
				got := make(bytesAt, shard.Size)
				if _, err := f.Share(remote).ReadRanges(t.Context(), shard, ranges, got); err != nil {
					t.Error(err)
				}
				for _, r := range ranges {
					if !bytes.Equal(got[r[0]:r[0]+r[1]], w.shards[0][r[0]:r[0]+r[1]]) {
						t.Errorf("range %v differs", r)
					}
				}
				f.mu.Lock()
				sum := int64(0)
				for _, l := range f.mu.legs {
					sum += int64(cap(l.buf))
				}
				if f.mu.used > f.opt.Memory || sum > f.mu.used {
					t.Errorf("%d bytes of %d in use, legs hold %d", f.mu.used, f.opt.Memory, sum)
				}
				f.mu.Unlock()
			}
		})
	}
	wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	idle := int64(0)
	for e := f.mu.idle.Front(); e != nil; e = e.Next() {
		idle += int64(cap(e.Value.(*leg).buf))
	}
	if len(f.mu.legs) != f.mu.idle.Len() || f.mu.used != idle {
		t.Errorf("at rest: %d legs, %d idle, %d bytes in use, %d idle", len(f.mu.legs), f.mu.idle.Len(), f.mu.used, idle)
	}
}

// Reads that find no memory left go on beside the others, unshared.
func TestFlightFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, shard := oneShard(5000)
		gate := make(chan struct{})
		var now atomic.Int64
		src := &memSource{t: t, w: w, name: "remote", hook: func(ShardRef, [][2]int64) error {
			now.Add(1)
			<-gate
			return nil
		}}
		f := NewFlight(FlightOptions{Memory: 2500})
		var wg sync.WaitGroup
		for i := range 10 { // two for each of five ranges
			wg.Go(func() {
				got, off := make(bytesAt, shard.Size), int64(i%5)*1000
				if _, err := f.Share(src).ReadRanges(t.Context(), shard, [][2]int64{{off, 1000}}, got); err != nil || !bytes.Equal(got[off:off+1000], w.shards[0][off:off+1000]) {
					t.Errorf("range at %d differs, error %v", off, err)
				}
			})
		}
		synctest.Wait()
		// Two ranges have a leg, with one reading and one waiting; three are read by both.
		if got := now.Load(); got != 8 {
			t.Errorf("%d reads under way, want 8", got)
		}
		f.mu.Lock()
		if f.mu.used != 2000 {
			t.Errorf("%d bytes in use, want 2000", f.mu.used)
		}
		f.mu.Unlock()
		close(gate)
		wg.Wait()
	})
}

// When the one that reads gives up, another one of those who wait reads.
func TestFlightLeaderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, shard := oneShard(1000)
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int64
		remote := &memSource{t: t, w: w, name: "remote", hook: func(ShardRef, [][2]int64) error {
			if calls.Add(1) == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		f := NewFlight(FlightOptions{})
		read := func(ctx context.Context) error {
			got := make(bytesAt, shard.Size)
			_, err := f.Share(remote).ReadRanges(ctx, shard, shard.Whole(), got)
			if err == nil && !bytes.Equal(got, w.shards[0]) {
				t.Error("the bytes differ")
			}
			return err
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := read(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that gave up: %v", err)
			}
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				if err := read(t.Context()); err != nil {
					t.Errorf("one that waited: %v", err)
				}
			})
		}
		impatient, stop := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := read(impatient); !errors.Is(err, context.Canceled) {
				t.Errorf("the impatient one: %v", err)
			}
		})
		synctest.Wait()
		stop()
		synctest.Wait()
		cancel()
		wg.Wait()
		if got := calls.Load(); got != 2 {
			t.Errorf("%d reads, want 2", got)
		}
	})
}

// A failure is shared by those who waited for it, and by nobody after.
func TestFlightFailure(t *testing.T) {
	w, shard := oneShard(1000)
	fail := errRot
	src := &memSource{t: t, w: w, name: "local", hook: func(ShardRef, [][2]int64) error { return fail }}
	f := NewFlight(FlightOptions{Memory: 1000})
	got := make(bytesAt, shard.Size)
	for _, want := range []error{catalog.ErrCorrupt, fs.ErrNotExist, nil, nil} {
		if fail = want; want == catalog.ErrCorrupt {
			fail = errRot
		}
		if _, err := f.Share(src).ReadRanges(t.Context(), shard, shard.Whole(), got); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	if n := src.bytes.Load(); n != shard.Size {
		t.Errorf("gave %d bytes, want %d", n, shard.Size)
	}
	for _, bad := range []Source{short{}, outside{}} {
		if _, err := f.Share(bad).ReadRanges(t.Context(), shard, [][2]int64{{10, 10}}, got); err == nil {
			t.Errorf("%s is believed", bad.Name())
		}
	}
}

type outside struct{}

func (outside) Name() string { return "outside" }
func (outside) ReadRanges(_ context.Context, _ ShardRef, ranges [][2]int64, w io.WriterAt) (Report, error) {
	for _, off := range []int64{0, ranges[0][0] + 1, ranges[0][0] + ranges[0][1]} {
		if _, err := w.WriteAt(make([]byte, ranges[0][1]), off); err == nil {
			return Report{Bytes: total(ranges)}, nil
		}
	}
	return Report{}, fmt.Errorf("refused: %w", catalog.ErrInvalid)
}

// Other shards, other bytes: nothing is mixed up; and who is alone is not held up.
func TestFlightKeysAndAlone(t *testing.T) {
	w, shard := oneShard(1000)
	src := &memSource{t: t, w: w, name: "remote"}
	alone := false
	f := NewFlight(FlightOptions{Readers: func(ShardRef) int {
		if alone {
			return 1
		}
		return 2
	}})
	read := func(src Source, s ShardRef, ranges ...[2]int64) {
		t.Helper()
		got := make(bytesAt, s.Size)
		if _, err := f.Share(src).ReadRanges(t.Context(), s, ranges, got); err != nil {
			t.Fatal(err)
		}
		for _, r := range ranges {
			if !bytes.Equal(got[r[0]:r[0]+r[1]], w.shards[0][r[0]:r[0]+r[1]]) {
				t.Errorf("range %v differs", r)
			}
		}
	}
	other, newer := shard, shard
	other.Root, newer.Set.Attempt = catalog.Digest{2}, 9
	peer := &memSource{t: t, w: w, name: "peer n2"}
	for range 2 { // the second round reads nothing
		read(src, shard, [2]int64{0, 10}, [2]int64{20, 10})
		read(src, shard, [2]int64{0, 10}, [2]int64{20, 11})
		read(src, shard, [2]int64{0, 10})
		read(src, other, [2]int64{0, 10})
		read(src, newer, [2]int64{0, 10})
		read(peer, shard, [2]int64{0, 10})
	}
	if got, want := src.bytes.Load(), int64(20+21+10+10+10); got != want {
		t.Errorf("remote gave %d bytes, want %d", got, want)
	}
	if got, want := peer.bytes.Load(), int64(10); got != want {
		t.Errorf("the peer gave %d bytes, want %d", got, want)
	}
	alone = true
	for range 2 { // what others have left is taken, and nothing is left to others
		read(peer, shard, [2]int64{0, 10})
		read(peer, shard, [2]int64{10, 10})
	}
	if got, want := peer.bytes.Load(), int64(30); got != want {
		t.Errorf("alone, the peer gave %d bytes, want %d", got, want)
	}
}

// TestFlightWaitsForThoseBehind: when the memory is full, the first reader waits
// for the last one; each byte is read once, however far they would drift apart.
func TestFlightWaitsForThoseBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, shard := oneShard(40_000)
		src := &memSource{t: t, w: w, name: "remote"}
		f := NewFlight(FlightOptions{Memory: 4000, Readers: func(ShardRef) int { return 3 }})
		var wg sync.WaitGroup
		for pace := range 3 {
			wg.Go(func() {
				got := make(bytesAt, shard.Size)
				for off := int64(0); off < shard.Size; off += 1000 {
					if _, err := f.Share(src).ReadRanges(t.Context(), shard, [][2]int64{{off, 1000}}, got); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration(pace) * 100 * time.Millisecond)
				}
				if !bytes.Equal(got, w.shards[0]) {
					t.Errorf("reader %d got other bytes", pace)
				}
			})
		}
		wg.Wait()
		if got := src.bytes.Load(); got != shard.Size {
			t.Errorf("%d bytes were read for a shard of %d", got, shard.Size)
		}
	})
}

// TestFlightWaitsOnce: readers of one shard that want different parts of it, or
// one that stands still, cost the others one moment and not one for each part.
func TestFlightWaitsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, shard := oneShard(40_000)
		src := &memSource{t: t, w: w, name: "remote"}
		f := NewFlight(FlightOptions{Memory: 4000, Readers: func(ShardRef) int { return 3 }})
		begin, got := time.Now(), make(bytesAt, shard.Size)
		for off := int64(0); off < shard.Size; off += 1000 {
			if _, err := f.Share(src).ReadRanges(t.Context(), shard, [][2]int64{{off, 1000}}, got); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took != flightGrace || !bytes.Equal(got, w.shards[0]) {
			t.Errorf("took %v, want %v", took, flightGrace)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.Sleep(flightHaste)
		time.AfterFunc(flightGrace/2, cancel)
		if _, err := f.Share(src).ReadRanges(ctx, shard, [][2]int64{{1, 1000}}, got); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that goes away while it waits: %v", err)
		}
	})
}
