package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestStoryMountAhead: a node that has nothing of a version reads it in order
// through a mount: the next packs are there before they are asked for, as many
// as the mount's setting says, which is changed while it is there.
func TestStoryMountAhead(t *testing.T) {
	p := startPets(t, 6)
	c, dir := p.c[1], t.TempDir()
	if m := mountAt(t, c, wire.MountRequest{Dir: dir, Ahead: 1}); m.Ahead != 1 || m.FetchedAhead != 0 {
		t.Errorf("mounted as %+v, want 1 pack ahead", m)
	}
	for _, bad := range []int{-1, 65} {
		if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir, Ahead: bad}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("ahead %d: %v, want ErrInvalid", bad, err)
		}
	}
	seen := filepath.Join(dir, "datasets/pets/1")
	eventually(t, "the version is there", func() error { _, err := os.Stat(seen); return err })
	read := func(pack int) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(seen, ".packs", fmt.Sprint(pack)))
		if err != nil || len(b) == 0 {
			t.Fatalf("pack %d: %d bytes, %v", pack, len(b), err)
		}
	}
	row := func() wire.Mount {
		t.Helper()
		all, err := c.Mounts(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("mounts: %+v, %v", all, err)
		}
		return all[0]
	}
	prefetched := func(want int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d packs came ahead", want), func() error {
			if got := p.counted(1, "prefetched"); got != want {
				return fmt.Errorf("%d packs", got)
			}
			return nil
		})
	}
	read(0)
	prefetched(1)
	if m, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir, Ahead: 3, Retries: 7}); err != nil || m.Ahead != 3 || m.Retries != 7 {
		t.Errorf("changed to %+v, %v; want 3 packs ahead", m, err)
	}
	if m, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir}); err != nil || m.Ahead != 3 || m.Retries != 7 {
		t.Errorf("asked for again: %+v, %v; want that it stays at 3", m, err)
	}
	read(1)
	prefetched(4) // 2, 3 and 4
	if m := row(); m.FetchedAhead != 4 {
		t.Errorf("%+v, want 4 packs fetched ahead", m)
	}
	// Here and there: nothing is fetched that nobody asked for.
	read(6)
	read(0)
	if m := row(); m.FetchedAhead != 4 {
		t.Errorf("%+v, want no more than 4 packs fetched ahead", m)
	}
	for _, name := range []string{"0000.bin", "0005.bin", "0100.bin"} {
		want, err := os.ReadFile(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(seen, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want its %d", name, len(got), err, len(want))
		}
	}
}
