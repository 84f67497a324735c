package remotetier_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// TestMendMove: the explicit move of a rebalance, and what it refuses.
func TestMendMove(t *testing.T) {
	w := newWorld(5, remotetier.Options{})
	b := random(300_000, 1)
	p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
	var free []string
	for _, m := range w.mems {
		if !slices.Contains(p.Targets, m.Name()) {
			free = append(free, m.Name())
		}
	}
	m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Move: map[int]string{1: free[1]}})
	if err != nil || len(m.Columns) != 1 || m.Place.Targets[1] != free[1] || m.Columns[0].Was != remotetier.ColumnOK {
		t.Fatalf("Mend = %+v, %v", m, err)
	}
	if err := w.DropReplaced(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, w, m.Place, b, "moved")
	for _, to := range []string{m.Place.Targets[0], "nowhere"} {
		m, err := w.Mend(t.Context(), m.Place, remotetier.MendOptions{Move: map[int]string{1: to}})
		if err != nil || len(m.Columns) > 0 || len(m.Left) != 1 || m.Left[0].Err == nil {
			t.Errorf("Mend with a move to %s = %+v, %v; want it left", to, m, err)
		}
	}
}

// TestMendFindsWhatAnotherWrote: a column of an earlier Mend is taken as it is
// if it is right, and replaced if it is not.
func TestMendFindsWhatAnotherWrote(t *testing.T) {
	for _, harm := range []bool{false, true} {
		w := newWorld(5, remotetier.Options{})
		b := random(500_000, 1)
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		opt := remotetier.MendOptions{Leave: func(name string) bool { return name == p.Targets[2] }}
		m, err := w.Mend(t.Context(), p, opt)
		if err != nil {
			t.Fatal(err)
		}
		if harm {
			col := w.mem(m.Place, 2).Column(keyOf(p, 2))
			col[100_000] ^= 1
			w.mem(m.Place, 2).SetColumn(keyOf(p, 2), col)
		}
		again, err := w.Mend(t.Context(), p, opt)
		if err != nil || len(again.Columns) != 1 || again.Columns[0].Found == harm || again.Place.Targets[2] != m.Place.Targets[2] {
			t.Errorf("harm=%v: Mend again = %+v, %v; want column 2 on %s", harm, again, err, m.Place.Targets[2])
		}
		mustBeWhole(t, w, again.Place, b, "again")
		// Who lost the race to record its place takes back only what is its own.
		if err := w.DropUnused(t.Context(), again, p); err != nil {
			t.Error(err)
		}
		if left := w.mem(m.Place, 2).Column(keyOf(p, 2)) != nil; left != again.Columns[0].Found {
			t.Errorf("harm=%v: DropUnused: the column is there: %v", harm, left)
		}
		if err := w.DropUnused(t.Context(), m, m.Place); err != nil {
			t.Error(err)
		}
	}
}

// TestPromise6MendersAtOnce: several of them at one place, again and again, with the
// record changed by compare-and-swap: nothing is lost, nothing is left over.
func TestPromise6MendersAtOnce(t *testing.T) {
	w := newWorld(9, remotetier.Options{})
	b := random(400_000, 1)
	recorded := mustPut(t, w.Tier, b, layout(4, 2, 65536))
	var mu sync.Mutex
	for round := range 12 {
		leave := recorded.Targets[round%6]
		w.mem(recorded, (round+1)%6).SetColumn(keyOf(recorded, (round+1)%6), nil)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				mu.Lock()
				p := recorded
				mu.Unlock()
				m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Leave: func(name string) bool { return name == leave }})
				if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
					t.Errorf("round %d: Mend: %v", round, err)
				}
				if err != nil || !m.Moved() {
					return
				}
				mu.Lock()
				won := slices.Equal(recorded.Targets, m.Was.Targets)
				if won {
					recorded = m.Place
				}
				now := recorded
				mu.Unlock()
				if won {
					err = w.DropReplaced(t.Context(), m)
				} else {
					err = w.DropUnused(t.Context(), m, now)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		rep, err := w.Check(t.Context(), recorded, true)
		if err != nil || rep.Spare < 0 {
			t.Fatalf("round %d: Check = %+v, %v", round, rep, err)
		}
		m, err := w.Mend(t.Context(), recorded, remotetier.MendOptions{Leave: func(name string) bool { return name == leave }})
		if err != nil || len(m.Left) > 0 {
			t.Fatalf("round %d: Mend in the end = %+v, %v", round, m, err)
		}
		if recorded = m.Place; m.Moved() {
			if err := w.DropReplaced(t.Context(), m); err != nil {
				t.Error(err)
			}
		}
		mustBeWhole(t, w, recorded, b, fmt.Sprintf("round %d", round))
	}
}

