package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/sdk/wire"
)

// TestUserDraft: a user's own daemon, without any rights, takes what he writes
// into its mount, through the daemon, and makes it a set.
func TestUserDraft(t *testing.T) {
	t.Parallel()
	u := someUser(t)
	dir := taken(t, u.folder())
	src := drafted(t, 1)
	if err := errors.Join(os.Chmod(filepath.Dir(src), 0o755), os.Chmod(src, 0o755)); err != nil {
		t.Fatal(err)
	}
	d := u.daemon()
	c := d.start().dial()
	if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "checkpoints", "mine")
	for _, step := range []string{"cp", "python", "mmap"} {
		out, err := u.run("sh", "-euc", `mkdir -p "$2"`+"\n"+writers[step]+"\n"+`mv "$2" "$3"; diff -r -x .manifest.json "$1" "$3"; rm -rf "$2"`, "sh", src, run+"/.write/1", run+"/1")
		if err != nil || out != "" {
			t.Errorf("%s: %v %s", step, err, out)
		}
		if step == "cp" {
			if err := sameSet(t.Context(), c, "mine@1", src); err != nil {
				t.Error(err)
			}
		}
		run += "x" // a run of its own for each
	}
}
