package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// weights are normal numbers, which follow from the rank.
func weights(rank, n int) []byte {
	r := rand.New(rand.NewPCG(uint64(rank), 3))
	var b []byte
	for range n {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(r.NormFloat64()*0.02)))
	}
	return b
}

// saveWeights saves a rank of two tensors: numbers that compress, and a few
// that do not.
func saveWeights(t *testing.T, c *ckpt.Client, run string, step int64, attempt, rank, world, n int) {
	t.Helper()
	s, err := c.Save(t.Context(), ckpt.At(run, step), ckpt.Attempt(attempt), ckpt.Rank(rank, world))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	noise := content(step, attempt, rank, 9999)
	if err := s.Tensor("w", "F32", []int64{int64(n)}, weights(rank, n)); err != nil {
		t.Fatal(err)
	}
	if err := s.Tensor("noise", "U8", []int64{int64(len(noise))}, noise); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// loadWeights reads every shard whole, and a part of each tensor, and compares.
func loadWeights(ctx context.Context, c *ckpt.Client, ref string, n int, opts ...ckpt.OpenOption) error {
	r, err := c.Open(ctx, ref, opts...)
	if err != nil {
		return err
	}
	defer r.Close()
	for rank, s := range r.Manifest().Shards {
		whole := make([]byte, s.Size)
		if err := r.ReadShard(ctx, rank, whole); err != nil {
			return err
		}
		for _, t := range s.Tensors {
			want := weights(rank, n)
			if t.Name == "noise" {
				want = content(r.ID().Step, r.ID().Attempt, rank, int(t.Size))
			}
			if !bytes.Equal(whole[t.Offset:][:t.Size], want) {
				return fmt.Errorf("%s rank %d: other bytes of %s", ref, rank, t.Name)
			}
			sh, err := r.Shard(rank)
			if err != nil {
				return err
			}
			part := make([]byte, min(5000, t.Size-777))
			_, err = sh.ReadAtContext(ctx, part, t.Offset+777)
			sh.Close()
			if err != nil {
				return err
			}
			if !bytes.Equal(part, want[777:][:len(part)]) {
				return fmt.Errorf("%s rank %d: other bytes of a part of %s", ref, rank, t.Name)
			}
		}
	}
	return nil
}

// TestStoryCompressed: a run's shards are compressed on their way out; every
// way back gives the bytes that were saved: whole, in parts, without a target,
// after the local copies are gone, and after the catalog was.
func TestStoryCompressed(t *testing.T) {
	t.Parallel()
	const n = 3 << 20 // numbers of a rank, 12 MiB: several frames
	d := newDaemon(t, "n1")
	for i := range 3 {
		d.flags = append(d.flags, "--remote", remoteFlag(d, i))
	}
	d.start()
	c, ctx := d.dial(), t.Context()
	one, err := c.Attach(ctx, "job", "launch 1", 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetPolicy(ctx, "job", catalog.Policy{Compress: "lzma"}); err == nil {
		t.Error("a policy with an unknown compression was taken")
	}
	if _, err := c.SetPolicy(ctx, "job", catalog.Policy{Compress: catalog.CompressZstd}); err != nil {
		t.Fatal(err)
	}
	for rank := range 2 {
		saveWeights(t, c, "job", 1, one, rank, 2, n)
	}
	mustWait(t, c, "job@1", catalog.Verified)
	places := func() {
		t.Helper()
		set, err := c.Set(ctx, "job@1", false)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range set.Shards {
			if s.Remote == nil || s.Remote.Encoding != "planes" || s.Remote.Size > s.Size*9/10 {
				t.Errorf("rank %d of %d bytes is at %+v; want it compressed", s.Rank, s.Size, s.Remote)
			}
		}
	}
	places()
	if text := why(t, c, "job@1"); !strings.Contains(text, "compressed to") {
		t.Errorf("why says\n%s", text)
	}
	eventually(t, "an empty staging folder", func() error {
		if left, _ := filepath.Glob(filepath.Join(d.dir, "data", "local", "staging", "*")); len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	must("local", loadWeights(ctx, c, "job@1", n))
	must("remote", loadWeights(ctx, c, "job@1", n, ckpt.From("remote")))

	// A deep verification decodes; it finds a column that is damaged, and reads go on. (In this order: what a read finds bad is mended.)
	if v, err := c.Verify(ctx, "job@1", true, nil); err != nil || len(v.Bad) > 0 || v.Copies != 4 {
		t.Errorf("verify --deep: %+v, %v", v, err)
	}
	flip(t, columns(t, d, "job@1#1", 0)[0], 4096+70_000)
	if v, err := c.Verify(ctx, "job@1", true, nil); err != nil || len(v.Bad) != 1 || v.Bad[0].Rank != 0 {
		t.Errorf("verify --deep of a damaged column: %+v, %v", v, err)
	}
	must("degraded", loadWeights(ctx, c, "job@1", n, ckpt.From("remote")))

	// A scrub finds it and makes it anew, and the place still says what its bytes are.
	if _, err := c.Scrub(ctx, "", true, nil); err != nil {
		t.Errorf("scrub: %v", err)
	}
	places()
	if v, err := c.Verify(ctx, "job@1", true, nil); err != nil || len(v.Bad) > 0 {
		t.Errorf("verify --deep after a scrub: %+v, %v", v, err)
	}

	// A bad local copy falls through to the compressed one.
	flip(t, shardFile(t, d, "job@1#1", 1), 1<<20+17)
	must("after damage", loadWeights(ctx, c, "job@1", n))

	// Noise is not blown up, and the story says why it was left as it is.
	if _, err := save(ctx, c, "job", 2, one, 0, 1, 3<<20); err != nil {
		t.Fatal(err)
	}
	mustWait(t, c, "job@2", catalog.Verified)
	if set, err := c.Set(ctx, "job@2", false); err != nil || set.Shards[0].Remote.Encoding != "" {
		t.Errorf("noise is at %+v, %v", set.Shards[0].Remote, err)
	}
	if text := why(t, c, "job@2"); !strings.Contains(text, "not compressed") {
		t.Errorf("why says\n%s", text)
	}

	// The targets alone say what is compressed: the node's disks and its catalog are gone.
	d.kill()
	for _, gone := range []string{"catalog", "local"} {
		if err := os.RemoveAll(filepath.Join(d.dir, "data", gone)); err != nil {
			t.Fatal(err)
		}
	}
	d.start()
	c = d.dial()
	res, err := c.Rebuild(ctx, nil)
	if err != nil || len(res.Problems) > 0 {
		t.Fatalf("rebuild: %+v, %v", res, err)
	}
	places()
	must("after a rebuild", loadWeights(ctx, c, "job@1", n))
	mustLoad(t, c, "job@2")
}

// TestStoryCompressNoRoom: a disk without room for a container drains the shard as it is.
func TestStoryCompressNoRoom(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1", "--quota", "20MiB", "--compress", "zstd").start()
	c := d.dial()
	one, err := c.Attach(t.Context(), "job", "launch 1", 1)
	if err != nil {
		t.Fatal(err)
	}
	const n = 3 << 20
	saveWeights(t, c, "job", 1, one, 0, 1, n)
	mustWait(t, c, "job@1", catalog.Verified)
	set, err := c.Set(t.Context(), "job@1", false)
	if err != nil || set.Shards[0].Remote.Encoding != "" {
		t.Errorf("the shard is at %+v, %v", set.Shards[0].Remote, err)
	}
	if text := why(t, c, "job@1"); !strings.Contains(text, "no room on the local disks") {
		t.Errorf("why says\n%s", text)
	}
	if err := loadWeights(t.Context(), c, "job@1", n, ckpt.From("remote")); err != nil {
		t.Error(err)
	}
}
