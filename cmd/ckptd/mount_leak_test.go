package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/sdk/wire"
)

// held is what a daemon's process holds.
type held struct {
	files, goroutines int
	memory            int64 // bytes that are resident
}

func holds(t *testing.T, d *daemon) (h held) {
	t.Helper()
	web := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.socket)
	}}}
	a, err := web.Get("http://ckptd/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	proc := fmt.Sprintf("/proc/%d", d.cmd.Process.Pid)
	fds, err1 := os.ReadDir(filepath.Join(proc, "fd"))
	status, err2 := os.ReadFile(filepath.Join(proc, "status"))
	metrics, err3 := io.ReadAll(a.Body)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	number := func(in, what string) int64 {
		x := regexp.MustCompile(`(?m)^` + what + `:?\s+(\d+)`).FindStringSubmatch(in)
		if x == nil {
			t.Fatalf("no %s in\n%s", what, in)
		}
		n, _ := strconv.ParseInt(x[1], 10, 64) // digits
		return n
	}
	return held{files: len(fds), goroutines: int(number(string(metrics), "ckptd_goroutines")), memory: number(string(status), "RssAnon") << 10}
}

// TestMountLeaksNothing opens thousands of files through a mount, all kinds of
// them, at once and one after the other, read and mapped, and mounts and
// unmounts many times: afterwards the daemon has the descriptors and goroutines
// that it had, and its memory did not grow with what was open.
func TestMountLeaksNothing(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	atOnce := int(min(3000, limit.Cur/2))
	d := newDaemon(t, "n1", "--remote", "none").start()
	c := d.dial()
	src, files := imageTree(t, rand.New(rand.NewPCG(3, 4)))
	if _, err := importTree(t.Context(), d.socket, src, "pets"); err != nil {
		t.Fatal(err)
	}
	attempt, err := c.Attach(t.Context(), "job", "launch 1", 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := save(t.Context(), c, "job", 0, attempt, 0, 1, 3<<20); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := mountAt(t, c, wire.MountRequest{Dir: dir})
	shard := filepath.Join(dir, "checkpoints/job/0/rank-00000.safetensors")
	eventually(t, "the set is there", func() error { _, err := os.Stat(shard); return err })
	seen := filepath.Join(dir, "datasets/pets/1")
	paths := []string{shard}
	for name := range files {
		paths = append(paths, filepath.Join(seen, name))
	}
	packs, err := os.ReadDir(filepath.Join(seen, ".packs"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range packs {
		paths = append(paths, filepath.Join(seen, ".packs", packs[i].Name()))
	}
	for rank := range 40 {
		paths = append(paths, filepath.Join(seen, fmt.Sprintf(".shuffle/1/0/%d-of-40.tar", rank)))
	}
	touch := func(p string, mapped bool) *os.File {
		t.Helper()
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		switch size := int(info.Size()); {
		case size == 0:
		case mapped:
			b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				t.Fatalf("map %s: %v", p, err)
			}
			_ = b[0] + b[size-1]
			if err := unix.Munmap(b); err != nil {
				t.Error(err)
			}
		default:
			if _, err := f.ReadAt(make([]byte, 1), int64(size)-1); err != nil {
				t.Fatalf("read %s: %v", p, err)
			}
		}
		return f
	}
	// settled waits until nothing is open, and the daemon has let go of it.
	settled := func(what string, base held) held {
		t.Helper()
		var now held
		eventually(t, what+": the daemon has what it had", func() error {
			all, err := c.Mounts(t.Context())
			if err != nil || len(all) != 1 || all[0].Open > 0 {
				return fmt.Errorf("mounts: %+v, %v", all, err)
			}
			if now = holds(t, d); base != (held{}) && (now.files > base.files+8 || now.goroutines > base.goroutines+16) { // a connection and a duty more
				return fmt.Errorf("%+v, want %+v", now, base)
			}
			return nil
		})
		return now
	}
	for _, p := range paths {
		touch(p, false).Close()
	}
	base := settled("once", held{})

	open := make([]*os.File, 0, atOnce)
	for i := range atOnce {
		open = append(open, touch(paths[i%len(paths)], false))
	}
	full := holds(t, d)
	all, err := c.Mounts(t.Context())
	if err != nil || len(all) != 1 || all[0].Open != atOnce {
		t.Errorf("mounts: %+v, %v; want %d files open", all, err, atOnce)
	}
	for _, f := range open {
		f.Close()
	}
	after := settled("thousands at once", base)
	t.Logf("base %+v; %d open %+v; after %+v", base, atOnce, full, after)
	const room = 192 << 20 // the pieces, tables and buffers that a mount may keep, and what the collector lags behind
	if full.memory > base.memory+room || after.memory > base.memory+room {
		t.Errorf("memory grew from %d by more than %d bytes: to %d, and %d after", base.memory, room, full.memory, after.memory)
	}
	for i := range 3 * len(paths) {
		touch(paths[i%len(paths)], i%2 == 0).Close()
	}
	settled("one after the other", base)
	if m.Passthrough { // the kernel's numbers of files were given back: there are some left
		was := all[0].Passed
		f := touch(shard, false)
		all, err := c.Mounts(t.Context())
		if err != nil || all[0].Passed <= was {
			t.Errorf("mounts: %+v, %v; want more than %d opens in passthrough", all, err, was)
		}
		f.Close()
	}

	other := t.TempDir()
	for i := range 50 {
		mountAt(t, c, wire.MountRequest{Dir: other, Checked: i%3 == 1, NoPassthrough: i%3 == 2})
		for _, p := range paths[i : i+2] {
			touch(filepath.Join(other, strings.TrimPrefix(p, dir)), i%2 == 0).Close()
		}
		if err := c.Unmount(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
	if n := mountsAt(t, other); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	if now := settled("fifty mounts", base); now.memory > base.memory+room {
		t.Errorf("memory grew from %d to %d bytes by mounting", base.memory, now.memory)
	}
}
