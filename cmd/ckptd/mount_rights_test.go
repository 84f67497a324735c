package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// dialAs connects to a socket as another user: who connects is noted then, and
// only this thread is somebody else for a moment.
func dialAs(uid int, socket string) (net.Conn, error) {
	runtime.LockOSThread()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		runtime.UnlockOSThread()
		return nil, errno
	}
	conn, err := net.Dial("unix", socket)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); errno != 0 {
		return nil, errors.Join(err, errno) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return conn, err
}

// TestOthersMayNotMount: whom --allow-uid lets in can use the daemon, and not
// have it mount, or unmount, anywhere, also not in a folder that is his.
func TestOthersMayNotMount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root, to be another user")
		}
		t.Skip("SKIPPED: this test needs root, to be another user")
	}
	u := someUser(t)
	d := newDaemon(t, "n1", "--remote", "none", "--allow-uid", "65534").start()
	if err := os.Chmod(filepath.Dir(d.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	c := d.dial()
	mine, roots := taken(t, u.folder()), taken(t, t.TempDir())
	if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: roots}); err != nil {
		t.Fatal(err)
	}
	other := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return dialAs(65534, d.socket) }}}
	ask := func(method, path string, body any) (int, string) {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, "http://ckptd"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		a, err := other.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		text, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode, string(text)
	}
	if code, text := ask(http.MethodGet, "/v1/mounts", nil); code != http.StatusOK || !strings.Contains(text, roots) {
		t.Errorf("user 65534 looks at the mounts: %d %s", code, text)
	}
	for path, body := range map[string]any{
		"/v1/mount": wire.MountRequest{Dir: mine}, "/v1/unmount": wire.UnmountRequest{Dir: roots, Lazy: true},
	} {
		if code, text := ask(http.MethodPost, path, body); code != http.StatusUnauthorized || !strings.Contains(text, "only root") {
			t.Errorf("user 65534 asks for %s: %d %s, want that he may not", path, code, text)
		}
	}
	if mountsAt(t, mine) != 0 || mountsAt(t, roots) != 1 {
		t.Errorf("%d mounts at %s and %d at %s, want 0 and 1", mountsAt(t, mine), mine, mountsAt(t, roots), roots)
	}
}

// TestUnmountInUse: a mount that is in use stays, the error names who uses it,
// and lazily it goes from under him.
func TestUnmountInUse(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1", "--remote", "none").start()
	c := d.dial()
	dir := t.TempDir()
	mountAt(t, c, wire.MountRequest{Dir: dir})
	f, err := os.Open(filepath.Join(dir, "checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = c.Unmount(t.Context(), dir)
	if want := fmt.Sprintf("process %d (", os.Getpid()); !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), want) {
		t.Errorf("unmount in use: %v, want ErrConflict, %q", err, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "datasets")); err != nil {
		t.Errorf("after that: %v", err)
	}
	if err := c.UnmountLazy(t.Context(), dir); err != nil {
		t.Errorf("lazily: %v", err)
	}
	if n := mountsAt(t, dir); n != 0 {
		t.Errorf("%d mounts after that", n)
	}
	if _, err := f.Readdirnames(0); err == nil {
		t.Error("the folder that was open can still be listed")
	}
	if _, err := c.Mount(t.Context(), wire.MountRequest{Dir: dir}); err != nil {
		t.Errorf("mounted again: %v", err)
	}
	if err := c.Unmount(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

// TestMountCheckedPacks attacks what an open --checked mount reads of a
// dataset: bits of the node's own packs flip, and then those of the copies that
// took their place. Every file, pack and tar that is read has the right bytes.
func TestMountCheckedPacks(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1")
	for i := range 3 {
		d.flags = append(d.flags, "--remote", remoteFlag(d, i))
	}
	c := d.start().dial()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	src, files := imageTree(t, r)
	if _, err := importTree(t.Context(), d.socket, src, "pets"); err != nil {
		t.Fatal(err)
	}
	v, err := c.OpenDataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	packs := make([]string, v.Index().Packs())
	for i := range packs {
		p, err := v.Index().Pack(i)
		if err != nil {
			t.Fatal(err)
		}
		packs[i] = p.Set.String()
		mustWait(t, c, packs[i], catalog.Verified)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	whole := make([][]byte, len(packs))
	var tar []byte
	shards := filepath.Join(d.dir, "data", "local", "shards")
	attack := func(what string) (hit int) {
		if err := filepath.WalkDir(shards, func(p string, e os.DirEntry, err error) error {
			name := strings.TrimPrefix(p, shards)
			if err != nil || e.IsDir() || !strings.HasSuffix(p, ".bin") || !strings.HasPrefix(name, what) || !strings.Contains(name, "_packs") {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			hit++
			for range 20 {
				flip(t, p, r.Int64N(info.Size()))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return hit
	}
	look := func(at, what string) {
		t.Helper()
		seen := filepath.Join(at, "datasets/pets/1")
		for i := range packs {
			b, err := os.ReadFile(filepath.Join(seen, ".packs", fmt.Sprint(i)))
			if whole[i] == nil {
				whole[i] = b
			}
			if err != nil || !bytes.Equal(b, whole[i]) {
				t.Errorf("%s: pack %d: %d bytes, %v; want the %d it had", what, i, len(b), err, len(whole[i]))
			}
		}
		for name, want := range files {
			if b, err := os.ReadFile(filepath.Join(seen, name)); err != nil || !bytes.Equal(b, want) {
				t.Errorf("%s: %q: %d bytes, %v; want its %d", what, name, len(b), err, len(want))
			}
		}
		b, err := os.ReadFile(filepath.Join(seen, ".shuffle/1/0/0-of-1.tar"))
		if tar == nil {
			tar = b
		}
		if err != nil || !bytes.Equal(b, tar) {
			t.Errorf("%s: tar: %d bytes, %v; want the %d it had", what, len(b), err, len(tar))
		}
	}
	look(mountAt(t, c, wire.MountRequest{Dir: t.TempDir()}).Dir, "before") // so that all is known to be good
	// Each mount has pages of its own; it is open, and has read something, when bits flip.
	for _, what := range []string{"/_packs", "/_cache"} {
		m := mountAt(t, c, wire.MountRequest{Dir: t.TempDir(), Checked: true})
		held := make([]*os.File, len(packs))
		for i := range packs {
			if held[i], err = os.Open(filepath.Join(m.Dir, "datasets/pets/1/.packs", fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
			defer held[i].Close()
			if _, err := held[i].ReadAt(make([]byte, 100), 0); err != nil {
				t.Fatal(err)
			}
		}
		if n := attack(what); n == 0 {
			t.Fatalf("nothing of %s to attack below %s", what, shards)
		}
		for i, f := range held {
			b := make([]byte, len(whole[i]))
			if n, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, whole[i]) {
				t.Errorf("%s: pack %d that was open: %d bytes, %v; want those it had", what, i, n, err)
			}
			f.Close()
		}
		look(m.Dir, what)
		if row, err := c.Mounts(t.Context()); err != nil || row[len(row)-1].Passed != 0 && row[len(row)-1].Checked {
			t.Errorf("mounts: %+v, %v", row, err)
		}
	}
	if m, err := c.Status(t.Context()); err != nil || m.Cache.Bad == 0 {
		t.Errorf("status: %v; want copies that failed a check", err)
	}
}
