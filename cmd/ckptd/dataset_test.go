package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	dstore "github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// pets is a dataset, and the folder that it was imported from.
type pets struct {
	*fleet
	dir  string
	size int64 // of its packs and index
}

// startPets imports large and small files of random bytes through the first of
// three daemons, and waits until the remote tier has all.
func startPets(t *testing.T, large int, flags ...string) *pets {
	t.Helper()
	p := &pets{fleet: startFleet(t, 3, flags...), dir: t.TempDir()}
	listen := freePort(t, "127.0.0.1:0")
	d := newDaemon(t, "n3", append([]string{"--listen", listen, "--nats", p.store.url(), "--remote", "catalog"}, flags...)...).start()
	p.nodes, p.listen, p.c = append(p.nodes, d), append(p.listen, listen), append(p.c, d.dial())
	p.until("the targets are up", allUp(3))
	eventually(t, "nodes know each other", func() error {
		for i := range p.c {
			if ns, err := p.c[i].Nodes(t.Context()); err != nil || len(ns) < 3 {
				return fmt.Errorf("%d nodes: %v", len(ns), err)
			}
		}
		return nil
	})
	for i := range large + 300 {
		size := 10<<20 + i
		if i >= large {
			size = rand.IntN(64 << 10)
		}
		if err := os.WriteFile(filepath.Join(p.dir, fmt.Sprintf("%04d.bin", i)), content(1, 0, i, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	src, err := source.Open(p.dir, source.Options{Format: source.Tree})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	st, err := dstore.New(p.c[0], "pets")
	if err != nil {
		t.Fatal(err)
	}
	v, err := datasets.Import(t.Context(), src, st, datasets.Options{RawFrom: 8 << 20})
	if err != nil {
		t.Fatalf("import: %v", err)
	}
	base, err := st.Base(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	packs, err := datasets.PacksOf(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range append(packs, v.Set) {
		mustWait(t, p.c[0], set.String(), catalog.Verified)
	}
	places, err := p.c[0].LocateDataset(t.Context(), "pets@1")
	if err != nil {
		t.Fatal(err)
	}
	p.size = places.Bytes
	if places.Packs != large+1 || p.size < int64(large)*10<<20 {
		t.Fatalf("%d packs of %d bytes, want %d", places.Packs, p.size, large+1)
	}
	return p
}

// epoch reads a whole epoch through node i and compares every byte.
func (p *pets) epoch(ctx context.Context, i int, number uint64) error {
	d, err := p.c[i].OpenDataset(ctx, "pets@1")
	if err != nil {
		return err
	}
	defer d.Close()
	e, err := d.Epoch(ctx, ckpt.EpochOptions{Seed: 1, Epoch: number})
	if err != nil {
		return err
	}
	seen := map[int64]bool{}
	for {
		some, err := e.Take(ctx, 32)
		if err != nil || len(some) == 0 {
			if err == nil && int64(len(seen)) != d.Len() {
				err = fmt.Errorf("%d samples, want %d", len(seen), d.Len())
			}
			return err
		}
		err = d.Batch(ctx, some, func(_ int, s ckpt.Sample) error {
			seen[s.Number] = true
			name, err := d.Index().Path(s.Fields[0].File)
			if err != nil {
				return err
			}
			want, err := os.ReadFile(filepath.Join(p.dir, string(name)))
			if err == nil && !bytes.Equal(s.Data[0], want) {
				err = fmt.Errorf("sample %d, %s: other bytes", s.Number, name)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
}

// counted is a counter of node i's cache.
func (p *pets) counted(i int, what string) int64 {
	p.t.Helper()
	m := p.metrics(i)
	x := regexp.MustCompile(`(?m)^ckptd_cache_` + what + `_total (\d+)$`).FindStringSubmatch(m)
	if x == nil {
		p.t.Fatalf("no counter %s in\n%s", what, m)
	}
	v, _ := strconv.ParseInt(x[1], 10, 64) // digits
	return v
}

// TestStoryDatasetWarm: what one node imported comes to all nodes at the price
// of one read of the remote tier, and epochs then need nothing from elsewhere.
func TestStoryDatasetWarm(t *testing.T) {
	p := startPets(t, 6)
	res, err := p.c[1].WarmDataset(t.Context(), "pets@1", []string{"all"}, func(wire.Progress) {})
	if err != nil {
		t.Fatalf("warm: %v", err)
	}
	if len(res.Nodes) != 3 {
		t.Errorf("%d nodes, want 3", len(res.Nodes))
	}
	for _, n := range res.Nodes {
		if n.Err != "" || n.Verified != p.size || n.Total != p.size {
			t.Errorf("%+v, want %d bytes", n, p.size)
		}
	}
	places, err := p.c[2].LocateDataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range places.Nodes {
		if n.Score != 1 || n.Packs != places.Packs || n.Err != "" {
			t.Errorf("%+v, want all of %d packs", n, places.Packs)
		}
	}
	var before, after, remote int64
	for i := range p.c {
		before += p.counted(i, "remote_bytes") + p.counted(i, "peer_bytes")
		remote += p.counted(i, "remote_bytes")
	}
	t.Logf("warm: %d bytes from the remote tier, %d from nodes, the version has %d", remote, before-remote, p.size)
	if float64(remote) > 1.05*float64(p.size) {
		t.Errorf("all nodes together: %d bytes from the remote tier, the version has %d", remote, p.size)
	}
	for number := range uint64(2) {
		var g errgroup.Group
		for i := range p.c {
			g.Go(func() error { return p.epoch(t.Context(), i, number) })
		}
		if err := g.Wait(); err != nil {
			t.Fatalf("epoch %d: %v", number, err)
		}
	}
	for i := range p.c {
		after += p.counted(i, "remote_bytes") + p.counted(i, "peer_bytes")
	}
	if after != before {
		t.Errorf("epochs of a warm version took %d bytes from elsewhere", after-before)
	}
	s, err := p.c[0].DatasetSettings(t.Context(), wire.DatasetSettings{Ahead: 7})
	if err != nil || s.Ahead != 7 {
		t.Errorf("settings %+v, %v, want ahead 7", s, err)
	}
	if _, err := p.c[0].OpenDataset(t.Context(), "pets@2"); err == nil {
		t.Error("a version that is not there opened")
	}
}

// TestStoryDatasetWarmWithoutItsNode: the node that imported is gone, one of the
// others is killed while they fetch: the remote tier is read about once, and the
// bytes are right.
func TestStoryDatasetWarmWithoutItsNode(t *testing.T) {
	p := startPets(t, 9)
	p.nodes[0].kill()
	var g errgroup.Group
	g.Go(func() error { return p.epoch(t.Context(), 2, 0) })
	g.Go(func() error { _ = p.epoch(t.Context(), 1, 0); return nil }) // it is killed in the middle
	var gone int64
	eventually(t, "n2 fetches", func() error {
		if gone = p.counted(1, "remote_bytes") + p.counted(1, "peer_bytes"); gone < 10<<20 {
			return fmt.Errorf("it has %d bytes", gone)
		}
		return nil
	})
	p.nodes[1].kill()
	if err := g.Wait(); err != nil {
		t.Fatalf("epoch with a node killed: %v", err)
	}
	remote := p.counted(2, "remote_bytes")
	if float64(remote) > 1.05*float64(p.size) {
		t.Errorf("%d bytes from the remote tier, the version has %d", remote, p.size)
	}
	t.Logf("n2 had %d bytes when it was killed; n3 took %d from the remote tier, the version has %d", gone, remote, p.size)
	if err := p.epoch(t.Context(), 2, 1); err != nil {
		t.Fatalf("second epoch: %v", err)
	}
	if again := p.counted(2, "remote_bytes"); again != remote {
		t.Errorf("the second epoch took %d bytes from the remote tier", again-remote)
	}
}
