package remotetier_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// harms are the ways a column can be bad. Each is given what a sister
// generation of the same blob, with other bytes, has in that place.
var harms = []struct {
	name string
	do   func(col, foreign []byte, r *rand.Rand) []byte
}{
	{"Missing", func(col, foreign []byte, r *rand.Rand) []byte { return nil }},
	{"Foreign", func(col, foreign []byte, r *rand.Rand) []byte { return foreign }},
	{"Cut", func(col, foreign []byte, r *rand.Rand) []byte { return col[:r.IntN(len(col))+1-1] }},
	{"FlippedBits", func(col, foreign []byte, r *rand.Rand) []byte {
		for range 1 + len(col)/40000 {
			col[r.IntN(len(col))] ^= 1 << r.IntN(8)
		}
		return col
	}},
	{"EveryBlockBad", func(col, foreign []byte, r *rand.Rand) []byte {
		for i := 4096; i < len(col); i += 30000 {
			col[i] ^= 0x80
		}
		return col
	}},
	{"ForeignData", func(col, foreign []byte, r *rand.Rand) []byte { // the old bytes under the new header
		return append(col[:4096], foreign[4096:]...)
	}},
}

// TestPromise3UpToMColumnsBad harms every subset of at most m columns, in
// every way, and reads random ranges.
func TestPromise3UpToMColumnsBad(t *testing.T) {
	for _, c := range []struct {
		l    stripe.Layout
		size int
	}{
		{layout(2, 1, 65536), 500_001}, {layout(4, 2, 65536), 1_400_000}, {layout(1, 2, 65536), 200_000}, {layout(3, 2, 131072), 131072*3*2 + 5}, {layout(5, 3, 65536), 70_000},
	} {
		t.Run(c.l.String(), func(t *testing.T) {
			w := newWorld(c.l.Columns(), remotetier.Options{})
			b := random(c.size, 1)
			seed := uint64(c.size)
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			foreign := mustPut(t, w.Tier, random(c.size, 2), c.l)
			p := mustPut(t, w.Tier, b, c.l)
			whole := make([][]byte, c.l.Columns())
			for i := range whole {
				whole[i] = w.mem(p, i).Column(keyOf(p, i))
			}
			for set := range 1 << c.l.Columns() {
				if n := bits.OnesCount(uint(set)); n == 0 || n > c.l.M {
					continue
				}
				for _, h := range harms {
					for i, col := range whole {
						if set>>i&1 != 0 {
							col = h.do(slices.Clone(col), w.mem(foreign, i).Column(keyOf(foreign, i)), r)
						}
						w.mem(p, i).SetColumn(keyOf(p, i), col)
					}
					checkRanges(t, w, p, b, r, fmt.Sprintf("%s %b", h.name, set))
				}
			}
		})
	}
}

// checkRanges reads ranges, small and large, and the whole.
func checkRanges(t *testing.T, w *world, p catalog.Place, b []byte, r *rand.Rand, what string) {
	t.Helper()
	rd, err := w.Open(t.Context(), p)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer rd.Close()
	buf := make([]byte, len(b))
	for i := range 6 {
		lo := r.IntN(len(b))
		hi := lo + 1 + r.IntN(min(len(b)-lo, 1000+i*i*40_000))
		if i == 5 {
			lo, hi = 0, len(b)
		}
		got := buf[:hi-lo]
		clear(got)
		if _, err := rd.ReadAtContext(t.Context(), got, int64(lo)); err != nil || !bytes.Equal(got, b[lo:hi]) {
			t.Errorf("%s: [%d, %d): equal=%v, %v", what, lo, hi, bytes.Equal(got, b[lo:hi]), err)
		}
	}
}

// TestPromise3TooManyColumnsBad: with more than m bad columns a read gives
// ErrCorrupt or the right bytes (of stripes that were not hit), never others.
func TestPromise3TooManyColumnsBad(t *testing.T) {
	for _, l := range []stripe.Layout{layout(2, 1, 65536), layout(4, 2, 65536), layout(1, 1, 65536)} {
		w := newWorld(l.Columns(), remotetier.Options{})
		b := random(900_000, 1)
		r := rand.New(rand.NewPCG(1, uint64(l.K)))
		foreign := mustPut(t, w.Tier, random(len(b), 2), l)
		p := mustPut(t, w.Tier, b, l)
		whole := make([][]byte, l.Columns())
		for i := range whole {
			whole[i] = w.mem(p, i).Column(keyOf(p, i))
		}
		refused := 0
		for set := range 1 << l.Columns() {
			if bits.OnesCount(uint(set)) <= l.M {
				continue
			}
			for _, h := range harms {
				if h.name == "Missing" && bits.OnesCount(uint(set)) == l.Columns() {
					continue // that is fs.ErrNotExist
				}
				for i, col := range whole {
					if set>>i&1 != 0 {
						col = h.do(slices.Clone(col), w.mem(foreign, i).Column(keyOf(foreign, i)), r)
					}
					w.mem(p, i).SetColumn(keyOf(p, i), col)
				}
				got, _, err := readAll(t, w.Tier, p)
				switch {
				case err == nil && !bytes.Equal(got, b):
					t.Errorf("%v %s %b: wrong bytes", l, h.name, set)
				case err != nil && !errors.Is(err, catalog.ErrCorrupt):
					t.Errorf("%v %s %b: %v, want ErrCorrupt", l, h.name, set, err)
				case err == nil && h.name != "FlippedBits":
					t.Errorf("%v %s %b: was read", l, h.name, set)
				case err != nil:
					refused++
				}
				if err := w.Verify(t.Context(), p); !errors.Is(err, catalog.ErrCorrupt) {
					t.Errorf("%v %s %b: Verify = %v, want ErrCorrupt", l, h.name, set, err)
				}
			}
		}
		t.Logf("%v: %d reads refused", l, refused)
	}
}

