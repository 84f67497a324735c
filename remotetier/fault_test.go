package remotetier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

var errDisk = errors.New("EIO")

// TestPromise2EveryOperationFails lets the n-th operation on any target fail,
// for every n: the Put takes another target, or leaves nothing.
func TestPromise2EveryOperationFails(t *testing.T) {
	b := random(400_000, 1)
	for _, targets := range []int{3, 4} {
		for n := int64(1); ; n++ {
			w := newWorld(targets, remotetier.Options{})
			var ops atomic.Int64
			for _, m := range w.mems {
				m.Fault(func(op string, _ remotetier.Key) error {
					if ops.Add(1) == n && op != "remove" {
						return errDisk
					}
					return nil
				})
			}
			p, err := w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536))
			hit := ops.Load() >= n
			for _, m := range w.mems {
				m.Fault(nil)
			}
			switch {
			case err == nil:
				if got, rep, err := readAll(t, w.Tier, p); err != nil || rep.Degraded || !bytes.Equal(got, b) {
					t.Errorf("operation %d: %+v, %v", n, rep, err)
				}
			case targets == 4 || !errors.Is(err, errDisk) || !errors.Is(err, catalog.ErrUnavailable):
				t.Errorf("operation %d with %d targets: Put = %v", n, targets, err)
			}
			for _, m := range w.mems {
				for _, k := range m.Keys() {
					if err != nil || k.Generation != p.Generation {
						t.Errorf("operation %d left %v on %s", n, k, m.Name())
					}
				}
			}
			if !hit {
				t.Logf("%d targets: %d operations failed in turn", targets, n-1)
				break
			}
		}
	}
}

func TestFullTargetsAreRefusedEarly(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	w.mems[1].SetTotal(100_000)
	b := random(400_000, 1)
	var moved atomic.Int64
	for _, m := range w.mems {
		m.Fault(func(op string, _ remotetier.Key) error {
			if op == "write" {
				moved.Add(1)
			}
			return nil
		})
	}
	if _, err := w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536)); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("Put = %v, want ErrNoSpace", err)
	}
	if moved.Load() != 0 {
		t.Errorf("%d writes before the refusal", moved.Load())
	}
	if _, err := w.Put(t.Context(), blob, sealOf(b), layout(4, 2, 65536)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Put with too few targets = %v, want ErrInvalid", err)
	}
	w.mems[1].Fault(func(op string, _ remotetier.Key) error { // it filled up after it was asked
		if op == "write" {
			return fmt.Errorf("write: %w", catalog.ErrNoSpace)
		}
		return nil
	})
	w.mems[1].SetTotal(1 << 30)
	if _, err := w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536)); !errors.Is(err, catalog.ErrNoSpace) || errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Put = %v, want ErrNoSpace", err)
	}
}

