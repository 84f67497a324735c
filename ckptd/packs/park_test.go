package packs

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
)

// Promise 4: what is parked makes room, and reads on as if it had not.
func TestParkedMakesRoom(t *testing.T) {
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{Quota: 12 * mib}, remote)
	var hs []*Handle
	for i := range int64(3) {
		h := w.open(w.pack(i, 5*mib))
		w.same(h)
		if err := h.Wait(t.Context()); err != nil {
			t.Fatalf("copy %d: %v", i, err)
		}
		w.c.wg.Wait()
		h.Park()
		hs = append(hs, h)
	}
	if s := w.c.Stats(); s.Used != 10*mib || s.Evicted != 1 || s.Streamed != 0 {
		t.Errorf("three parked ones, and room for two: %+v", s)
	}
	if _, whole := w.c.Have(hs[0].Ref().Set); whole {
		t.Error("the longest unused is still there")
	}
	if used := w.tier.Usage().Used; used > 11*mib {
		t.Errorf("%d bytes are taken on the disk", used)
	}
	w.same(hs[0]) // comes again; it is not parked now, and stays
	w.c.wg.Wait()
	w.same(w.open(w.pack(7, 5*mib)))
	w.c.wg.Wait()
	if _, whole := w.c.Have(hs[0].Ref().Set); !whole {
		t.Error("one that is read was evicted")
	}
	hs[1].Park()
	hs[1].Close()
	if _, err := hs[1].ReadAt(t.Context(), make([]byte, 1), 0); err == nil {
		t.Error("a closed handle gives bytes")
	}
}

// Readers that park between their reads race with those that need the room.
func TestParkedUnderAttack(t *testing.T) {
	remote := &store{name: "remote", kind: Remote}
	const room, all = 6, 10
	w := newWorld(t, Options{Quota: room * mib}, remote)
	var refs []restore.ShardRef
	for i := range int64(all) {
		refs = append(refs, w.pack(i, mib))
	}
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			var hs []*Handle
			for _, ref := range refs {
				h, err := w.c.Open(t.Context(), ref)
				if err != nil {
					t.Error(err)
					return
				}
				defer h.Close()
				_ = h.Wait(t.Context()) // there may be no room
				hs = append(hs, h)
				h.Park()
			}
			got := make([]byte, 1000)
			for i := range 200 {
				h := hs[(i*(k+1)+k)%len(hs)]
				off := int64(i * 1234 % (mib - 1000))
				if _, err := h.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, w.blobs[h.Ref().Set][off:off+1000]) {
					t.Errorf("read %v at %d: %v, or other bytes", h.Ref(), off, err)
				}
				h.Park()
			}
		})
	}
	wg.Wait()
	w.c.wg.Wait()
	s := w.c.Stats()
	if s.Evicted == 0 || s.Used > room*mib || s.Arriving != 0 || w.tier.Usage().Used > (room+1)*mib {
		t.Errorf("counted %+v", s)
	}
}

// Promise 3: a handle outlives the time in which no source is in reach.
func TestReadsAgainWhenSourcesAreBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &store{name: "remote", kind: Remote, fail: fmt.Errorf("%w: away", catalog.ErrUnavailable)}
		w := newWorld(t, Options{Retries: 1}, remote)
		h := w.open(w.pack(1, 5*mib))
		p := make([]byte, 10)
		for range 2 {
			if _, err := h.ReadAt(t.Context(), p, 0); !errors.Is(err, catalog.ErrUnavailable) {
				t.Errorf("with everything away: %v, want ErrUnavailable", err)
			}
		}
		remote.mu.Lock()
		remote.fail = nil
		remote.mu.Unlock()
		w.same(h)
		if err := h.Wait(t.Context()); err != nil || h.Backing() == nil {
			t.Errorf("once they are back: %v", err)
		}
		w.stop()
	})
}

// A shard that found no room is kept when there is some, though it stayed open.
func TestStreamBecomesACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &store{name: "remote", kind: Remote}
		w := newWorld(t, Options{Quota: 6 * mib}, remote)
		first, second := w.open(w.pack(1, 5*mib)), w.open(w.pack(2, 5*mib))
		w.same(first)
		w.same(second)
		if s := w.c.Stats(); s.Streamed != 5*mib {
			t.Errorf("with all in use: %+v", s)
		}
		first.Close()
		time.Sleep(streamAgain) // of the test's own clock
		w.same(second)
		if err := second.Wait(t.Context()); err != nil {
			t.Errorf("with room: %v", err)
		}
		w.stop()
	})
}

// Promise 4: many that want room at the same moment, while there is enough to
// evict, all find it; and an index finds it over the quota.
func TestPromise4RoomForAllAtOnce(t *testing.T) {
	const room = 8
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{Quota: room * mib}, remote)
	var refs []restore.ShardRef
	for i := range int64(2 * room) {
		refs = append(refs, w.pack(i, mib))
	}
	for round := range 3 {
		var wg sync.WaitGroup
		for i := range room {
			h := refs[(round%2)*room+i]
			wg.Go(func() {
				if err := w.c.Fetch(t.Context(), h); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		w.c.wg.Wait()
	}
	for _, ref := range refs[room:] {
		w.same(w.open(ref))
	}
	index := w.pack(99, mib)
	b := w.blobs[index.Set]
	index.Set = catalog.SetID{Run: "_datasets/d", Step: 1, Attempt: 1}
	w.blobs[index.Set] = b
	h := w.open(index)
	if err := h.Wait(t.Context()); err != nil {
		t.Errorf("an index, with all in use: %v", err)
	}
	if s := w.c.Stats(); s.Copies != room+1 || s.Streamed != 0 {
		t.Errorf("counted %+v", s)
	}
}

// A reader that comes while a prefetch of the shard finds no room is not told so.
func TestReaderJoinsRefusedPrefetch(t *testing.T) {
	w := newWorld(t, Options{Quota: mib}, &store{name: "remote", kind: Remote})
	ref := w.pack(1, 5*mib)
	e, mine, err := w.c.enter(ref, forLater)
	if err != nil || !mine {
		t.Fatal(mine, err)
	}
	opened := make(chan error, 1)
	go func() {
		h, err := w.c.Open(t.Context(), ref)
		if err == nil {
			_, err = h.ReadAt(t.Context(), make([]byte, 10), 0)
			h.Close()
		}
		opened <- err
	}()
	e.begin(t.Context(), forLater)
	if !errors.Is(e.err, catalog.ErrNoSpace) {
		t.Errorf("a prefetch of more than the quota: %v, want ErrNoSpace", e.err)
	}
	close(e.ready)
	if err := <-opened; err != nil {
		t.Error(err)
	}
	w.c.leave(e)
}
