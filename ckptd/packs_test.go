package ckptd

import (
	"reflect"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Every node alone comes to the same fetcher, and no two wait for each other.
func TestPackPlan(t *testing.T) {
	nodes := []string{"n1", "n2", "n3"}
	const key = "_packs/d@7#1"
	ranked := packs.Rank(key, nodes)
	first, second, third := ranked[0], ranked[1], ranked[2]
	remote := packStep{}
	for _, c := range []struct {
		name string
		plan packPlan
		want []packStep
	}{
		{"the fetcher asks who has it, then remote", packPlan{self: first, live: nodes}, []packStep{{node: second, fetch: false}, {node: third, fetch: false}, remote}},
		{"the next asks the fetcher", packPlan{self: second, live: nodes}, []packStep{{node: first, fetch: true}, {node: third, fetch: false}, remote}},
		{"the last asks in order", packPlan{self: third, live: nodes}, []packStep{{node: first, fetch: true}, {node: second, fetch: true}, remote}},
		{"the fetcher is down", packPlan{self: second, live: []string{second, third}}, []packStep{{node: third, fetch: false}, remote}},
		{"first hand asks nobody to fetch", packPlan{self: third, live: nodes, firstHand: true}, []packStep{{node: first, fetch: false}, {node: second, fetch: false}, remote}},
		{"who wrote it comes first", packPlan{self: third, live: nodes, holders: []string{second}}, []packStep{{node: second, fetch: true, wrote: true}, {node: first, fetch: true}, remote}},
		{"who wrote it, and comes after", packPlan{self: first, live: nodes, holders: []string{third}}, []packStep{{node: third, wrote: true}, {node: second}, remote}},
		{"alone", packPlan{self: "n9"}, []packStep{remote}},
	} {
		c.plan.key = key
		if got := c.plan.order(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestReaderNext(t *testing.T) {
	const n, perPack = 1000, 100
	r := &reader{world: 4, rank: 1, at: 10, order: wire.Order{Seed: 3}}
	for i := range n / perPack {
		r.firsts, r.packs = append(r.firsts, int64(i*perPack)), append(r.packs, i)
	}
	for _, mode := range []order.Mode{order.Global, order.Window(perPack, 2)} {
		r.mode = mode
		got, err := r.next(catalog.Digest{1}, n, 2*n)
		if err != nil {
			t.Fatal(err)
		}
		// The reference: every position of both epochs, one after the other.
		want := map[int]int64{}
		for epoch := range uint64(2) {
			o, err := order.New(n, order.NewKey(catalog.Digest{1}, 3, epoch), mode)
			if err != nil {
				t.Fatal(err)
			}
			for p := range int64(n) {
				pos := int64(epoch)*n + p
				pack := int(o.At(p) / perPack)
				if _, ok := want[pack]; !ok && pos >= r.at && pos%4 == 1 {
					want[pack] = pos - r.at
				}
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v, want %v", mode, got, want)
		}
	}
	// With a short lookahead what is near is exact, and the rest is an estimate.
	r.mode = order.Window(perPack, 2)
	got, err := r.next(catalog.Digest{1}, n, 50)
	if err != nil || len(got) != n/perPack {
		t.Errorf("%d packs, %v; want all %d", len(got), err, n/perPack)
	}
}

func TestPlanNeeds(t *testing.T) {
	pack := func(i int64) restore.ShardRef {
		return restore.ShardRef{Set: catalog.SetID{Run: "_packs/d", Step: i, Attempt: 1}}
	}
	got := planNeeds([][]need{
		{{pack(1), 50, true}, {pack(2), 10, true}},
		{{pack(1), 5, true}, {pack(3), 7, false}},
	})
	want := []need{{pack(1), 5, true}, {pack(3), 7, false}, {pack(2), 10, true}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
