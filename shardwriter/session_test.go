package shardwriter_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/shardwriter"
)

// A shard comes out as it went in, by slots in any order, of any size, with
// few or many slots and writers, on a real disk and in memory.
func TestSave(t *testing.T) {
	for _, size := range []int{1, 4096, mib - 1, mib, mib + 1, 5*mib + 12345} {
		for _, shape := range []struct{ slots, slot, writers int }{{1, mib, 1}, {2, 2 * mib, 0}, {16, mib, 5}, {1, 4 * mib, 2}} {
			for which, fsys := range map[string]vfs.FS{"OS": vfs.OS, "Mem": vfstest.New(vfstest.Options{})} {
				t.Run(fmt.Sprintf("%s/%d bytes/%dx%d", which, size, shape.slots, shape.slot), func(t *testing.T) {
					dir := "/disk"
					if which == "OS" {
						dir = t.TempDir()
					}
					tier, p, b, j := openTier(t, fsys, dir, nil), newPool(t, 1, shape.slots, shape.slot), pattern(size), newJournal()
					header := b[:min(size, mib/2)]
					s := shardwriter.New(shardwriter.Spec{Info: info, Size: int64(size), Header: header}, reserve(t, tier, size),
						shardwriter.Options{Writers: shape.writers, Journal: j, Free: p.put})
					defer s.Close()
					unsent := append(make([]byte, len(header)), b[len(header):]...) // the session puts the header in
					if err := submit(s, p, unsent); err != nil {
						t.Fatal(err)
					}
					if err := s.Seal(sealed, true); err != nil {
						t.Fatal(err)
					}
					if j.len() != 1 {
						t.Error("sealed without a record")
					}
					if _, err := tier.Stat(name); err == nil {
						t.Error("visible before Finish")
					}
					seal, err := s.Finish(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if j.len() != 0 {
						t.Error("finished, and the record is still there")
					}
					want := info
					want.Sealed, want.Fence = sealed, true
					var got catalog.ShardInfo
					if err := json.Unmarshal(seal.Info, &got); err != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("the seal says %+v, %v", got, err)
					}
					p.wantAllFree()
					wantBlob(t, tier, b)
				})
			}
		}
	}
}

// Promise 10: what cannot be right is refused, and leaves the slot with the caller.
func TestPromise10Submit(t *testing.T) {
	tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 4, 2*mib)
	const size = 5*mib + 10
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: size}, reserve(t, tier, size), shardwriter.Options{Free: p.put})
	for what, c := range map[string]struct{ off, n int64 }{
		"NegativeOffset": {-mib, mib}, "OddOffset": {1, mib}, "HalfBlockOffset": {mib / 2, mib}, "BehindTheEnd": {6 * mib, mib}, "AtTheEnd": {size, 1},
		"NoBytes": {0, 0}, "NegativeLength": {0, -1}, "LongerThanTheSlot": {0, 3 * mib}, "LongerThanTheShard": {5 * mib, 11},
		"ShortInTheMiddle": {0, mib - 1}, "LengthOverflows": {0, 1<<63 - 1}, "OffsetOverflows": {1<<63 - mib, 2 * mib},
	} {
		slot := p.take(nil)
		if err := s.Submit(slot, c.off, c.n); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
		p.put(slot)
	}
	good := p.take(nil)
	if err := s.Submit(good, mib, 2*mib); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ off, n int64 }{"Twice": {mib, 2 * mib}, "OverlapsBefore": {0, 2 * mib}, "OverlapsBehind": {2 * mib, mib}} {
		slot := p.take(nil)
		if err := s.Submit(slot, c.off, c.n); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
		p.put(slot)
	}
	err := s.Seal(sealed, true)
	if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "2097152 of 5242890 bytes") {
		t.Errorf("Seal too early: %v", err)
	}
	rest := []struct{ off, n int64 }{{3 * mib, 2 * mib}, {0, mib}, {5 * mib, 10}} // it goes on all the same
	for _, c := range rest {
		if err := s.Submit(p.take(nil), c.off, c.n); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("Seal twice: %v, want ErrConflict", err)
	}
	slot := shardwriter.Slot{Seg: 7, Data: make([]byte, mib)}
	if err := s.Submit(slot, 0, mib); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Submit after Seal: %v, want ErrInvalid", err)
	}
	if err := s.Close(); err != nil { // the deferred Close of a careful caller
		t.Error(err)
	}
	if _, err := s.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.wantAllFree()
	if err := s.Submit(slot, 0, mib); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Submit after Finish: %v, want ErrInvalid", err)
	}
}

