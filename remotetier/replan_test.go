package remotetier_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// countedSource counts what is read of it, and may show another byte later on.
type countedSource struct {
	sealed
	read    atomic.Int64
	changes int64 // bytes read after which at shows another byte; 0: never
	at      int64
}

func (s *countedSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.sealed.ReadAt(p, off)
	if read := s.read.Add(int64(n)); s.changes > 0 && read-int64(n) >= s.changes && s.at >= off && s.at < off+int64(n) {
		p[s.at-off] ^= 1
	}
	return n, err
}

// fails makes every operation of a target fail from its n-th on, and for ever
// or once.
func fails(n int64, once bool, ops *atomic.Int64) func(string, remotetier.Key) error {
	return func(string, remotetier.Key) error {
		if at := ops.Add(1); at == n || at > n && !once {
			return errDisk
		}
		return nil
	}
}

// onlyPlaced holds what lies on the targets against what a place names.
func (w *world) onlyPlaced(t *testing.T, what string, p catalog.Place) {
	t.Helper()
	for _, m := range w.mems {
		for _, k := range m.Keys() {
			if k.Generation != p.Generation || p.Targets[k.Column] != m.Name() {
				t.Errorf("%s: %s has %v, which no place names", what, m.Name(), k)
			}
		}
	}
}

// TestPromise7EveryTargetFailsAtEveryPoint: with a target to spare a Put
// succeeds whichever of the others fails, at whatever operation, for ever or
// once; every column is then where the place says, nothing else is readable,
// and the source was read again only for the column that needed it.
func TestPromise7EveryTargetFailsAtEveryPoint(t *testing.T) {
	for _, l := range []stripe.Layout{layout(4, 2, 65536), layout(2, 1, 65536), layout(2, 1, 262144), layout(1, 2, 65536), layout(3, 0, 65536)} {
		t.Run(fmt.Sprint(l, ".", l.Unit), func(t *testing.T) {
			b := random(int(6*l.Width()+100_000), 1)
			moved := 0
			for victim := range l.Columns() + 1 {
				for _, once := range []bool{false, true} {
					for n := int64(1); ; n++ {
						what := fmt.Sprintf("operation %d of t%d, once=%v", n, victim, once)
						var ops atomic.Int64
						var replanned []int
						w := newWorld(l.Columns()+1, remotetier.Options{Trace: remotetier.Trace{
							Replanned: func(_ string, c int, _, _ string, _ error) { replanned = append(replanned, c) },
						}, Generation: func() uint64 { return 7 }, Memory: 8 << 20}) // 7 turns of the ring for the largest
						w.mems[victim].Fault(fails(n, once, &ops))
						src := &countedSource{sealed: sealOf(b)}
						p, err := w.Put(t.Context(), blob, src, l)
						w.mems[victim].Fault(nil)
						if err != nil {
							t.Fatalf("%s: %v", what, err)
						}
						if err := w.Verify(t.Context(), p); err != nil {
							t.Errorf("%s: %v", what, err)
						}
						if got := slices.Compact(slices.Sorted(slices.Values(p.Targets))); len(got) != l.Columns() {
							t.Errorf("%s: on %v", what, p.Targets)
						}
						w.onlyPlaced(t, what, p)
						most := int64(len(b))
						if len(replanned) > 0 {
							most += int64(len(b)) // a parity column needs all of it
							if c := replanned[0]; c < l.K {
								most = int64(len(b)) + l.ColumnSize(int64(len(b)))
							}
							moved++
						}
						if read := src.read.Load(); read > most || len(replanned) > 1 {
							t.Errorf("%s: %d of %d bytes were read, columns %v moved", what, read, len(b), replanned)
						}
						if ops.Load() < n {
							break
						}
					}
				}
			}
			t.Logf("%d columns moved", moved)
		})
	}
}

