package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMountCommands: mount says how, takes other settings while it is there,
// and unmount names who is in the way.
func TestMountCommands(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("mounts are tested as root: run the tests as root, as CI does")
	}
	d := startDaemon(t, "--remote", "none")
	dir := t.TempDir()
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }) // EINVAL: it is gone
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"mount", dir, "--no-passthrough", "--ahead", "3", "--retries", "2"}, 0, "it was asked for; 3 packs ahead, 0 fetched so, 2 retries"},
		{[]string{"mount", dir, "--no-passthrough", "--ahead", "5"}, 0, "5 packs ahead, 0 fetched so, 2 retries"},
		{[]string{"mount", dir, "--no-passthrough", "--ahead", "65"}, 2, "want 1 to 64 packs"},
		{[]string{"mount", dir}, 6, "with other settings"},
		{[]string{"mount"}, 0, dir},
		{[]string{"status"}, 0, dir + "  0 files open; everything goes through the daemon"},
	} {
		if code, out, errs := d.ckpt(c.args...); code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("ckpt %v: exit code %d\n%s%s\nwant %d, %q", c.args, code, out, errs, c.code, c.says)
		}
	}
	f, err := os.Open(filepath.Join(dir, "datasets"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if code, _, errs := d.ckpt("unmount", dir); code == 0 || !strings.Contains(errs, "in use by process") || !strings.Contains(errs, "--lazy") {
		t.Errorf("unmount in use: exit code %d, %s; want who uses it, and --lazy", code, errs)
	}
	d.must("unmount", "--lazy", dir)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("after that: %v, %v", left, err)
	}
}
