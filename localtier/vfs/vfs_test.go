package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// each runs a test on the real file system and on the one in memory.
func each(t *testing.T, f func(t *testing.T, fsys vfs.FS, dir string)) {
	t.Run("OS", func(t *testing.T) { f(t, vfs.OS, t.TempDir()) })
	t.Run("Mem", func(t *testing.T) {
		m := vfstest.New(vfstest.Options{})
		if err := m.MkdirAll("/data"); err != nil {
			t.Fatal(err)
		}
		f(t, m, "/data")
	})
}

func TestBasics(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		a := filepath.Join(dir, "a")
		f, err := fsys.Create(a, vfs.Opt{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := fsys.Create(a, vfs.Opt{Direct: true}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Create twice: %v, want ErrExist", err)
		}
		if _, err := fsys.Open(filepath.Join(dir, "none"), vfs.Opt{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of nothing: %v, want ErrNotExist", err)
		}
		if _, err := fsys.OpenWrite(filepath.Join(dir, "none"), vfs.Opt{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("OpenWrite of nothing: %v, want ErrNotExist", err)
		}
		if _, err := f.WriteAt([]byte("hello"), 3); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if n, err := f.ReadAt(got, 0); n != 8 || err != io.EOF || string(got[:8]) != "\x00\x00\x00hello" {
			t.Errorf("ReadAt = %d %v %q", n, err, got[:n])
		}
		if err := f.Allocate(6); err != nil {
			t.Error(err)
		}
		if n, _ := f.Size(); n != 8 {
			t.Errorf("Size after a smaller Allocate = %d, want 8", n)
		}
		if err := fsys.Remove(a); err != nil {
			t.Fatal(err)
		}
		if n, _ := f.ReadAt(got[:8], 0); n != 8 {
			t.Error("an open file lost its bytes with its name")
		}
		r, err := fsys.Create(a, vfs.Opt{})
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		ro, err := fsys.Open(a, vfs.Opt{})
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		if _, err := ro.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a file opened for reading was written")
		}
		deep := filepath.Join(dir, "x", "y", "z")
		if err := errors.Join(fsys.MkdirAll(deep), fsys.MkdirAll(deep), fsys.SyncDir(deep)); err != nil {
			t.Error(err)
		}
		if err := fsys.Remove(filepath.Join(dir, "x")); err == nil {
			t.Error("a full directory was removed")
		}
		if err := fsys.MkdirAll(filepath.Join(a, "b")); err == nil {
			t.Error("a directory was made in a file")
		}
		ents, err := fsys.ReadDir(dir)
		if err != nil || len(ents) != 2 || ents[0].Name() != "a" || ents[1].Name() != "x" || !ents[1].IsDir() {
			t.Errorf("ReadDir = %v, %v", ents, err)
		}
		if total, free, err := fsys.Space(dir); err != nil || total <= 0 || free < 0 || free > total {
			t.Errorf("Space = %d %d %v", total, free, err)
		}
	})
}

func TestDirect(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f, err := fsys.Create(filepath.Join(dir, "f"), vfs.Opt{Direct: true})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !f.Direct() {
			t.Log("no O_DIRECT here")
			return
		}
		buf := vfs.AlignedBuffer(3 * vfs.Align)
		for i := range buf {
			buf[i] = byte(i * 7)
		}
		if err := f.Allocate(3 * vfs.Align); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(buf, 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(2*vfs.Align+100), f.Sync()); err != nil {
			t.Fatal(err)
		}
		got := vfs.AlignedBuffer(3 * vfs.Align)
		n, err := f.ReadAt(got, 0)
		if n != 2*vfs.Align+100 || err != io.EOF || !bytes.Equal(got[:n], buf[:n]) {
			t.Errorf("ReadAt over the end = %d, %v", n, err)
		}
	})
}

func TestLockNamesItsHolder(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "lock")
		l, err := fsys.Lock(name)
		if err != nil {
			t.Fatal(err)
		}
		pid := 1
		if fsys == vfs.OS {
			pid = os.Getpid()
		}
		if _, err := fsys.Lock(name); !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), fmt.Sprint(pid)) {
			t.Errorf("second Lock: %v, want ErrConflict that names process %d", err, pid)
		}
		l.Close()
		l, err = fsys.Lock(name)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
}

// TestMemIsLikeOS does the same random operations on both and compares what is read.
func TestMemIsLikeOS(t *testing.T) {
	for seed := range int64(30) {
		r := rand.New(rand.NewSource(seed))
		mem, root := vfstest.New(vfstest.Options{}), t.TempDir()
		if err := mem.MkdirAll(root); err != nil {
			t.Fatal(err)
		}
		name := func() string { return filepath.Join(root, []string{"a", "b", "d/a", "d/b", "d/e/c"}[r.Intn(5)]) }
		for i := range 120 {
			do := script(r, name(), name())
			want, got := do(vfs.OS), do(mem)
			if want != got {
				t.Fatalf("seed %d, op %d: OS gave %q, Mem %q", seed, i, want, got)
			}
		}
	}
}

// script draws one operation; run on a file system it tells what it saw.
func script(r *rand.Rand, a, b string) func(vfs.FS) string {
	op, off, size, data := r.Intn(8), r.Int63n(10000), r.Int63n(20000), make([]byte, r.Intn(9000)+1)
	r.Read(data)
	return func(fsys vfs.FS) string {
		switch op {
		case 0:
			return outcome(fsys.MkdirAll(filepath.Dir(a)))
		case 1:
			f, err := fsys.Create(a, vfs.Opt{})
			if err == nil {
				f.Close()
			}
			return outcome(err)
		case 2:
			return outcome(fsys.Rename(a, b))
		case 3:
			return outcome(fsys.Remove(a))
		case 4:
			ents, err := fsys.ReadDir(filepath.Dir(a))
			return fmt.Sprint(outcome(err), ents)
		}
		f, err := fsys.OpenWrite(a, vfs.Opt{})
		if err != nil {
			return outcome(err)
		}
		defer f.Close()
		switch op {
		case 5:
			_, err = f.WriteAt(data, off)
		case 6:
			err = f.Truncate(size)
		case 7:
			err = f.Allocate(size)
		}
		n, _ := f.Size()
		all := make([]byte, n)
		f.ReadAt(all, 0)
		return fmt.Sprint(outcome(err), n, sum64(all))
	}
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	case errors.Is(err, fs.ErrExist):
		return "exists"
	default:
		return "error"
	}
}

func sum64(b []byte) (sum uint64) {
	for _, c := range b {
		sum = sum*1099511628211 + uint64(c)
	}
	return sum
}
