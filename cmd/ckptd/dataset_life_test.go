package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// change replaces two files of a tree, one of them large.
func change(t *testing.T, dir string, files map[string][]byte, step int64) {
	t.Helper()
	for name, size := range map[string]int{"changing/small": 1000, "changing/large": 2 << 20} {
		files[name] = content(step, 0, 0, size)
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "changing"), 0o755), os.WriteFile(filepath.Join(dir, name), files[name], 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// mustRead reads every sample of a version.
func mustRead(t *testing.T, c *ckpt.Client, ref string, files map[string][]byte) {
	t.Helper()
	v, err := c.OpenDataset(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if v.Len() != int64(len(files)) {
		t.Errorf("%s has %d samples, want %d", ref, v.Len(), len(files))
	}
	for i := range v.Len() {
		if err := readSample(t.Context(), v, files, i); err != nil {
			t.Fatal(err)
		}
	}
}

// damageOne changes a byte of one of the files that are packs.
func damageOne(t *testing.T, files []string) {
	t.Helper()
	i := slices.IndexFunc(files, func(f string) bool { return filepath.Base(f) == "rank-00000.bin" })
	if i < 0 {
		t.Fatalf("no pack among %q", files)
	}
	b, err := os.ReadFile(files[i])
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(files[i], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{^b[len(b)/2]}, int64(len(b)/2)); err != nil {
		t.Fatal(err)
	}
}

// awaitVersion waits until a version is at a level, with all of its packs.
func awaitVersion(t *testing.T, c *ckpt.Client, ref string, level catalog.Level) (d *wire.DatasetDetail) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is %v", ref, level), func() (err error) {
		if d, err = c.DatasetVersion(t.Context(), ref); err == nil && (d.Level < level || d.Err != "") {
			err = fmt.Errorf("it is %v: %s", d.Level, d.Err)
		}
		return err
	})
	return d
}

// sizeOf adds up the files of a dataset below a folder.
func sizeOf(t *testing.T, dir, run string) (n int64) {
	t.Helper()
	for _, f := range filesOf(t, dir, run) {
		if info, err := os.Stat(f); err == nil {
			n += info.Size()
		}
	}
	return n
}

