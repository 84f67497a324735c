package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/sdk/wire"
)

// oddTree is a folder of all that a file system can name: empty files and
// folders, names of any bytes, links to somewhere and nowhere, depth, modes and
// times, and one file of large bytes.
func oddTree(t *testing.T, large int64) string {
	t.Helper()
	dir := t.TempDir()
	deep := filepath.Join(dir, strings.Repeat("deep/", 60))
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	do(os.MkdirAll(deep, 0o755))
	do(os.Mkdir(filepath.Join(dir, "empty folder"), 0o750))
	r := rand.New(rand.NewPCG(5, 5))
	noise := make([]byte, 16<<20)
	for i := 0; i < len(noise); i += 8 {
		copy(noise[i:], fmt.Appendf(nil, "%08x", r.Uint32()))
	}
	for i, name := range []string{
		"empty", "\xff\xfe not text", "line\nfeed", " space ", "-rf", "ünï", "back\\slash", "quote\"'`$x", strings.Repeat("n", 255), "a", "a.b", "a b", deep + "leaf",
	} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		do(os.WriteFile(name, noise[:i*7001], 0o640|os.FileMode(i%2)<<6))
	}
	for i := range 500 {
		do(os.WriteFile(filepath.Join(dir, fmt.Sprintf("small %03d", i)), noise[i:][:i*31], 0o644))
	}
	do(os.Symlink("a b", filepath.Join(dir, "link")))
	do(os.Symlink("/nowhere/\xff", filepath.Join(dir, "dangling")))
	do(os.Chtimes(filepath.Join(dir, "a"), time.Time{}, time.Unix(-12345, 678)))
	f, err := os.Create(filepath.Join(dir, "large"))
	do(err)
	for n := int64(0); n < large; n += int64(len(noise)) {
		copy(noise, fmt.Sprint("piece ", n)) // no two pieces are the same
		_, err := f.Write(noise)
		do(err)
	}
	do(f.Close())
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return dir
}

// listing is what find says of every name but the size of folders.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	for _, kind := range []string{"-type f -printf %P|%m|%s|%T@\\0", "-type l -printf %P|%l\\0", "-mindepth 1 -type d -printf %P|%m|%n\\0"} {
		args := append([]string{dir}, strings.Fields(kind)...)
		out, err := exec.CommandContext(t.Context(), "find", args...).Output()
		if err != nil {
			t.Fatalf("find %s: %v", dir, err)
		}
		all = append(all, strings.Split(string(out), "\x00")...)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// TestStoryMountedTree: a folder that was imported is the same when it is seen
// through a mount: `diff -r` finds nothing, nor do modes, times, sizes and links
// differ; and tar takes each file once out of the shuffled archives of all ranks.
func TestStoryMountedTree(t *testing.T) {
	dir := oddTree(t, 5<<30)
	d := newDaemon(t, "n1")
	d.flags = append(d.flags, "--remote", "none")
	c := d.start().dial()
	v, err := importTree(t.Context(), d.socket, dir, "odd/tree")
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	mountAt(t, c, wire.MountRequest{Dir: at})
	seen := filepath.Join(at, "datasets/odd/tree", fmt.Sprint(v.Set.Step))
	var differs bytes.Buffer
	diff := exec.CommandContext(t.Context(), "diff", "-r", "--no-dereference", dir, seen)
	diff.Stdout, diff.Stderr = &differs, &differs
	if err := diff.Run(); err != nil || differs.Len() > 0 {
		t.Errorf("diff -r: %v\n%.2000s", err, differs.String())
	}
	if got, want := listing(t, seen), listing(t, dir); got != want {
		t.Errorf("names, modes, sizes, times or links differ:\n%.2000s\nwant\n%.2000s", got, want)
	}
	taken := map[string]int{}
	for rank := range 3 {
		out, err := exec.CommandContext(t.Context(), "tar", "-t", "--null", "--quoting-style=literal", "-f", filepath.Join(seen, fmt.Sprintf(".shuffle/7/0/%d-of-3.tar", rank)), "--exclude=large").Output()
		if err != nil {
			t.Fatalf("tar of rank %d: %v", rank, err)
		}
		for _, name := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
			taken[name]++
		}
	}
	for name, n := range taken {
		if n != 1 && !strings.Contains("line\nfeed", name) {
			t.Errorf("%q is %d times in the archives of all ranks", name, n)
		}
	}
	if len(taken) < 500 {
		t.Errorf("%d names in the archives, want all files", len(taken))
	}
	f, err := os.Open(filepath.Join(seen, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(-1, io.SeekEnd); err != nil {
		t.Error(err)
	}
}
