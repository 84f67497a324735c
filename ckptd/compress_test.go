package ckptd

import (
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier/planes"
)

// squashed is a node whose one committed set is worth compressing.
func squashed(t *testing.T) (*world, point, catalog.SetRecord) {
	t.Helper()
	w, p, rec := committedStep(t, squashedStep)
	w.n.cfg.Compress = catalog.CompressZstd
	return w, p, rec
}

// encodings are those of a set's remote copies, by rank.
func encodings(t *testing.T, w *world, id catalog.SetID) (all []string) {
	t.Helper()
	part, err := w.cat.Part(w.ctx, id, w.n.cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range part.Shards {
		if s.Remote == nil {
			t.Fatalf("%v rank %d is nowhere", id, s.Rank)
		}
		all = append(all, s.Remote.Encoding)
	}
	return all
}

// finish settles a world and holds it against the contract.
func finish(t *testing.T, w *world, p *point, id catalog.SetID) error {
	t.Helper()
	w.n.cfg.Compress = catalog.CompressZstd
	if err := w.settle(p.state(w)); err != nil {
		return err
	}
	return w.check(map[catalog.SetID]fate{id: durable})
}

// TestPowerLossCompressing loses power at the operations of a drain that
// compresses: no spool and no room stays behind, and the set is whole.
func TestPowerLossCompressing(t *testing.T) {
	w, p, rec := squashed(t)
	first, step := stride(t, 5)
	rng := rand.New(rand.NewSource(1))
	var mu sync.Mutex
	var points []point
	begin := p.fs.Ops()
	p.fs.OnOp(func(i int, op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if n := i - begin; n >= first && (n-first)%step == 0 {
			c := p
			c.at, c.fs = fmt.Sprintf("operation %d, %s %s", n, op, name), p.fs.Crash(vfstest.Torn, rng)
			c.records, c.parts = p.records.Clone(), p.parts.Clone()
			points = append(points, c)
		}
		return nil
	})
	if err := w.n.drainOnce(w.ctx); err != nil {
		t.Fatal(err)
	}
	p.fs.OnOp(nil)
	w.stop()
	if len(points) < 5 {
		t.Fatalf("only %d points were tried", len(points))
	}
	for _, c := range points {
		w, err := boot(t.Context(), c.fs, c.records, c.parts)
		if err != nil {
			t.Fatalf("power lost at %s: %v", c.at, err)
		}
		if err := finish(t, w, &c, rec.SetID); err != nil {
			t.Errorf("power lost at %s: %v", c.at, err)
		}
		w.stop()
	}
}

// TestDiskFaultsCompressing fails operations of the local disk while shards are
// compressed: a full disk drains them as they are, any other fault is tried again.
func TestDiskFaultsCompressing(t *testing.T) {
	for name, cause := range map[string]error{"EIO": syscall.EIO, "ENOSPC": catalog.ErrNoSpace} {
		t.Run(name, func(t *testing.T) {
			for at := 1; ; at++ {
				w, p, rec := squashed(t)
				var mu sync.Mutex
				spools, hit := 0, ""
				p.fs.OnOp(func(_ int, op, name string) error {
					if len(name) < 14 || name[:14] != "/disk/staging/" || op == "remove" {
						return nil
					}
					mu.Lock()
					defer mu.Unlock()
					if spools++; spools != at {
						return nil
					}
					hit = fmt.Sprintf("%s %s", op, name)
					return fmt.Errorf("%s: %w", hit, cause)
				})
				err := w.n.drainOnce(w.ctx)
				p.fs.OnOp(nil)
				if hit == "" { // all were tried
					if err != nil || at < 3 {
						t.Fatalf("%v after %d operations", err, at)
					}
					w.stop()
					return
				}
				if errors.Is(err, catalog.ErrNoSpace) {
					t.Errorf("%s: a full disk failed the drain: %v", hit, err)
				}
				if err := finish(t, w, &p, rec.SetID); err != nil {
					t.Errorf("%s: %v", hit, err)
				}
				w.stop()
			}
		})
	}
}

// TestSpoolThatGoesBad: damage of a spool is not damage of the shard: the local
// copy stays in service, and the container is made anew.
func TestSpoolThatGoesBad(t *testing.T) {
	w, p, rec := squashed(t)
	b, err := w.n.local.Open(rec.ShardName(0))
	if err != nil {
		t.Fatal(err)
	}
	spool, err := w.n.compressed(w.ctx, rec, 0, b)
	if err != nil || spool == nil {
		t.Fatalf("%v, %v", spool, err)
	}
	f, err := p.fs.OpenWrite(spool.Blob().Path(), vfs.Opt{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	layout, _, err := w.n.layout(rec.Run)
	if err != nil {
		t.Fatal(err)
	}
	out := rawBlob{spool.Blob(), spool.Blob().Raw()}
	if _, err := w.n.remote.Put(w.ctx, rec.ShardName(0), out, layout); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a Put of a damaged spool: %v, want ErrCorrupt", err)
	}
	if err := errors.Join(spool.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	if err := finish(t, w, &p, rec.SetID); err != nil {
		t.Fatal(err)
	}
	for rank, e := range encodings(t, w, rec.SetID) {
		if e != planes.Encoding {
			t.Errorf("rank %d is kept as %q", rank, e)
		}
	}
	if _, err := w.n.local.Stat(rec.ShardName(0)); err != nil {
		t.Errorf("the shard's own copy: %v", err)
	}
}
