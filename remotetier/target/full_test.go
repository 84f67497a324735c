package target_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/target"
)

// most is how many columns of a place are on one target.
func most(p catalog.Place) int {
	on := map[string]int{}
	for _, name := range p.Targets {
		on[name]++
	}
	return slices.Max(slices.Collect(maps.Values(on)))
}

// TestOneOfSixDisksFailsDuringAPut: the disk under one directory target is
// full, or broken, from its n-th operation on, for every n. With a seventh
// target the column goes there; with six it goes to one of the others, and the
// loss of any of them is still borne. No target keeps what is nobody's.
func TestOneOfSixDisksFailsDuringAPut(t *testing.T) {
	b := random(1_000_000, 1)
	for _, cause := range []error{catalog.ErrNoSpace, errors.New("EIO")} {
		for _, targets := range []int{6, 7} {
			doubled, moved, strays := 0, 0, 0
			for n := 1; ; n++ {
				what := fmt.Sprintf("%d targets, %v from operation %d on", targets, cause, n)
				var replanned []string
				var dirs []*target.Dir
				var infos []remotetier.TargetInfo
				disk := vfstest.New(vfstest.Options{})
				for i := range targets {
					m := disk
					if i > 0 {
						m = vfstest.New(vfstest.Options{})
					}
					d, err := target.OpenDir(m, "t", fmt.Sprintf("t%d", i))
					if err != nil {
						t.Fatal(err)
					}
					dirs = append(dirs, d)
					infos = append(infos, remotetier.TargetInfo{Target: d})
				}
				tier := remotetier.New(infos, remotetier.Options{Trace: remotetier.Trace{
					Replanned: func(_ string, _ int, from, _ string, _ error) { replanned = append(replanned, from) },
				}, Generation: func() uint64 { return 7 }}) // one that has a column on t0
				before := disk.Ops()
				at := before + n
				disk.OnOp(func(op int, kind, name string) error {
					if op >= at && (cause != catalog.ErrNoSpace || kind == "write" || kind == "allocate" || kind == "create") {
						return cause
					}
					return nil
				})
				p, err := tier.Put(t.Context(), "run/a", bytes.NewReader(b), layout42)
				hit := disk.Ops() >= at
				disk.OnOp(nil)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if err := tier.Verify(t.Context(), p); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				switch {
				case targets == 7 && most(p) != 1, targets == 6 && most(p) > 2, len(replanned) > 0 && slices.Contains(p.Targets, "t0"):
					t.Errorf("%s: on %v", what, p.Targets)
				case most(p) == 2:
					doubled++
				}
				moved += len(replanned)
				columns, stray := 0, 0
				for i, d := range dirs {
					name := infos[i].Name()
					for e, err := range d.List(t.Context(), "") {
						switch {
						case err != nil || e.Key.Generation != p.Generation:
							t.Errorf("%s: %s has %v, %v", what, name, e, err)
						case p.Targets[e.Key.Column] == name:
							columns++
						default: // what a broken disk did not let go of
							stray++
							if err := tier.RemoveColumn(t.Context(), name, e.Key); err != nil {
								t.Errorf("%s: remove %v from %s: %v", what, e.Key, name, err)
							}
						}
					}
				}
				if strays += stray; stray > 1 || stray == 1 && cause == catalog.ErrNoSpace {
					t.Errorf("%s: %d strays", what, stray)
				}
				if columns != 6 {
					t.Errorf("%s: there are %d columns", what, columns)
				}
				if most(p) == 2 { // lose the target that has two
					var left []remotetier.TargetInfo
					for _, ti := range infos {
						if twice := slices.Index(p.Targets, ti.Name()); twice < 0 || !slices.Contains(p.Targets[twice+1:], ti.Name()) {
							left = append(left, ti)
						}
					}
					if err := tier.SetTargets(left); err != nil {
						t.Fatal(err)
					}
					if got, err := readWhole(t, tier, p); err != nil || !bytes.Equal(got, b) {
						t.Errorf("%s: without the target that has two columns: %v", what, err)
					}
				}
				for _, d := range dirs {
					_ = d.Close()
				}
				if !hit {
					t.Logf("%d targets, %v: %d points, %d columns moved, %d strays, %d places with two on one target", targets, cause, n-1, moved, strays, doubled)
					break
				}
			}
			if moved == 0 || targets == 6 && doubled == 0 {
				t.Errorf("%d targets, %v: %d moved and %d doubled prove nothing", targets, cause, moved, doubled)
			}
		}
	}
}

// readWhole reads a blob, damaged or not.
func readWhole(t *testing.T, tier *remotetier.Tier, p catalog.Place) ([]byte, error) {
	t.Helper()
	r, err := tier.Open(t.Context(), p)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, r.Size())
	_, err = r.ReadAtContext(t.Context(), b, 0)
	return b, err
}

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

// TestOneOfSixDisksIsFull: a real file system fills up while several blobs are
// written at once; all of them are written, and whole, before and after, and
// the target says that it is full.
func TestOneOfSixDisksIsFull(t *testing.T) {
	var infos []remotetier.TargetInfo
	for i := range 6 {
		dir := t.TempDir()
		if i == 3 {
			dir = smallDisk(t, 3<<20)
		}
		d, err := target.OpenDir(vfs.OS, dir, fmt.Sprintf("t%d", i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		infos = append(infos, remotetier.TargetInfo{Target: d})
	}
	tier := remotetier.New(infos, remotetier.Options{})
	var mu sync.Mutex
	var places []catalog.Place
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 6 {
				name := fmt.Sprintf("run/%d-%d", i, j)
				p, err := tier.Put(t.Context(), name, bytes.NewReader(random(1_500_000, byte(10*i+j))), layout42)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				mu.Lock()
				places = append(places, p)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	doubled := 0
	for _, p := range places {
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p.Blob, err)
		}
		if most(p) > 2 {
			t.Errorf("%s is on %v", p.Blob, p.Targets)
		}
		if most(p) == 2 {
			doubled++
		}
	}
	if doubled < 10 || doubled == len(places) {
		t.Errorf("%d of %d blobs have two columns on one target", doubled, len(places))
	}
	for _, s := range tier.Targets(t.Context()) {
		if s.Full != (s.Name == "t3") || s.Err != nil || s.State != catalog.TargetUp {
			t.Errorf("%s: %+v", s.Name, s)
		}
	}
	for _, p := range places[:len(places)/2] { // there is room again
		if err := tier.Remove(t.Context(), p.Blob, nil); err != nil {
			t.Fatal(err)
		}
	}
	p, err := tier.Put(t.Context(), "run/last", bytes.NewReader(random(1_500_000, 99)), layout42)
	if err != nil || most(p) != 1 || tier.Targets(t.Context())[3].Full {
		t.Errorf("with room again: on %v, %v", p.Targets, err)
	}
}
