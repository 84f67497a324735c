package ckptd

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

func TestPlanAhead(t *testing.T) {
	pack := func(i int64) restore.ShardRef {
		return restore.ShardRef{Set: catalog.SetID{Run: "_packs/d", Step: i, Attempt: 1}}
	}
	plan := []need{{pack(1), 0, true}, {pack(2), 5, true}, {pack(3), 7, true}, {pack(4), 9, true}, {pack(5), 90, false}}
	for _, c := range []struct {
		ahead int
		here  []int64
		want  []restore.ShardRef
	}{
		{0, nil, nil},
		{1, nil, []restore.ShardRef{pack(1)}},
		{2, []int64{1, 3}, []restore.ShardRef{pack(2), pack(4)}},
		{64, nil, []restore.ShardRef{pack(1), pack(2), pack(3), pack(4)}},
		{64, []int64{1, 2, 3, 4}, nil},
	} {
		got := planAhead(plan, c.ahead, func(id catalog.SetID) bool { return slices.Contains(c.here, id.Step) })
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%d ahead, with %v here: %v, want %v", c.ahead, c.here, got, c.want)
		}
	}
}

// full is a source that has every pack.
type full struct{ b []byte }

func (m full) Name() string                                { return "remote" }
func (m full) Kind() packs.Kind                            { return packs.Remote }
func (m full) Whole() bool                                 { return true }
func (m full) Seal(context.Context) (*catalog.Seal, error) { return nil, nil }
func (m full) ReadBlocks(_ context.Context, p []byte, off int64) error {
	copy(p, m.b[off:])
	return nil
}

// Promise 5 of the cache: two epochs of a shuffled order over more packs than
// it holds. By next use it finds nearly as much as is possible, and by last use
// what a cache finds that knows no order.
func TestPromise5NextUseBeatsLRU(t *testing.T) {
	const all, room, per, batch = 16, 5, 20, 4 // packs, packs, samples of a pack, samples
	const n, size, seed = all * per, 64 << 10, 7
	body := make([]byte, size)
	root := (&catalog.Seal{Size: size, CRCs: []uint32{catalog.Sum32C(body)}}).Root()
	r := &reader{world: 1, order: wire.Order{Seed: seed}}
	var refs []restore.ShardRef
	for i := range int64(all) {
		r.firsts, r.packs = append(r.firsts, i*per), append(r.packs, int(i))
		refs = append(refs, restore.ShardRef{Set: catalog.SetID{Run: "_packs/d", Step: i, Attempt: 1}, Size: size, Root: root})
	}
	var uses []int // the pack of each sample, of both epochs
	for epoch := range uint64(2) {
		o, err := order.New(n, order.NewKey(catalog.Digest{1}, seed, epoch), r.mode)
		if err != nil {
			t.Fatal(err)
		}
		for at := range int64(n) {
			uses = append(uses, r.packOf(o.At(at)))
		}
	}
	hits := func(policy string) int {
		tier, err := localtier.Open(vfstest.New(vfstest.Options{}), localtier.Options{Dirs: []string{"/d"}, Quota: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		defer tier.Close()
		c := packs.New(packs.Options{Local: tier, Quota: room * size, Policy: policy,
			Sources: func(context.Context, restore.ShardRef, bool) ([]packs.Source, func(), error) {
				return []packs.Source{full{body}}, func() {}, nil
			}})
		defer c.Close()
		for at, pack := range uses {
			if at%batch == 0 { // as often as a reader says where it is
				r.order.Epoch, r.at = uint64(at/n), int64(at%n)
				when, err := r.next(catalog.Digest{1}, n, 2*n)
				if err != nil {
					t.Fatal(err)
				}
				next := map[catalog.SetID]int64{}
				for p, in := range when {
					next[refs[p].Set] = in
				}
				c.SetNext(next)
			}
			if err := read(t.Context(), c, refs[pack]); err != nil {
				t.Fatal(err)
			}
		}
		s := c.Stats()
		if s.Used > room*size || s.Streamed != 0 {
			t.Errorf("by %s: %+v", policy, s)
		}
		return int(s.Hits)
	}
	next, last := hits(packs.ByNext), hits(packs.ByLRU)
	bestLast, best := simulated(uses, room, false), simulated(uses, room, true)
	share := func(h int) string { return fmt.Sprintf("%.3f", float64(h)/float64(len(uses))) }
	t.Logf("share of hits: by next use %s, the optimum %s; by last use %s, simulated %s", share(next), share(best), share(last), share(bestLast))
	if next < best*8/10 || next > best || next < last*5/4 {
		t.Errorf("by next use %d hits, of %d that are possible, and %d by last use", next, best, last)
	}
	if off := last - bestLast; off < -10 || off > 10 { // an arrival holds its copy for a moment longer
		t.Errorf("by last use %d hits, want about %d", last, bestLast)
	}
}

func read(ctx context.Context, c *packs.Cache, ref restore.ShardRef) error {
	h, err := c.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.ReadAt(ctx, make([]byte, 100), 0); err != nil {
		return err
	}
	return h.Wait(ctx)
}

// simulated counts the hits of a cache that puts out what was used longest ago,
// or, as Belady showed to be best, what is used last.
func simulated(uses []int, room int, belady bool) (hits int) {
	worth := map[int]int{} // what is here: its last use, or how soon its next is
	for at, pack := range uses {
		_, here := worth[pack]
		if here {
			hits++
		} else if len(worth) == room {
			out := slices.MinFunc(slices.Collect(maps.Keys(worth)), func(a, b int) int { return worth[a] - worth[b] })
			delete(worth, out)
		}
		worth[pack] = at
		if belady {
			next := slices.Index(uses[at+1:], pack)
			if next < 0 {
				next = len(uses)
			}
			worth[pack] = -(at + 1 + next)
		}
	}
	return hits
}