// TestStoryDatasetLife: two versions share packs. The older one is pinned, read,
// removed: what only it names goes, here and on the targets, also over a daemon
// that is killed; the newer one stays whole.
func TestStoryDatasetLife(t *testing.T) {
	t.Parallel()
	dir, files := imageTree(t, rand.New(rand.NewPCG(7, 8)))
	d := newDaemon(t, "n1", "--pack-patience", "2s", "--grace", "1ms")
	c := d.start().dial()
	change(t, dir, files, 1)
	if _, err := importTree(t.Context(), d.socket, dir, "pets"); err != nil {
		t.Fatal(err)
	}
	change(t, dir, files, 2)
	if v, err := importTree(t.Context(), d.socket, dir, "pets"); err != nil || v.NewPacks != 2 || v.OldPacks < 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	first, second := awaitVersion(t, c, "pets@1", catalog.Verified), awaitVersion(t, c, "pets@2", catalog.Verified)
	list, err := c.Datasets(t.Context())
	if err != nil || len(list) != 1 || list[0].Versions != 2 || list[0].Packs != second.Packs+1 || list[0].Latest.Ref != "pets@2" || list[0].Latest.Level != catalog.Verified {
		t.Errorf("%+v, %v", list, err)
	}
	var own []string // of version 1 alone: the large file; the small one lies in a pack with others
	for _, p := range first.PackList {
		if !p.Shared {
			own = append(own, p.ID)
		}
	}
	if len(own) != 1 {
		t.Fatalf("version 1 has %d packs for itself, want 1", len(own))
	}
	seen := 0
	res, err := c.VerifyDataset(t.Context(), "pets@1", true, func(wire.Progress) { seen++ })
	if err != nil || res.Sets != first.Packs+1 || res.Copies < 2*res.Sets || len(res.Bad) != 0 || seen == 0 {
		t.Errorf("verify: %+v, %v, %d lines of progress", res, err, seen)
	}

	if _, err := c.PinDataset(t.Context(), "pets@1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveDataset(t.Context(), "pets@1"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("rm of a pinned version: %v", err)
	}
	if _, err := c.PinDataset(t.Context(), "pets@1", false); err != nil {
		t.Fatal(err)
	}
	reader, err := c.OpenDataset(t.Context(), "pets@1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveDataset(t.Context(), "pets@1"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("rm of a version that is read: %v", err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	targets := filepath.Join(d.dir, "data", "targets")
	before := sizeOf(t, targets, "_packs/pets")
	if _, err := c.RemoveDataset(t.Context(), "pets@1"); err != nil {
		t.Fatal(err)
	}
	d.kill() // wherever the collector is
	c = d.start().dial()
	eventually(t, "the pack goes", func() error {
		packs := packsOf(t, c, "pets")
		if len(packs) != second.Packs {
			return fmt.Errorf("%d packs, want %d", len(packs), second.Packs)
		}
		pack, _ := catalog.ParseRef(own[0])
		folder := fmt.Sprintf("_packs/pets/%012d-", pack.Step)
		if left := append(filesOf(t, filepath.Join(d.dir, "data"), folder), filesOf(t, filepath.Join(d.dir, "data"), "_datasets/pets/000000000001-")...); len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
	if after := sizeOf(t, targets, "_packs/pets"); before-after < 2<<20 {
		t.Errorf("the targets hold %d bytes of packs, %d before", after, before)
	}
	mustRead(t, c, "pets", files)
	if res, err := c.VerifyDataset(t.Context(), "pets@2", true, nil); err != nil || res.Sets != second.Packs+1 || len(res.Bad) != 0 {
		t.Errorf("verify of version 2: %+v, %v", res, err)
	}
	if versions, err := c.DatasetVersions(t.Context(), "pets", false); err != nil || len(versions) != 1 || versions[0].Level != catalog.Verified {
		t.Errorf("%+v, %v", versions, err)
	}
}

// TestPromise6UnreadableIndex: the coordinator cannot read the index of a
// version, because the only node that has it is away. It does not know what that
// version names, so nothing of the dataset goes, and it says so. When the node is
// back, what is nobody's goes.
func TestPromise6UnreadableIndex(t *testing.T) {
	t.Parallel()
	dir, files := imageTree(t, rand.New(rand.NewPCG(9, 10)))
	f := &fleet{t: t, store: &store{t: t, dir: t.TempDir(), addr: freePort(t, "127.0.0.1:0")}}
	f.store.up()
	t.Cleanup(f.store.down)
	for _, name := range []string{"n1", "n2"} {
		d := newDaemon(t, name, "--listen", freePort(t, "127.0.0.1:0"), "--nats", f.store.url(), "--remote", "none", "--pack-patience", "1h", "--grace", "1ms").start()
		f.nodes, f.c = append(f.nodes, d), append(f.c, d.dial())
	}
	n1, n2 := f.nodes[0], f.nodes[1]
	for step := range int64(2) {
		change(t, dir, files, step)
		if _, err := importTree(t.Context(), n2.socket, dir, "pets"); err != nil {
			t.Fatal(err)
		}
	}
	second := awaitVersion(t, f.c[1], "pets@2", catalog.Local)
	if _, err := f.c[1].RemoveDataset(t.Context(), "pets@1"); err != nil {
		t.Fatal(err)
	}
	n2.kill()
	n1.kill()
	i := slices.Index(n1.flags, "1h")
	n1.flags[i] = "1ms"
	c := n1.start().dial()
	eventually(t, "n1 says that packs are kept", func() error {
		s, err := c.Status(t.Context())
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(s.Trouble, func(line string) bool { return strings.Contains(line, "packs of dataset pets are kept") }) {
			return fmt.Errorf("trouble %q", s.Trouble)
		}
		return nil
	})
	if got := packsOf(t, c, "pets"); len(got) != second.Packs+1 {
		t.Errorf("%d packs, want all %d", len(got), second.Packs+1)
	}
	if v, err := c.DatasetVersion(t.Context(), "pets@2"); err != nil || v.Err == "" || v.Level != catalog.LevelNone {
		t.Errorf("a version whose index is away: %+v, %v", v, err)
	}
	n2.start()
	eventually(t, "what is nobody's goes", func() error {
		if got := packsOf(t, c, "pets"); len(got) != second.Packs {
			return fmt.Errorf("%d packs, want %d", len(got), second.Packs)
		}
		return nil
	})
	mustRead(t, c, "pets@2", files)

	// A cached copy goes bad: verify finds it, and the pack is fetched anew.
	if _, err := c.WarmDataset(t.Context(), "pets@2", nil, nil); err != nil {
		t.Fatal(err)
	}
	if res, err := c.VerifyDataset(t.Context(), "pets@2", false, nil); err != nil || res.Copies != second.Packs+1 || len(res.Bad) != 0 {
		t.Errorf("verify of cached copies: %+v, %v", res, err)
	}
	damageOne(t, filesOf(t, n1.dir, "_cache/_packs/pets"))
	if res, err := c.VerifyDataset(t.Context(), "pets@2", false, nil); err != nil || len(res.Bad) != 1 || res.Bad[0].Tier != "cache" || res.Bad[0].Node != "n1" {
		t.Errorf("verify of a bad cached copy: %+v, %v", res, err)
	}
	if res, err := c.VerifyDataset(t.Context(), "pets@2", false, nil); err != nil || res.Copies != second.Packs || len(res.Bad) != 0 {
		t.Errorf("verify after that: %+v, %v", res, err)
	}
	mustRead(t, c, "pets@2", files)

	// Somebody destroys a pack behind everybody's back: it is told everywhere.
	lost, err := catalog.ParseRef(second.PackList[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.open().Tombstone(t.Context(), catalog.SetID{Run: lost.Run, Step: lost.Step, Attempt: lost.Attempt}, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the version misses a pack", func() error {
		v, err := c.DatasetVersion(t.Context(), "pets@2")
		if err == nil && (len(v.Missing) != 1 || v.Level != catalog.LevelNone) {
			err = fmt.Errorf("%+v", v.DatasetVersion)
		}
		return err
	})
	res, err := c.VerifyDataset(t.Context(), "pets@2", false, nil)
	if err != nil || len(res.Bad) == 0 || !slices.ContainsFunc(res.Bad, func(b wire.BadCopy) bool { return b.ID == second.PackList[0].ID && b.Rank == -1 }) {
		t.Errorf("verify: %+v, %v", res, err)
	}
	fsck, err := c.Fsck(t.Context(), false, nil)
	if err != nil || !slices.ContainsFunc(fsck.Problems, func(p wire.FsckProblem) bool {
		return strings.Contains(p.What, "1 of its ") && strings.HasPrefix(p.ID, "_datasets/pets@2")
	}) {
		t.Errorf("fsck: %+v, %v", fsck, err)
	}
}

// TestStoryDatasetRebuild: the catalog is lost, and built anew from the tiers. A
// version is whole again. The packs of a version that did not come back may be
// named by it tomorrow: they stay for the patience, though they are old.
func TestStoryDatasetRebuild(t *testing.T) {
	t.Parallel()
	dir, files := imageTree(t, rand.New(rand.NewPCG(11, 12)))
	const wait = 3 * time.Second
	d := newDaemon(t, "n1", "--pack-patience", wait.String(), "--grace", "1ms")
	c := d.start().dial()
	for _, name := range []string{"pets", "cats", "dogs"} {
		if _, err := importTree(t.Context(), d.socket, dir, name); err != nil {
			t.Fatal(err)
		}
		awaitVersion(t, c, name, catalog.Verified)
	}
	packs := packsOf(t, c, "cats")
	dog := packsOf(t, c, "dogs")[0]
	before, err := c.DatasetVersion(t.Context(), "pets@1")
	if err != nil {
		t.Fatal(err)
	}
	d.kill()
	if err := os.RemoveAll(filepath.Join(d.dir, "data", "catalog")); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(d.dir, "data")
	for _, f := range append(filesOf(t, data, "_datasets/cats"), filesOf(t, data, fmt.Sprintf("_packs/dogs/%012d-", dog.Step))...) {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	c = d.start().dial()
	rebuilt := time.Now()
	res, err := c.Rebuild(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Problems {
		if strings.Contains(p, "pets") {
			t.Error(p)
		}
	}
	if !slices.ContainsFunc(res.Problems, func(p string) bool { return strings.HasPrefix(p, "dogs@1: ") && strings.Contains(p, dog.ID) }) {
		t.Errorf("the rebuild does not tell of the pack that dogs@1 misses: %q", res.Problems)
	}
	after, err := c.DatasetVersion(t.Context(), "pets@1")
	if err != nil || after.Digest != before.Digest || len(after.PackList) != len(before.PackList) || after.Level < catalog.Local {
		t.Errorf("%+v, %v", after, err)
	}
	if got := packsOf(t, c, "cats"); len(got) != len(packs) {
		t.Errorf("%d packs came back, want %d", len(got), len(packs))
	}
	for id, at := range awaitCollected(t, d, c, "cats") {
		if at.Sub(rebuilt) < wait {
			t.Errorf("%s was pruned %v after the rebuild, the patience is %v", id, at.Sub(rebuilt), wait)
		}
	}
	mustRead(t, c, "pets", files)
}
