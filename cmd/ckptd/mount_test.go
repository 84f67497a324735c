package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// mountAt mounts a daemon's tree, and sees to it that nothing is left of it.
func mountAt(t *testing.T, c *ckpt.Client, req wire.MountRequest) *wire.Mount {
	t.Helper()
	t.Cleanup(func() { _ = syscall.Unmount(req.Dir, syscall.MNT_DETACH) }) // EINVAL: it is gone
	m, err := c.Mount(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sameShard compares a file of a mount with what was saved.
func sameShard(file string, step int64) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if want := content(step, 1, 0, 3<<20); !bytes.HasSuffix(b, want) {
		return fmt.Errorf("%s: %d bytes, and not those that were saved", file, len(b))
	}
	return nil
}

// TestMount looks at checkpoints through a mount: names, bytes, what is not
// there; a daemon that dies and comes back; copies that are lost and read from
// the targets; a set that is removed while a file of it is open.
//
// All of it twice: as the kernel can, and as where it has no passthrough.
func TestMount(t *testing.T) {
	t.Parallel()
	for _, without := range []bool{false, true} {
		t.Run(fmt.Sprintf("NoPassthrough=%v", without), func(t *testing.T) {
			t.Parallel()
			lookThroughMount(t, without)
		})
	}
}

func lookThroughMount(t *testing.T, without bool) {
	d, c := corruptible(t)
	dir := t.TempDir()
	m := mountAt(t, c, wire.MountRequest{Dir: dir, NoPassthrough: without})
	if !m.Mounted || !m.Passthrough && m.Why == "" || without && (m.Passthrough || m.Why != "it was asked for") {
		t.Errorf("mounted as %+v", m)
	}
	run := filepath.Join(dir, "checkpoints", "job")
	shard := func(step int) string { return filepath.Join(run, fmt.Sprint(step), "rank-00000.safetensors") }

	var seen []string
	if err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		seen = append(seen, strings.TrimPrefix(p, dir))
		if err != nil {
			return err
		}
		info, err := e.Info()
		mayBe := p == filepath.Join(dir, "checkpoints") || p == run // where drafts are made
		if err == nil && info.Mode().Perm()&0o222 != 0 && e.Type()&fs.ModeSymlink == 0 && !mayBe {
			err = fmt.Errorf("%s can be written: %v", p, info.Mode())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	want := " /checkpoints /checkpoints/job /checkpoints/job/0 /checkpoints/job/0/.manifest.json /checkpoints/job/0/rank-00000.safetensors" +
		" /checkpoints/job/1 /checkpoints/job/1/.manifest.json /checkpoints/job/1/rank-00000.safetensors /checkpoints/job/latest /datasets"
	if got := strings.Join(seen, " "); got != want {
		t.Errorf("the tree is\n%s, want\n%s", got, want)
	}
	for step := range int64(2) {
		if err := sameShard(shard(int(step)), step); err != nil {
			t.Error(err)
		}
	}
	if to, err := os.Readlink(filepath.Join(run, "latest")); err != nil || to != "1" {
		t.Errorf("latest -> %q, %v; want 1", to, err)
	}
	if err := sameShard(filepath.Join(run, "1-1", "rank-00000.safetensors"), 1); err != nil {
		t.Error(err)
	}
	manifest, err := os.ReadFile(filepath.Join(run, "1", ".manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := catalog.ParseManifest(manifest, catalog.Digest{}); err != nil || got.Set.String() != "job@1#1" {
		t.Errorf("the manifest: %v, %v", got, err)
	}
	for _, absent := range []string{filepath.Join(run, "2"), filepath.Join(run, "1", "x"), filepath.Join(dir, "x"), filepath.Join(run, "1-2")} {
		if _, err := os.Stat(absent); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want fs.ErrNotExist", absent, err)
		}
	}
	if err := os.WriteFile(filepath.Join(run, "1", "x"), nil, 0o600); err == nil {
		t.Error("a committed set can be written to")
	}
	if again, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir, NoPassthrough: without}); err != nil || !again.Mounted {
		t.Errorf("mounted again: %+v, %v", again, err)
	}
	if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir, Checked: true}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("mounted with other settings: %v, want fs.ErrExist", err)
	}

	if all, err := c.Mounts(t.Context()); err != nil || len(all) != 1 || m.Passthrough != (all[0].Passed > 0) {
		t.Errorf("mounts: %+v, %v; want opens in passthrough, or none where there is none", all, err)
	}

	// The daemon dies; what the kernel reads by itself goes on.
	open, err := os.Open(shard(1))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	local := shardFile(t, d, "job@0#1", 0)
	d.kill()
	if m.Passthrough {
		b := make([]byte, 3<<20)
		if _, err := open.ReadAt(b, 4096); err != nil {
			t.Errorf("an open file of a dead daemon: %v", err)
		}
	}
	open.Close()
	// Its copy of one set is lost meanwhile.
	if err := os.Remove(local); err != nil {
		t.Fatal(err)
	}
	d.start()
	c = d.dial()
	eventually(t, "the mount is back", func() error { return sameShard(shard(1), 1) })
	eventually(t, "the lost copy is read from the targets", func() error { return sameShard(shard(0), 0) })

	// Removed, and open.
	if open, err = os.Open(shard(0)); err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := c.Remove(t.Context(), "job@0"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("removed while a file of it is open: %v, want ErrConflict", err)
	}
	open.Close()
	if err := c.Unmount(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("after unmount: %v, %v; want an empty folder", left, err)
	}
	if all, err := c.Mounts(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("mounts: %+v, %v; want none", all, err)
	}
	if _, err := c.Remove(t.Context(), "job@0"); err != nil && !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("remove: %v", err)
	}
}

// TestMountChecked: with checked, a block that went bad on the disk is never
// given to a reader: he gets the targets' copy.
func TestMountChecked(t *testing.T) {
	t.Parallel()
	d, c := corruptible(t)
	dir := t.TempDir()
	if m := mountAt(t, c, wire.MountRequest{Dir: dir, Checked: true}); m.Passthrough {
		t.Errorf("mounted as %+v, want no passthrough", m)
	}
	flip(t, shardFile(t, d, "job@1#1", 0), 1<<20+17)
	if err := sameShard(filepath.Join(dir, "checkpoints/job/latest/rank-00000.safetensors"), 1); err != nil {
		t.Error(err)
	}
	if text := why(t, c, "job@1"); !strings.Contains(text, "quarantined") {
		t.Errorf("why says\n%s", text)
	}
}

// TestMountRefuses what could never work, or would hide something.
func TestMountRefuses(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1", "--remote", "none")
	d.start()
	c := d.dial()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, class := range map[string]error{
		"relative": catalog.ErrInvalid, "/": catalog.ErrInvalid, "": catalog.ErrInvalid,
		full: fs.ErrExist, filepath.Join(full, "absent"): fs.ErrNotExist, full + "/../x": catalog.ErrInvalid,
	} {
		if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir}); !errors.Is(err, class) {
			t.Errorf("mount %q: %v, want %v", dir, err, class)
		}
	}
	if err := c.Unmount(t.Context(), full); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unmount what is not mounted: %v, want fs.ErrNotExist", err)
	}
}
