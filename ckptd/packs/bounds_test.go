package packs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
)

// counting counts the reads under way, and the bytes of memory they fill.
type counting struct {
	Source
	now, most *atomic.Int64
}

func (c counting) ReadBlocks(ctx context.Context, p []byte, off int64) error {
	n := c.now.Add(int64(cap(p)))
	defer c.now.Add(-int64(cap(p)))
	for old := c.most.Load(); n > old && !c.most.CompareAndSwap(old, n); old = c.most.Load() {
	}
	return c.Source.ReadBlocks(ctx, p, off)
}

// Promise 7: however much arrives, and is read without being kept, at a time.
func TestPromise7Memory(t *testing.T) {
	const memory = 4 * chunkSize
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{Quota: 60 * mib, Memory: memory}, remote)
	var now, most atomic.Int64
	sources := w.c.opt.Sources
	w.c.opt.Sources = func(ctx context.Context, ref restore.ShardRef, firstHand bool) ([]Source, func(), error) {
		all, done, err := sources(ctx, ref, firstHand)
		for i := range all {
			all[i] = counting{all[i], &now, &most}
		}
		return all, done, err
	}
	var refs []restore.ShardRef
	for i := range int64(12) {
		refs = append(refs, w.pack(i, 9*mib))
	}
	var wg sync.WaitGroup
	for _, ref := range refs { // half of them find no room
		h := w.open(ref)
		wg.Go(func() { w.same(h) })
	}
	wg.Wait()
	w.c.wg.Wait()
	if most.Load() > memory || most.Load() < 2*chunkSize {
		t.Errorf("%d bytes of memory at a time, want up to %d", most.Load(), memory)
	}
	if len(w.c.memory) != cap(w.c.memory) || len(w.c.behind) != 0 {
		t.Errorf("chunks left behind: %d shown, %d of %d free, %d waiting", len(w.c.shown), len(w.c.memory), cap(w.c.memory), len(w.c.behind))
	}
	if s := w.c.Stats(); s.Streamed == 0 || s.Copies == 0 {
		t.Errorf("counted %+v, want copies, and bytes without one", s)
	}
}

// Two nodes that wait for each other leave memory for what each has to fetch.
func TestWaitingNodesLeaveMemory(t *testing.T) {
	peer := &store{name: "peer n2", kind: Peer, gate: make(chan struct{})}
	remote := &store{name: "remote", kind: Remote, whole: true}
	w := newWorld(t, Options{Memory: 4 * chunkSize}, peer, remote)
	for i := range int64(6) {
		w.open(w.pack(i, 9*mib)) // each waits for the other node
	}
	h, err := w.c.OpenFirstHand(t.Context(), w.pack(77, 9*mib))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	w.same(h) // for which the other node waits
	close(peer.gate)
}

// Promise 3: all sources are asked again as often as the budget says.
func TestPromise3RetryBudget(t *testing.T) {
	for _, c := range []struct{ retries, own, fails, reads int }{ // own: of the handle
		{1, 0, 1, 2}, {3, 0, 3, 4}, {3, 0, 99, 4}, {1, 0, 99, 2}, {9, 2, 99, 3}, {1, 3, 3, 4},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				remote := &store{name: "remote", kind: Remote, fail: fmt.Errorf("%w: away", catalog.ErrUnavailable), fails: c.fails}
				w := newWorld(t, Options{Retries: c.retries}, remote)
				begin := time.Now()
				h := w.open(w.pack(1, mib))
				h.Retry(c.own)
				if c.own > 0 {
					c.retries = c.own
				}
				_, err := h.ReadAt(t.Context(), make([]byte, mib), 0)
				if wantErr := c.fails > c.retries; wantErr != errors.Is(err, catalog.ErrUnavailable) || !wantErr && err != nil {
					t.Errorf("got %v", err)
				}
				if remote.reads != c.reads {
					t.Errorf("asked %d times, want %d", remote.reads, c.reads)
				}
				if took := time.Since(begin); took < firstPause/2 || took > time.Duration(c.retries)*maxPause*3/2 {
					t.Errorf("it took %v", took)
				}
				w.stop()
			})
		})
	}
}

// Promise 4: a quota that shrinks makes room at once, one that grows is used,
// and settings that make no sense change nothing.
func TestPromise4QuotaChanges(t *testing.T) {
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{Quota: 20 * mib}, remote)
	var refs []restore.ShardRef
	for i := range int64(4) {
		refs = append(refs, w.pack(i, 5*mib))
		if err := w.c.Fetch(t.Context(), refs[i]); err != nil {
			t.Fatal(err)
		}
	}
	w.c.wg.Wait()
	held := w.open(refs[0]) // used last, and open
	w.same(held)
	for _, c := range []struct {
		quota  int64
		copies int
	}{{11 * mib, 2}, {mib, 1}, {20 * mib, 1}} {
		if err := w.c.Configure(t.Context(), Settings{Quota: c.quota}); err != nil {
			t.Fatal(err)
		}
		if s := w.c.Stats(); s.Copies != c.copies || s.Quota != c.quota {
			t.Errorf("with %d bytes: %+v, want %d copies", c.quota, s, c.copies)
		}
		w.same(held)
	}
	if err := w.c.Fetch(t.Context(), refs[1]); err != nil {
		t.Errorf("with a quota that grew: %v", err)
	}
	before := w.c.Settings()
	for _, bad := range []Settings{{Quota: -1}, {Policy: "fifo"}, {Retries: -1}, {Retries: MaxRetries + 1, Quota: mib}} {
		if err := w.c.Configure(t.Context(), bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", bad, err)
		}
	}
	if got := w.c.Settings(); got != before {
		t.Errorf("after what was refused: %+v, want %+v", got, before)
	}
}
