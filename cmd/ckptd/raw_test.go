package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// TestStoryRaw: a set of raw shards goes every way that a set of tensors goes:
// sealed, committed, drained, read after a restart, from the targets when the
// local copy is bad, and when nothing but the targets is left.
func TestStoryRaw(t *testing.T) {
	t.Parallel()
	const size = 3<<20 + 17
	d := newDaemon(t, "n1")
	for i := range 3 {
		d.flags = append(d.flags, "--remote", remoteFlag(d, i))
	}
	d.start()
	c, ctx := d.dial(), t.Context()
	one, err := c.Attach(ctx, "files", "launch 1", 2)
	if err != nil {
		t.Fatal(err)
	}
	saveRaw := func(rank int) {
		t.Helper()
		s, err := c.Save(ctx, ckpt.At("files", 1), ckpt.Attempt(one), ckpt.Rank(rank, 2))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Raw(fmt.Sprintf("part %d.tar", rank), size, bytes.NewReader(content(1, one, rank, size))); err != nil {
			t.Fatal(err)
		}
		s.Meta("kind", "tar")
		s.SealMeta("hash", fmt.Sprintf("late %d", rank))
		if _, err := s.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	must := func(what string, from ...ckpt.OpenOption) {
		t.Helper()
		if err := loadRaw(ctx, c, "files@1", size, from...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	restart := func() {
		t.Helper()
		d.kill()
		d.start()
		c = d.dial()
	}

	saveRaw(0)
	restart() // the sealed shard of a set that is not whole yet is found again
	saveRaw(1)
	mustWait(t, c, "files@1", catalog.Verified)
	must("local")
	must("remote", ckpt.From("remote"))
	restart()
	must("local after a restart")
	if v, err := c.Verify(ctx, "files@1", true, nil); err != nil || len(v.Bad) > 0 || v.Copies != 4 {
		t.Errorf("verify --deep: %+v, %v", v, err)
	}

	id := catalog.SetID{Run: "files", Step: 1, Attempt: one}
	// A column that is damaged is found by a scrub, and made anew from the others.
	flip(t, columnsOf(t, d, id.BlobName(0, true))[0], 4096+70_000)
	if v, err := c.Verify(ctx, "files@1", true, nil); err != nil || len(v.Bad) != 1 || v.Bad[0].Rank != 0 {
		t.Errorf("verify --deep of a damaged column: %+v, %v", v, err)
	}
	must("remote with a damaged column", ckpt.From("remote"))
	if _, err := c.Scrub(ctx, "", true, nil); err != nil {
		t.Errorf("scrub: %v", err)
	}
	if v, err := c.Verify(ctx, "files@1", true, nil); err != nil || len(v.Bad) > 0 {
		t.Errorf("verify --deep after a scrub: %+v, %v", v, err)
	}

	local := filepath.Join(d.dir, "data", "local", "shards", filepath.FromSlash(id.BlobName(0, true)))
	flip(t, local, 1<<20+17)
	must("with a bad local copy")
	if _, err := os.Stat(local); !os.IsNotExist(err) {
		t.Errorf("the bad copy is still in its place: %v", err)
	}
	must("without a local copy")

	d.kill()
	for _, gone := range []string{"catalog", "local"} {
		if err := os.RemoveAll(filepath.Join(d.dir, "data", gone)); err != nil {
			t.Fatal(err)
		}
	}
	d.start()
	c = d.dial()
	if res, err := c.Rebuild(ctx, nil); err != nil || len(res.Problems) > 0 || res.Sets != 1 || res.Shards != 2 {
		t.Fatalf("rebuild: %+v, %v", res, err)
	}
	must("after a rebuild")
}

// loadRaw reads what TestStoryRaw saved, and what was said of it.
func loadRaw(ctx context.Context, c *ckpt.Client, ref string, size int, opts ...ckpt.OpenOption) error {
	r, err := c.Open(ctx, ref, opts...)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, s := range r.Manifest().Shards {
		if s.File != fmt.Sprintf("part %d.tar", s.Rank) || s.Meta["kind"] != "tar" || s.Meta["hash"] != fmt.Sprintf("late %d", s.Rank) {
			return fmt.Errorf("rank %d is called %q, with %v", s.Rank, s.File, s.Meta)
		}
		p := make([]byte, s.Size)
		if err := r.ReadShard(ctx, s.Rank, p); err != nil {
			return fmt.Errorf("%s rank %d: %w", ref, s.Rank, err)
		}
		if !bytes.Equal(p, content(r.ID().Step, r.ID().Attempt, s.Rank, size)) {
			return fmt.Errorf("%s rank %d: other bytes came back", ref, s.Rank)
		}
	}
	return nil
}
