package remotetier_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// mendStories are what a Mend may have to do: columns that are bad, and
// targets to leave, by column.
var mendStories = []struct {
	name  string
	harm  []int // column flipped
	gone  []int // column not there
	leave []int
	dead  []int // target does not answer, and is to be left
}{
	{name: "InPlace", harm: []int{1}, gone: []int{4}},
	{name: "Drain", leave: []int{0, 5}},
	{name: "Lost", dead: []int{2, 3}},
	{name: "Both", harm: []int{3}, leave: []int{0}},
	{name: "HarmedOneLeaves", harm: []int{1}, leave: []int{1}},
}

// TestPromise6MendEveryOperationFails: the n-th operation on any target fails, alone
// or with all that follow, which is what a crash of the mender looks like. The
// place that is recorded then has at no time fewer good columns than before,
// and mending again ends with a whole blob and nothing left over.
func TestPromise6MendEveryOperationFails(t *testing.T) {
	b := random(300_000, 1)
	for _, s := range mendStories {
		for _, crash := range []bool{false, true} {
			for n := int64(1); ; n++ {
				w := newWorld(8, remotetier.Options{})
				recorded := mustPut(t, w.Tier, b, layout(4, 2, 65536))
				was := recorded
				for _, c := range s.harm {
					col := w.mem(was, c).Column(keyOf(was, c))
					col[5000] ^= 1
					w.mem(was, c).SetColumn(keyOf(was, c), col)
				}
				for _, c := range s.gone {
					w.mem(was, c).SetColumn(keyOf(was, c), nil)
				}
				dead := func(name string) bool {
					return slices.ContainsFunc(s.dead, func(c int) bool { return was.Targets[c] == name })
				}
				opt := remotetier.MendOptions{Deep: true, Leave: func(name string) bool {
					return dead(name) || slices.ContainsFunc(s.leave, func(c int) bool { return was.Targets[c] == name })
				}}
				var ops atomic.Int64
				fault := func(at int64) {
					ops.Store(0)
					for _, m := range w.mems {
						m.Fault(func(string, remotetier.Key) error {
							if dead(m.Name()) {
								return fmt.Errorf("dial: %w", catalog.ErrUnavailable)
							}
							if i := ops.Add(1); at > 0 && (i == at || crash && i > at) {
								return errDisk
							}
							return nil
						})
					}
				}
				fault(0)
				before, err := w.Check(t.Context(), recorded, true)
				if err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("%s, operation %d, crash %v", s.name, n, crash)
				step := func() error {
					m, err := w.Mend(t.Context(), recorded, opt)
					if err != nil || !m.Moved() {
						return err
					}
					recorded = m.Place
					return w.DropReplaced(t.Context(), m)
				}
				fault(n)
				_ = step()
				hit := ops.Load() >= n
				fault(0)
				after, err := w.Check(t.Context(), recorded, true)
				if err != nil || after.Spare < before.Spare {
					t.Errorf("%s: %d columns to spare, %d before: %v", what, after.Spare, before.Spare, err)
				}
				if got, _, err := readAll(t, w.Tier, recorded); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s: equal=%v, %v", what, bytes.Equal(got, b), err)
				}
				_ = step() // the dead ones cannot be told to drop theirs
				mustBeWhole(t, w, recorded, b, what)
				for _, m := range w.mems {
					for _, k := range m.Keys() {
						if recorded.Targets[k.Column] != m.Name() && !opt.Leave(m.Name()) {
							t.Errorf("%s: %v is left over on %s", what, k, m.Name())
						}
					}
				}
				if t.Failed() {
					return
				}
				if !hit {
					t.Logf("%s, crash %v: %d operations failed in turn", s.name, crash, n-1)
					break
				}
			}
		}
	}
}
