package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// cleanErrors are what a reader of a mount may get while the daemon is killed,
// comes back, and finds the nodes and targets again.
var cleanErrors = []string{
	"ENOTCONN",      // the mount is dead; the next daemon takes it away
	"ECONNABORTED",  // it died during the call
	"EIO", "SIGBUS", // the kernel's words for that, of a page it wanted
	"ENOENT",       // nothing is mounted at this moment
	"ESTALE",       // the number of a file that the new daemon does not know yet
	"EHOSTUNREACH", // no copy is in reach
	"EINTR", "ETIMEDOUT",
}

// addToPets makes two more versions of pets, with more small files each, so
// that the last one lies in several packs.
func (p *pets) addToPets(r *rand.Rand) {
	p.t.Helper()
	for more := range 2 {
		dir := filepath.Join(p.dir, fmt.Sprintf("more %d", more))
		errs := []error{os.Mkdir(dir, 0o755)}
		for i := range 100 {
			size := r.IntN(64 << 10)
			switch {
			case i%25 == 0:
				size = 0
			case i%10 == 0:
				size = 1<<20 + r.IntN(1<<20)
			}
			errs = append(errs, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d \xff", i)), content(2, more, i, size), 0o644))
		}
		if _, err := importTree(p.t.Context(), p.nodes[0].socket, p.dir, "pets"); err != nil || errors.Join(errs...) != nil {
			p.t.Fatal(err, errs)
		}
	}
}

// copyTar reads a tar of a mounted version once, holds its members against the
// files, and keeps it, so that parts of it can be held against the whole.
func copyTar(t *testing.T, from, files, name string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	members := 0
	for r := tar.NewReader(bytes.NewReader(b)); ; members++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		want, werr := os.ReadFile(filepath.Join(files, h.Name))
		if err != nil || werr != nil || !bytes.Equal(got, want) {
			t.Fatalf("member %q of %s: %v, %v, or other bytes", h.Name, name, err, werr)
		}
	}
	if members < 50 {
		t.Fatalf("%s has %d members", name, members)
	}
	to := filepath.Join(files, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// mountsAt is how many mounts there are at a folder.
func mountsAt(t *testing.T, dir string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			n++
		}
	}
	return n
}

// differing are the files of a mount that are not those of a folder.
func differing(files, mount string) map[string]error {
	bad := make(map[string]error)
	err := filepath.WalkDir(files, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(files, p)
		if err != nil {
			return err
		}
		want, werr := os.ReadFile(p)
		got, err := os.ReadFile(filepath.Join(mount, name))
		if err = errors.Join(werr, err); err == nil && !bytes.Equal(got, want) {
			err = errWrongBytes
		}
		if err != nil {
			bad[name] = err
		}
		return nil
	})
	if err != nil {
		bad[""] = err
	}
	return bad
}