// gate is an Ingest that can hold its writes back and fail.
type gate struct {
	*localtier.Ingest
	open  chan struct{} // closed: writes go on
	began chan struct{} // one each write
	fail  func(off int64) error
}

func newGate(in *localtier.Ingest) *gate {
	return &gate{Ingest: in, open: make(chan struct{}), began: make(chan struct{}, 1000)}
}

func (g *gate) WriteAt(p []byte, off int64) error {
	g.began <- struct{}{}
	<-g.open
	if g.fail != nil {
		if err := g.fail(off); err != nil {
			return err
		}
	}
	return g.Ingest.WriteAt(p, off)
}

// Promise 9: a slot is the session's until it comes back.
func TestPromise9SlotInUse(t *testing.T) {
	tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 2, mib)
	in := newGate(reserve(t, tier, 2*mib))
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 2 * mib}, in, shardwriter.Options{Free: p.put})
	slot := p.take(nil)
	if err := s.Submit(slot, 0, mib); err != nil {
		t.Fatal(err)
	}
	if err := s.Submit(slot, mib, mib); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a slot that is still being written: %v, want ErrInvalid", err)
	}
	close(in.open)
	<-p.free // the other one
	slot = <-p.free
	p.free <- slot
	if err := s.Submit(p.take(nil), mib, mib); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	p.wantAllFree()
	wantNothing(t, tier)
}

// Promise 1: Close before Seal leaves nothing, wherever the writes are.
func TestPromise1Close(t *testing.T) {
	for written := range 4 {
		tier, p, j := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 3, mib), newJournal()
		in := newGate(reserve(t, tier, 3*mib))
		s := shardwriter.New(shardwriter.Spec{Info: info, Size: 3 * mib}, in, shardwriter.Options{Writers: 1, Free: p.put, Journal: j})
		for i := range written {
			if err := s.Submit(p.take(pattern(mib)), int64(i)*mib, mib); err != nil {
				t.Fatal(err)
			}
		}
		closed := make(chan error)
		go func() { closed <- s.Close() }()
		close(in.open)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close twice: %v", err)
		}
		if err := s.Seal(sealed, true); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("Seal after Close: %v, want ErrConflict", err)
		}
		p.wantAllFree()
		if j.len() != 0 {
			t.Error("a record is left")
		}
		wantNothing(t, tier)
	}
}

// A disk that fails in the middle: whoever asks next is told, all slots come
// back, and Close leaves nothing.
func TestWriteError(t *testing.T) {
	eio := fmt.Errorf("disk: %w", syscall.EIO)
	for bad := range int64(6) {
		for _, writers := range []int{1, 4} {
			tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 2, mib)
			in := newGate(reserve(t, tier, 6*mib))
			in.fail = func(off int64) error {
				if off == bad*mib {
					return eio
				}
				return nil
			}
			close(in.open)
			s := shardwriter.New(shardwriter.Spec{Info: info, Size: 6 * mib}, in, shardwriter.Options{Writers: writers, Free: p.put})
			err := submit(s, p, pattern(6*mib))
			if err != nil && !errors.Is(err, syscall.EIO) {
				t.Errorf("Submit: %v", err)
			}
			sealErr := s.Seal(sealed, true)
			if sealErr == nil { // the bad write came after it
				_, err := s.Finish(t.Context())
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("Finish: %v, want EIO", err)
				}
			} else if err == nil && !errors.Is(sealErr, syscall.EIO) {
				t.Errorf("Seal: %v, want EIO", sealErr)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			p.wantAllFree()
			wantNothing(t, tier)
		}
	}
}