// TestPromise7TargetsFailOneAfterAnother: each pass loses another target, as
// long as there are some.
func TestPromise7TargetsFailOneAfterAnother(t *testing.T) {
	l := layout(2, 1, 65536)
	b := random(500_000, 1)
	for spare := range 5 {
		w := newWorld(3+spare, remotetier.Options{})
		var mu sync.Mutex
		bad := map[string]bool{}
		for _, m := range w.mems {
			m.Fault(func(op string, k remotetier.Key) error {
				mu.Lock()
				defer mu.Unlock()
				if op == "write" && k.Column == 1 && len(bad) < 4 || bad[m.Name()] {
					bad[m.Name()] = true
					return errDisk
				}
				return nil
			})
		}
		p, err := w.Put(t.Context(), blob, sealOf(b), l)
		for _, m := range w.mems {
			m.Fault(nil)
		}
		if spare < 4 {
			if !errors.Is(err, catalog.ErrUnavailable) || !errors.Is(err, errDisk) {
				t.Errorf("%d to spare: %v, want ErrUnavailable", spare, err)
			}
			for _, m := range w.mems {
				if k := m.Keys(); len(k) > 0 {
					t.Errorf("%d to spare: %s holds %v", spare, m.Name(), k)
				}
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d to spare: %v", spare, err)
		}
		if err := w.Verify(t.Context(), p); err != nil {
			t.Errorf("%d to spare: %v", spare, err)
		}
		w.onlyPlaced(t, fmt.Sprint(spare), p)
	}
}

// TestPromise7AllTargetsFailAtOnce: nothing of the first pass is left, and the
// second does everything.
func TestPromise7AllTargetsFailAtOnce(t *testing.T) {
	for _, op := range []string{"create", "write", "commit"} {
		w := newWorld(6, remotetier.Options{})
		var ops atomic.Int64
		for _, m := range w.mems {
			m.Fault(func(o string, _ remotetier.Key) error {
				if o == op && ops.Add(1) <= 3 {
					return errDisk
				}
				return nil
			})
		}
		b := random(300_000, 1)
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		for _, m := range w.mems {
			m.Fault(nil)
		}
		if err := w.Verify(t.Context(), p); err != nil {
			t.Errorf("%s: %v", op, err)
		}
		w.onlyPlaced(t, op, p)
	}
}

// TestPromise7SourceChangesBetweenPasses: what is read again must be what was
// read before, for columns of data and of parity.
func TestPromise7SourceChangesBetweenPasses(t *testing.T) {
	l := layout(4, 2, 65536)
	b := random(int(3*l.Width())+1000, 1)
	for lost := range l.Columns() {
		for _, at := range []int64{0, 65535, int64(lost%4)*65536 + 77, int64(len(b)) - 1, 2*l.Width() + int64(lost%4)*65536} {
			w := newWorld(7, remotetier.Options{})
			var once sync.Once
			first := ""
			for _, m := range w.mems {
				m.Fault(func(op string, k remotetier.Key) (err error) {
					if op == "commit" && k.Column == lost {
						once.Do(func() { first, err = m.Name(), errDisk })
					}
					return err
				})
			}
			src := &countedSource{sealed: sealOf(b), changes: int64(len(b)), at: at}
			p, err := w.Put(t.Context(), blob, src, l)
			needed := lost >= l.K
			if c, _ := l.Locate(int64(len(b)), at); c == lost {
				needed = true
			}
			what := fmt.Sprintf("column %d lost on %s, byte %d changed", lost, first, at)
			switch {
			case !needed:
				if err != nil || w.Verify(t.Context(), p) != nil {
					t.Errorf("%s: %v, %v", what, err, w.Verify(t.Context(), p))
				}
			case !errors.Is(err, catalog.ErrCorrupt):
				t.Errorf("%s: %v, want ErrCorrupt", what, err)
			default:
				for _, m := range w.mems {
					if k := m.Keys(); len(k) > 0 {
						t.Errorf("%s: %s holds %v", what, m.Name(), k)
					}
				}
			}
		}
	}
}

// TestPromise7RandomFaults: whatever fails and comes back, a Put that succeeds
// is whole, one that does not leaves nothing, and generations never mix.
func TestPromise7RandomFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	layouts := []stripe.Layout{layout(4, 2, 65536), layout(2, 1, 65536), layout(1, 2, 65536), layout(3, 2, 131072)}
	outcome := map[bool]int{}
	for i := range 120 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		l := layouts[r.IntN(len(layouts))]
		w := newWorld(l.Columns()+r.IntN(3), remotetier.Options{})
		old := random(200_000, 2)
		before := mustPut(t, w.Tier, old, l)
		var mu sync.Mutex
		chance := r.Float64() * 0.2
		down := map[string]int{} // operations it will still fail
		for _, m := range w.mems {
			m.Fault(func(op string, _ remotetier.Key) error {
				mu.Lock()
				defer mu.Unlock()
				if op == "remove" {
					return nil
				}
				if down[m.Name()] == 0 && r.Float64() < chance {
					down[m.Name()] = 1 + r.IntN(20)
				}
				if down[m.Name()] > 0 {
					down[m.Name()]--
					return []error{errDisk, fmt.Errorf("full: %w", catalog.ErrNoSpace), fmt.Errorf("cut: %w", catalog.ErrUnavailable)}[r.IntN(3)]
				}
				return nil
			})
		}
		b := random(r.IntN(900_000), 1)
		p, err := w.Put(t.Context(), blob, sealOf(b), l)
		for _, m := range w.mems {
			m.Fault(nil)
		}
		what := fmt.Sprintf("seed %d, %d: %v on %d targets", seed, i, l, len(w.mems))
		if outcome[err == nil]++; err == nil {
			if got, rep, err := readAll(t, w.Tier, p); err != nil || rep.Degraded || !bytes.Equal(got, b) {
				t.Errorf("%s: %+v, %v", what, rep, err)
			}
			if err := w.Verify(t.Context(), p); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			on := map[string]int{}
			for _, name := range p.Targets {
				on[name]++
			}
			if most := slices.Max(slices.Collect(maps.Values(on))); most > max(1, l.M) {
				t.Errorf("%s: %v", what, p.Targets)
			}
		} else if !errors.Is(err, catalog.ErrUnavailable) && !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("%s: %v", what, err)
		}
		for _, m := range w.mems {
			for _, k := range m.Keys() {
				if k.Generation != before.Generation && (err != nil || k.Generation != p.Generation || p.Targets[k.Column] != m.Name()) {
					t.Errorf("%s: %v: %s holds %v", what, err, m.Name(), k)
				}
			}
		}
		if err := w.Verify(t.Context(), before); err != nil {
			t.Errorf("%s: the generation before: %v", what, err)
		}
	}
	if outcome[true] < 20 || outcome[false] < 5 {
		t.Errorf("%v outcomes prove little", outcome)
	}
}
