package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// importRow is what `ckpt dataset import --json` says.
type importRow struct {
	Version  int64 `json:"version"`
	New      bool  `json:"new"`
	Files    int64 `json:"files"`
	Samples  int64 `json:"samples"`
	NewBytes int64 `json:"new_bytes"`
	NewPacks int   `json:"new_packs"`
	OldPacks int   `json:"old_packs"`
	Unread   int64 `json:"unread_files"`
}

// importDataset runs the command, which must work.
func importDataset(t *testing.T, d *daemon, args ...string) importRow {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), append([]string{"--socket", d.socket, "--json", "dataset", "import"}, args...), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var v importRow
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	return v
}

// wantDataset holds the newest version against the tree it was made of.
func wantDataset(t *testing.T, d *daemon, name, dir string) {
	t.Helper()
	c, err := ckpt.Dial(t.Context(), d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	st, err := store.New(c, name)
	if err != nil {
		t.Fatal(err)
	}
	base, err := st.Base(t.Context())
	if err != nil || base == nil {
		t.Fatalf("no version: %v", err)
	}
	defer base.Close()
	x, err := index.Open(base.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	packs := make(map[int]datasets.Blob)
	defer func() {
		for _, b := range packs {
			b.Close()
		}
	}()
	entries := 0
	err = filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		entries++
		rel, _ := filepath.Rel(dir, p)
		if rel == "." {
			rel = ""
		}
		i, err := x.Find(rel)
		if err != nil {
			return err
		}
		e, err := x.Entry(i)
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink == 0 && (e.FileMode() != info.Mode() || !e.Mtime.Equal(info.ModTime())) {
			t.Errorf("%q: %v of %v, want %v of %v", rel, e.FileMode(), e.Mtime, info.Mode(), info.ModTime())
		}
		switch e.Kind {
		case index.Link:
			if target, _ := os.Readlink(p); target != string(e.Target) {
				t.Errorf("%q -> %q, want %q", rel, e.Target, target)
			}
		case index.File:
			want, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			got := make([]byte, e.Size)
			if e.Size > 0 {
				if packs[e.Pack] == nil {
					pk, err := x.Pack(e.Pack)
					if err != nil {
						return err
					}
					if _, packs[e.Pack], err = st.OpenPack(t.Context(), pk.Set); err != nil {
						return err
					}
				}
				if _, err := packs[e.Pack].ReadAt(got, e.Offset); err != nil {
					return err
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%q has other bytes", rel)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if entries != x.Len() {
		t.Errorf("%d entries, want %d", x.Len(), entries)
	}
}

// oddTree writes a tree of everything a tree can have, and large files.
func oddTree(t *testing.T, large int) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, b []byte) {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		put(fmt.Sprintf("c%d/%03d.jpg", i%3, i), random(3000+i, byte(i)))
	}
	put("empty", nil)
	put("odd \xff\n name", []byte("odd"))
	put(strings.Repeat("deep/", 60)+"file", []byte("deep"))
	for i := range large {
		put(fmt.Sprintf("large/%d.bin", i), random(3<<20, byte(i)))
	}
	if err := os.Symlink("c0/000.jpg", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "nothing"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDatasetImport(t *testing.T) {
	d := startDaemon(t)
	dir := oddTree(t, 2)
	v := importDataset(t, d, "--raw-from", "2", dir, "team/odd")
	if v.Version != 1 || !v.New || v.Files != 205 || v.Samples != 205 || v.NewPacks != 3 {
		t.Errorf("%+v", v)
	}
	wantDataset(t, d, "team/odd", dir)
	if v := importDataset(t, d, "--raw-from", "2", dir, "team/odd"); v.Version != 1 || v.New || v.Unread != 204 {
		t.Errorf("again: %+v", v)
	}
	if err := os.WriteFile(filepath.Join(dir, "c1/new"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if v := importDataset(t, d, "--raw-from", "2", dir, "team/odd"); v.Version != 2 || v.NewBytes != 3 || v.NewPacks != 1 || v.OldPacks != 3 {
		t.Errorf("after a change: %+v", v)
	}
	wantDataset(t, d, "team/odd", dir)
}

// TestDatasetImportKilled kills the importer when its first packs are there; the
// next one goes on with them.
func TestDatasetImportKilled(t *testing.T) {
	d := startDaemon(t)
	dir := oddTree(t, 24)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		name := fmt.Sprintf("killed-%d", sig)
		exe := filepath.Join(binDir, "ckpt")
		if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
			t.Fatalf("go build: %v: %s", err, out)
		}
		cmd := exec.Command(exe, "--socket", d.socket, "dataset", "import", "--raw-from", "2", dir, name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := ckpt.Dial(t.Context(), d.socket)
		if err != nil {
			t.Fatal(err)
		}
		st, err := store.New(c, name)
		if err != nil {
			t.Fatal(err)
		}
		for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
			if packs, err := st.Packs(t.Context()); err != nil {
				t.Fatal(err)
			} else if len(packs) >= 2 {
				break
			}
			if t.Context().Err() != nil {
				t.Fatal("no pack came")
			}
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Log("it was faster than the signal")
		} else if base, err := st.Base(t.Context()); err != nil || base != nil {
			t.Errorf("a version is visible: %v", err)
		}
		c.Close()
		if v := importDataset(t, d, "--raw-from", "2", dir, name); v.OldPacks < 2 {
			t.Errorf("%+v: packs were not taken up", v)
		}
		wantDataset(t, d, name, dir)
	}
}
