package remotetier_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// columnsOf copies all columns of a place.
func columnsOf(w *world, p catalog.Place) [][]byte {
	cols := make([][]byte, len(p.Targets))
	for i := range cols {
		cols[i] = w.mem(p, i).Column(keyOf(p, i))
	}
	return cols
}

// mustBeWhole holds a place against its bytes and against a deep look.
func mustBeWhole(t *testing.T, w *world, p catalog.Place, b []byte, what string) {
	t.Helper()
	rep, err := w.Check(t.Context(), p, true)
	if err != nil || !rep.Whole() {
		t.Errorf("%s: Check = %+v, %v; want all ok", what, rep.Columns, err)
	}
	if err := w.Verify(t.Context(), p); err != nil {
		t.Errorf("%s: Verify: %v", what, err)
	}
	if got, rd, err := readAll(t, w.Tier, p); err != nil || rd.Degraded || !bytes.Equal(got, b) {
		t.Errorf("%s: equal=%v, %+v, %v", what, bytes.Equal(got, b), rd, err)
	}
}

// TestPromise6MendPutsBackEveryByte harms every set of at most m columns in every way:
// Check names them, and Mend writes what was there, byte by byte.
func TestPromise6MendPutsBackEveryByte(t *testing.T) {
	states := map[string][]remotetier.ColumnState{
		"Missing": {remotetier.ColumnMissing}, "Foreign": {remotetier.ColumnStale}, "Cut": {remotetier.ColumnCorrupt},
		"FlippedBits": {remotetier.ColumnCorrupt}, "EveryBlockBad": {remotetier.ColumnCorrupt}, "ForeignData": {remotetier.ColumnCorrupt},
	}
	for _, c := range []struct {
		l    stripe.Layout
		size int
	}{
		{layout(2, 1, 65536), 500_001}, {layout(4, 2, 65536), 1_400_000}, {layout(1, 2, 65536), 200_000}, {layout(3, 2, 131072), 131072*3*2 + 5}, {layout(2, 2, 65536), 0},
	} {
		t.Run(fmt.Sprintf("%v/%d", c.l, c.size), func(t *testing.T) {
			w := newWorld(c.l.Columns(), remotetier.Options{})
			b := random(c.size, 1)
			r := rand.New(rand.NewPCG(uint64(c.size), 0))
			foreign := mustPut(t, w.Tier, random(c.size, 2), c.l)
			p := mustPut(t, w.Tier, b, c.l)
			whole := columnsOf(w, p)
			for set := range 1 << c.l.Columns() {
				if n := bits.OnesCount(uint(set)); n == 0 || n > c.l.M {
					continue
				}
				for _, h := range harms {
					if c.size == 0 && h.name == "ForeignData" {
						continue // it has none
					}
					for i, col := range whole {
						if set>>i&1 != 0 {
							col = h.do(slices.Clone(col), w.mem(foreign, i).Column(keyOf(foreign, i)), r)
						}
						w.mem(p, i).SetColumn(keyOf(p, i), col)
					}
					what := fmt.Sprintf("%s %b", h.name, set)
					rep, err := w.Check(t.Context(), p, true)
					if err != nil || rep.Spare != c.l.M-bits.OnesCount(uint(set)) {
						t.Errorf("%s: Check = %d spare, %v", what, rep.Spare, err)
					}
					for i, col := range rep.Columns {
						if bad := set>>i&1 != 0; bad != slices.Contains(states[h.name], col.State) || bad != (col.Err != nil) {
							t.Errorf("%s: Check finds column %d %s: %v", what, i, col.State, col.Err)
						}
					}
					m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Deep: true})
					if err != nil || m.Moved() || len(m.Left) > 0 || len(m.Columns) != bits.OnesCount(uint(set)) {
						t.Errorf("%s: Mend = %+v, %v", what, m, err)
					}
					for i, col := range columnsOf(w, p) {
						if !bytes.Equal(col, whole[i]) {
							t.Errorf("%s: column %d is another than the one that was there", what, i)
						}
					}
				}
			}
			mustBeWhole(t, w, p, b, "at the end")
			if m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Deep: true}); err != nil || len(m.Columns)+len(m.Left) > 0 || m.BytesWritten > 0 {
				t.Errorf("Mend of what is whole = %+v, %v", m, err)
			}
		})
	}
}

