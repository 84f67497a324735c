package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/ckptd/ckptd/catalog"
)

// bytesAt is memory to fetch into, as large as the shard.
type bytesAt []byte

func (b bytesAt) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)-len(p)) {
		return 0, io.ErrShortWrite
	}
	return copy(b[off:], p), nil
}

// oneShard is a world whose rank 0 has a shard of some size.
func oneShard(size int) (*world, ShardRef) {
	w := newWorld(rand.New(rand.NewPCG(9, 9)), 1)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	w.shards[0] = data
	return w, ShardRef{Set: w.m.Set, Size: int64(size), Root: catalog.Digest{1}}
}

// badAt makes a source that fails with err once it is asked for the byte at off.
func badAt(src *memSource, off int64, err error) *memSource {
	src.hook = func(_ ShardRef, ranges [][2]int64) error {
		for _, r := range ranges {
			if r[0] <= off && off < r[0]+r[1] {
				return err
			}
		}
		return nil
	}
	return src
}

var (
	errRot  = fmt.Errorf("block 3: %w", catalog.ErrCorrupt)
	errGone = fmt.Errorf("rank 0: %w", fs.ErrNotExist)
	errAway = fmt.Errorf("dial: %w", catalog.ErrUnavailable)
)

// Promise 3: a bad copy is named once, and the rest comes from the next.
func TestFallsThrough(t *testing.T) {
	w, shard := oneShard(3*BatchBytes + 12345)
	local := badAt(&memSource{t: t, w: w, name: "local"}, 2*BatchBytes+5, errRot)
	peer := badAt(&memSource{t: t, w: w, name: "peer n2"}, 2*BatchBytes+5, errAway)
	remote := &memSource{t: t, w: w, name: "remote"}
	var mu sync.Mutex
	var bad []string
	got := make(bytesAt, shard.Size)
	r, err := Fetch(t.Context(), shard, shard.Whole(), got, []Source{local, peer, remote}, Trace{Bad: func(source string, err error) {
		mu.Lock()
		defer mu.Unlock()
		bad = append(bad, fmt.Sprint(source, ": ", err))
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, w.shards[0]) {
		t.Error("the bytes differ")
	}
	if want := []string{"local: " + errRot.Error(), "peer n2: " + errAway.Error()}; !slices.Equal(bad, want) {
		t.Errorf("told of %q, want %q", bad, want)
	}
	if len(r.Tried) != 2 || r.Tried[0].Source != "local" || !errors.Is(r.Tried[0].Err, catalog.ErrCorrupt) || r.Tried[1].Source != "peer n2" {
		t.Errorf("tried %v", r.Tried)
	}
	if r.Bytes != shard.Size {
		t.Errorf("Bytes = %d, want %d", r.Bytes, shard.Size)
	}
	if sum := local.bytes.Load() + peer.bytes.Load() + remote.bytes.Load(); sum != shard.Size {
		t.Errorf("sources gave %d bytes for %d", sum, shard.Size)
	}
}

func TestFirstGoodSourceGivesAll(t *testing.T) {
	w, shard := oneShard(2*BatchBytes + 1)
	remote := &memSource{t: t, w: w, name: "remote"}
	for _, c := range []struct {
		first error
		from  string
		tried int
	}{{nil, "local", 0}, {errGone, "remote", 1}, {errRot, "remote", 1}, {syscall.EIO, "remote", 1}} {
		local := &memSource{t: t, w: w, name: "local", hook: func(ShardRef, [][2]int64) error { return c.first }}
		got := make(bytesAt, shard.Size)
		r, err := Fetch(t.Context(), shard, shard.Whole(), got, []Source{local, remote}, Trace{})
		if err != nil || r.From != c.from || len(r.Tried) != c.tried || !bytes.Equal(got, w.shards[0]) {
			t.Errorf("local %v: from %q, tried %v, error %v; want from %q", c.first, r.From, r.Tried, err, c.from)
		}
	}
}

func TestNoSourceLeft(t *testing.T) {
	w, shard := oneShard(1000)
	for _, c := range []struct {
		errs  []error
		class error
	}{
		{nil, fs.ErrNotExist},
		{[]error{errGone}, fs.ErrNotExist},
		{[]error{errGone, errGone}, fs.ErrNotExist},
		{[]error{errGone, errAway}, catalog.ErrUnavailable},
		{[]error{errAway, errGone, errRot}, catalog.ErrCorrupt},
		{[]error{errGone, syscall.EIO}, catalog.ErrUnavailable},
		{[]error{errGone, context.DeadlineExceeded}, catalog.ErrUnavailable},
		{[]error{fmt.Errorf("no: %w", catalog.ErrInvalid)}, catalog.ErrInvalid},
	} {
		var sources []Source
		for i, e := range c.errs {
			sources = append(sources, &memSource{t: t, w: w, name: fmt.Sprint("s", i), hook: func(ShardRef, [][2]int64) error { return e }})
		}
		r, err := Fetch(t.Context(), shard, shard.Whole(), make(bytesAt, shard.Size), sources, Trace{})
		for _, class := range catalog.Classes {
			if errors.Is(err, class) != (class == c.class) {
				t.Errorf("%v: the error %q is %v: %v", c.errs, err, class, errors.Is(err, class))
			}
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: a source's own deadline came through", c.errs)
		}
		for i, e := range c.errs {
			if !strings.Contains(err.Error(), fmt.Sprintf("s%d: %v", i, e)) {
				t.Errorf("%q does not tell of s%d", err, i)
			}
		}
		if len(r.Tried) != len(c.errs) || r.From != "" || r.Bytes != 0 {
			t.Errorf("%v: result %+v", c.errs, r)
		}
	}
}

// A source that says it is done, and is not, is not believed.
func TestShortSource(t *testing.T) {
	w, shard := oneShard(5000)
	got := make(bytesAt, shard.Size)
	r, err := Fetch(t.Context(), shard, shard.Whole(), got, []Source{short{}, &memSource{t: t, w: w, name: "remote"}}, Trace{})
	if err != nil || r.From != "remote" || !bytes.Equal(got, w.shards[0]) || !errors.Is(r.Tried[0].Err, catalog.ErrUnavailable) {
		t.Errorf("result %+v, error %v", r, err)
	}
}

type short struct{}

func (short) Name() string { return "short" }
func (short) ReadRanges(_ context.Context, _ ShardRef, ranges [][2]int64, _ io.WriterAt) (Report, error) {
	return Report{Bytes: total(ranges) - 1}, nil
}

func TestDegradedIsTold(t *testing.T) {
	_, shard := oneShard(3 * BatchBytes)
	r, err := Fetch(t.Context(), shard, shard.Whole(), nil, []Source{degraded{}}, Trace{})
	if want := []string{"t1", "t2"}; err != nil || !slices.Equal(r.Degraded, want) {
		t.Errorf("Degraded = %v, %v, want %v", r.Degraded, err, want)
	}
}

type degraded struct{}

func (degraded) Name() string { return "remote" }
func (degraded) ReadRanges(_ context.Context, _ ShardRef, ranges [][2]int64, _ io.WriterAt) (Report, error) {
	return Report{Bytes: total(ranges), Degraded: []string{"t2", "t1"}[:1+ranges[0][0]/BatchBytes%2]}, nil
}

// Promise 4: when the context ends, nobody is blamed and nobody else asked.
func TestStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, shard := oneShard(10 * catalog.BlockSize)
		ctx, cancel := context.WithCancel(t.Context())
		local := &memSource{t: t, w: w, name: "local", hook: func(ShardRef, [][2]int64) error {
			<-ctx.Done()
			return fmt.Errorf("read: %w", ctx.Err())
		}}
		remote := &memSource{t: t, w: w, name: "remote"}
		done := make(chan error)
		go func() {
			r, err := Fetch(ctx, shard, shard.Whole(), make(bytesAt, shard.Size), []Source{local, remote}, Trace{Bad: func(source string, err error) {
				t.Errorf("%s is blamed: %v", source, err)
			}})
			if len(r.Tried) != 0 {
				t.Errorf("tried %v", r.Tried)
			}
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		if remote.bytes.Load() != 0 {
			t.Error("remote was asked")
		}
		if _, err := Fetch(ctx, shard, shard.Whole(), nil, []Source{remote}, Trace{}); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

// A copy that proves corrupt while the others are being stopped is still told.
func TestCorruptWhileStopping(t *testing.T) {
	w, shard := oneShard(100)
	ctx, cancel := context.WithCancel(t.Context())
	local := &memSource{t: t, w: w, name: "local", hook: func(ShardRef, [][2]int64) error { cancel(); return errRot }}
	remote := &memSource{t: t, w: w, name: "remote"}
	told := false
	_, err := Fetch(ctx, shard, shard.Whole(), make(bytesAt, shard.Size), []Source{local, remote}, Trace{Bad: func(string, error) { told = true }})
	if !told || !errors.Is(err, context.Canceled) || remote.bytes.Load() != 0 {
		t.Errorf("told %v, error %v, remote gave %d", told, err, remote.bytes.Load())
	}
}

// Promise 9: no more than Parallel reads, of no more than BatchBytes.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, shard := oneShard(0)
		shard.Size = 40 * BatchBytes
		var now, most atomic.Int64
		gate := make(chan struct{})
		src := gated{func(ranges [][2]int64) {
			if n := total(ranges); n > BatchBytes || len(ranges) > BatchParts {
				t.Errorf("a read of %d ranges, %d bytes", len(ranges), n)
			}
			most.Store(max(most.Load(), now.Add(1)))
			<-gate
			now.Add(-1)
		}}
		done := make(chan error)
		go func() {
			_, err := Fetch(t.Context(), shard, shard.Whole(), nil, []Source{src}, Trace{})
			done <- err
		}()
		synctest.Wait() // everything that may start has started
		if got := now.Load(); got != Parallel {
			t.Errorf("%d reads at once, want %d", got, Parallel)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := most.Load(); got > Parallel {
			t.Errorf("%d reads at once, at most %d", got, Parallel)
		}
	})
}

type gated struct{ read func([][2]int64) }

func (gated) Name() string { return "gated" }
func (g gated) ReadRanges(_ context.Context, _ ShardRef, ranges [][2]int64, _ io.WriterAt) (Report, error) {
	g.read(ranges)
	return Report{Bytes: total(ranges)}, nil
}

// Batches hold every byte of the ranges once, whatever the ranges are.
func TestBatches(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	for range 500 {
		const unit = BatchBytes / 8
		size := 1 + rnd.IntN(200)
		want := make([]bool, size)
		var ranges [][2]int64
		for range rnd.IntN(300) {
			off := rnd.IntN(size)
			n := rnd.IntN(min(size-off, 1+rnd.IntN(20)) + 1)
			for i := off; i < off+n; i++ {
				want[i] = true
			}
			ranges = append(ranges, [2]int64{int64(off) * unit, int64(n) * unit})
		}
		batches, err := batch(ShardRef{Size: int64(size) * unit}, ranges)
		if err != nil {
			t.Fatal(err)
		}
		got, end := make([]bool, size), int64(0)
		for _, b := range batches {
			if total(b) > BatchBytes || len(b) > BatchParts || len(b) == 0 {
				t.Fatalf("a batch of %d ranges, %d bytes", len(b), total(b))
			}
			for _, r := range b {
				if r[0] < end || r[1] <= 0 {
					t.Fatalf("range %v after %d", r, end)
				}
				end = r[0] + r[1]
				for i := r[0] / unit; i < end/unit; i++ {
					got[i] = true
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("ranges %v gave %v", ranges, batches)
		}
	}
	many := make([][2]int64, 1000)
	for i := range many {
		many[i] = [2]int64{int64(i) * 10, 1}
	}
	if b, _ := batch(ShardRef{Size: 10000}, many); len(b) != 4 {
		t.Errorf("1000 small ranges make %d batches, want 4", len(b))
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {5, 6}, {11, 0}, {1 << 62, 1 << 62}} {
		if _, err := Fetch(t.Context(), ShardRef{Size: 10}, [][2]int64{r}, nil, nil, Trace{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("range %v: %v, want ErrInvalid", r, err)
		}
	}
	if _, err := Fetch(t.Context(), ShardRef{Size: 10}, nil, nil, nil, Trace{}); err != nil {
		t.Errorf("no ranges: %v", err)
	}
}

// A whole restore survives a rank whose local copy is bad, and fails with the
// story when there is no other.
func TestRunFallsThrough(t *testing.T) {
	w := rows()
	p, err := NewPlan(w.m, Want{Only: []string{"model*"}})
	if err != nil {
		t.Fatal(err)
	}
	local := &memSource{t: t, w: w, name: "local", hook: func(s ShardRef, _ [][2]int64) error {
		if s.Rank == 2 {
			return errRot
		}
		return nil
	}}
	remote := &memSource{t: t, w: w, name: "remote"}
	var bad atomic.Int64
	opt := RunOptions{Trace: func(shard ShardRef) Trace {
		return Trace{Bad: func(source string, err error) {
			if shard.Rank != 2 || source != "local" || !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%v: %s is bad: %v", shard, source, err)
			}
			bad.Add(1)
		}}
	}}
	dst := buffers(p)
	results, err := Run(t.Context(), p, dst, func(ShardRef) []Source { return []Source{local, remote} }, opt)
	if err != nil || bad.Load() != 1 || results[2].From != "remote" || results[1].From != "local" || len(results) != 4 {
		t.Errorf("results %+v, error %v, %d bad", results, err, bad.Load())
	}
	w.check(t, p, dst)

	if _, err = Run(t.Context(), p, dst, func(ShardRef) []Source { return []Source{local} }, RunOptions{}); !errors.Is(err, catalog.ErrCorrupt) || !strings.Contains(err.Error(), "r@1#1 rank 2") {
		t.Errorf("without another copy: %v", err)
	}
	for _, wrong := range [][][]byte{nil, dst[1:], {dst[0], dst[1][1:]}} {
		if _, err := Run(t.Context(), p, wrong, nil, RunOptions{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("buffers that do not fit: %v", err)
		}
		if _, err := p.Scatter(0, wrong); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("scatter into buffers that do not fit: %v", err)
		}
	}
}
