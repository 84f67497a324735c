package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/sdk/wire"
)

// TestCommit: what is written into a mount becomes a set by `ckpt commit`, and
// what is no set yet is refused with the right exit code and a word what to do.
func TestCommit(t *testing.T) {
	d := startDaemon(t, "--remote", "none")
	dir := t.TempDir()
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }) // EINVAL: it is gone
	d.must("mount", dir)
	draft := filepath.Join(dir, "checkpoints", "job", ".write", "7")
	if err := os.MkdirAll(draft, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(draft, "rank0.pt"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("bytes"); err != nil {
		t.Fatal(err)
	}
	if out := d.must("status"); !strings.Contains(out, "job@7: 1 file, 0 B, 1 open for writing") && !strings.Contains(out, "job@7: 1 file, 5 B, 1 open for writing") {
		t.Errorf("status:\n%s", out)
	}
	refused := func(code int, word string, args ...string) {
		t.Helper()
		if got, out, errs := d.ckpt(append([]string{"commit"}, args...)...); got != code || !strings.Contains(errs, word) {
			t.Errorf("commit %v: exit code %d, want %d with %q:\n%s%s", args, got, code, word, out, errs)
		}
	}
	if out := d.must("__complete", "commit", "jo"); !strings.HasPrefix(out, "job@7\n") {
		t.Errorf("completion offers\n%s", out)
	}
	refused(6, "open for writing", "job@7")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	refused(7, "1 files", "job@7", "--world", "2")
	refused(3, "job@8", "job@8")
	refused(2, "RUN@STEP", "job")
	refused(2, "RUN@STEP", "job@latest")
	if set := into[wire.Set](d, "commit", "job@7", "--world", "1", "--metric", "loss=2"); set.World != 1 || set.Metrics["loss"] != 2 {
		t.Errorf("committed as %+v", set)
	}
	out := t.TempDir()
	d.must("restore", "job@latest", out)
	if b, err := os.ReadFile(filepath.Join(out, "rank0.pt")); err != nil || string(b) != "bytes" {
		t.Errorf("restored %q, %v", b, err)
	}
}
