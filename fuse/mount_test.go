package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func TestPromise3WayOfOpening(t *testing.T) {
	for _, c := range []struct {
		opens           int
		now             way
		backing, direct bool
		want            way
	}{
		{0, plain, true, false, passthrough},
		{0, plain, false, true, direct},
		{0, plain, false, false, plain},
		{1, passthrough, true, false, passthrough},
		{1, passthrough, false, true, passthrough}, // the pack was evicted: the kernel still has its file
		{1, plain, true, false, plain},             // the pack completed while pages are kept
		{1, plain, true, true, direct},
		{3, plain, false, true, direct},
	} {
		if got := chooseWay(c.opens, c.now, c.backing, c.direct); got != c.want {
			t.Errorf("chooseWay(%d, %v, backing %v, direct %v) = %v, want %v", c.opens, c.now, c.backing, c.direct, got, c.want)
		}
	}
}

func TestTree(t *testing.T) {
	tree := newMemTree()
	odd := []string{"a b", "\xff\xfe not text", "line\nfeed", strings.Repeat("n", 255), "-rf", "ünï"}
	for i, name := range odd {
		tree.file(name, noise(uint64(i), i*5000))
	}
	deep := Root
	for range 100 {
		deep = tree.add(deep, "d", &memNode{mode: syscall.S_IFDIR | 0o755, fixed: true})
	}
	tree.add(Root, "link", &memNode{mode: syscall.S_IFLNK | 0o777, data: []byte("a b")})
	tree.wide = 100_000
	m := mounted(t, tree, Options{})
	t.Run("Names", func(t *testing.T) {
		for i, name := range odd {
			got, err := os.ReadFile(filepath.Join(m.Dir(), name))
			if err != nil || !bytes.Equal(got, noise(uint64(i), i*5000)) {
				t.Errorf("%q: %d bytes, %v; want %d", name, len(got), err, i*5000)
			}
		}
		if _, err := os.Lstat(filepath.Join(m.Dir(), strings.Repeat("d/", 100))); err != nil {
			t.Error(err)
		}
		if got, err := os.Readlink(filepath.Join(m.Dir(), "link")); err != nil || got != "a b" {
			t.Errorf("link leads to %q, %v", got, err)
		}
		if _, err := os.Lstat(filepath.Join(m.Dir(), "nobody")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a missing name: %v", err)
		}
	})
	t.Run("Numbers", func(t *testing.T) {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(m.Dir(), "wide/77"), &st); err != nil {
			t.Fatal(err)
		}
		if want := uint64(wideFirst + 77); st.Ino != want || st.Size != 77 || st.Nlink != 1 {
			t.Errorf("inode %d size %d links %d, want %d 77 1", st.Ino, st.Size, st.Nlink, want)
		}
	})
	t.Run("Wide", func(t *testing.T) {
		names, err := os.ReadDir(filepath.Join(m.Dir(), "wide"))
		if err != nil || len(names) != tree.wide {
			t.Errorf("%d names, %v, want %d", len(names), err, tree.wide)
		}
	})
	t.Run("ReadOnly", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(m.Dir(), "new"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
			t.Errorf("a new file: %v, want EROFS", err)
		}
	})
	t.Run("NotTwice", func(t *testing.T) {
		if _, err := New(m.Dir(), tree, Options{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("mount over a mount: %v, want fs.ErrExist", err)
		}
		if _, err := New(filepath.Dir(m.Dir()), tree, Options{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("mount over files: %v, want fs.ErrExist", err)
		}
	})
}

// readWhileItChanges opens, reads, maps and closes files: every byte must be right.
func readWhileItChanges(dir string, seed uint64, files, size int, mapped bool) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	var held []*os.File
	defer func() {
		for _, f := range held {
			f.Close()
		}
	}()
	for range 150 {
		i := rng.IntN(files)
		want := noise(uint64(i), size)
		f, err := os.Open(filepath.Join(dir, string(rune('a'+i))))
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		held = append(held, f)
		off, buf := rng.IntN(size-9000), make([]byte, 9000)
		if _, err := f.ReadAt(buf, int64(off)); err != nil || !bytes.Equal(buf, want[off:off+9000]) {
			return fmt.Errorf("read %d of %d: wrong bytes, %w", off, i, err)
		}
		if mapped {
			// ENODEV: a direct file of an inode that others have in passthrough.
			if p, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED); err == nil {
				same := bytes.Equal(p, want)
				_ = unix.Munmap(p)
				if !same {
					return fmt.Errorf("mapped bytes of %d are wrong", i)
				}
			} else if !errors.Is(err, syscall.ENODEV) {
				return fmt.Errorf("mmap: %w", err)
			}
		}
		if len(held) > 3 {
			held[0].Close()
			held = held[1:]
		}
	}
	return nil
}

