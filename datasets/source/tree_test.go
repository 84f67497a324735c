package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// shown is an item in one line, with its content and its records.
func shown(t *testing.T, it *Item) string {
	t.Helper()
	s := fmt.Sprintf("%v %q", it.Kind, it.Path)
	if it.Target != "" {
		s += " -> " + it.Target
	}
	if it.Sample != "" {
		s += " in " + it.Sample
	}
	if it.NoSample {
		s += " no sample"
	}
	if it.Same != "" {
		s += " same as " + it.Same
	}
	if it.Open == nil {
		return s
	}
	r, err := it.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != it.Size {
		t.Errorf("%q: %d bytes, Size says %d", it.Path, len(b), it.Size)
	}
	if it.Records == nil {
		return s + fmt.Sprintf(" %q", b)
	}
	for r, err := range it.Records(r.(io.ReaderAt), it.Size) {
		if err != nil {
			t.Fatal(err)
		}
		s += fmt.Sprintf(" [%s]", b[r.Offset:r.Offset+r.Size])
	}
	return s
}

// stream opens a source and shows all of it.
func stream(t *testing.T, src string, opt Options) (lines []string, facts Facts, err error) {
	t.Helper()
	s, err := Open(src, opt)
	if err != nil {
		return nil, Facts{}, err
	}
	defer s.Close()
	for it, err := range s.Items(t.Context()) {
		if err != nil {
			return lines, s.Facts(), err
		}
		lines = append(lines, shown(t, it))
	}
	return lines, s.Facts(), nil
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"a/b": "1", "a.b": "2", "a/sub/deep": "3", "empty": "", "odd\xff\n name": "4", "z": "5"})
	if err := os.Mkdir(filepath.Join(dir, "nothing"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../out of it", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "z"), filepath.Join(dir, "zz")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`folder ""`, `folder "a"`, `file "a/b" "1"`, `folder "a/sub"`, `file "a/sub/deep" "3"`, `file "a.b" "2"`, `file "empty" ""`,
		`symlink "link" -> ../out of it`, `folder "nothing"`, `file "odd\xff\n name" "4"`, `file "z" "5"`, `file "zz" "5"`,
	}
	for range 20 { // whatever the goroutines do
		got, _, err := stream(t, dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantLines(t, got, want...)
	}
}

func TestPromise1OrderOfAWideAndDeepTree(t *testing.T) {
	dir := t.TempDir()
	files := make(map[string]string)
	for i := range 1500 {
		files[fmt.Sprintf("wide/%04d", i)] = ""
	}
	for i := range 60 {
		files[fmt.Sprintf("%02d/x/y", i)] = ""
	}
	files[strings.Repeat("d/", 300)+"end"] = "x"
	put(t, dir, files)
	var first []string
	for range 3 {
		got, _, err := stream(t, dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		if !slices.Equal(got, first) {
			t.Fatal("two walks differ")
		}
	}
	if got, want := len(first), 1+1501+60*3+301; got != want {
		t.Errorf("%d items, want %d", got, want)
	}
}

func TestPromise2FileThatChanges(t *testing.T) {
	for what, change := range map[string]func(string) error{
		"longer":  func(p string) error { return os.WriteFile(p, []byte("longer than before"), 0o644) },
		"shorter": func(p string) error { return os.Truncate(p, 1) },
		"gone":    os.Remove,
		"a link":  func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) },
		"replaced": func(p string) error {
			return errors.Join(os.WriteFile(p+"2", []byte("before"), 0o644), os.Rename(p+"2", p))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, map[string]string{"file": "before"})
			s, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for it, err := range s.Items(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if it.Kind != File {
					continue
				}
				if err := change(filepath.Join(dir, "file")); err != nil {
					t.Fatal(err)
				}
				r, err := it.Open()
				if err == nil {
					_, err = io.ReadAll(r)
					r.Close()
				}
				if !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), `"file"`) {
					t.Errorf("err = %v, want ErrConflict that names the file", err)
				}
			}
		})
	}
}

func TestPromise5SpecialFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"a": "1", "z": "2"})
	for _, name := range []string{"pipe", "other"} {
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := stream(t, dir, Options{})
	if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), `"other" (pipe)`) || !strings.Contains(err.Error(), `"pipe" (pipe)`) {
		t.Errorf("err = %v, want ErrInvalid that names both", err)
	}
	got, facts, err := stream(t, dir, Options{SkipSpecial: true})
	if err != nil || facts.Skipped != 2 {
		t.Errorf("skipped %d, %v; want 2", facts.Skipped, err)
	}
	wantLines(t, got, `folder ""`, `file "a" "1"`, `file "z" "2"`)
}

func TestAuto(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  Format
	}{
		"Mixed":    {map[string]string{"a.jsonl": "{}", "b.jpg": ""}, Tree},
		"Lines":    {map[string]string{"a.jsonl": "{}", "b/c.ndjson": "{}", "README.md": "", ".git": ""}, JSONL},
		"Tars":     {map[string]string{"0.tar": "", "1.tar.gz": ""}, WebDataset},
		"TarBelow": {map[string]string{"x/0.tar": ""}, Tree},
		"Empty":    {map[string]string{".keep": ""}, Tree},
		"Two":      {map[string]string{"a.npy": "", "b.parquet": ""}, Tree},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.files)
			s, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Facts().Format; got != c.want {
				t.Errorf("format %s, want %s", got, c.want)
			}
		})
	}
}

func TestOpenRefusesEarly(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"a.jsonl.gz": "", "x/index.json": `{"version":1}`, "x-1.tar": ""})
	for _, c := range []struct {
		src    string
		format Format
		says   string
	}{
		{"-", Auto, "no standard input"},
		{dir + "/a.jsonl.gz", JSONL, "decompress"},
		{dir + "/x", MDS, "version 2"},
		{dir, MDS, "index.json"},
		{dir + "/x", WebDataset, "no tars"},
		{dir + "/x-{1..0}.tar", Auto, "two numbers"},
		{dir + "/x-{1..2}.tar", Auto, "x-2.tar"},
		{dir + "/x-1.tar", JSONL, ""},
	} {
		s, err := Open(c.src, Options{Format: c.format})
		if c.says == "" {
			if err != nil {
				t.Errorf("%s: %v", c.src, err)
			}
			continue
		}
		if err == nil {
			s.Close()
			t.Errorf("%s as %s: opened", c.src, c.format)
		} else if !strings.Contains(err.Error(), c.says) || catalog.ClassOf(err) == nil {
			t.Errorf("%s as %s: %v; want a class and %q", c.src, c.format, err, c.says)
		}
	}
}
