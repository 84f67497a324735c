package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// desk is a daemon with a mount, and a draft's folder in it.
func desk(t *testing.T, flags ...string) (d *daemon, c *ckpt.Client, run string) {
	t.Helper()
	return deskAt(t, wire.MountRequest{}, flags...)
}

func deskAt(t *testing.T, req wire.MountRequest, flags ...string) (d *daemon, c *ckpt.Client, run string) {
	t.Helper()
	d = newDaemon(t, "n1", append([]string{"--remote", "none"}, flags...)...)
	d.start()
	c = d.dial()
	dir := t.TempDir()
	req.Dir = dir
	mountAt(t, c, req)
	return d, c, filepath.Join(dir, "checkpoints", "new", "run")
}

// sh runs a command of the shell's and gives what it said.
func sh(ctx context.Context, script string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "sh", append([]string{"-euc", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

func mustSh(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := sh(t.Context(), script, args...)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out
}

// drafted makes a folder with the files that a distributed checkpoint has.
func drafted(t *testing.T, seed int64) string {
	t.Helper()
	dir := t.TempDir()
	for i, name := range []string{".metadata", "__0_0.distcp", "__1_0.distcp", "model.safetensors", "ünï.pt"} {
		if err := os.WriteFile(filepath.Join(dir, name), content(seed, 1, i, 1+i*1_100_003), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sameFiles compares a committed set with the folder that it was made of.
func sameFiles(ctx context.Context, want, set string) error {
	out, err := sh(ctx, `diff -r -x .manifest.json "$1" "$2"`, want, set)
	if err != nil || out != "" {
		return fmt.Errorf("diff -r: %w %s", err, out)
	}
	return nil
}

// writers write a folder's files into a draft as programs do that know nothing
// of ckptd.
var writers = map[string]string{
	"cp": `cp -r "$1/." "$2/"`,
	"dd": `cd "$1"; for f in .metadata *; do dd if="$f" of="$2/$f" bs=64k conv=fsync status=none; done`,
	"python": `python3 - "$1" "$2" <<'END'
import os, sys
src, dst = sys.argv[1:]
for name in os.listdir(src):
    with open(os.path.join(src, name), 'rb') as f, open(os.path.join(dst, name + '.tmp'), 'wb') as g:
        g.write(b'what is overwritten')
        g.seek(0)
        while b := f.read(300_000):
            g.write(b)
        g.truncate()
        g.flush()
        os.fsync(g.fileno())
    os.rename(os.path.join(dst, name + '.tmp'), os.path.join(dst, name))
d = os.open(dst, os.O_RDONLY)
os.fsync(d)
END`,
	"dd direct": `cd "$1"; for f in .metadata *; do n=$(stat -c %s "$f")
dd if="$f" of="$2/$f" bs=4096 count=$((n/4096)) oflag=direct status=none; tail -c $((n%4096)) "$f" >>"$2/$f"; done`,
	"mmap": `python3 - "$1" "$2" <<'END'
import mmap, os, sys
src, dst = sys.argv[1:]
for name in os.listdir(src):
    b, to = open(os.path.join(src, name), 'rb').read(), os.path.join(dst, name)
    with open(to, 'wb') as g:
        g.write(b'too much' * 1000)
    os.truncate(to, 0)
    with open(to, 'r+b') as g:
        g.truncate(len(b))
        m = mmap.mmap(g.fileno(), len(b))
        m[:] = b
        m.flush()
        m.close()
END`,
}

// TestStoryDraft: programs without an SDK write folders into a mount; a rename
// makes each a set, which is then what any set is, and shows the same files.
func TestStoryDraft(t *testing.T) {
	t.Parallel()
	for _, checked := range []bool{false, true} {
		t.Run(fmt.Sprintf("checked %v", checked), func(t *testing.T) {
			t.Parallel()
			storyDraft(t, checked)
		})
	}
}

func storyDraft(t *testing.T, checked bool) {
	_, c, run := deskAt(t, wire.MountRequest{Checked: checked})
	step := 0
	for how, script := range writers {
		step++
		src, draft, set := drafted(t, int64(step)), filepath.Join(run, ".write", fmt.Sprint(step)), filepath.Join(run, fmt.Sprint(step))
		mustSh(t, `mkdir -p "$1"`, draft)
		mustSh(t, script, src, draft)
		if err := sameFiles(t.Context(), src, draft); err != nil {
			t.Errorf("%s: before the commit: %v", how, err)
		}
		if _, err := os.Stat(set); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %s is there before the commit: %v", how, set, err)
		}
		if got := listed(t, c, "new/run"); len(got) != step-1 {
			t.Errorf("%s: before the commit there are %v", how, got)
		}
		if s, err := c.Status(t.Context()); err != nil || len(s.Drafts) != 1 || s.Drafts[0].Name != fmt.Sprintf("new/run@%d", step) || s.Drafts[0].Files != 5 {
			t.Errorf("%s: status tells of %+v, %v", how, s.Drafts, err)
		}
		mustSh(t, `mv "$1" "$2"`, draft, set)
		if err := sameFiles(t.Context(), src, set); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if left := mustSh(t, `ls -A "$1"`, filepath.Dir(draft)); left != "" {
			t.Errorf("%s: left in .write: %s", how, left)
		}
		if err := sameSet(t.Context(), c, fmt.Sprintf("new/run@%d", step), src); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if err := sameFiles(t.Context(), src, filepath.Join(run, "latest")); err != nil {
			t.Errorf("%s: latest is another: %v", how, err)
		}
		if err := os.WriteFile(filepath.Join(set, "ünï.pt"), nil, 0o600); err == nil {
			t.Errorf("%s: a committed file can be written", how)
		}
	}
	m, err := c.Mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m[0].Passthrough && m[0].Passed < 40 || checked && m[0].Passed > 0 {
		t.Errorf("%d opens were in passthrough, want those of the writers, or none when all is checked", m[0].Passed)
	}
}

// sameSet loads a set through the SDK and compares it with a folder.
func sameSet(ctx context.Context, c *ckpt.Client, ref, dir string) error {
	r, err := c.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer r.Close()
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if got := len(r.Manifest().Shards); got != len(names) {
		return fmt.Errorf("%s has %d shards, want %d", ref, got, len(names))
	}
	for i, s := range r.Manifest().Shards {
		want, err := os.ReadFile(filepath.Join(dir, names[i].Name())) // in the order of names, as ranks are
		if err != nil {
			return err
		}
		got := make([]byte, s.Size)
		if err := r.ReadShard(ctx, s.Rank, got); err != nil {
			return err
		}
		if s.File != names[i].Name() || !bytes.Equal(got, want) {
			return fmt.Errorf("%s: rank %d is %s of %d bytes, want %s of %d", ref, i, s.File, s.Size, names[i].Name(), len(want))
		}
	}
	return nil
}

// TestDraftRefuses what is no set, and leaves the draft as it was.
func TestDraftRefuses(t *testing.T) {
	t.Parallel()
	_, c, run := desk(t)
	draft, set := filepath.Join(run, ".write", "7"), filepath.Join(run, "7")
	mustSh(t, `mkdir -p "$1"`, draft)
	refused := func(what string, err error, want syscall.Errno) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	refused("an empty draft", os.Rename(draft, set), syscall.EINVAL)
	f, err := os.Create(filepath.Join(draft, "rank0.pt"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("bytes"); err != nil {
		t.Fatal(err)
	}
	refused("an open file", os.Rename(draft, set), syscall.EBUSY)
	if _, err := c.CommitDraft(t.Context(), wire.CommitRequest{Ref: "new/run@7"}, nil); !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), "rank0.pt") {
		t.Errorf("commit with an open file: %v, want ErrConflict and its name", err)
	}
	if err := errors.Join(f.Truncate(0), f.Close()); err != nil {
		t.Fatal(err)
	}
	refused("an empty file", os.Rename(draft, set), syscall.EINVAL)
	if err := os.WriteFile(filepath.Join(draft, "rank0.pt"), []byte("bytes"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("another step", os.Rename(draft, filepath.Join(run, "8")), syscall.EINVAL)
	refused("a name", os.Rename(draft, filepath.Join(run, "last")), syscall.EINVAL)
	refused("another run", os.Rename(draft, filepath.Join(filepath.Dir(run), "7")), syscall.EXDEV)
	refused("a folder in it", os.Mkdir(filepath.Join(draft, "sub"), 0o755), syscall.EPERM)
	refused("a link in it", os.Symlink("x", filepath.Join(draft, "link")), syscall.EPERM)
	refused("a name that is no text", os.WriteFile(filepath.Join(draft, "\xff"), nil, 0o644), syscall.EINVAL)
	refused("the manifest's name", os.WriteFile(filepath.Join(draft, ".manifest.json"), nil, 0o644), syscall.EINVAL)
	refused("a file of a run", os.WriteFile(filepath.Join(run, "x"), nil, 0o644), syscall.EROFS)
	refused("a set by mkdir", os.Mkdir(set, 0o755), syscall.EPERM)
	refused("a run with a bad name", os.Mkdir(filepath.Join(run, "a b"), 0o755), syscall.EINVAL)
	refused("a reserved run", os.Mkdir(filepath.Join(filepath.Dir(filepath.Dir(run)), "_packs"), 0o755), syscall.EPERM)
	refused("a draft that is no step", os.Mkdir(filepath.Join(run, ".write", "x"), 0o755), syscall.EINVAL)
	refused("a draft that is there", os.Mkdir(draft, 0o755), syscall.EEXIST)
	refused("removed with a file in it", os.Remove(draft), syscall.ENOTEMPTY)
	for what, req := range map[string]wire.CommitRequest{
		"more files": {Ref: "new/run@7", World: 2}, "more nodes": {Ref: "new/run@7", Nodes: 2},
	} {
		if _, err := c.CommitDraft(t.Context(), req, nil); !errors.Is(err, catalog.ErrIncomplete) {
			t.Errorf("commit with %s: %v, want ErrIncomplete", what, err)
		}
	}
	if _, err := c.CommitDraft(t.Context(), wire.CommitRequest{Ref: "new/run@8"}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("commit of no draft: %v, want fs.ErrNotExist", err)
	}

	// All of that changed nothing. Now by the API; and again, as a newer attempt.
	if err := os.Rename(draft, filepath.Join(run, ".write", "9")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CommitDraft(t.Context(), wire.CommitRequest{Ref: "new/run@9", World: 1, Metrics: map[string]float64{"loss": 2}}, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(run, "9", "rank0.pt")); err != nil || string(b) != "bytes" {
		t.Errorf("committed: %q, %v", b, err)
	}
	mustSh(t, `mkdir "$1/.write/9"; echo newer >"$1/.write/9/rank0.pt"; mv -T "$1/.write/9" "$1/9"`, run)
	eventually(t, "the newer attempt's set", func() error {
		if b, err := os.ReadFile(filepath.Join(run, "9", "rank0.pt")); err != nil || string(b) != "newer\n" {
			return fmt.Errorf("%q, %w", b, err)
		}
		return nil
	})
	if got := listed(t, c, "new/run"); len(got) != 2 {
		t.Errorf("the sets are %v", got)
	}
	mustSh(t, `mkdir "$1/.write/10"; echo x >"$1/.write/10/x"; rm -r "$1/.write/10"`, run)
	if s, err := c.Status(t.Context()); err != nil || len(s.Drafts) > 0 {
		t.Errorf("drafts: %+v, %v; want none", s.Drafts, err)
	}
	if got := mustSh(t, `ls -A "$1"`, run); strings.TrimSpace(got) != "9\nlatest" {
		t.Errorf("the run has %q", got)
	}
}
