package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	datasetstore "github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// datasetOnEngine: a dataset is imported on a node too small for it, so that the
// import waits for the engine to take packs, which are then evicted; another node reads all of it;
// and a third, which has nothing but the engine, has it again.
func datasetOnEngine(t *testing.T, remote string, read func(name string) ([]byte, error)) {
	dir, files := imageTree(t, rand.New(rand.NewPCG(7, 7)))
	for i := range 5 {
		name := fmt.Sprintf("large %d.bin", i)
		files[name] = content(int64(i), 0, i, 5<<20+i)
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cat := &store{t: t, dir: t.TempDir(), addr: freePort(t, "127.0.0.1:0")}
	cat.up()
	t.Cleanup(cat.down)
	var nodes []*daemon
	for i, quota := range []string{"30MiB", "1GiB"} {
		nodes = append(nodes, newDaemon(t, fmt.Sprintf("n%d", i+1), "--listen", freePort(t, "127.0.0.1:0"), "--nats", cat.url(), "--remote", remote, "--quota", quota).start())
	}
	ctx := t.Context()
	v, err := importTree(ctx, nodes[0].socket, dir, "pets")
	if err != nil {
		t.Fatal(err)
	}
	c := nodes[0].dial()
	sets := append(packsNamed(t, c, "pets"), v.Set)
	here := func() (n int) { // of the sets, how many the node that imported them has still
		for _, id := range sets {
			if _, err := os.Stat(filepath.Join(nodes[0].dir, "data", "local", "shards", filepath.FromSlash(id.BlobName(0, true)))); err == nil {
				n++
			}
		}
		return n
	}
	for _, id := range sets {
		mustWait(t, c, id.String(), catalog.Verified)
		set, err := c.Set(ctx, id.String(), false)
		if err != nil || len(set.Shards) != 1 || !set.Shards[0].Raw || set.Shards[0].Remote == nil {
			t.Fatalf("%v: %+v, %v", id, set, err)
		}
		b, err := read(id.BlobName(0, true))
		if err != nil || int64(len(b)) != set.Shards[0].Size {
			t.Errorf("%v is a plain file of %d bytes, want %d; %v", id, len(b), set.Shards[0].Size, err)
		}
		if want, raw := files[set.Shards[0].File]; raw && !bytes.Equal(b, want) {
			t.Errorf("%v is not %s, byte for byte", id, set.Shards[0].File)
		}
	}
	// Another import needs room: what is safe on the engine goes.
	more := t.TempDir()
	if err := os.WriteFile(filepath.Join(more, "more.bin"), content(9, 0, 9, 8<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := importTree(ctx, nodes[0].socket, more, "more"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "packs leave the node that imported them", func() error {
		if here() == len(sets) {
			return errors.New("all are there")
		}
		return nil
	})
	t.Logf("%d of %d sets are still on the node that imported them", here(), len(sets))
	all := func(what string, d *daemon) {
		t.Helper()
		version, err := d.dial().OpenDataset(ctx, "pets@1")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer version.Close()
		if version.Len() != int64(len(files)) {
			t.Errorf("%s: %d samples, want %d", what, version.Len(), len(files))
		}
		for i := range version.Len() {
			if err := readSample(ctx, version, files, i); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	all("through another node", nodes[1])
	all("through the node that evicted some", nodes[0])
	sane := func(what string, c *ckpt.Client) {
		t.Helper()
		eventually(t, what+": fsck finds nothing", func() error { // records follow their sets
			res, err := c.Fsck(ctx, false, nil)
			if err == nil && len(res.Problems) > 0 {
				err = fmt.Errorf("%+v", res.Problems)
			}
			return err
		})
		if res, err := c.VerifyDataset(ctx, "pets@1", true, nil); err != nil || len(res.Bad) > 0 {
			t.Errorf("%s: verify --deep: %+v, %v", what, res, err)
		}
	}
	moreSets := append(packsNamed(t, c, "more"), catalog.SetID{Run: "_datasets/more", Step: 1, Attempt: 1})
	for _, id := range moreSets {
		mustWait(t, c, id.String(), catalog.Verified)
	}
	sane("two nodes", c)

	// Both nodes and the catalog are lost.
	for _, d := range nodes {
		d.kill()
	}
	bare := newDaemon(t, "n3", "--remote", remote).start()
	c = bare.dial()
	if res, err := c.Rebuild(ctx, nil); err != nil || len(res.Problems) > 0 || res.Shards < len(sets) {
		t.Fatalf("rebuild of %d sets: %+v, %v", len(sets), res, err)
	}
	for _, id := range sets { // what blocks from the engine were, and are, held against
		m, err := c.Manifest(ctx, id.String())
		if err != nil {
			t.Fatal(err)
		}
		if seal, err := m.Shards[0].Seal(id); err != nil || seal == nil {
			t.Errorf("the manifest of %v has no sums of its blocks: %v", id, err)
		}
	}
	all("after a rebuild", bare)
	sane("after a rebuild", c)
	// The next version takes up what was found.
	if err := os.WriteFile(filepath.Join(dir, "one more"), []byte("more"), 0o644); err != nil {
		t.Fatal(err)
	}
	if next, err := importTree(ctx, bare.socket, dir, "pets"); err != nil || next.Set.Step != 2 || next.NewPacks != 1 || next.OldPacks != len(sets)-1 {
		t.Errorf("the next version: %+v, %v; want one new pack beside %d", next, err, len(sets)-1)
	}
}

// packsNamed gives the packs of the newest version.
func packsNamed(t *testing.T, c *ckpt.Client, name string) []catalog.SetID {
	t.Helper()
	st, err := datasetstore.New(c, name)
	if err != nil {
		t.Fatal(err)
	}
	base, err := st.Base(t.Context())
	if err != nil || base == nil {
		t.Fatalf("no version: %v", err)
	}
	defer base.Close()
	packs, err := datasets.PacksOf(base)
	if err != nil {
		t.Fatal(err)
	}
	return packs
}

func TestDatasetOnPosix(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	datasetOnEngine(t, "posix:"+dir+",name=lustre", func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) })
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == ".ckptd" {
			return fs.SkipDir // what is on its way
		}
		if err == nil && !d.IsDir() && d.Name()[0] != '.' && filepath.Ext(p) != ".bin" && filepath.Ext(p) != ".json" && d.Name() != "target.id" {
			t.Errorf("in sight: %s", p)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestDatasetOnS3(t *testing.T) {
	srv := s3test.Start(t)
	b := srv.Open(t, "team/data", nil)
	datasetOnEngine(t, srv.Spec("team/data")+",name=store", func(name string) ([]byte, error) {
		i, err := b.Stat(t.Context(), name)
		if err != nil {
			return nil, err
		}
		p := make([]byte, i.Size)
		return p, b.Get(t.Context(), name, p, 0)
	})
	if n := srv.Uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}