// The bad write is held back until after the Seal: Finish says so, drops the
// record and gives everything back.
func TestWriteErrorAfterSeal(t *testing.T) {
	tier, p, j := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 4, mib), newJournal()
	in := newGate(reserve(t, tier, 4*mib))
	in.fail = func(off int64) error {
		if off == 2*mib {
			return syscall.EIO
		}
		return nil
	}
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 4 * mib}, in, shardwriter.Options{Free: p.put, Journal: j})
	if err := submit(s, p, pattern(4*mib)); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	close(in.open)
	if _, err := s.Finish(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Errorf("Finish: %v, want EIO", err)
	}
	p.wantAllFree()
	if j.len() != 0 {
		t.Error("the record of a lost shard is left")
	}
	wantNothing(t, tier)
}

// Slots written after Seal do not come back before the shard is durable: the
// journal's record names them.
func TestSlotsAreHeldAfterSeal(t *testing.T) {
	tier, p, j := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 4, mib), newJournal()
	in := newGate(reserve(t, tier, 4*mib))
	var finished atomic.Bool
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 4 * mib}, in, shardwriter.Options{Writers: 1, Journal: j, Free: func(slot shardwriter.Slot) {
		if _, err := tier.Stat(name); err != nil {
			t.Error("a slot came back before the shard was durable")
		}
		finished.Store(true)
		p.put(slot)
	}})
	if err := submit(s, p, pattern(4*mib)); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	close(in.open)
	for range 4 {
		<-in.began
	}
	if _, err := s.Finish(t.Context()); err != nil || !finished.Load() {
		t.Errorf("Finish: %v, slots came back %v", err, finished.Load())
	}
	p.wantAllFree()
	wantBlob(t, tier, pattern(4*mib))
}

// A journal that fails at Seal, before or after it kept the record: nothing is
// sealed, everything comes back, and nobody will finish the shard.
func TestJournalFails(t *testing.T) {
	for _, gated := range []bool{false, true} {
		tier, p, j := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 3, mib), newJournal()
		j.failPut = syscall.ENOSPC
		in := newGate(reserve(t, tier, 3*mib))
		if !gated {
			close(in.open)
		}
		s := shardwriter.New(shardwriter.Spec{Info: info, Size: 3 * mib}, in, shardwriter.Options{Free: p.put, Journal: j})
		if err := submit(s, p, pattern(3*mib)); err != nil {
			t.Fatal(err)
		}
		if err := s.Seal(sealed, true); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Seal: %v, want ENOSPC", err)
		}
		if j.len() != 0 {
			t.Error("the record of a shard that was not sealed is left")
		}
		if gated {
			close(in.open)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		p.wantAllFree()
		wantNothing(t, tier)
	}
}

// A daemon that stops leaves record, staging file and slots for the next one.
func TestFinishStopped(t *testing.T) {
	mem := vfstest.New(vfstest.Options{})
	tier, p, j, b := openTier(t, mem, "/disk", nil), newPool(t, 1, 3, mib), newJournal(), pattern(3*mib)
	in := newGate(reserve(t, tier, 3*mib))
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 3 * mib}, in, shardwriter.Options{Free: p.put, Journal: j})
	if err := submit(s, p, b); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	close(in.open)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Finish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Finish: %v, want Canceled", err)
	}
	if len(p.lent) != 3 || j.len() != 1 {
		t.Errorf("%d of 3 slots are held, %d records", len(p.lent), j.len())
	}
	resume(t, tier, p, j)
	wantBlob(t, tier, b)
}

// resume finishes what the journal names, as a daemon does that starts.
func resume(t *testing.T, tier *localtier.Tier, p *pool, j *journal) {
	t.Helper()
	rec, err := shardwriter.ParseRecord(j.get(t))
	if err != nil {
		t.Fatal(err)
	}
	in, err := tier.Resume(t.Context(), rec.Info.Set.ShardName(rec.Info.Rank), rec.Staging, rec.Size, rec.Written)
	if err != nil {
		t.Fatal(err)
	}
	s, err := shardwriter.Resume(rec, in, p.memory, shardwriter.Options{Journal: j})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if j.len() != 0 {
		t.Error("finished, and the record is still there")
	}
}

