package main

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestReadersSayTheirSettings: what a reader asks for holds for it alone, the
// rest is the node's, also when that changes, and the status tells.
func TestReadersSayTheirSettings(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1", "--remote", "none").start()
	c := d.dial()
	src, files := imageTree(t, rand.New(rand.NewPCG(8, 9)))
	if _, err := importTree(t.Context(), d.socket, src, "pets"); err != nil {
		t.Fatal(err)
	}
	v, err := c.OpenDataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	begin := func(opt ckpt.EpochOptions) error {
		e, err := v.Epoch(t.Context(), opt)
		if err == nil {
			_, err = e.Take(t.Context(), 1)
		}
		return err
	}
	if err := errors.Join(begin(ckpt.EpochOptions{Rank: 0, World: 2, Ahead: 2, Lookahead: 99, Retries: 5}), begin(ckpt.EpochOptions{Rank: 1, World: 2})); err != nil {
		t.Fatal(err)
	}
	node, err := c.DatasetSettings(t.Context(), wire.DatasetSettings{Ahead: 9, Retries: 8})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Status(t.Context())
	if err != nil || len(s.Cache.Reading) != 2 || s.Cache.Readers != 2 {
		t.Fatalf("%+v, %v; want two readers", s.Cache, err)
	}
	for _, r := range s.Cache.Reading {
		want := wire.Reader{ID: r.ID, Set: r.Set, Rank: 0, World: 2, At: r.At, Ahead: 2, Lookahead: 99, Retries: 5}
		if r.Rank == 1 {
			want.Rank, want.Ahead, want.Lookahead, want.Retries = 1, 9, node.Lookahead, 8
		}
		if r != want || r.At > int64(len(files)) {
			t.Errorf("reader %+v, want %+v", r, want)
		}
	}
	if err := begin(ckpt.EpochOptions{Retries: 101}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("101 retries: %v, want ErrInvalid", err)
	}
}
