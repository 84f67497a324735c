package order

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestMeasure(t *testing.T) {
	const n, slice, batch = 50_000, 500, 256
	mix := Mix{Batch: batch, Slice: slice}
	r := rand.New(rand.NewPCG(1, 1))
	of := func(p []int64) Quality { return Measure(n, func(i int64) int64 { return p[i] }, mix) }

	files := Measure(n, func(i int64) int64 { return i }, mix)
	if files.Displacement != 0 || files.Adjacent != 1 || files.Slices > 2 {
		t.Errorf("unshuffled: %+v", files)
	}
	random, buffered := of(Random(n, r)), of(Buffered(n, 1000, r))
	global, window := Measure(n, mustNew(t, n, 1, Global).At, mix), Measure(n, mustNew(t, n, 1, Window(slice, 16)).At, mix)
	for name, q := range map[string]Quality{"random": random, "global": global} {
		if math.Abs(q.Displacement-1.0/3) > 0.01 || q.Adjacent > 0.001 || math.Abs(q.Mixing-1) > 0.02 {
			t.Errorf("%s: %+v, want 1/3, next to nothing, 1", name, q)
		}
	}
	if window.Displacement < 0.25 || window.Adjacent > 0.002 || window.Slices < 15 {
		t.Errorf("window of 16 slices: %+v", window)
	}
	if buffered.Displacement > 0.03 || buffered.Slices > window.Slices {
		t.Errorf("a buffer of 1000: %+v; the window has %+v", buffered, window)
	}
	few := Measure(n, mustNew(t, n, 1, Global).At, Mix{Batch: batch, Slice: slice, Most: 10})
	if few.Measured != 10*batch {
		t.Errorf("%d positions were looked at, want %d", few.Measured, 10*batch)
	}
}

func TestBufferedIsAPermutation(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range [][2]int64{{0, 1}, {1, 1}, {10, 1}, {10, 3}, {10, 10}, {10, 100}} {
		seen := make([]bool, c[0])
		for _, s := range Buffered(c[0], c[1], r) {
			seen[s] = true
		}
		for i, ok := range seen {
			if !ok {
				t.Errorf("n=%d, a buffer of %d: sample %d is missing", c[0], c[1], i)
			}
		}
	}
}
