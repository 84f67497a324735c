package remotetier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// deaf commits, and its client does not hear of it; then it is away for a while.
type deaf struct {
	*targettest.Mem
	away atomic.Bool
}

func (d *deaf) Create(ctx context.Context, k remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	w, err := d.Mem.Create(ctx, k, size, mode)
	return deafWriter{w, d}, err
}

func (d *deaf) Remove(ctx context.Context, k remotetier.Key) error {
	if d.away.Load() {
		return fmt.Errorf("dial: %w", catalog.ErrUnavailable)
	}
	return d.Mem.Remove(ctx, k)
}

type deafWriter struct {
	remotetier.ColumnWriter
	d *deaf
}

func (w deafWriter) Commit(ctx context.Context) error {
	return errors.Join(w.ColumnWriter.Commit(ctx), fmt.Errorf("no answer: %w", catalog.ErrUnavailable))
}

// TestPromise7ColumnThatCameBackIsGarbage: a target committed its column, its
// answer was lost and it went away. The column is elsewhere then; when the
// target is back, readers, Verify and Scan are not misled by the second copy,
// and it can be removed alone.
func TestPromise7ColumnThatCameBackIsGarbage(t *testing.T) {
	for _, away := range []bool{false, true} {
		infos := infosOf("a", "b", "c", "d")
		mems := map[string]*targettest.Mem{}
		for _, ti := range infos {
			mems[ti.Name()] = ti.Target.(*targettest.Mem)
		}
		d := &deaf{Mem: mems["a"]}
		d.away.Store(away)
		infos[0].Target = d
		var left []string
		tier := remotetier.New(infos, remotetier.Options{Trace: remotetier.Trace{Leftover: func(target, _ string, _ error) { left = append(left, target) }}})
		b := random(300_000, 1)
		var p catalog.Place
		for i := range 20 { // until a column was to go there
			name := fmt.Sprint("b/", i)
			var err error
			if p, err = tier.Put(t.Context(), name, sealOf(b), layout(2, 1, 65536)); err != nil {
				t.Fatal(err)
			}
			if slices.Contains(p.Targets, "a") {
				t.Fatalf("a column is on the target that did not answer: %v", p.Targets)
			}
			if keys := d.Keys(); len(keys) > 0 || !away && i > 5 {
				break
			}
		}
		d.away.Store(false)
		if keys := d.Keys(); away != (len(keys) == 1) || away != (len(left) == 1) {
			t.Fatalf("away=%v: a holds %v, leftovers on %v", away, keys, left)
		}
		if !away {
			continue
		}
		stray := d.Keys()[0].Column
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
		for f, err := range tier.Scan(t.Context(), p.Blob) {
			if err != nil || !f.Complete || len(f.Columns) != 3 || len(f.Strays) != 1 || f.Strays[0].Column != stray {
				t.Errorf("Scan gives %+v, %v", f, err)
			}
			twins := []string{f.Strays[0].Target, f.Place.Targets[stray]}
			if slices.Sort(twins); twins[0] != "a" || !slices.Contains(p.Targets, twins[1]) {
				t.Errorf("column %d is on %v", stray, twins)
			}
			if err := tier.Verify(t.Context(), f.Place); err != nil {
				t.Errorf("the scanned place: %v", err)
			}
		}
		if n := removeStrays(t, tier, p); n != 1 || len(d.Keys()) != 0 {
			t.Errorf("there were %d strays; a holds %v", n, d.Keys())
		}
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
}

// stuck is a target whose operations of one kind wait for ever.
type stuck struct {
	*targettest.Mem
	op string
}

type stuckWriter struct {
	remotetier.ColumnWriter
	op string
}

func (s stuck) Create(ctx context.Context, k remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	if s.op == "create" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	w, err := s.Mem.Create(ctx, k, size, mode)
	return stuckWriter{w, s.op}, err
}

func (w stuckWriter) Write(ctx context.Context, p []byte) error {
	if w.op == "write" {
		<-ctx.Done()
		return ctx.Err()
	}
	return w.ColumnWriter.Write(ctx, p)
}

func (w stuckWriter) Commit(ctx context.Context) error {
	if w.op == "commit" {
		<-ctx.Done()
		return ctx.Err()
	}
	return w.ColumnWriter.Commit(ctx)
}

// TestPromise7TargetHangs: one that answers no more is given up after a while.
func TestPromise7TargetHangs(t *testing.T) {
	for op, limit := range map[string]time.Duration{"create": time.Minute, "write": 2 * time.Minute, "commit": 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			infos := infosOf("a", "b", "c", "d")
			tier := remotetier.New(infos, remotetier.Options{})
			b := random(300_000, 1)
			p := mustPut(t, tier, b, layout(2, 1, 65536))
			for i, ti := range infos {
				if ti.Name() == p.Targets[0] {
					infos[i].Target = stuck{ti.Target.(*targettest.Mem), op}
				}
			}
			if err := tier.SetTargets(infos); err != nil {
				t.Fatal(err)
			}
			hung := p.Targets[0]
			var err error
			begin := time.Now()
			for range 10 { // until a column was to go there
				if p, err = tier.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536)); err != nil || slices.Contains(p.Targets, hung) {
					t.Fatalf("%s: on %v, %v", op, p.Targets, err)
				}
				if time.Since(begin) > 0 {
					break
				}
			}
			if d := time.Since(begin); d != limit {
				t.Errorf("%s: given up after %v, want %v", op, d, limit)
			}
			if err := tier.Verify(t.Context(), p); err != nil {
				t.Errorf("%s: %v", op, err)
			}
		})
	}
}