func TestPutTellsOfTargetsItGaveUp(t *testing.T) {
	var mu sync.Mutex
	var failed []string
	w := newWorld(5, remotetier.Options{Trace: remotetier.Trace{TargetFailed: func(target, blob string, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, target)
	}}})
	for _, m := range w.mems[:2] {
		m.Fault(func(op string, _ remotetier.Key) error {
			if op == "commit" {
				return errDisk
			}
			return nil
		})
	}
	p := mustPut(t, w.Tier, random(100_000, 1), layout(2, 1, 65536))
	for _, name := range append(failed, "t0", "t1") {
		if slices.Contains(p.Targets, name) {
			t.Errorf("a column is on %s, which failed", name)
		}
	}
	if err := w.Verify(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func TestCancelledPutLeavesNothing(t *testing.T) {
	b := random(2<<20, 1)
	for n := int64(1); n < 40; n += 3 {
		w := newWorld(3, remotetier.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var ops atomic.Int64
		for _, m := range w.mems {
			m.Fault(func(string, remotetier.Key) error {
				if ops.Add(1) == n {
					cancel()
				}
				return nil
			})
		}
		_, err := w.Put(ctx, blob, sealOf(b), layout(2, 1, 65536))
		cancel()
		if err == nil {
			continue // the last commit came first
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Put = %v, want context.Canceled", err)
		}
		for _, m := range w.mems {
			if k := m.Keys(); len(k) > 0 {
				t.Errorf("cancelled at %d: %s holds %v", n, m.Name(), k)
			}
		}
	}
}

// TestGenerationsNeverCollide: two tiers with the same stuck clock.
func TestGenerationsNeverCollide(t *testing.T) {
	stuck := remotetier.Options{Generation: func() uint64 { return 7 }}
	w := newWorld(3, stuck)
	a, b := random(300_000, 1), random(300_000, 2)
	var infos []remotetier.TargetInfo
	for _, m := range w.mems {
		infos = append(infos, remotetier.TargetInfo{Target: m})
	}
	other := remotetier.New(infos, stuck)
	pa, pb := mustPut(t, w.Tier, a, layout(2, 1, 65536)), mustPut(t, other, b, layout(2, 1, 65536))
	if pa.Generation == pb.Generation {
		t.Fatalf("both have generation %d", pa.Generation)
	}
	for _, c := range []struct {
		p    catalog.Place
		want []byte
	}{{pa, a}, {pb, b}} {
		if got, _, err := readAll(t, w.Tier, c.p); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("generation %d: %v", c.p.Generation, err)
		}
	}
}

func TestRemoveKeepsWhatItShould(t *testing.T) {
	w := newWorld(4, remotetier.Options{})
	b := random(100_000, 1)
	p1, p2 := mustPut(t, w.Tier, b, layout(2, 1, 65536)), mustPut(t, w.Tier, b, layout(2, 1, 65536))
	below, err := w.Put(t.Context(), blob+"/below", sealOf(b), layout(2, 1, 65536))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), blob, func(gen uint64) bool { return gen == p2.Generation }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(t.Context(), p1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of the removed generation = %v, want fs.ErrNotExist", err)
	}
	for _, p := range []catalog.Place{p2, below} {
		if err := w.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	w.mems[0].Fault(func(op string, _ remotetier.Key) error { return errDisk })
	if err := w.Remove(t.Context(), blob, nil); !errors.Is(err, errDisk) {
		t.Errorf("Remove with a dead target = %v, want its error", err)
	}
	w.mems[0].Fault(nil)
	if err := w.Remove(t.Context(), blob, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(t.Context(), p2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want fs.ErrNotExist", err)
	}
}

func TestSweepLeavesWhatIsBeingWritten(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	b := random(100_000, 1)
	old := mustPut(t, w.Tier, b, layout(2, 1, 65536))
	var once sync.Once
	for _, m := range w.mems {
		m.Fault(func(op string, k remotetier.Key) error {
			if op == "commit" {
				once.Do(func() { // a sister may be committed already
					s, err := w.Sweep(t.Context(), "", func(string, uint64) bool { return false })
					if err != nil || s.Columns != 3 || s.Bytes == 0 {
						t.Errorf("Sweep = %+v, %v, want the 3 old columns", s, err)
					}
				})
			}
			return nil
		})
	}
	p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
	if err := w.Verify(t.Context(), p); err != nil {
		t.Error(err)
	}
	if _, err := w.Open(t.Context(), old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the swept generation: %v", err)
	}
}

func TestScanRebuildsPlaces(t *testing.T) {
	w := newWorld(5, remotetier.Options{})
	want := map[string]catalog.Place{}
	for i, name := range []string{"a/x", "a/x/y", "a-b", "b/z"} {
		p, err := w.Put(t.Context(), name, sealOf(random(150_000+i, byte(i))), layout(2, 1, 65536))
		if err != nil {
			t.Fatal(err)
		}
		want[name] = p
	}
	w.mem(want["a/x"], 0).SetColumn(keyOf(want["a/x"], 0), nil)
	col := w.mem(want["b/z"], 0).Column(keyOf(want["b/z"], 0))
	col[100] ^= 1 // its header
	w.mem(want["b/z"], 0).SetColumn(keyOf(want["b/z"], 0), col)
	lost := want["a-b"]
	for c := range 2 {
		w.mem(lost, c).SetColumn(keyOf(lost, c), nil)
	}
	var names []string
	for f, err := range w.Scan(t.Context(), "") {
		if err != nil {
			t.Errorf("Scan: %v", err)
			continue
		}
		p := want[f.Place.Blob]
		names = append(names, f.Place.Blob)
		if fmt.Sprint(f.Place) != fmt.Sprint(p) {
			t.Errorf("Scan gives %+v, want %+v", f.Place, p)
		}
		if f.Complete != (f.Place.Blob != "a-b") {
			t.Errorf("%s: Complete = %v with columns %v", f.Place.Blob, f.Complete, f.Columns)
		}
	}
	if !slices.Equal(names, []string{"a/x", "a/x/y", "a-b", "b/z"}) {
		t.Errorf("Scan gives %v", names)
	}
	// A column that was moved is where it is found.
	p := want["a/x/y"]
	for _, m := range w.mems {
		if !slices.Contains(p.Targets, m.Name()) {
			from := w.mem(p, 1)
			m.SetColumn(keyOf(p, 1), from.Column(keyOf(p, 1)))
			from.SetColumn(keyOf(p, 1), nil)
			for f, err := range w.Scan(t.Context(), "a/x/y") {
				if err != nil || f.Place.Targets[1] != m.Name() || w.Verify(t.Context(), f.Place) != nil {
					t.Errorf("Scan gives %+v, %v; want column 1 on %s", f, err, m.Name())
				}
			}
			break
		}
	}
	// A dead target is said, and the others go on.
	w.mem(p, 0).Fault(func(string, remotetier.Key) error { return errDisk })
	errs, found := 0, 0
	for f, err := range w.Scan(t.Context(), "") {
		if err != nil && f.Place.Blob == "" {
			errs++
		} else if err == nil {
			found++
		}
	}
	if errs != 1 || found < 3 {
		t.Errorf("with a dead target: %d errors, %d found", errs, found)
	}
}

func TestSmallRecords(t *testing.T) {
	w := newWorld(4, remotetier.Options{Generation: func() uint64 { return 1 }}) // a clock that goes back
	if _, _, err := w.GetSmall(t.Context(), "run/set.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("GetSmall of nothing = %v, want fs.ErrNotExist", err)
	}
	for i := range 5 {
		want := random(i*3000, byte(i))
		p, err := w.PutSmall(t.Context(), "run/set.json", want, 3)
		if err != nil {
			t.Fatal(err)
		}
		got, place, err := w.GetSmall(t.Context(), "run/set.json")
		if err != nil || !bytes.Equal(got, want) || fmt.Sprint(place) != fmt.Sprint(p) {
			t.Errorf("GetSmall = %d bytes, %+v, %v; want %d, %+v", len(got), place, err, len(want), p)
		}
		n := 0
		for _, m := range w.mems {
			n += len(m.Keys())
		}
		if n != 3 {
			t.Errorf("there are %d copies, want 3", n)
		}
		// Two of three copies bad.
		for c := range 2 {
			col := w.mem(p, c).Column(keyOf(p, c))
			col[len(col)-1] ^= 1
			w.mem(p, c).SetColumn(keyOf(p, c), col)
		}
		if got, _, err := w.GetSmall(t.Context(), "run/set.json"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("GetSmall with one good copy: %v", err)
		}
	}
	for _, m := range w.mems {
		m.Fault(func(string, remotetier.Key) error { return fmt.Errorf("dial: %w", catalog.ErrUnavailable) })
	}
	if _, _, err := w.GetSmall(t.Context(), "run/other.json"); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("GetSmall with all away = %v, want ErrUnavailable", err)
	}
}

// TestSmallIsOldOrNew fails every operation of a replacement in turn.
func TestSmallIsOldOrNew(t *testing.T) {
	old, new := []byte("old"), []byte("new")
	for n := int64(1); ; n++ {
		w := newWorld(3, remotetier.Options{})
		if _, err := w.PutSmall(t.Context(), "set.json", old, 2); err != nil {
			t.Fatal(err)
		}
		var ops atomic.Int64
		for _, m := range w.mems {
			m.Fault(func(string, remotetier.Key) error {
				if ops.Add(1) >= n { // and everything after it
					return errDisk
				}
				return nil
			})
		}
		_, err := w.PutSmall(t.Context(), "set.json", new, 2)
		for _, m := range w.mems {
			m.Fault(nil)
		}
		got, _, gerr := w.GetSmall(t.Context(), "set.json")
		if gerr != nil || err == nil && !bytes.Equal(got, new) || !bytes.Equal(got, old) && !bytes.Equal(got, new) {
			t.Errorf("operation %d: Put = %v, then Get = %q, %v", n, err, got, gerr)
		}
		if ops.Load() < n {
			break
		}
	}
}

// TestPromise5MemoryIsBounded: many callers, a small limit, and all get through.
func TestPromise5MemoryIsBounded(t *testing.T) {
	w := newWorld(6, remotetier.Options{Memory: 8 << 20})
	b := random(5<<20+1, 1)
	p := mustPut(t, w.Tier, b, layout(4, 2, 1<<20))
	w.mem(p, 0).SetColumn(keyOf(p, 0), nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if i%2 == 0 {
				q, err := w.Put(t.Context(), fmt.Sprintf("b/%d", i), sealOf(b), layout(4, 2, 1<<20))
				if err == nil && i == 0 {
					err = w.Verify(t.Context(), q)
				}
				if err != nil {
					t.Error(err)
				}
			} else if got, _, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := w.Put(t.Context(), "big", sealOf(b), layout(4, 2, 16<<20)); err != nil {
		t.Errorf("a blob smaller than its stripe: %v", err)
	}
	if _, err := w.Put(t.Context(), "big", zeros(1<<30), layout(4, 2, 16<<20)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a stripe larger than the memory: %v, want ErrInvalid", err)
	}
}

type zeros int64

func (z zeros) Size() int64                             { return int64(z) }
func (z zeros) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }
