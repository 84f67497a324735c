package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// dirs is where the targets that live keep their columns.
func (f *fleet) dirs(without ...string) map[string]string {
	dirs := map[string]string{}
	for _, p := range f.targets {
		if !slices.Contains(without, p.name) {
			dirs[p.name] = p.dir
		}
	}
	return dirs
}

// whole says whether every column that records name is on its target, read by
// a reader that knows only FORMAT.md, and none of them on the targets without.
func (f *fleet) whole(steps []int64, without ...string) error {
	found, err := findFormat(f.dirs(without...))
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, step := range steps {
		d, err := f.c[1].Set(f.t.Context(), fmt.Sprintf("run@%d", step), false)
		if err != nil {
			return err
		}
		places := []*catalog.Place{d.Place}
		for _, s := range d.Shards {
			places = append(places, s.Remote)
		}
		for _, p := range places {
			if p == nil {
				return fmt.Errorf("step %d: a place is missing", step)
			}
			var have []*formatColumn
			for c, name := range p.Targets {
				if slices.Contains(without, name) {
					return fmt.Errorf("%s: column %d is still on %s", p.Blob, c, name)
				}
				i := slices.IndexFunc(found[p.Blob], func(o *formatColumn) bool {
					return o.generation == p.Generation && o.col == c && strings.HasPrefix(o.path, f.dirs()[name]+string(filepath.Separator))
				})
				if i < 0 {
					return fmt.Errorf("%s: column %d is not on %s", p.Blob, c, name)
				}
				have = append(have, found[p.Blob][i])
			}
			b, err := joinFormat(have, rnd)
			if err != nil {
				return fmt.Errorf("%s: %w", p.Blob, err)
			}
			if strings.Contains(p.Blob, "rank-") && !bytes.Contains(b, content(step, 1, 0, 3<<20)) {
				return fmt.Errorf("%s: its columns hold other bytes", p.Blob)
			}
		}
	}
	return nil
}

