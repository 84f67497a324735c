package traffic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

func TestClass(t *testing.T) {
	ctx := t.Context()
	if got := ClassOf(ctx); got != Unset {
		t.Errorf("ClassOf of a plain context = %v", got)
	}
	if got := ClassOf(Default(ctx, Drain)); got != Drain {
		t.Errorf("Default = %v, want drain", got)
	}
	if got := ClassOf(Default(WithClass(ctx, Scrub), Drain)); got != Scrub {
		t.Errorf("Default over scrub = %v, want scrub", got)
	}
	for c, want := range []string{"unset", "restore", "dataset", "drain", "repair", "scrub", "class 6"} {
		if got := Class(c).String(); got != want {
			t.Errorf("class %d is %q, want %q", c, got, want)
		}
	}
	for _, c := range []Class{Unset, 6, 255} {
		if _, err := New(Options{}).Enter(ctx, c, 1); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Enter as %v = %v, want ErrInvalid", c, err)
		}
	}
}

// entered begins an operation that must not wait.
func entered(t *testing.T, g *Gate, c Class, n int64) (leave func()) {
	t.Helper()
	from := time.Now()
	leave, err := g.Enter(t.Context(), c, n)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(from); d != 0 {
		t.Errorf("%v waited %v, want no wait", c, d)
	}
	return leave
}

func TestPromise1MoreUrgentHoldsTheOthersBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Floor: 1, MaxWait: time.Hour})
		restore := entered(t, g, Restore, 1<<20)
		for _, c := range []Class{Drain, Scrub} { // the floor's first byte, and a debt
			entered(t, g, c, 1<<20)()
		}
		time.Sleep(time.Second)
		var order []Class
		var mu sync.Mutex
		begun := func() int {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return len(order)
		}
		var wg sync.WaitGroup
		for _, c := range []Class{Scrub, Drain} {
			wg.Go(func() {
				leave, err := g.Enter(t.Context(), c, 1<<20)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, c)
				mu.Unlock()
				time.Sleep(time.Second)
				leave()
			})
			synctest.Wait()
		}
		time.Sleep(10 * time.Second)
		if n := begun(); n > 0 {
			t.Fatalf("%d began while a restore was in flight", n)
		}
		entered(t, g, Restore, 1<<20)() // the same class does not wait for itself
		from := time.Now()
		restore()
		time.Sleep(49 * time.Millisecond)
		if n := begun(); n > 0 {
			t.Fatalf("%d began while a restore lingered", n)
		}
		wg.Wait()
		if !slices.Equal(order, []Class{Drain, Scrub}) {
			t.Errorf("they began in the order %v, want drain, scrub", order)
		}
		if d, want := time.Since(from), 50*time.Millisecond+time.Second+50*time.Millisecond+time.Second; d != want {
			t.Errorf("both had ended after %v, want %v", d, want)
		}
		if st := g.Stats(); st[Drain].Held != 1 || st[Scrub].Held != 1 || st[Restore].Held != 0 {
			t.Errorf("Stats = %+v", st)
		}
	})
}

func TestPromise2FloorAlwaysMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Floor: 1 << 20})
		defer entered(t, g, Restore, 1)()
		for _, c := range []Class{Drain, Repair} { // each has a floor of its own
			from := time.Now()
			for range 40 {
				leave, err := g.Enter(t.Context(), c, 256<<10)
				if err != nil {
					t.Fatal(err)
				}
				leave()
			}
			// 10 MiB, the first of them at once.
			if d := time.Since(from); d < 9*time.Second || d > 9*time.Second+time.Millisecond {
				t.Errorf("10 MiB as %v over a floor of 1 MiB/s took %v, want 9s", c, d)
			}
		}
	})
}

func TestPromise2NobodyIsHeldForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Floor: 1, MaxWait: 7 * time.Second})
		defer entered(t, g, Restore, 1)()
		entered(t, g, Scrub, 1000)() // what the floor has, and a debt
		from := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				leave, err := g.Enter(t.Context(), Scrub, 1<<30)
				if err != nil {
					t.Error(err)
					return
				}
				leave()
			})
		}
		wg.Wait()
		if d := time.Since(from); d != 7*time.Second {
			t.Errorf("they were held for %v, want 7s", d)
		}
	})
}