// TestPromise6MendUsesGoodRowsOfBadColumns: every column is bad, no stripe has more
// than m bad blocks, and Mend is right all the same.
func TestPromise6MendUsesGoodRowsOfBadColumns(t *testing.T) {
	w := newWorld(6, remotetier.Options{})
	b := random(4*65536*12+1000, 1)
	p := mustPut(t, w.Tier, b, layout(4, 2, 65536))
	whole := columnsOf(w, p)
	for c := range 6 {
		col := slices.Clone(whole[c])
		for s := range 12 {
			if s%3 == c%3 {
				col[4096+s*65536+c] ^= 1
			}
		}
		w.mem(p, c).SetColumn(keyOf(p, c), col)
	}
	m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Deep: true})
	if err != nil || len(m.Columns) != 6 || m.Moved() {
		t.Fatalf("Mend = %+v, %v", m, err)
	}
	for i, col := range columnsOf(w, p) {
		if !bytes.Equal(col, whole[i]) {
			t.Errorf("column %d is another than the one that was there", i)
		}
	}
	mustBeWhole(t, w, p, b, "after Mend")
}

// TestPromise6MendMovesAway: good columns are copied, each by itself; those of targets
// that do not answer are rebuilt. Then the old ones go.
func TestPromise6MendMovesAway(t *testing.T) {
	for _, c := range []struct {
		dead int // of the two targets to leave
	}{{0}, {1}, {2}} {
		w := newWorld(8, remotetier.Options{})
		b := random(2_000_000, 1)
		p := mustPut(t, w.Tier, b, layout(4, 2, 65536))
		away := func(string, remotetier.Key) error { return fmt.Errorf("dial: %w", catalog.ErrUnavailable) }
		for i := range c.dead {
			w.mem(p, i).Fault(away)
		}
		read := int64(0)
		for _, m := range w.mems {
			read -= m.BytesRead()
		}
		leave := func(target string) bool { return target == p.Targets[0] || target == p.Targets[1] }
		m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Leave: leave})
		if err != nil || len(m.Columns) != 2 || len(m.Left) > 0 || !m.Moved() {
			t.Fatalf("%d dead: Mend = %+v, %v", c.dead, m, err)
		}
		for _, mem := range w.mems {
			read += mem.BytesRead()
		}
		column := int64(len(w.mem(p, 2).Column(keyOf(p, 2))))
		want := 2 * column // each is copied
		if c.dead > 0 {
			want = 4 * column
		}
		if read > want+20*4096 || m.BytesRead > want+20*4096 || m.BytesWritten != 2*column {
			t.Errorf("%d dead: read %d (says %d), wrote %d; want %d, %d", c.dead, read, m.BytesRead, m.BytesWritten, want, 2*column)
		}
		for i, to := range m.Place.Targets {
			if leave(to) || i > 1 && to != p.Targets[i] || slices.Contains(m.Place.Targets[:i], to) {
				t.Errorf("%d dead: columns are on %v, were on %v", c.dead, m.Place.Targets, p.Targets)
			}
		}
		mustBeWhole(t, w, m.Place, b, "the new place")
		if c.dead == 0 {
			mustBeWhole(t, w, p, b, "the old place") // until the new one is recorded
		}
		err = w.DropReplaced(t.Context(), m)
		if (c.dead > 0) != errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("%d dead: DropReplaced = %v", c.dead, err)
		}
		for i := range 2 {
			if got := w.mem(p, i).Keys(); i >= c.dead && len(got) > 0 {
				t.Errorf("%d dead: %s still has %v", c.dead, p.Targets[i], got)
			}
		}
		mustBeWhole(t, w, m.Place, b, "the new place, alone")
	}
}

func TestMendKeepsDomainsApart(t *testing.T) {
	var infos []remotetier.TargetInfo
	mems := map[string]*targettest.Mem{}
	for _, d := range []string{"a", "b", "c", "d"} {
		for i := range 2 {
			m := targettest.NewMem(fmt.Sprintf("%s%d", d, i))
			mems[m.Name()] = m
			infos = append(infos, remotetier.TargetInfo{Target: m, Domain: d})
		}
	}
	tier := remotetier.New(infos, remotetier.Options{})
	for seed := range byte(20) {
		p, err := tier.Put(t.Context(), fmt.Sprintf("b/%d", seed), sealOf(random(100_000, seed)), layout(2, 1, 65536))
		if err != nil {
			t.Fatal(err)
		}
		leave := p.Targets[int(seed)%3]
		m, err := tier.Mend(t.Context(), p, remotetier.MendOptions{Leave: func(name string) bool { return name == leave }})
		if err != nil || len(m.Columns) != 1 {
			t.Fatalf("Mend = %+v, %v", m, err)
		}
		domains := map[string]bool{}
		for _, name := range m.Place.Targets {
			domains[name[:1]] = true
		}
		if len(domains) != 3 {
			t.Errorf("columns of %v are on %v", p.Targets, m.Place.Targets)
		}
	}
}

