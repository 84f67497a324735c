package targettest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// column is a column as the Tier writes it: what other tests write has no
// header, and a target may keep it differently.
type column struct {
	key   remotetier.Key
	bytes []byte
}

// columns gives the columns of a blob of so many bytes.
func columns(t *testing.T, blob string, gen uint64, size int, l stripe.Layout) (all []column) {
	t.Helper()
	mems := map[string]*Mem{}
	var infos []remotetier.TargetInfo
	for i := range l.Columns() {
		m := NewMem(fmt.Sprintf("m%d", i))
		mems[m.Name()] = m
		infos = append(infos, remotetier.TargetInfo{Target: m})
	}
	tier := remotetier.New(infos, remotetier.Options{Generation: func() uint64 { return gen }})
	p, err := tier.Put(t.Context(), blob, bytes.NewReader(pages(size/4096+1, gen)[:size]), l)
	if err != nil {
		t.Fatal(err)
	}
	for c, name := range p.Targets {
		k := remotetier.Key{Blob: blob, Generation: p.Generation, Column: c}
		b := mems[name].Column(k)
		all = append(all, column{k, append(pages(len(b)/4096, 0)[:0], b...)}) // page-aligned
	}
	return all
}

// testColumns writes columns of one blob, of one and of more data units, that
// share a target: two of one generation, and two generations.
func testColumns(t *testing.T, tg remotetier.Target) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for i, size := range []int{0, 1, 4096, 70_000, 300_000} {
		blob := fmt.Sprintf("run/%d/rank-00000.safetensors", i)
		all := append(columns(t, blob, 5, size, stripe.Layout{K: 1, M: 1, Unit: 65536}), columns(t, blob, 6, size/2, stripe.Layout{K: 1, Unit: 65536})...)
		all = append(all, columns(t, blob, 4, size, stripe.Layout{K: 2, Unit: 65536})[1])
		var keys []remotetier.Key
		for _, c := range all {
			put(t, tg, c.key, c.bytes)
			keys = append(keys, c.key)
		}
		slices.SortFunc(keys, remotetier.Key.Compare)
		if got := list(t, tg, blob); !slices.Equal(got, keys) {
			t.Errorf("List = %v, want %v", got, keys)
		}
		for _, c := range all {
			sameColumn(t, tg, c, rnd)
		}
		rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for len(all) > 0 {
			if err := tg.Remove(t.Context(), all[0].key); err != nil {
				t.Fatal(err)
			}
			if get(t, tg, all[0].key) != nil {
				t.Errorf("%v is there, and was removed", all[0].key)
			}
			all = all[1:]
			for _, c := range all {
				sameColumn(t, tg, c, rnd)
			}
		}
	}
	if got := list(t, tg, ""); len(got) != 0 {
		t.Errorf("List = %v, want nothing", got)
	}
}

// sameColumn reads all of a column, and parts of it.
func sameColumn(t *testing.T, tg remotetier.Target, want column, rnd *rand.Rand) {
	t.Helper()
	if !bytes.Equal(get(t, tg, want.key), want.bytes) {
		t.Fatalf("%v: the bytes differ", want.key)
	}
	r, err := tg.Open(t.Context(), want.key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := len(want.bytes)
	for range 10 {
		lo := rnd.IntN(n)
		p := pages(n/4096, 0)[:1+rnd.IntN(n-lo)]
		if rnd.IntN(2) == 0 { // as fast as can be
			lo &^= 4095
			p = p[:(len(p)+4095)&^4095]
			p = p[:min(len(p), n-lo)]
		}
		if got, err := r.ReadAt(t.Context(), p, int64(lo)); got != len(p) || err != nil && err != io.EOF || !bytes.Equal(p, want.bytes[lo:lo+len(p)]) {
			t.Fatalf("%v: ReadAt of %d at %d = %d, %v", want.key, len(p), lo, got, err)
		}
	}
}

// testReplaceColumn replaces a column by what it was, as a repair does.
func testReplaceColumn(t *testing.T, tg remotetier.Target) {
	rnd := rand.New(rand.NewPCG(5, 6))
	first, second := columns(t, "a/b", 1, 100_000, stripe.Layout{K: 1, Unit: 65536})[0], columns(t, "a/c", 2, 5000, stripe.Layout{K: 1, Unit: 65536})[0]
	put(t, tg, first.key, first.bytes)
	put(t, tg, second.key, second.bytes)
	for range 3 {
		w, err := tg.Create(t.Context(), first.key, int64(len(first.bytes)), remotetier.CreateReplace)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(t.Context(), first.bytes); err != nil {
			t.Fatal(err)
		}
		sameColumn(t, tg, first, rnd)
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		sameColumn(t, tg, first, rnd)
		sameColumn(t, tg, second, rnd)
	}
	if got, want := list(t, tg, "a"), []remotetier.Key{first.key, second.key}; !slices.Equal(got, want) {
		t.Errorf("List = %v, want %v", got, want)
	}
}