func TestPromise3Rate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10 << 20
		g := New(Options{Rates: map[Class]int64{Drain: rate}, MaxWait: time.Millisecond})
		from := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 10 {
					if err := g.Pass(t.Context(), Drain, 1<<20); err != nil {
						t.Error(err)
					}
				}
			})
		}
		entered(t, g, Restore, 1<<30)() // other classes have no limit
		wg.Wait()
		if d := time.Since(from); d < 19*time.Second || d > 19*time.Second+10*time.Millisecond {
			t.Errorf("200 MiB at 10 MiB/s took %v, want 19s after the burst", d)
		}
		from = time.Now() // more than the burst at a time: a debt, paid by the next
		for range 3 {
			if err := g.Pass(t.Context(), Drain, 30<<20); err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(from); d < 7*time.Second || d > 8*time.Second {
			t.Errorf("3 × 30 MiB at 10 MiB/s, the last one's debt open, took %v, want 7s to 8s", d)
		}
	})
}

func TestPromise4FirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Rates: map[Class]int64{Repair: 1 << 20}})
		entered(t, g, Repair, 8<<20)()
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				n := int64(64 << 10) // far enough apart to see who was first
				if i == 0 {
					n = 1 << 20 // the first wants most
				}
				if err := g.Pass(t.Context(), Repair, n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			})
			synctest.Wait()
		}
		wg.Wait()
		if len(order) != 20 || !slices.IsSorted(order) {
			t.Errorf("they began in the order %v", order)
		}
	})
}

func TestPromise5GivingUpLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Rates: map[Class]int64{Drain: 1 << 20}})
		entered(t, g, Drain, 11<<20)() // ten seconds of debt
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := g.Enter(ctx, Drain, 1<<20); !errors.Is(err, context.Canceled) {
					t.Errorf("Enter = %v, want Canceled", err)
				}
			})
		}
		synctest.Wait()
		from := time.Now()
		wg.Go(func() { // behind them all
			if err := g.Pass(t.Context(), Drain, 1<<20); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		if d := time.Since(from); d < 11*time.Second || d > 11*time.Second+time.Millisecond {
			t.Errorf("it waited %v, want 11s: nothing for those who gave up", d)
		}
		if n := g.mu.waiting(); n != 0 {
			t.Errorf("%d still wait", n)
		}
		if _, err := g.Enter(ctx, Restore, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("Enter with a context that has ended = %v", err)
		}
	})
}

func TestPromise6WaitersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Waiting: 3, Rates: map[Class]int64{Scrub: 1}})
		entered(t, g, Scrub, 1000)()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _, _ = g.Enter(ctx, Scrub, 1) })
		}
		synctest.Wait()
		if _, err := g.Enter(ctx, Restore, 1); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("a fourth = %v, want ErrUnavailable", err)
		}
		cancel()
		wg.Wait()
		entered(t, g, Restore, 1)()
	})
}

