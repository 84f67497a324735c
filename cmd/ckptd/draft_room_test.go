package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestDraftRoom: who writes more than the local tier may hold is told that
// there is no space, in passthrough when he closes, and his file is gone; what
// others have written stays, and there is room again.
func TestDraftRoom(t *testing.T) {
	t.Parallel()
	for _, checked := range []bool{false, true} {
		t.Run(fmt.Sprintf("checked %v", checked), func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, "n1", "--remote", "none", "--quota", "24MiB")
			d.start()
			c := d.dial()
			dir := t.TempDir()
			mountAt(t, c, wire.MountRequest{Dir: dir, Checked: checked})
			run := filepath.Join(dir, "checkpoints", "new", "run")
			draft := filepath.Join(run, ".write", "1")
			mustSh(t, `mkdir -p "$1"; head -c 8M /dev/urandom >"$1/good"`, draft)
			var st syscall.Statfs_t
			if err := syscall.Statfs(draft, &st); err != nil || st.Blocks*uint64(st.Bsize) != 24<<20 || st.Bavail*uint64(st.Bsize) > 16<<20 {
				t.Errorf("statfs: %d of %d blocks of %d, %v; want 16 of 24 MiB", st.Bavail, st.Blocks, st.Bsize, err)
			}
			f, err := os.Create(filepath.Join(draft, "large"))
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1<<20)
			for range 40 {
				if _, err = f.Write(b); err != nil {
					break
				}
			}
			if err == nil {
				err = f.Sync()
			}
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("40 MiB into 16: %v, want ENOSPC", err)
			}
			if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			eventually(t, "there is room again", func() error {
				s, err := c.Status(t.Context())
				if err == nil && s.Local.Free < 15<<20 {
					err = fmt.Errorf("%d bytes are free", s.Local.Free)
				}
				return err
			})
			if fi, err := os.Stat(filepath.Join(draft, "good")); err != nil || fi.Size() != 8<<20 {
				t.Errorf("what was written before: %v, %v", fi, err)
			}
			if _, err := c.CommitDraft(t.Context(), wire.CommitRequest{Ref: "new/run@1", World: 1}, nil); err != nil {
				t.Error(err)
			}
			if s, err := c.Status(t.Context()); err != nil || s.Local.Used < 8<<20 || s.Local.Used > 9<<20 {
				t.Errorf("%d bytes are used, %v; want those of the set", s.Local.Used, err)
			}
		})
	}
}

// TestDraftExpires: a draft that nobody touches is removed, one that somebody
// writes is not.
func TestDraftExpires(t *testing.T) {
	t.Parallel()
	_, c, run := desk(t, "--draft-keep", "1s")
	mustSh(t, `mkdir -p "$1/.write/1" "$1/.write/2"; echo x >"$1/.write/1/x"`, run)
	f, err := os.Create(filepath.Join(run, ".write", "2", "y"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s, err := c.Status(t.Context()); err != nil || len(s.Drafts) != 2 || time.Until(s.Drafts[0].Until) > time.Second {
		t.Errorf("status tells of %+v, %v", s.Drafts, err)
	}
	eventually(t, "the first is removed", func() error {
		if _, err := os.Stat(filepath.Join(run, ".write", "1")); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	if _, err := f.WriteString("still"); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("the draft that is written: %v", err)
	}
}

// TestDraftOfUsers: who may not save by the socket may not write by a mount,
// and nobody writes, removes or commits the draft of another user.
func TestDraftOfUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: there is one user only, and the kernel keeps the others out")
		return
	}
	d := newDaemon(t, "n1", "--remote", "none", "--allow-uid", "1001", "--allow-uid", "1002")
	d.start()
	c := d.dial()
	dir, err := os.MkdirTemp("", "mount") // that others can reach
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mountAt(t, c, wire.MountRequest{Dir: dir, AllowOther: true})
	run := filepath.Join(dir, "checkpoints", "team")
	as := func(uid uint32, script string) error {
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", script, "sh", run)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	if err := as(1001, `mkdir -p "$1/.write/1"; echo mine >"$1/.write/1/x"`); err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]struct {
		uid    uint32
		script string
	}{
		"a run by a stranger":                   {1003, `mkdir -p "$1x"`},
		"a draft by a stranger":                 {1003, `mkdir "$1/.write/2"`},
		"a file of another":                     {1002, `echo yours >"$1/.write/1/x"`},
		"a file beside another's":               {1002, `echo yours >"$1/.write/1/y"`},
		"another's file removed":                {1002, `rm -f "$1/.write/1/x"`},
		"another's draft committed":             {1002, `mv "$1/.write/1" "$1/1"`},
		"another's file made one's own":         {1002, `chown 1002 "$1/.write/1/x"`},
		"another's draft moved to another step": {1002, `mv "$1/.write/1" "$1/.write/3"`},
	} {
		if err := as(try.uid, try.script); err == nil {
			t.Errorf("%s was let through", what)
		} else if !strings.Contains(err.Error(), "ermi") && !strings.Contains(err.Error(), "not permitted") {
			t.Errorf("%s: %v, want that it is not permitted", what, err)
		}
	}
	if err := as(1001, `test "$(cat "$1/.write/1/x")" = mine; mv "$1/.write/1" "$1/1"`); err != nil {
		t.Error(err)
	}
	if err := as(1002, `test "$(cat "$1/1/x")" = mine; mkdir "$1/.write/2"; echo two >"$1/.write/2/x"; mv "$1/.write/2" "$1/2"`); err != nil {
		t.Error(err)
	}
	if got := listed(t, c, "team"); len(got) != 2 {
		t.Errorf("the sets are %v", got)
	}
}

// TestDraftIsSealed: what goes bad on the disk before a commit nobody can know;
// from the commit on it is found.
func TestDraftIsSealed(t *testing.T) {
	t.Parallel()
	d, c, run := desk(t)
	mustSh(t, `mkdir -p "$1/.write/1"; head -c 3M /dev/urandom >"$1/.write/1/x"; mv "$1/.write/1" "$1/1"`, run)
	file := filepath.Join(d.dir, "data/local/shards", filepath.FromSlash(catalog.SetID{Run: "new/run", Step: 1, Attempt: 1}.RawName(0)))
	flip(t, file, 2<<20+5)
	r, err := c.Open(t.Context(), "new/run@1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.ReadShard(t.Context(), 0, make([]byte, 3<<20)); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("read after a flip: %v, want ErrCorrupt", err)
	}
}
