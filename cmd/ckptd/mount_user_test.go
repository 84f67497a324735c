package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// user is who has no rights on this machine: nobody where the test is root's,
// otherwise whose the test is.
type user struct {
	t    *testing.T
	cred *syscall.Credential // nil: the test's own
}

// someUser needs fusermount3, by which users mount.
func someUser(t *testing.T) *user {
	t.Helper()
	if _, err := exec.LookPath("fusermount3"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("SKIPPED, AND NOTHING ELSE TESTS MOUNTS OF USERS: %v. Install package fuse3, as make fuse3 does.", err)
		}
		t.Fatalf("mounts of users cannot be tested: %v; make fuse3 installs it", err)
	}
	if os.Geteuid() != 0 {
		return &user{t: t}
	}
	return &user{t, &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// folder is one of the user's own, which he can reach.
func (u *user) folder() string {
	u.t.Helper()
	dir := u.t.TempDir()
	if u.cred == nil {
		return dir
	}
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), u.own(dir)); err != nil {
		u.t.Fatal(err)
	}
	return dir
}

func (u *user) own(dir string) error {
	if u.cred == nil {
		return nil
	}
	return os.Chown(dir, int(u.cred.Uid), int(u.cred.Gid))
}

// command is a program that the user runs.
func (u *user) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(u.t.Context(), args[0], args[1:]...)
	cmd.Dir = "/"
	if u.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred}
	}
	return cmd
}

// run gives what the program says, or its error with that.
func (u *user) run(args ...string) (string, error) {
	out, err := u.command(args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// daemon prepares the user's own daemon.
func (u *user) daemon(flags ...string) *daemon {
	u.t.Helper()
	home := u.folder()
	d := newDaemon(u.t, "n1", "--remote", "none", "--data", home)
	d.cred = u.cred
	arena := d.flags[slices.Index(d.flags, "--arena-dir")+1]
	if err := errors.Join(u.own(filepath.Dir(d.socket)), u.own(arena)); err != nil {
		u.t.Fatal(err)
	}
	d.flags = append(d.flags, flags...)
	return d
}

// taken sees to it that nothing is left mounted when the test ends.
func taken(t *testing.T, dir string) string {
	t.Helper()
	t.Cleanup(func() {
		for range 4 {
			if syscall.Unmount(dir, syscall.MNT_DETACH) != nil {
				break // EINVAL: nothing is there
			}
		}
	})
	return dir
}

// TestUserMount: a daemon without any rights mounts by fusermount3, from its
// flags and when it is asked. There is no passthrough, and it says so; files
// are right; a daemon that is killed leaves nothing that the next one, or the
// user, cannot take away.
func TestUserMount(t *testing.T) {
	t.Parallel()
	u := someUser(t)
	flagged, asked := taken(t, u.folder()), taken(t, u.folder())
	src, _ := imageTree(t, rand.New(rand.NewPCG(1, 2)))
	if err := os.Chmod(filepath.Dir(src), 0o755); err != nil {
		t.Fatal(err)
	}
	d := u.daemon("--mount", flagged)
	c := d.start().dial()
	if _, err := importTree(t.Context(), d.socket, src, "pets"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: asked, AllowOther: true}); os.Geteuid() == 0 {
		conf, _ := os.ReadFile("/etc/fuse.conf")
		if allowed := slices.Contains(strings.Split(string(conf), "\n"), "user_allow_other"); !allowed && (!errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "user_allow_other")) {
			t.Errorf("let others look in, which /etc/fuse.conf does not allow: %v, want ErrInvalid and what to write there", err)
		} else if allowed {
			if err := errors.Join(err, c.Unmount(t.Context(), asked)); err != nil {
				t.Error(err)
			}
		}
	}
	same := func(dir string) error {
		out, err := u.run("diff", "-r", "--no-dereference", src, filepath.Join(dir, "datasets/pets/1"))
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	}
	m, err := c.Mount(t.Context(), wire.MountRequest{Dir: asked})
	if err != nil {
		t.Fatal(err)
	}
	if !m.Mounted || m.Passthrough || !strings.Contains(m.Why, "CAP_SYS_ADMIN") && !strings.Contains(m.Why, "the kernel cannot") {
		t.Errorf("mounted as %+v, want no passthrough and why", m)
	}
	for _, dir := range []string{flagged, asked} {
		eventually(t, "the tree is right", func() error { return same(dir) })
	}
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range s.Mounts {
		if row.Passthrough || row.Why == "" || row.Plain == 0 || row.Passed != 0 {
			t.Errorf("status says %+v, want opens, none in passthrough, and why", row)
		}
	}
	if len(s.Mounts) != 2 || !strings.Contains(d.grep("mounted"), "passthrough=false why=") {
		t.Errorf("status says %+v and the log %s; want both mounts, and why there is no passthrough", s.Mounts, d.grep("mounted"))
	}

	// Killed while somebody has a file open.
	reader := u.command("sh", "-c", `exec 3<"$1" && echo open && read go; cat <&3`, "sh", filepath.Join(flagged, "datasets/pets/1/.packs/0"))
	in, err1 := reader.StdinPipe()
	out, err2 := reader.StdoutPipe()
	if err := errors.Join(err1, err2, reader.Start()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "open\n" {
		t.Fatalf("the reader says %q, %v", line, err)
	}
	d.kill()
	if _, err := u.run("ls", flagged); err == nil || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("looked into the mount of a dead daemon: %v, want that it is not connected", err)
	}
	d.start()
	c = d.dial()
	for _, dir := range []string{flagged, asked} {
		eventually(t, "the mount is there again", func() error { return same(dir) })
		if n := mountsAt(t, dir); n != 1 {
			t.Errorf("%d mounts at %s, want 1", n, dir)
		}
	}
	in.Close()
	if err := reader.Wait(); err == nil {
		t.Error("a file of the dead daemon was read to its end")
	}

	// Taken away: by the user, while the daemon lives; by the daemon; by the
	// user, when the daemon is dead.
	if _, err := u.run("fusermount3", "-u", asked); err != nil {
		t.Error(err)
	}
	eventually(t, "the daemon knows that it was unmounted", func() error {
		if all, err := c.Mounts(t.Context()); err != nil || len(all) != 1 {
			return fmt.Errorf("mounts: %+v, %v", all, err)
		}
		return nil
	})
	if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: asked}); err != nil {
		t.Fatal(err)
	}
	if err := c.Unmount(t.Context(), asked); err != nil {
		t.Error(err)
	}
	d.kill()
	if _, err := u.run("fusermount3", "-u", flagged); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{flagged, asked} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 || mountsAt(t, dir) != 0 {
			t.Errorf("after all: %v, %v; want an empty folder", left, err)
		}
	}

	// One that is asked to stop takes its mounts with it.
	d.start()
	eventually(t, "the mount is there a third time", func() error { return same(flagged) })
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.dead
	if n := mountsAt(t, flagged); n != 0 {
		t.Errorf("%d mounts of a daemon that stopped", n)
	}
	log, err := os.ReadFile(d.log.Name())
	if err != nil || bytes.Contains(log, []byte("take away the dead mount at "+flagged+": ")) {
		t.Errorf("the log: %v\n%s", err, d.grep("dead mount"))
	}
}