// TestMappedReader is the child of the test below; alone it has nothing to do.
func TestMappedReader(t *testing.T) {
	var dir string
	var seed uint64
	var files, size int
	told := os.Getenv("CKPTD_FUSE_READER")
	if told == "" {
		return
	}
	if _, err := fmt.Sscan(told, &dir, &seed, &files, &size); err != nil {
		t.Fatal(err)
	}
	if err := readWhileItChanges(dir, seed, files, size, true); err != nil {
		t.Fatal(err)
	}
}

// Files are opened, mapped, read and closed while they complete and are
// evicted: no open and no read may fail, and every byte is right.
func TestPromise3OpensWhileFilesCompleteAndGo(t *testing.T) {
	tree, disk := newMemTree(), t.TempDir()
	const files, size = 4, 300_000
	ids, paths := make([]ID, files), make([]string, files)
	for i := range files {
		ids[i] = tree.file(string(rune('a'+i)), noise(uint64(i), size))
		paths[i] = filepath.Join(disk, string(rune('a'+i)))
		tree.set(ids[i], "", i%2 == 0)
	}
	m := mounted(t, tree, Options{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for r := range 3 {
		wg.Go(func() {
			if err := readWhileItChanges(m.Dir(), uint64(r), files, size, false); err != nil {
				t.Error(err)
			}
		})
		// Mapped by another process: a page fault on one's own mount stops the
		// whole Go runtime, which is then to serve it.
		wg.Go(func() {
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMappedReader$", "-test.v")
			child.Env = append(os.Environ(), fmt.Sprintf("CKPTD_FUSE_READER=%s %d %d %d", m.Dir(), r, files, size))
			if out, err := child.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
				t.Errorf("reader %d: %v\n%s", r, err, out)
			}
		})
	}
	var changer sync.WaitGroup
	changer.Go(func() {
		rng := rand.New(rand.NewPCG(7, 7))
		for {
			select {
			case <-stop:
				return
			default:
			}
			i := rng.IntN(files)
			if rng.IntN(2) == 0 {
				tree.set(ids[i], "", rng.IntN(2) == 0)
				os.Remove(paths[i])
				continue
			}
			tmp := paths[i] + ".new"
			if err := os.WriteFile(tmp, noise(uint64(i), size), 0o644); err != nil {
				t.Error(err)
				return
			}
			os.Rename(tmp, paths[i])
			f, err := os.Open(paths[i]) // through /proc: the name may go, as an evicted pack's does
			if err != nil {
				t.Error(err)
				return
			}
			tree.set(ids[i], paths[i], false)
			f.Close()
		}
	})
	wg.Wait()
	close(stop)
	changer.Wait()
	t.Logf("%+v", m.Info())
}

func TestChanged(t *testing.T) {
	tree := newMemTree()
	dir := tree.add(Root, "d", &memNode{mode: syscall.S_IFDIR | 0o755, fixed: true})
	m := mounted(t, tree, Options{})
	p := filepath.Join(m.Dir(), "d", "late")
	if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	tree.add(dir, "late", &memNode{mode: syscall.S_IFREG | 0o444, fixed: true, data: []byte("x")})
	m.Changed(dir, "late")
	if _, err := os.Stat(p); err != nil {
		t.Errorf("after Changed: %v", err)
	}
	if names, err := os.ReadDir(filepath.Dir(p)); err != nil || len(names) != 1 {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// A node that never changes may go, and its name with it: the kernel asks again
// where the folder is one that changes.
func TestNamesGo(t *testing.T) {
	tree := newMemTree()
	id := tree.file("going", noise(1, 100))
	tree.nodes[id].fixed = true
	m := mounted(t, tree, Options{})
	p := filepath.Join(m.Dir(), "going")
	if _, err := os.Stat(p); err != nil {
		t.Fatal(err)
	}
	tree.mu.Lock()
	delete(tree.nodes[Root].children, "going")
	tree.mu.Unlock()
	for end := time.Now().Add(time.Minute); ; {
		_, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("a name that is no more: %v, want fs.ErrNotExist", err)
		}
		runtime.Gosched()
	}
}

// A read that waits holds up nobody, and hears of its caller's end.
func TestPromise4SlowReadsAreAlone(t *testing.T) {
	tree := newMemTree()
	id := tree.file("slow", noise(1, 5000))
	tree.nodes[id].slow, tree.nodes[id].asked = make(chan struct{}), make(chan struct{}, 1)
	tree.set(id, "", true)
	tree.file("fast", noise(2, 5000))
	m := mounted(t, tree, Options{})
	cmds := make([]*exec.Cmd, 50)
	for i := range cmds {
		cmds[i] = exec.Command("cat", filepath.Join(m.Dir(), "slow"))
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	<-tree.nodes[id].asked
	if _, err := os.ReadFile(filepath.Join(m.Dir(), "fast")); err != nil {
		t.Error(err)
	}
	for _, c := range cmds {
		_ = c.Process.Kill()
		if err := c.Wait(); err == nil {
			t.Error("cat ended well, although its read never did")
		}
	}
}

func TestWriteArea(t *testing.T) {
	for _, opt := range []Options{{}, {Checked: true}} {
		tree := &memWriteTree{newMemTree(), t.TempDir()}
		m := mounted(t, tree, opt)
		d := filepath.Join(m.Dir(), "step")
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(d, "rank0.pt"))
		if err != nil {
			t.Fatal(err)
		}
		want := noise(3, 3<<20)
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != int64(len(want)) {
			t.Errorf("size while open %v, %v", st.Size(), err)
		}
		if err := f.Truncate(1 << 20); err != nil {
			t.Error(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, 0, 2<<20); err != nil {
			t.Error(err)
		}
		if err := errors.Join(f.Sync(), f.Chmod(0o600), f.Close()); err != nil {
			t.Error(err)
		}
		for m.Info().Open > 0 { // the kernel tells of the close a little later
			runtime.Gosched()
		}
		if err := os.Truncate(filepath.Join(d, "rank0.pt"), 1<<20); err != nil {
			t.Errorf("truncate while it is not open: %v", err)
		}
		if err := os.Rename(d, filepath.Join(m.Dir(), "7")); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(m.Dir(), "7/rank0.pt"))
		if err != nil || !bytes.Equal(got, want[:1<<20]) {
			t.Errorf("read back %d bytes, %v", len(got), err)
		}
		if err := os.Remove(filepath.Join(m.Dir(), "7")); !errors.Is(err, syscall.ENOTEMPTY) {
			t.Errorf("rmdir: %v, want ENOTEMPTY", err)
		}
		if err := os.Remove(filepath.Join(m.Dir(), "7/rank0.pt")); err != nil {
			t.Error(err)
		}
		if i := m.Info(); opt.Checked == i.Passthrough || opt.Checked && i.Passed > 0 {
			t.Errorf("checked %v, and %+v", opt.Checked, i)
		}
	}
}

// Nobody can be asked any more when files are open at the end.
func TestCloseWhileBusy(t *testing.T) {
	tree, disk := newMemTree(), t.TempDir()
	want := noise(9, 1<<20)
	p := filepath.Join(disk, "pack")
	if err := os.WriteFile(p, want, 0o644); err != nil {
		t.Fatal(err)
	}
	tree.set(tree.file("pack", want), p, false)
	m := mounted(t, tree, Options{})
	f, err := os.Open(filepath.Join(m.Dir(), "pack"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("passthrough file after the mount went: %v", err)
	}
}

func TestMountinfo(t *testing.T) {
	table := "1 2 0:5 / /mnt/a\\040b rw - fuse.ckptd ckptd rw\n3 2 0:6 / /mnt rw shared:1 - ext4 /dev/x rw\n4 2 0:7 / /mnt rw - tmpfs t rw\n"
	for dir, want := range map[string]string{"/mnt/a b": "fuse.ckptd", "/mnt": "tmpfs", "/": ""} {
		if got := typeAt(table, dir); got != want {
			t.Errorf("type at %q = %q, want %q", dir, got, want)
		}
	}
}