// TestStoryMountReaders: processes read a mounted version at random places, on
// a node that did not import it and whose cache is smaller than it, while its
// packs come from nodes and from the remote tier, are evicted, and the daemon is
// killed and comes back: every byte is right, or there is a clean error; what
// the kernel reads by itself is read on; nothing hangs, no dead mount is left.
func TestStoryMountReaders(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("CKPTD_CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (CKPTD_CRASH_SEED)", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	p := startPets(t, 4, "--cache", "36MiB")
	p.addToPets(r)
	d, c, at := p.nodes[1], p.c[1], t.TempDir()
	mountAt(t, p.c[0], wire.MountRequest{Dir: t.TempDir()})
	own, err := p.c[0].Mounts(t.Context())
	if err != nil || len(own) != 1 {
		t.Fatal(own, err)
	}
	seen := filepath.Join(at, "datasets/pets/3")
	for rank := range 2 {
		copyTar(t, filepath.Join(own[0].Dir, "datasets/pets/3"), p.dir, fmt.Sprintf(".shuffle/7/0/%d-of-2.tar", rank))
	}
	passthrough := mountAt(t, c, wire.MountRequest{Dir: at}).Passthrough
	quiet := t.TempDir() // a mount of the same daemon, for the files that are held
	mountAt(t, c, wire.MountRequest{Dir: quiet})
	var readers []*reader
	for k := range uint64(3) {
		readers = append(readers, startReader(t, p.dir, seen, seed+k))
	}
	const kills = 4
	held := 0
	var evicted, peer, remote int64
	for round := range kills {
		if round == 2 { // what comes now comes from the remote tier
			p.nodes[0].kill()
		}
		var now [3]int64
		eventually(t, "packs come and are evicted", func() error {
			now = [3]int64{p.counted(1, "evicted"), p.counted(1, "peer_bytes"), p.counted(1, "remote_bytes")}
			if now[0] < 2 || round >= 2 && now[2] < 12<<20 {
				return fmt.Errorf("evicted, bytes of peers, of the remote tier: %v", now)
			}
			return nil
		})
		evicted, peer, remote = evicted+now[0], peer+now[1], remote+now[2]
		name := fmt.Sprintf("%04d.bin", round)
		open := openPassed(t, c, quiet, filepath.Join("datasets/pets/3", name))
		d.kill()
		if open != nil {
			held++
			b, err := io.ReadAll(io.NewSectionReader(open, 0, 1<<30))
			want, werr := os.ReadFile(filepath.Join(p.dir, name))
			if err != nil || werr != nil || !bytes.Equal(b, want) {
				t.Errorf("an open file of a dead daemon: %d bytes of %d, or other ones; %v, %v", len(b), len(want), err, werr)
			}
			open.Close()
		}
		d.start()
		c = d.dial()
		eventually(t, "the mount is back", func() error {
			all, err := c.Mounts(t.Context())
			if err == nil && (len(all) != 2 || !all[0].Mounted || !all[1].Mounted) {
				err = fmt.Errorf("mounts %+v", all)
			}
			return err
		})
		if n := mountsAt(t, at); n != 1 {
			t.Errorf("after kill %d there are %d mounts at the folder", round, n)
		}
	}
	p.nodes[0].start()
	eventually(t, "the readers go on after the last kill", func() error {
		if p.counted(1, "evicted") == 0 {
			return errors.New("nothing is evicted")
		}
		return nil
	})
	sum := readTally{Right: map[string]int{}, Failed: map[string]int{}}
	for _, rd := range readers {
		saw := rd.end(t)
		for k, n := range saw.Right {
			sum.Right[k] += n
		}
		for k, n := range saw.Failed {
			sum.Failed[k] += n
		}
		sum.Slow = max(sum.Slow, saw.Slow)
		for _, w := range saw.Wrong {
			t.Errorf("a reader: %s", w)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(sum.Failed)) {
		if !slices.Contains(cleanErrors, k) {
			t.Errorf("%d calls failed by %s, which is none of %q", sum.Failed[k], k, cleanErrors)
		}
	}
	for _, k := range []string{"pread", "mmap", "whole", "tree", "tar pread"} {
		if sum.Right[k] == 0 {
			t.Errorf("no %s gave the right bytes: %v", k, sum.Right)
		}
	}
	if evicted == 0 || peer == 0 || remote == 0 || passthrough && held == 0 {
		t.Errorf("evicted %d packs, %d bytes of peers and %d of the remote tier, %d open files held through a kill; want some of each", evicted, peer, remote, held)
	}
	t.Logf("%d kills, %d packs evicted, %d bytes came from nodes and %d from the remote tier; %d files held; right %v, failed %v, the slowest call %v",
		kills, evicted, peer, remote, held, sum.Right, sum.Failed, sum.Slow)
	for name, err := range differing(p.dir, seen) {
		t.Errorf("when all is over, %q: %v", name, err)
	}
	if err := c.Unmount(t.Context(), at); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(at); err != nil || len(left) > 0 || mountsAt(t, at) != 0 {
		t.Errorf("after unmount: %v, %v, %d mounts", left, err, mountsAt(t, at))
	}
}

// openPassed opens a file of a mount that nobody else uses until the kernel
// reads it by itself, which is when its pack is whole. That may never be while
// others need the room.
func openPassed(t *testing.T, c *ckpt.Client, mount, name string) *os.File {
	t.Helper()
	passed := func() int64 {
		all, err := c.Mounts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(m wire.Mount) bool { return m.Dir == mount })
		if i < 0 {
			t.Fatalf("mounts %+v", all)
		}
		return all[i].Passed
	}
	for range 20 {
		before := passed()
		f, err := os.Open(filepath.Join(mount, name))
		if err != nil {
			t.Fatal(err)
		}
		if passed() > before {
			return f
		}
		_, err = io.Copy(io.Discard, f) // so that it comes here
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return nil
}