// TestPromise6MendRefusesWhatDoesNotFitTogether: columns whose sums are right and
// whose bytes are not those of the blob are not made into more of them.
func TestPromise6MendRefusesWhatDoesNotFitTogether(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	b := random(300_000, 1)
	p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
	col := w.mem(p, 2).Column(keyOf(p, 2))
	col[4096+5] ^= 1
	if err := remotetier.Resum(col); err != nil {
		t.Fatal(err)
	}
	w.mem(p, 2).SetColumn(keyOf(p, 2), col)
	w.mem(p, 0).SetColumn(keyOf(p, 0), nil)
	if m, err := w.Mend(t.Context(), p, remotetier.MendOptions{}); !errors.Is(err, catalog.ErrCorrupt) || w.mem(p, 0).Column(keyOf(p, 0)) != nil {
		t.Errorf("Mend = %+v, %v; want ErrCorrupt and nothing written", m, err)
	}
}

func TestMendSaysWhatCannotBe(t *testing.T) {
	b := random(300_000, 1)
	away := func(string, remotetier.Key) error { return fmt.Errorf("dial: %w", catalog.ErrUnavailable) }
	t.Run("NoTargetLeft", func(t *testing.T) {
		w := newWorld(3, remotetier.Options{})
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		w.mem(p, 0).Fault(away)
		m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Leave: func(name string) bool { return name == p.Targets[0] }})
		if err != nil || len(m.Columns) > 0 || len(m.Left) != 1 || !errors.Is(m.Left[0].Err, catalog.ErrUnavailable) {
			t.Errorf("Mend = %+v, %v; want column 0 left", m, err)
		}
	})
	t.Run("Full", func(t *testing.T) {
		w := newWorld(4, remotetier.Options{})
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		for _, m := range w.mems {
			m.SetTotal(1)
		}
		m, err := w.Mend(t.Context(), p, remotetier.MendOptions{Leave: func(name string) bool { return name == p.Targets[0] }})
		if err != nil || len(m.Left) != 1 || !errors.Is(m.Left[0].Err, catalog.ErrNoSpace) || m.Left[0].State != remotetier.ColumnOK {
			t.Errorf("Mend = %+v, %v; want column 0 left for want of room", m, err)
		}
	})
	t.Run("UnreachableIsLeftAlone", func(t *testing.T) {
		w := newWorld(4, remotetier.Options{})
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		w.mem(p, 0).Fault(away)
		m, err := w.Mend(t.Context(), p, remotetier.MendOptions{})
		if err != nil || len(m.Columns) > 0 || len(m.Left) != 1 || m.Left[0].State != remotetier.ColumnUnreachable {
			t.Errorf("Mend = %+v, %v; want column 0 left alone", m, err)
		}
	})
	t.Run("TooFew", func(t *testing.T) {
		w := newWorld(3, remotetier.Options{})
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		w.mem(p, 0).SetColumn(keyOf(p, 0), nil)
		w.mem(p, 1).Fault(away)
		if m, err := w.Mend(t.Context(), p, remotetier.MendOptions{}); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("Mend with one gone and one away = %+v, %v; want ErrUnavailable", m, err)
		}
		w.mem(p, 1).Fault(nil)
		w.mem(p, 1).SetColumn(keyOf(p, 1), nil)
		if m, err := w.Mend(t.Context(), p, remotetier.MendOptions{}); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("Mend with two gone = %+v, %v; want ErrCorrupt", m, err)
		}
	})
	t.Run("NoPlace", func(t *testing.T) {
		w := newWorld(3, remotetier.Options{})
		if _, err := w.Mend(t.Context(), catalog.Place{Blob: "a", Layout: "x"}, remotetier.MendOptions{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Mend = %v, want ErrInvalid", err)
		}
		if _, err := w.Check(t.Context(), catalog.Place{Blob: "a", Layout: "2+1"}, false); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Check = %v, want ErrInvalid", err)
		}
	})
}

// TestMendTriesOtherTargets: a target that fails while it is written to is
// given up for another one, also the one whose column is bad.
func TestMendTriesOtherTargets(t *testing.T) {
	for _, op := range []string{"create", "write", "commit"} {
		w := newWorld(6, remotetier.Options{})
		b := random(500_000, 1)
		p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
		w.mem(p, 0).SetColumn(keyOf(p, 0), nil)
		var mu sync.Mutex
		var failed []string
		for _, m := range w.mems {
			m.Fault(func(o string, _ remotetier.Key) error {
				mu.Lock()
				defer mu.Unlock()
				if o == op && (len(failed) < 2 || slices.Contains(failed, m.Name())) {
					if !slices.Contains(failed, m.Name()) {
						failed = append(failed, m.Name())
					}
					return errDisk
				}
				return nil
			})
		}
		m, err := w.Mend(t.Context(), p, remotetier.MendOptions{})
		if err != nil || len(m.Columns) != 1 || len(m.Left) > 0 || len(failed) != 2 || failed[0] != p.Targets[0] || slices.Contains(failed, m.Place.Targets[0]) {
			t.Errorf("%s: Mend = %+v, %v with %v failed", op, m, err, failed)
		}
		mustBeWhole(t, w, m.Place, b, op)
	}
}
