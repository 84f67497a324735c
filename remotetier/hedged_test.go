package remotetier_test

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// lazy is a target whose reads take a time that can be set, and which scribbles
// into the memory of those it was told to give up before it lets go of it.
type lazy struct {
	*targettest.Mem
	wait  atomic.Int64 // ns of a read
	reads atomic.Int64
}

func (l *lazy) Open(ctx context.Context, key remotetier.Key) (remotetier.ColumnReader, error) {
	r, err := l.Mem.Open(ctx, key)
	return &lazyReader{r, l}, err
}

type lazyReader struct {
	remotetier.ColumnReader
	l *lazy
}

func (r *lazyReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	r.l.reads.Add(1)
	select {
	case <-time.After(time.Duration(r.l.wait.Load())):
		return r.ColumnReader.ReadAt(ctx, p, off)
	case <-ctx.Done():
		time.Sleep(time.Millisecond)
		for i := range p {
			p[i] = 0xee
		}
		return 0, ctx.Err()
	}
}

// lazyWorld is a Tier of six of them, with a blob on it that is 4+2, and whose
// reads have been seen often.
func lazyWorld(t *testing.T) (tier *remotetier.Tier, all []*lazy, p catalog.Place, b []byte, hedged *atomic.Int64) {
	hedged = new(atomic.Int64)
	var infos []remotetier.TargetInfo
	for i := range 6 {
		l := &lazy{Mem: targettest.NewMem(fmt.Sprintf("t%d", i))}
		l.wait.Store(int64(time.Millisecond))
		all = append(all, l)
		infos = append(infos, remotetier.TargetInfo{Target: l})
	}
	opt := remotetier.Options{}
	opt.Trace.Hedged = func(string, int, string, time.Duration) { hedged.Add(1) }
	tier = remotetier.New(infos, opt)
	b = random(8*4*65536, 9)
	p = mustPut(t, tier, b, layout(4, 2, 65536))
	for range 4 {
		if got, rep, err := readAll(t, tier, p); err != nil || !bytes.Equal(got, b) || rep.Hedged != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
	return tier, all, p, b, hedged
}

// slowest is the target of a place's column.
func slowest(all []*lazy, p catalog.Place, column int) *lazy {
	for _, l := range all {
		if l.Name() == p.Targets[column] {
			return l
		}
	}
	panic("no such target")
}

// TestPromise8SlowTarget: a target that answers, but slowly, holds a read up no
// longer than reads take that are late, and a rebuild; soon it is not asked.
func TestPromise8SlowTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier, all, p, b, hedged := lazyWorld(t)
		slow := slowest(all, p, 1)
		r, err := tier.Open(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		slow.wait.Store(int64(time.Minute))
		read := func() (took time.Duration) {
			t.Helper()
			begin, got := time.Now(), make([]byte, 4*65536)
			if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, b[:len(got)]) {
				t.Fatalf("%v, equal %v", err, bytes.Equal(got, b[:len(got)]))
			}
			synctest.Wait()
			if !bytes.Equal(got, b[:len(got)]) {
				t.Fatal("memory was written to after the read had returned")
			}
			return time.Since(begin)
		}
		for i := range 3 {
			if took := read(); took > 60*time.Millisecond {
				t.Errorf("read %d took %v", i, took)
			}
		}
		if rep := r.Report(); rep.Hedged != 3 || hedged.Load() != 3 || rep.Degraded {
			t.Errorf("%+v, %d told; want three hedges, and nothing degraded", rep, hedged.Load())
		}
		before := slow.reads.Load()
		for range 20 {
			if took := read(); took > 5*time.Millisecond {
				t.Errorf("with the slow target known, a read took %v", took)
			}
		}
		if got := slow.reads.Load() - before; got != 0 || hedged.Load() != 3 {
			t.Errorf("it was asked %d times, %d hedges", got, hedged.Load())
		}
		slow.wait.Store(int64(time.Millisecond))
		time.Sleep(time.Minute)
		read()
		if got := slow.reads.Load() - before; got == 0 {
			t.Error("a target that was slow is not tried again")
		}
	})
}

// TestPromise8AllSlow: when everything is slow there is no storm of requests,
// and no rebuild comes first.
func TestPromise8AllSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier, all, p, b, hedged := lazyWorld(t)
		requests := func() (n int64) {
			for _, l := range all {
				n += l.reads.Load()
			}
			return n
		}
		r, err := tier.Open(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, len(b))
		if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil { // the sums are known now
			t.Fatal(err)
		}
		for _, l := range all {
			l.wait.Store(int64(2 * time.Second))
		}
		const rounds = 50
		before := requests()
		for range rounds {
			if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%v, equal %v", err, bytes.Equal(got, b))
			}
		}
		plain := int64(rounds * 8 * 4)
		if extra := requests() - before - plain; extra < 1 || extra > plain/20+64+8 { // and a page of sums of two columns
			t.Errorf("%d requests beyond %d", extra, plain)
		}
		at := requests()
		for range rounds {
			if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil {
				t.Fatal(err)
			}
		}
		if extra := requests() - at - plain; extra > plain/20 || hedged.Load() != 0 {
			t.Errorf("later %d requests too many of %d, and %d rebuilds that were sooner", extra, plain, hedged.Load())
		}
	})
}

// TestPromise8HedgeLoses: a read that comes late, but sooner than its rebuild,
// is what counts; a caller that goes away ends both.
func TestPromise8HedgeLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier, all, p, b, hedged := lazyWorld(t)
		r, err := tier.Open(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, 4*65536)
		slowest(all, p, 0).wait.Store(int64(60 * time.Millisecond))
		for c := 1; c < 6; c++ {
			slowest(all, p, c).wait.Store(int64(30 * time.Millisecond))
		}
		if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, b[:len(got)]) || hedged.Load() != 0 {
			t.Errorf("%v, equal %v, %d hedges won", err, bytes.Equal(got, b[:len(got)]), hedged.Load())
		}
		for _, l := range all {
			l.wait.Store(int64(time.Hour))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := r.ReadAtContext(ctx, got, 0); err == nil || time.Since(begin) > 1100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}