// TestRandomTraffic: many operations of all classes, some given up. Whatever
// begins while a more urgent class is at work is within its floor, or has
// waited long; no class exceeds its rate; everybody ends.
func TestRandomTraffic(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomTraffic(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func randomTraffic(t *testing.T, rnd *rand.Rand) {
	const floor, rate, maxWait = 1 << 20, 4 << 20, 5 * time.Second
	opt := Options{Floor: floor, MaxWait: maxWait, Rates: map[Class]int64{Repair: rate}}
	g := New(opt)
	begin := time.Now()
	var mu sync.Mutex
	var flight [Classes]int
	var moved, early [Classes]int64 // in all; while held back, not for having waited long
	var wg sync.WaitGroup
	for range 300 {
		c, n := Class(1+rnd.IntN(Classes-1)), rnd.Int64N(2<<20)
		start, work := time.Duration(rnd.Int64N(int64(60*time.Second))), time.Duration(rnd.Int64N(int64(200*time.Millisecond)))
		patience := time.Duration(0)
		if rnd.IntN(4) == 0 {
			patience = time.Duration(rnd.Int64N(int64(time.Second))) + 1
		}
		wg.Go(func() {
			time.Sleep(start)
			ctx, came := t.Context(), time.Now()
			if patience > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, patience)
				defer cancel()
			}
			leave, err := g.Enter(ctx, c, n)
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) || time.Since(came) != patience {
					t.Errorf("Enter = %v after %v, patience %v", err, time.Since(came), patience)
				}
				return
			}
			mu.Lock()
			urgent := 0
			for o := Restore; o < c; o++ {
				urgent += flight[o]
			}
			moved[c] += n
			if urgent > 0 && time.Since(came) < maxWait {
				early[c] += n
			}
			flight[c]++
			mu.Unlock()
			if c != Repair && time.Since(came) > maxWait {
				t.Errorf("%v waited %v", c, time.Since(came))
			}
			time.Sleep(work)
			mu.Lock()
			flight[c]--
			mu.Unlock()
			leave()
		})
	}
	wg.Wait()
	took := time.Since(begin).Seconds()
	for c := Restore; c <= Scrub; c++ {
		// A bucket is full at first, and what was last may be owed.
		if most := int64(took*floor) + floor + 2<<20; early[c] > most {
			t.Errorf("%v moved %d bytes while it was held back, at most %d", c, early[c], most)
		}
	}
	if most := int64(took*rate) + rate + 2<<20; moved[Repair] > most {
		t.Errorf("repair moved %d bytes in %.0fs, at most %d", moved[Repair], took, most)
	}
	if n := g.mu.waiting(); n != 0 {
		t.Errorf("%d still wait", n)
	}
	for c := range g.mu.classes {
		if n := g.mu.classes[c].flight; n != 0 {
			t.Errorf("%d of %v are still in flight", n, Class(c))
		}
	}
}

func TestLine(t *testing.T) {
	var l Line[string]
	now := time.Unix(1000, 0)
	take := func() string {
		s, _ := l.Next(now)
		return s
	}
	l.Join(now, Scrub, "s1")
	l.Join(now, Drain, "d1")
	l.Join(now, Restore, "r1")
	l.Join(now, Drain, "d2")
	l.Join(now, Restore, "r2")
	if !l.Leave(func(s string) bool { return s == "d1" }) || l.Leave(func(s string) bool { return s == "d1" }) {
		t.Error("Leave of d1, once and again")
	}
	if got := []string{take(), take(), take()}; !slices.Equal(got, []string{"r1", "r2", "d2"}) {
		t.Errorf("Next gives %v", got)
	}
	now = now.Add(defaultMaxWait)
	l.Join(now, Restore, "r3")
	if got := []string{take(), take()}; !slices.Equal(got, []string{"s1", "r3"}) {
		t.Errorf("Next gives %v, want who waited long first", got)
	}
	if _, ok := l.Next(now); ok || l.Len() != 0 {
		t.Error("an empty line gives somebody")
	}
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSlots(2)
		for range 2 {
			if err := s.Take(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		var order []Class
		var wg sync.WaitGroup
		for _, c := range []Class{Scrub, Drain, Restore} {
			wg.Go(func() {
				if err := s.Take(WithClass(t.Context(), c)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, c)
				mu.Unlock()
				time.Sleep(time.Second)
				s.Give()
			})
			synctest.Wait()
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Take(WithClass(short, Restore)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Take = %v", err)
		}
		s.Give()
		wg.Wait()
		if !slices.Equal(order, []Class{Restore, Drain, Scrub}) {
			t.Errorf("they had the slot in the order %v", order)
		}
		s.Give()
		for range 2 { // both are free again, and no more
			if err := s.Take(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		now, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := s.Take(now); err == nil {
			t.Error("a third slot of two")
		}
	})
}