// Without a journal nobody could go on: a Finish that was stopped gives everything back.
func TestFinishStoppedWithoutJournal(t *testing.T) {
	tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 2, mib)
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 2 * mib}, reserve(t, tier, 2*mib), shardwriter.Options{Free: p.put})
	if err := submit(s, p, pattern(2*mib)); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Finish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Finish: %v, want Canceled", err)
	}
	p.wantAllFree()
	wantNothing(t, tier)
}

// A record that cannot be dropped does not make a durable shard a lost one.
func TestRecordThatStays(t *testing.T) {
	tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 2, mib)
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: mib}, reserve(t, tier, mib), shardwriter.Options{Free: p.put, Journal: keeping{newJournal()}})
	if err := submit(s, p, pattern(mib)); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	if seal, err := s.Finish(t.Context()); err != nil || seal == nil {
		t.Errorf("Finish: %v, %v", seal, err)
	}
	wantBlob(t, tier, pattern(mib))
}

type keeping struct{ *journal }

func (keeping) DropRecord(string) error { return io.ErrClosedPipe }

// Several goroutines use one session at once, while another gives it up.
func TestSubmitAndCloseAtOnce(t *testing.T) {
	for try := range 30 {
		tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 4, mib)
		s := shardwriter.New(shardwriter.Spec{Info: info, Size: 16 * mib}, reserve(t, tier, 16*mib), shardwriter.Options{Writers: 3, Free: p.put})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for n := range int64(4) {
					slot := p.take(nil)
					if err := s.Submit(slot, (n*4+int64(i))*mib, mib); err != nil {
						p.put(slot)
						if !errors.Is(err, catalog.ErrInvalid) {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Go(func() {
			for range try % 5 {
				s.Seal(sealed, true) // mostly too early
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if _, err := tier.Stat(name); err == nil {
			t.Error("visible without Finish")
		}
		func() { // sealed after all, now and then
			defer func() { recover() }()
			s.Finish(t.Context())
		}()
		p.wantAllFree()
	}
}

// Memory that its owner cut away ends the session, not the daemon.
func TestHeaderIntoLostMemory(t *testing.T) {
	tier, p := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 1, mib)
	gone, err := syscall.Mmap(-1, 0, mib, syscall.PROT_READ, syscall.MAP_ANON|syscall.MAP_PRIVATE) // a write faults
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(gone)
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 2 * mib, Header: []byte("header")}, reserve(t, tier, 2*mib), shardwriter.Options{Free: p.put})
	if err := s.Submit(shardwriter.Slot{Seg: 9, Data: gone}, 0, mib); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Submit: %v, want ErrInvalid", err)
	}
	slot := p.take(nil)
	if err := s.Submit(slot, mib, mib); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("the next Submit: %v, want the same", err)
	}
	p.put(slot)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantNothing(t, tier)
}

// The stall of a save ends with Seal: what it costs with a journal of its own.
func BenchmarkSeal(b *testing.B) {
	for _, gib := range []int{1, 16} {
		b.Run(fmt.Sprintf("%dGiB", gib), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := shardwriter.New(shardwriter.Spec{Info: info, Size: int64(gib) << 30}, sink{}, shardwriter.Options{Journal: newJournal()})
				slot := shardwriter.Slot{Data: make([]byte, 8*mib)}
				for off := int64(0); off < int64(gib)<<30; off += 8 * mib {
					slot.Index++
					if err := s.Submit(slot, off, 8*mib); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := s.Seal(time.Now(), true); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := s.Finish(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// sink is an Ingest that costs nothing.
type sink struct{}

func (sink) WriteAt([]byte, int64) error                           { return nil }
func (sink) Block(int) (uint32, bool)                              { return 7, true }
func (sink) Staging() string                                       { return "/staging" }
func (sink) Commit(context.Context, []byte) (*catalog.Seal, error) { return &catalog.Seal{}, nil }
func (sink) Close() error                                          { return nil }
