package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/remotetier/stripe"
)

// TestFormatIsWhatItSays: the columns that a Put leaves on its targets are what
// FORMAT.md says, read by a reader that knows nothing else; and that reader
// sees every flipped byte.
func TestFormatIsWhatItSays(t *testing.T) {
	targets, tier := targetCluster(t, 10)
	dirs := map[string]string{}
	for _, p := range targets {
		dirs[p.name] = p.dir
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	want := map[string][]byte{}
	for i, c := range []struct {
		l    stripe.Layout
		size int
	}{
		{stripe.Layout{K: 4, M: 2, Unit: 65536}, 5_000_000}, {stripe.Layout{K: 4, M: 2, Unit: 65536}, 4 * 65536 * 3}, {stripe.Layout{K: 4, M: 2, Unit: 65536}, 1},
		{stripe.Layout{K: 3, M: 1, Unit: 128 << 10}, 1_234_567}, {stripe.Layout{K: 1, M: 2, Unit: 65536}, 300_001}, {stripe.Layout{K: 8, M: 2, Unit: 65536}, 3_000_000},
		{stripe.Layout{K: 2, M: 3, Unit: 65536}, 0}, {stripe.Layout{K: 5, M: 5, Unit: 65536}, 999_999}, {stripe.Layout{K: 2, M: 0, Unit: 65536}, 200_000},
		{stripe.Layout{K: 1, M: 1, Unit: 65536}, 70 << 20}, // two pages of sums
	} {
		name := "run/" + strconv.Itoa(i)
		want[name] = targetBytes(c.size, byte(i))
		if _, err := tier.Put(t.Context(), name, bytes.NewReader(want[name]), c.l); err != nil {
			t.Fatal(err)
		}
	}
	found, err := findFormat(dirs)
	if err != nil {
		t.Error(err)
	}
	for name, b := range want {
		if len(found[name]) == 0 {
			t.Errorf("%s has no columns", name)
			continue
		}
		if got, err := joinFormat(found[name], rnd); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: equal = %v, %v", name, bytes.Equal(got, b), err)
		}
	}
	if len(found) != len(want) {
		t.Errorf("%d blobs are there, want %d", len(found), len(want))
	}
	victim := found["run/3"][0]
	good, err := os.ReadFile(victim.path)
	if err != nil {
		t.Fatal(err)
	}
	_, rel, _ := strings.Cut(victim.path, "/columns/")
	for range 60 {
		bad := bytes.Clone(good)
		at := rnd.IntN(len(bad))
		bad[at] ^= 1 << rnd.IntN(8)
		if err := os.WriteFile(victim.path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readFormat(victim.path, rel); err == nil {
			t.Errorf("byte %d of %d flipped, and nothing is seen", at, len(bad))
		}
	}
}