// TestStoryRepair: two of six targets die for good, two new ones join, and the
// daemons bring redundancy back, although one of them is killed in the middle;
// then a target is drained, and damage is repaired on order.
func TestStoryRepair(t *testing.T) {
	f := startFleet(t, 6, "--repair-after", "1s", "--layout", "4+2", "--repair-rate", "4MiB", "--scrub-every", "2s", "--scrub-rate", "20MiB") // a scrub runs all the time
	f.until("six are up", allUp(6))
	if _, err := f.c[0].Attach(t.Context(), "run", "first", 1); err != nil {
		t.Fatal(err)
	}
	steps := []int64{1, 2, 3, 4, 5, 6}
	for _, s := range steps {
		f.save(s)
	}
	eventually(t, "every column is there", func() error { return f.whole(steps) })
	dead := []string{"t1", "t4"}
	for _, i := range []int{1, 4} {
		f.targets[i].kill()
	}
	for i, c := range f.c {
		eventually(t, f.nodes[i].name+" says what is missing", func() error {
			for _, s := range steps {
				w, err := c.Why(t.Context(), fmt.Sprintf("run@%d", s))
				if err != nil {
					return err
				}
				if said := strings.Join(w.Missing, "\n"); !strings.Contains(said, "2 of 6 columns missing") {
					return fmt.Errorf("step %d: %s", s, said)
				}
			}
			return nil
		})
		if err := load(t.Context(), c, "run@3", "remote"); err != nil {
			t.Errorf("with two dead: %v", err)
		}
	}
	f.join()
	f.join()
	// The daemon that works is killed in the middle, and comes back.
	eventually(t, "repair begins", func() error {
		for _, s := range steps {
			d, err := f.c[1].Set(t.Context(), fmt.Sprintf("run@%d", s), false)
			if err != nil {
				return err
			}
			for _, e := range d.Events {
				if e.What == "mended" {
					return nil
				}
			}
		}
		return errors.New("nothing is mended yet")
	})
	f.nodes[0].kill()
	f.nodes[0].start()
	f.c[0] = f.nodes[0].dial()
	eventually(t, "every column is back", func() error { return f.whole(steps, dead...) })
	for _, s := range steps {
		mustLoad(t, f.c[0], fmt.Sprintf("run@%d", s), "remote")
	}

	t.Run("Drain", func(t *testing.T) {
		f.join()
		f.join()
		told := 0
		row, err := f.c[0].DrainTarget(t.Context(), "t0", "", false, true, func(wire.Progress) { told++ })
		if err != nil || row.State != catalog.TargetDrained {
			t.Fatalf("drained %+v, %v", row, err)
		}
		if told == 0 {
			t.Error("there was no progress")
		}
		eventually(t, "every column is elsewhere", func() error { return f.whole(steps, append(dead, "t0")...) })
		if left, err := findFormat(map[string]string{"t0": f.targets[0].dir}); err != nil || len(left) > 0 {
			t.Errorf("the drained target still holds %d blobs, %v", len(left), err)
		}
		if _, err := f.c[1].RemoveTarget(t.Context(), "t0", "", false); err != nil {
			t.Errorf("taking it out: %v", err)
		}
	})
	t.Run("Undrain", func(t *testing.T) {
		row, err := f.c[0].DrainTarget(t.Context(), "t2", "", false, false, nil)
		if err != nil || row.State != catalog.TargetDraining {
			t.Fatalf("%+v, %v", row, err)
		}
		if row, err = f.c[1].DrainTarget(t.Context(), "t2", "", true, false, nil); err != nil || row.State != catalog.TargetUp {
			t.Errorf("%+v, %v", row, err)
		}
		eventually(t, "it is used again", func() error { return f.whole(steps, append(dead, "t0")...) })
		if _, err := f.c[0].DrainTarget(t.Context(), "nowhere", "", false, false, nil); err == nil {
			t.Error("a target that is none was drained")
		}
	})
	t.Run("OnOrder", func(t *testing.T) {
		eventually(t, "nothing is left to do", func() error {
			s, err := f.c[0].Status(t.Context())
			if err == nil && s.Repair != "" {
				err = errors.New(s.Repair)
			}
			return err
		})
		p := f.place(5)
		for c, name := range p.Targets[:2] {
			i := slices.IndexFunc(f.targets, func(o *targetProcess) bool { return o.name == name })
			file := filepath.Join(f.targets[i].dir, "columns", filepath.FromSlash(p.Blob), fmt.Sprintf("g%016x.c%02d.col", p.Generation, c))
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.whole(steps, append(dead, "t0")...); err == nil {
			t.Fatal("two columns are gone, and nobody noticed")
		}
		ctx, cancel := short(t)
		defer cancel()
		res, err := f.c[1].Repair(ctx, "run", true, nil)
		if err != nil {
			t.Fatal(err)
		}
		// The scrub may be at one of the two columns, or have mended it.
		left := slices.DeleteFunc(slices.Clone(res.Left), func(said string) bool { return strings.Contains(said, "somebody else is writing it") })
		if res.Columns > 2 || len(left) > 0 {
			t.Errorf("Repair = %+v, %v", res, err)
		}
		eventually(t, "both columns are back", func() error { return f.whole(steps, append(dead, "t0")...) })
		if res, err := f.c[0].Repair(ctx, "", false, nil); err != nil || !res.Started {
			t.Errorf("Repair without waiting = %+v, %v", res, err)
		}
	})
}

// TestStoryScrub: damage of every kind on the disks of running targets is found
// and mended by the background scrub, and what nobody names goes; an order does
// the same at once.
func TestStoryScrub(t *testing.T) {
	f := startFleet(t, 6, "--layout", "4+2", "--scrub-every", "3s", "--scrub-grace", "1s", "--scrub-rate", "0")
	f.until("six are up", allUp(6))
	if _, err := f.c[0].Attach(t.Context(), "run", "first", 1); err != nil {
		t.Fatal(err)
	}
	steps := []int64{1, 2, 3}
	for _, s := range steps {
		f.save(s)
	}
	file := func(p *catalog.Place, c int) string {
		return filepath.Join(f.dirs()[p.Targets[c]], "columns", filepath.FromSlash(p.Blob), fmt.Sprintf("g%016x.c%02d.col", p.Generation, c))
	}
	change := func(name string, how func([]byte) []byte) {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(name, how(b), 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
	damage := func() {
		p, q := f.place(1), f.place(2)
		change(file(p, 0), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		change(file(p, 5), func(b []byte) []byte { return b[:len(b)-5000] })
		other, err := os.ReadFile(file(q, 3))
		if err != nil {
			t.Fatal(err)
		}
		change(file(q, 2), func([]byte) []byte { return other })
		if err := os.Remove(file(q, 4)); err != nil {
			t.Error(err)
		}
	}
	p := f.place(3)
	extra := strings.Replace(file(p, 1), fmt.Sprintf("g%016x", p.Generation), fmt.Sprintf("g%016x", p.Generation-1), 1)
	b, err := os.ReadFile(file(p, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(extra, b, 0o600); err != nil {
		t.Fatal(err)
	}
	damage()
	eventually(t, "everything is mended, and what nobody names is gone", func() error {
		if _, err := os.Stat(extra); err == nil {
			return errors.New("a column that nobody names is still there")
		}
		return f.whole(steps)
	})
	for i := range f.c {
		if said := why(t, f.c[i], "run@1"); !strings.Contains(said, "scrub") || !strings.Contains(said, "mended") {
			t.Errorf("the story of run@1 on %s: %s", f.nodes[i].name, said)
		}
	}
	damage()
	ctx, cancel := short(t)
	defer cancel()
	eventually(t, "an order to scrub is carried out", func() error { // a node that is at it already is let finish
		res, err := f.c[1].Scrub(ctx, "", true, nil)
		if err == nil && (len(res.Left) > 0 || res.Targets != 6) {
			err = fmt.Errorf("%+v", res)
		}
		return err
	})
	eventually(t, "everything is mended again", func() error { return f.whole(steps) })
	if res, err := f.c[0].Scrub(ctx, "t0", false, nil); err != nil || !res.Started || res.Targets != 1 {
		t.Errorf("Scrub of one target without waiting = %+v, %v", res, err)
	}
	if _, err := f.c[0].Scrub(ctx, "nowhere", true, nil); err == nil {
		t.Error("a target that is none was scrubbed")
	}
}
