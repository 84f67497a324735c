package localtier

import (
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// TestRandomLivesAndPowerLoss lets several writers do random things at once,
// each to its own blobs of shared folders, loses power at a random operation,
// boots with a random part of what was not synced, and goes on from there,
// several times over. The seed of a failure is in its message.
func TestRandomLivesAndPowerLoss(t *testing.T) {
	for seed := range int64(60) {
		r := rand.New(rand.NewSource(seed))
		mem := vfstest.New(vfstest.Options{NoDirect: seed%4 == 0})
		world := model{}
		for life := range 5 {
			where := fmt.Sprintf("seed %d, life %d", seed, life)
			tier, err := openMem(mem)
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			world.check(t, tier, where)
			// What was seen once is what stays: settle every blob's state.
			for name := range world {
				if b, err := tier.Get(t.Context(), name); err == nil {
					world[name] = [][]byte{append([]byte{}, b...)}
				} else {
					world[name] = [][]byte{nil}
				}
			}
			mem.LosePowerAt(mem.Ops() + 1 + r.Intn(250))
			parts := make([]model, 3)
			var wg sync.WaitGroup
			for g := range parts {
				mine, r := model{}, rand.New(rand.NewSource(r.Int63()))
				for name, states := range world {
					if name[len(name)-1] == byte('0'+g) {
						mine[name] = states
					}
				}
				parts[g] = mine
				wg.Go(func() { randomLife(t, tier, mine, g, r) })
			}
			wg.Wait()
			for _, part := range parts {
				maps.Copy(world, part)
			}
			mem.LosePower()
			mem = mem.Crash(vfstest.Torn, r)
		}
	}
}

// randomLife changes the blobs whose names end in the writer's number until something fails.
func randomLife(t *testing.T, tier *Tier, m model, writer int, r *rand.Rand) {
	ctx := t.Context()
	for range 60 {
		name := fmt.Sprintf("run/%c/blob-%c%d", 'x'+rune(r.Intn(2)), 'a'+rune(r.Intn(3)), writer)
		small := name[len(name)-2] == 'a'
		b := pattern(r.Int63(), r.Intn(9000))
		there := slices.ContainsFunc(m[name], func(b []byte) bool { return b != nil })
		var err error
		switch {
		case small && r.Intn(4) > 0:
			err = m.change(name, b, func() error { return tier.Put(ctx, name, b) })
		case !there:
			err = m.change(name, b, func() error { return ingest(ctx, tier, name, b) })
		case r.Intn(3) == 0:
			err = m.change(name, nil, func() error { return tier.Quarantine(ctx, name, catalog.ErrCorrupt) })
		default:
			err = m.change(name, nil, func() error { return tier.Remove(ctx, name) })
		}
		if errors.Is(err, vfstest.ErrPower) {
			return
		}
		if err != nil {
			t.Errorf("writer %d, %s: %v", writer, name, err)
			return
		}
	}
}
