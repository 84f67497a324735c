package target_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

func open(t *testing.T, fsys vfs.FS, dir string) *target.Dir {
	t.Helper()
	d, err := target.OpenDir(fsys, dir, "t1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestConformance(t *testing.T) {
	t.Run("OS", func(t *testing.T) {
		targettest.Run(t, func(t *testing.T) remotetier.Target { return open(t, vfs.OS, t.TempDir()) })
	})
	t.Run("Mem", func(t *testing.T) {
		targettest.Run(t, func(t *testing.T) remotetier.Target { return open(t, vfstest.New(vfstest.Options{}), "/t") })
	})
	t.Run("NoDirect", func(t *testing.T) {
		targettest.Run(t, func(t *testing.T) remotetier.Target {
			return open(t, vfstest.New(vfstest.Options{NoDirect: true}), "/t")
		})
	})
}

func TestPromise1OneProcessOneName(t *testing.T) {
	dir := t.TempDir()
	d := open(t, vfs.OS, dir)
	if _, err := target.OpenDir(vfs.OS, dir, "t1"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("a second opener got %v, want ErrConflict", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := target.OpenDir(vfs.OS, dir, "t2"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("another name got %v, want ErrConflict", err)
	}
	open(t, vfs.OS, dir) // the refusals left it as it was
	if err := os.WriteFile(filepath.Join(dir, "target.id"), []byte("ckptd tar"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir2 := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir2, "target.id"), []byte("ckptd tar"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := target.OpenDir(vfs.OS, dir2, "t1"); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a cut id file got %v, want ErrCorrupt", err)
	}
}

func TestReadablePaths(t *testing.T) {
	dir := t.TempDir()
	d := open(t, vfs.OS, dir)
	k := remotetier.Key{Blob: "llama/000000000001-000001/rank-00000.safetensors", Generation: 255, Column: 3}
	w, err := d.Create(t.Context(), k, 4096, remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := errors.Join(w.Write(t.Context(), vfs.AlignedBuffer(4096)), w.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "columns/llama/000000000001-000001/rank-00000.safetensors/g00000000000000ff.c03.col")
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("Stat = %v, %v", fi, err)
	}
	if err := d.Remove(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "columns"))
	if err != nil || len(left) != 0 {
		t.Errorf("Remove left %v, %v", left, err)
	}
}

func TestListPassesOverStrangers(t *testing.T) {
	dir := t.TempDir()
	d := open(t, vfs.OS, dir)
	for _, name := range []string{"columns/stray", "columns/a/b/notes.txt", "columns/a/.hidden/g0000000000000001.c00.col", "columns/a b/g0000000000000001.c00.col"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for e, err := range d.List(t.Context(), "") {
		t.Errorf("List gives %v, %v", e, err)
	}
}
