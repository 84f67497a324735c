package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	dstore "github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	wideFlat    = 100_000 // files of one folder
	wideFolders = 150     // beside it
	wideFiles   = 1000    // of each
	wideEntries = 1 + wideFlat + wideFolders*(1+wideFiles)
)

// widePath is file i of the tree: first those of the flat folder.
func widePath(i int) string {
	if i < wideFlat {
		return fmt.Sprintf("flat/%06d", i)
	}
	return fmt.Sprintf("%03d/%06d", (i-wideFlat)/wideFiles, i)
}

// wideTar writes the tree. The content of each file is its number, of as many
// digits as the number has.
func wideTar(to io.Writer) error {
	buf := bufio.NewWriterSize(to, 1<<20)
	w := tar.NewWriter(buf)
	when := time.Unix(1_700_000_000, 0)
	for i := range wideFlat + wideFolders*wideFiles {
		content := strconv.Itoa(i)
		err := w.WriteHeader(&tar.Header{Name: widePath(i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: when})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, content); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buf.Flush())
}

// importWide imports the tree from a stream.
func importWide(ctx context.Context, c *ckpt.Client) error {
	r, w := io.Pipe()
	var g errgroup.Group
	g.Go(func() error { return w.CloseWithError(wideTar(w)) })
	src, err := source.Open("-", source.Options{Format: source.Tar, Stdin: r})
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := dstore.New(c, "wide")
	if err == nil {
		_, err = datasets.Import(ctx, src, st, datasets.Options{})
	}
	r.CloseWithError(err) // whoever still writes is told
	if werr := g.Wait(); err == nil {
		err = werr
	}
	return err
}

// resident is the memory of a process that is its own or mapped from files, in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if name == "RssAnon" || name == "RssFile" {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, err
			}
			sum += n << 10
		}
	}
	return sum, nil
}

// TestMountedWideTree: a quarter of a million entries, 100,000 of them in one
// folder, are listed whole, each once, while others look files up, and while
// data sets appear; the daemon does not grow with them.
func TestMountedWideTree(t *testing.T) {
	d := newDaemon(t, "n1", "--remote", "none")
	c := d.start().dial()
	if err := importWide(t.Context(), c); err != nil {
		t.Fatalf("import: %v", err)
	}
	at := t.TempDir()
	mountAt(t, c, wire.MountRequest{Dir: at})
	tree := filepath.Join(at, "datasets/wide/1")
	before, err := resident(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithCancel(t.Context())
	var beside errgroup.Group
	grown := int64(0)
	beside.Go(func() error { // watches
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			now, err := resident(d.cmd.Process.Pid)
			if err != nil {
				return err
			}
			grown = max(grown, now-before)
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	beside.Go(func() error { // looks files up, far from each other
		for i := 0; ctx.Err() == nil; i = (i + 77_777) % (wideFlat + wideFolders*wideFiles) {
			if err := wideFile(tree, i); err != nil {
				return err
			}
		}
		return nil
	})
	for _, walk := range [][]string{{"-printf", "%P\n"}, {"-printf", "%P %i %s %T@ %m\n"}, {"-printf", "%P\n"}} {
		if err := wideWalk(t.Context(), tree, walk); err != nil {
			t.Errorf("find %q: %v", walk, err)
		}
	}
	done()
	if err := beside.Wait(); err != nil {
		t.Error(err)
	}
	const most = 64 << 20
	t.Logf("the daemon grew by %d KiB", grown>>10)
	if grown > most {
		t.Errorf("the daemon grew by %d MiB, want at most %d", grown>>20, most>>20)
	}
	listWhileChanging(t, d, at, filepath.Join(tree, "flat"))
}

// wideFile opens and reads one file.
func wideFile(tree string, i int) error {
	b, err := os.ReadFile(filepath.Join(tree, widePath(i)))
	if err == nil && string(b) != strconv.Itoa(i) {
		err = fmt.Errorf("%s: %q", widePath(i), b)
	}
	return err
}

// wideWalk runs find and holds what it says against the tree that was imported.
func wideWalk(ctx context.Context, tree string, print []string) error {
	out, err := exec.CommandContext(ctx, "find", append([]string{tree, "-mindepth", "1"}, print...)...).Output()
	if err != nil {
		return err
	}
	names, numbers := make(map[string]bool, wideEntries), make(map[string]bool, wideEntries)
	for line := range bytes.Lines(out) {
		f := strings.Fields(string(line))
		names[f[0]] = true
		if len(f) == 1 {
			continue
		}
		numbers[f[1]] = true
		if _, file, ok := strings.Cut(f[0], "/"); ok {
			i, err := strconv.Atoi(file)
			if want := fmt.Sprintf("%d 1700000000.0000000000 644", len(strconv.Itoa(i))); err != nil || strings.Join(f[2:], " ") != want {
				return fmt.Errorf("%q, want %s", line, want)
			}
		}
	}
	if lines := bytes.Count(out, []byte("\n")); lines != wideEntries || len(names) != wideEntries || len(numbers) != 0 && len(numbers) != wideEntries {
		return fmt.Errorf("%d lines, %d names, %d inode numbers; want %d of each", lines, len(names), len(numbers), wideEntries)
	}
	for i := range wideFlat + wideFolders*wideFiles {
		if !names[widePath(i)] {
			return fmt.Errorf("%s is not listed", widePath(i))
		}
	}
	return nil
}

// listWhileChanging lists a large folder that does not change, and the folder of
// all data sets, while more and more of them appear.
func listWhileChanging(t *testing.T, d *daemon, at, flat string) {
	small := t.TempDir()
	if err := os.WriteFile(filepath.Join(small, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		for ctx.Err() == nil {
			if n, err := namesIn(flat); err != nil || len(n) != wideFlat {
				return fmt.Errorf("%s: %d names, %v; want %d", flat, len(n), err, wideFlat)
			}
		}
		return nil
	})
	name := func(i int) string { return fmt.Sprintf("more-%02d", i) }
	for i := range 20 {
		if _, err := importTree(t.Context(), d.socket, small, name(i)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new data set is listed", func() error {
			all, err := namesIn(filepath.Join(at, "datasets"))
			if err != nil {
				return err
			}
			for k := range i { // those that were there are always there
				if !all[name(k)] {
					t.Fatalf("%s is gone from a listing of %d", name(k), len(all))
				}
			}
			if !all[name(i)] {
				return fmt.Errorf("%d names, and not %s", len(all), name(i))
			}
			return nil
		})
	}
	done()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// namesIn are the names of a folder, read a few at a time; an error if one is there twice.
func namesIn(dir string) (map[string]bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names := map[string]bool{}
	for {
		some, err := f.Readdirnames(100)
		for _, n := range some {
			if names[n] {
				return names, fmt.Errorf("%s is listed twice", n)
			}
			names[n] = true
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return names, err
		}
	}
}
