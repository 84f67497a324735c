package main

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/bundle"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// saveFiles saves raw shards of one set, a rank for each name.
func saveFiles(t *testing.T, c *ckpt.Client, run string, names []string, data [][]byte) {
	t.Helper()
	attempt, err := c.Attach(t.Context(), run, "launch 1", len(names))
	if err != nil {
		t.Fatal(err)
	}
	for rank, name := range names {
		s, err := c.Save(t.Context(), ckpt.At(run, 1), ckpt.Attempt(attempt), ckpt.Rank(rank, len(names)))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Raw(name, int64(len(data[rank])), bytes.NewReader(data[rank])); err != nil {
			t.Fatal(err)
		}
		s.Meta("kind", "tar")
		if _, err := s.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRestoreNames: a raw shard has its own name, and no two files one name.
func TestRestoreNames(t *testing.T) {
	for _, c := range []struct {
		files []string // "" is a shard of tensors
		want  []string // nil: refused
	}{
		{[]string{"", "a.tar"}, []string{"rank-00000.safetensors", "a.tar"}},
		{[]string{"rank-00001.safetensors", "a.tar"}, []string{"rank-00001.safetensors", "a.tar"}},
		{[]string{"a.tar", "a.tar"}, nil},
		{[]string{"rank-00001.safetensors", ""}, nil},
		{[]string{"manifest.json"}, nil},
		{[]string{"../a"}, nil},
		{[]string{".."}, nil},
	} {
		m := &catalog.Manifest{Set: catalog.SetID{Run: "files", Step: 1, Attempt: 1}}
		for rank, f := range c.files {
			m.Shards = append(m.Shards, catalog.Shard{Rank: rank, File: f})
		}
		got, err := fileNames(m)
		if !slices.Equal(got, c.want) || (c.want == nil) != errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("fileNames(%q) = %q, %v; want %q", c.files, got, err, c.want)
		}
	}
}

// TestRawFiles: a set of raw shards is exported and imported with the names
// and strings of its files, and restored under those names.
func TestRawFiles(t *testing.T) {
	d := startDaemon(t)
	names := []string{"a file.tar", "b.bin"}
	data := [][]byte{random(3<<20+5, 1), random(77, 2)}
	c := d.dial()
	saveFiles(t, c, "files", names, data)
	d.must("wait", "files@1")
	out := filepath.Join(t.TempDir(), "out")
	for range 2 { // the second finds all there
		d.must("export", "files@1", out)
	}
	for rank, want := range data {
		if b, err := os.ReadFile(filepath.Join(out, bundle.RawFile(rank))); err != nil || !bytes.Equal(b, want) {
			t.Errorf("exported rank %d: %d bytes, %v", rank, len(b), err)
		}
	}
	d.must("import", out, "again@7")
	restored := filepath.Join(t.TempDir(), "restored")
	d.must("restore", "files@1", restored)
	for rank, want := range data {
		if b, err := os.ReadFile(filepath.Join(restored, names[rank])); err != nil || !bytes.Equal(b, want) {
			t.Errorf("restored %s: %d bytes, %v", names[rank], len(b), err)
		}
	}
	if out := d.must("show", "files@1"); !strings.Contains(out, `"a file.tar"`) {
		t.Errorf("show does not name the file:\n%s", out)
	}
	was, err := c.Manifest(t.Context(), "files@1")
	if err != nil {
		t.Fatal(err)
	}
	now, err := c.Manifest(t.Context(), "again@7")
	if err != nil {
		t.Fatal(err)
	}
	for rank := range names {
		a, b := was.Shards[rank], now.Shards[rank]
		if a.File != names[rank] || b.File != a.File || b.Root != a.Root || !maps.Equal(a.Meta, b.Meta) || a.Meta["kind"] != "tar" {
			t.Errorf("rank %d was %q %v, is %q %v", rank, a.File, a.Meta, b.File, b.Meta)
		}
	}
	// The same bytes under another name are another set.
	saveFiles(t, c, "renamed", []string{"a file.tar", "c.bin"}, data)
	d.must("wait", "renamed@1")
	if code, _, errs := d.ckpt("import", out, "renamed@1"); code != 6 {
		t.Errorf("import where the same bytes have another name: %d %s, want a refusal", code, errs)
	}
	damage(t, filepath.Join(out, bundle.RawFile(0)), 1<<20+3)
	if code, _, errs := d.ckpt("import", out, "bad@1"); code == 0 || !strings.Contains(errs, "damaged") {
		t.Errorf("import of damaged bytes: %d %s", code, errs)
	}
}

// TestSaveFiles: files of any kind are saved as they are, .safetensors as
// tensors unless --raw says otherwise, and come back byte for byte.
func TestSaveFiles(t *testing.T) {
	d := startDaemon(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	opt := write("optimizer.pt", random(2<<20+7, 1))
	conf := write("config.json", []byte("{}\n"))
	broken := write("broken.safetensors", []byte("no header"))
	twin, empty := write("other/config.json", []byte("[]")), write("empty", nil)

	d.must("save", "job@1", opt, conf)
	out := filepath.Join(t.TempDir(), "out")
	d.must("restore", "job@1", out)
	for _, p := range []string{opt, conf} {
		want, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(out, filepath.Base(p))); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s came back as %d bytes, %v", p, len(b), err)
		}
	}
	// --only chooses raw files by their names.
	some := filepath.Join(t.TempDir(), "some")
	d.must("restore", "job@1", some, "--only", "*.json")
	if list, err := os.ReadDir(some); err != nil || len(list) != 2 { // and the manifest
		t.Errorf("--only gave %v, %v", list, err)
	}
	if code, _, errs := d.ckpt("restore", "job@1", filepath.Join(t.TempDir(), "none"), "--only", "lm_head"); code != 3 || !strings.Contains(errs, "no raw file") {
		t.Errorf("nothing matches: exit %d\n%s", code, errs)
	}
	// What is no safetensors file is refused with the way out, and --raw is it.
	if code, _, errs := d.ckpt("save", "job@2", broken); code == 0 || !strings.Contains(errs, "--raw") {
		t.Errorf("exit %d, want a hint at --raw:\n%s", code, errs)
	}
	d.must("save", "job@2", broken, "--raw")
	for _, c := range [][]string{{conf, twin}, {empty}, {dir}, {write("manifest.json", []byte("{}"))}} {
		if code, _, errs := d.ckpt(append([]string{"save", "job@3"}, c...)...); code != 2 {
			t.Errorf("save %v: exit %d, want 2\n%s", c, code, errs)
		}
	}
	if code, out, _ := d.ckpt("ls", "job"); code != 0 || strings.Contains(out, "@3") {
		t.Errorf("a refused save left something:\n%s", out)
	}
}

// A file that somebody writes to while it is read is no shard.
func TestSteadyFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "log")
	for name, change := range map[string]func() error{
		"longer":  func() error { return os.WriteFile(p, []byte("longer than before"), 0o644) },
		"shorter": func() error { return os.Truncate(p, 1) },
		"other":   func() error { return os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)) },
	} {
		if err := os.WriteFile(p, []byte("before"), 0o644); err != nil {
			t.Fatal(err)
		}
		in, err := openRaw(p)
		if err != nil {
			t.Fatal(err)
		}
		f := steadyFile{in, func(int64) {}}
		if n, err := f.ReadAt(make([]byte, 2), 0); n != 2 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(make([]byte, 2), 4); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
		in.Close()
	}
}
