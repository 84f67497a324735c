package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// smallDisk mounts a file system of its own, of size bytes. It needs root.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount a small disk: %v; this test needs root", err)
		}
		t.Skipf("mount a small disk: %v; this test needs root", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// TestStoryOneOfSixTargetsIsFull: the disk of one of six target processes fills
// up while sets are drained to them as 4+2. The drain goes on, the status and
// `ckpt why` say what is less safe, nothing is lost with the target that has
// two columns of a shard, and when a seventh target comes, one of them moves there.
func TestStoryOneOfSixTargetsIsFull(t *testing.T) {
	disk := smallDisk(t, 3<<20)
	var targets []*targetProcess
	var flags []string
	for i := range 7 { // the last is away to begin with
		p := &targetProcess{t: t, dir: t.TempDir(), name: fmt.Sprintf("t%d", i), addr: "127.0.0.1:0"}
		if i == 3 {
			p.dir = disk
		}
		p.start()
		t.Cleanup(p.kill)
		targets = append(targets, p)
		flags = append(flags, "--remote", "tcp:"+p.addr+",name="+p.name)
	}
	targets[6].kill()
	d := newDaemon(t, "n1", append(flags, "--target-probe", "300ms")...).start()
	c := d.dial()
	if _, err := c.Attach(t.Context(), "run", "first", 1); err != nil {
		t.Fatal(err)
	}
	drained := func(step int64) (columns map[string]int) { // by target
		if _, err := save(t.Context(), c, "run", step, 1, 0, 1, 4<<20); err != nil {
			t.Fatalf("save %d: %v", step, err)
		}
		ref := fmt.Sprintf("run@%d", step)
		mustWait(t, c, ref, catalog.Verified)
		s, err := c.Set(t.Context(), ref, false)
		if err != nil {
			t.Fatal(err)
		}
		place := s.Shards[0].Remote
		columns = map[string]int{}
		for _, name := range place.Targets {
			columns[name]++
		}
		if most := slices.Max(slices.Collect(maps.Values(columns))); most > 2 || place.Layout != "4+2" {
			t.Errorf("%s: %s on %v", ref, place.Layout, place.Targets)
		}
		return columns
	}
	const sets = 5
	twice := map[string]int64{} // targets with two columns of a shard, and a step where
	for step := int64(1); step <= sets; step++ {
		for name, n := range drained(step) {
			if n == 2 {
				twice[name] = step
			}
		}
	}
	if len(twice) == 0 {
		t.Fatal("no shard has two columns on a target, though one of six is full")
	}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Join(st.Trouble, "\n")
	for _, want := range []string{"target t3: full", "less spread than their layout asks", slices.Sorted(maps.Keys(twice))[0]} {
		if !strings.Contains(said, want) {
			t.Errorf("the status does not say %q:\n%s", want, said)
		}
	}
	if st.Backlog.Drain != 0 || st.Backlog.Verify != 0 {
		t.Errorf("the drain is not done: %+v", st.Backlog)
	}
	for name, step := range twice {
		why, err := c.Why(t.Context(), fmt.Sprintf("run@%d", step))
		if err != nil || !strings.Contains(strings.Join(why.Missing, "\n"), "2 of its columns are on target "+name) {
			t.Errorf("why run@%d: %v, %v", step, why.Missing, err)
		}
		p := targets[name[1]-'0']
		p.kill()
		for step := range int64(sets) {
			mustLoad(t, c, fmt.Sprintf("run@%d", step+1), "remote")
		}
		p.start()
		eventually(t, name+" is back", func() error {
			m, err := c.Targets(t.Context())
			for _, row := range m.Targets {
				if row.Name == name && row.Err != "" {
					err = errors.New(row.Err)
				}
			}
			return err
		})
	}
	targets[6].start()
	eventually(t, "all sets are spread as their layout asks", func() error {
		for step := range int64(sets) {
			s, err := c.Set(t.Context(), fmt.Sprintf("run@%d", step+1), false)
			if err != nil {
				return err
			}
			if on := slices.Compact(slices.Sorted(slices.Values(s.Shards[0].Remote.Targets))); len(on) < 6 {
				return fmt.Errorf("run@%d is on %v", step+1, on)
			}
		}
		st, err := c.Status(t.Context())
		if err == nil && strings.Contains(strings.Join(st.Trouble, "\n"), "less spread") {
			err = fmt.Errorf("the status says %v", st.Trouble)
		}
		return err
	})
	for step := range int64(sets) {
		mustLoad(t, c, fmt.Sprintf("run@%d", step+1), "remote")
	}
	eventually(t, "those that were away are trusted again", func() error {
		m, err := c.Targets(t.Context())
		for _, row := range m.Targets {
			if row.State != catalog.TargetUp || row.Name != "t3" && row.Trouble != "" {
				err = fmt.Errorf("target %+v", row)
			}
		}
		return err
	})
	if on := drained(sets + 1); len(on) != 6 {
		t.Errorf("a new set is on %v", on)
	}
}