// TestMendWithinMemory: rows as large as the memory allows, and no larger.
func TestMendWithinMemory(t *testing.T) {
	w := newWorld(7, remotetier.Options{Memory: 8 << 20})
	b := random(5<<20+1, 1)
	p := mustPut(t, w.Tier, b, layout(4, 2, 1<<20))
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			q, err := w.Put(t.Context(), fmt.Sprintf("b/%d", i), sealOf(b), layout(4, 2, 1<<20))
			if err != nil {
				t.Error(err)
				return
			}
			w.mem(q, i).SetColumn(keyOf(q, i), nil)
			if _, err := w.Mend(t.Context(), q, remotetier.MendOptions{}); err != nil {
				t.Error(err)
			}
			mustBeWhole(t, w, q, b, q.Blob)
		})
	}
	wg.Wait()
	mustBeWhole(t, w, p, b, p.Blob)
	big, err := w.Put(t.Context(), "big", zeros(20<<20), layout(2, 1, 2<<20))
	if err != nil {
		t.Fatal(err)
	}
	w.mem(big, 0).SetColumn(keyOf(big, 0), nil)
	if _, err := w.Mend(t.Context(), big, remotetier.MendOptions{}); err != nil {
		t.Errorf("a stripe that just fits: %v", err)
	}
}

func TestColumnChecksRead(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	p := mustPut(t, w.Tier, random(300_000, 1), layout(2, 1, 65536))
	if _, err := w.CheckColumn(t.Context(), "nowhere", keyOf(p, 0)); !errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("CheckColumn on no target = %v, want ErrUnavailable", err)
	}
	info, err := w.CheckColumn(t.Context(), p.Targets[1], keyOf(p, 1))
	if err != nil || info.Key != keyOf(p, 1) || info.Content != p.Content {
		t.Errorf("CheckColumn = %+v, %v", info, err)
	}
}

// TestMendSpreads: what was put on too few targets moves when there are more.
func TestMendSpreads(t *testing.T) {
	w := newWorld(6, remotetier.Options{})
	b := random(300_000, 1)
	p := mustPut(t, w.Tier, b, layout(2, 2, 65536))
	crowded := p
	crowded.Targets = slices.Clone(p.Targets)
	for c := 2; c < 4; c++ { // as a Put with two targets would have it
		w.mem(p, c-2).SetColumn(keyOf(p, c), w.mem(p, c).Column(keyOf(p, c)))
		w.mem(p, c).SetColumn(keyOf(p, c), nil)
		crowded.Targets[c] = p.Targets[c-2]
	}
	if m, err := w.Mend(t.Context(), crowded, remotetier.MendOptions{}); err != nil || m.Moved() {
		t.Errorf("Mend = %+v, %v; want nothing moved", m, err)
	}
	m, err := w.Mend(t.Context(), crowded, remotetier.MendOptions{Spread: true})
	if err != nil || len(m.Columns) != 2 || len(m.Left) > 0 {
		t.Fatalf("Mend = %+v, %v", m, err)
	}
	if err := w.DropReplaced(t.Context(), m); err != nil {
		t.Error(err)
	}
	seen := map[string]bool{}
	for _, name := range m.Place.Targets {
		seen[name] = true
	}
	if len(seen) != 4 {
		t.Errorf("columns are on %v", m.Place.Targets)
	}
	mustBeWhole(t, w, m.Place, b, "spread")
	for c := 2; c < 4; c++ {
		if w.mem(crowded, c).Column(keyOf(p, c)) != nil {
			t.Errorf("column %d is still on %s too", c, crowded.Targets[c])
		}
	}
}
