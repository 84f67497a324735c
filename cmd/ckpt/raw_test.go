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
	damage(t, filepath.Join(out, bundle.RawFile(0)), 1<<20+3)
	if code, _, errs := d.ckpt("import", out, "bad@1"); code == 0 || !strings.Contains(errs, "damaged") {
		t.Errorf("import of damaged bytes: %d %s", code, errs)
	}
}