// TestPromise3DifferentColumnsBadInDifferentStripes: every column has a bad
// block, no stripe has more than m; the blob is whole all the same.
func TestPromise3DifferentColumnsBadInDifferentStripes(t *testing.T) {
	l := layout(4, 2, 65536)
	w := newWorld(6, remotetier.Options{})
	b := random(4*65536*12, 1)
	p := mustPut(t, w.Tier, b, l)
	for c := range 6 {
		col := w.mem(p, c).Column(keyOf(p, c))
		for s := range 12 {
			if s%3 == c%3 {
				col[4096+s*65536+c] ^= 1
			}
		}
		w.mem(p, c).SetColumn(keyOf(p, c), col)
	}
	got, rep, err := readAll(t, w.Tier, p)
	if err != nil || !bytes.Equal(got, b) || !rep.Degraded || len(rep.Corrupt) < 4 || len(rep.Missing) != 0 {
		t.Errorf("equal=%v, %+v, %v", bytes.Equal(got, b), rep, err)
	}
}

func TestReportSaysWhatWasWrong(t *testing.T) {
	w := newWorld(6, remotetier.Options{})
	b := random(600_000, 1)
	p := mustPut(t, w.Tier, b, layout(4, 2, 65536))
	w.mem(p, 1).SetColumn(keyOf(p, 1), nil)
	col := w.mem(p, 2).Column(keyOf(p, 2))
	col[5000] ^= 1
	w.mem(p, 2).SetColumn(keyOf(p, 2), col)
	_, rep, err := readAll(t, w.Tier, p)
	if err != nil || !rep.Degraded || !slices.Equal(rep.Missing, p.Targets[1:2]) || !slices.Equal(rep.Corrupt, p.Targets[2:3]) {
		t.Errorf("Report = %+v, %v", rep, err)
	}
	var ve *remotetier.VerifyError
	if err := w.Verify(t.Context(), p); !errors.As(err, &ve) || len(ve.Bad) != 2 || ve.Bad[1] == nil || ve.Bad[2] == nil {
		t.Errorf("Verify = %v, want columns 1 and 2", err)
	}
}

// TestUnreachableIsNotCorrupt: the class tells whether trying again may help.
func TestUnreachableIsNotCorrupt(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	b := random(300_000, 1)
	p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
	away := func(string, remotetier.Key) error { return fmt.Errorf("dial: %w", catalog.ErrUnavailable) }
	w.mem(p, 0).Fault(away)
	if got, rep, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) || !slices.Equal(rep.Missing, p.Targets[:1]) {
		t.Errorf("with one target away: %+v, %v", rep, err)
	}
	if err := w.Verify(t.Context(), p); !errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Verify with one target away = %v, want ErrUnavailable alone", err)
	}
	w.mem(p, 1).Fault(away)
	if _, err := w.Open(t.Context(), p); !errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Open with two targets away = %v, want ErrUnavailable alone", err)
	}
	w.mem(p, 1).Fault(nil)
	w.mem(p, 1).SetColumn(keyOf(p, 1), nil)
	if _, err := w.Open(t.Context(), p); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Open with one away and one gone = %v, want ErrUnavailable", err)
	}
	w.mem(p, 2).SetColumn(keyOf(p, 2), nil)
	if _, err := w.Open(t.Context(), p); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Open with two gone for good = %v, want ErrCorrupt", err)
	}
}

// TestTargetDiesWhileRead: columns that fail after they were opened.
func TestTargetDiesWhileRead(t *testing.T) {
	w := newWorld(6, remotetier.Options{})
	b := random(4*65536*40, 1)
	p := mustPut(t, w.Tier, b, layout(4, 2, 65536))
	r, err := w.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(b))
	for n := 1; n <= 3; n++ {
		w.mem(p, n).Fault(func(string, remotetier.Key) error { return errors.New("EIO") })
		clear(got)
		_, err := r.ReadAt(got, 0)
		switch {
		case n <= 2 && (err != nil || !bytes.Equal(got, b)):
			t.Errorf("with %d targets dead: %v", n, err)
		case n == 3 && err == nil:
			t.Error("with 3 targets dead the read succeeded")
		}
	}
	for _, m := range w.mems {
		m.Fault(nil)
	}
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
		t.Errorf("with all targets back: %v", err)
	}
}
