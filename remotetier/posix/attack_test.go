package posix_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/posix"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

const shard = "llama/7b/000000001200-000003/rank-00000.safetensors"

func tierOf(targets ...remotetier.Target) *remotetier.Tier {
	var infos []remotetier.TargetInfo
	for _, t := range targets {
		infos = append(infos, remotetier.TargetInfo{Target: t})
	}
	return remotetier.New(infos, remotetier.Options{})
}

func mustPut(t *testing.T, tier *remotetier.Tier, blob string, b []byte) catalog.Place {
	t.Helper()
	p, err := tier.Put(t.Context(), blob, bytes.NewReader(b), stripe.Layout{K: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// safetensors is a file of one tensor.
func safetensors(data []byte) []byte {
	head := fmt.Appendf(nil, `{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, len(data), len(data))
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...), data...)
}

// TestPlainFiles: a bare directory is what any tool can read.
func TestPlainFiles(t *testing.T) {
	dir := t.TempDir()
	p := open(t, vfs.OS, dir)
	tier := tierOf(p)
	data := bytes.Repeat([]byte("weights "), 100_000)
	b := safetensors(data)
	place := mustPut(t, tier, shard, b)
	name := filepath.Join(dir, shard)
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("the file is not the shard: %v", err)
	}
	var head map[string]struct {
		Offsets [2]int `json:"data_offsets"`
	}
	n := binary.LittleEndian.Uint64(got)
	if err := json.Unmarshal(got[8:8+n], &head); err != nil || !bytes.Equal(got[8+n:][:head["w"].Offsets[1]], data) {
		t.Errorf("read as safetensors: %v", err)
	}
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("Stat = %v, %v", fi, err)
	}
	entries, err := os.ReadDir(filepath.Dir(name))
	for _, e := range entries {
		if e.Name() != filepath.Base(name) && e.Name()[0] != '.' {
			t.Errorf("%s is in sight", e.Name())
		}
	}
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v: want the file, its sidecar, its claim", entries, err)
	}
	if err := tier.Remove(t.Context(), place.Blob, nil); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != ".ckptd" {
		t.Errorf("Remove left %v, %v", left, err)
	}
}

// TestNextGeneration: when the first goes, the second gets the readable name.
func TestNextGeneration(t *testing.T) {
	for _, size := range []int{5000, remotetier.MaxSmall + 12345} { // copied, and renamed
		dir := t.TempDir()
		p := open(t, vfs.OS, dir)
		tier := tierOf(p)
		first := mustPut(t, tier, shard, bytes.Repeat([]byte("one "), size/4))
		b := bytes.Repeat([]byte("two"), size/3)
		second := mustPut(t, tier, shard, b)
		r, err := tier.Open(t.Context(), second)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(b))
		if _, err := r.ReadAt(got[:1000], 0); err != nil {
			t.Fatal(err)
		}
		if err := tier.Remove(t.Context(), shard, func(g uint64) bool { return g != first.Generation }); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) { // what was open goes on
			t.Errorf("%d bytes: a reader that was open: %v", size, err)
		}
		_ = r.Close()
		if plain, err := os.ReadFile(filepath.Join(dir, shard)); err != nil || !bytes.Equal(plain, b) {
			t.Errorf("%d bytes: the file is not the second generation: %v", size, err)
		}
		if err := tier.Verify(t.Context(), second); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		entries, err := os.ReadDir(filepath.Join(dir, filepath.Dir(shard)))
		if err != nil || len(entries) != 3 {
			t.Errorf("%d bytes: %v, %v", size, entries, err)
		}
	}
}

// TestPromise3SomebodysFile: in the way of a blob's name, of its folder, and
// put in the place of a blob's file.
func TestPromise3SomebodysFile(t *testing.T) {
	dir := t.TempDir()
	tier := tierOf(open(t, vfs.OS, dir))
	file := func(name string) string { return filepath.Join(dir, name) }
	theirs := func(name string) {
		t.Helper()
		if b, err := os.ReadFile(file(name)); err != nil || string(b) != foreign {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	if err := errors.Join(os.MkdirAll(file("run/d/e"), 0o700), os.WriteFile(file("run/a"), []byte(foreign), 0o600), os.WriteFile(file("run/f"), []byte(foreign), 0o600),
		os.WriteFile(file("run/.g.g0000000000000001.c00.tmp"), []byte(foreign), 0o600), os.Symlink(file("run/f"), file("run/link"))); err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte("x"), 10_000)
	for _, blob := range []string{"run/a", "run/d", "run/link"} {
		first := mustPut(t, tier, blob, b)
		second := mustPut(t, tier, blob, b)
		for _, p := range []catalog.Place{first, second} {
			if err := tier.Verify(t.Context(), p); err != nil {
				t.Errorf("%s: %v", blob, err)
			}
		}
		theirs("run/a")
		theirs("run/f")
		if err := tier.Remove(t.Context(), blob, nil); err != nil {
			t.Error(err)
		}
		theirs("run/a")
		theirs("run/f")
	}
	if fi, err := os.Lstat(file("run/link")); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", fi, err)
	}
	if _, err := tier.Put(t.Context(), "run/f/below", strings.NewReader("x"), stripe.Layout{K: 1}); !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), "run/f is a file that is not ours") {
		t.Errorf("a folder where somebody's file is: %v, want ErrConflict that names it", err)
	}
	theirs("run/.g.g0000000000000001.c00.tmp")
	left, err := os.ReadDir(file("run"))
	if err != nil || len(left) != 5 {
		t.Errorf("in run: %v, %v", left, err)
	}
}

// TestBlobBelowABlob: the file makes room for the folder.
func TestBlobBelowABlob(t *testing.T) {
	dir := t.TempDir()
	tier := tierOf(open(t, vfs.OS, dir))
	outer := mustPut(t, tier, "a", []byte("outer"))
	r, err := tier.Open(t.Context(), outer)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	inner := mustPut(t, tier, "a/b/c", []byte("inner"))
	for _, p := range []catalog.Place{outer, inner} {
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a/b/c")); err != nil || string(b) != "inner" {
		t.Errorf("a/b/c is %q, %v", b, err)
	}
	if err := errors.Join(tier.Remove(t.Context(), "a", nil), tier.Verify(t.Context(), inner), tier.Remove(t.Context(), "a/b/c", nil)); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDamage: what was done to the files of a column is seen, whatever it was,
// and a repair in its place mends it.
func TestDamage(t *testing.T) {
	b := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	flip := func(at int64) func(string) error {
		return func(name string) error {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var p [1]byte
			_, err = f.ReadAt(p[:], at)
			p[0] ^= 0x40
			_, werr := f.WriteAt(p[:], at)
			return errors.Join(err, werr)
		}
	}
	longer := func(name string) error {
		old, err := os.ReadFile(name)
		return errors.Join(err, os.WriteFile(name, append(old, 0), 0o600))
	}
	for name, c := range map[string]struct {
		side, data func(name string) error
		missing    bool // as if there were none
	}{
		"data flipped":              {data: flip(77_777)},
		"data cut":                  {data: func(n string) error { return os.Truncate(n, 159_999) }},
		"data empty":                {data: func(n string) error { return os.Truncate(n, 0) }},
		"data longer":               {data: longer},
		"data gone":                 {data: os.Remove},
		"data is a folder":          {data: func(n string) error { return errors.Join(os.Remove(n), os.Mkdir(n, 0o700)) }},
		"sidecar's own page":        {side: flip(30)},
		"sidecar's names":           {side: flip(60)},
		"sidecar's header":          {side: flip(4096 + 50)},
		"sidecar's sums":            {side: flip(8192 + 3)},
		"sidecar's footer":          {side: flip(3*4096 + 30)},
		"sidecar cut":               {side: func(n string) error { return os.Truncate(n, 3*4096) }},
		"sidecar cut to nothing":    {side: func(n string) error { return os.Truncate(n, 0) }},
		"sidecar longer":            {side: longer},
		"data without sidecar":      {side: os.Remove, missing: true},
		"sidecar of another column": {side: func(n string) error { return os.WriteFile(n, bytes.Repeat([]byte("x"), 16384), 0o600) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := open(t, vfs.OS, dir)
			tier := tierOf(p)
			place := mustPut(t, tier, shard, b)
			key := remotetier.Key{Blob: shard, Generation: place.Generation}
			good := wholeColumn(t, p, key)
			path := filepath.Join(dir, shard)
			if c.data != nil {
				if err := c.data(path); err != nil {
					t.Fatal(err)
				}
			}
			if c.side != nil {
				if err := c.side(filepath.Join(filepath.Dir(path), plain.SidecarName(key))); err != nil {
					t.Fatal(err)
				}
			}
			err := tier.Verify(t.Context(), place)
			if !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("Verify = %v, want ErrCorrupt", err)
			}
			if _, err := remotetier.CheckTarget(t.Context(), p, key, vfs.AlignedBuffer(1<<20), nil); c.missing != errors.Is(err, fs.ErrNotExist) || !c.missing && !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("CheckTarget = %v", err)
			}
			if r, err := tier.Open(t.Context(), place); err == nil {
				got := make([]byte, len(b))
				if _, err := r.ReadAt(got, 0); err == nil {
					t.Errorf("ReadAt gave bytes, equal=%v", bytes.Equal(got, b))
				}
				_ = r.Close()
			}
			w, err := p.Create(t.Context(), key, int64(len(good)), remotetier.CreateReplace)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(w.Write(t.Context(), good), w.Commit(t.Context()), w.Close()); err != nil {
				t.Fatal(err)
			}
			if err := tier.Verify(t.Context(), place); err != nil {
				t.Errorf("after the repair: %v", err)
			}
			if err := tier.Remove(t.Context(), shard, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Open(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open of what was removed = %v", err)
			}
			hidden, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".rank*"))
			if err != nil || len(hidden) > 0 {
				t.Errorf("left: %v, %v", hidden, err)
			}
		})
	}
}

// wholeColumn reads a column as a repair would write it.
func wholeColumn(t *testing.T, p *posix.Target, key remotetier.Key) []byte {
	t.Helper()
	r, err := p.Open(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := vfs.AlignedBuffer(int(r.Size()))
	if n, err := r.ReadAt(t.Context(), b, 0); n != len(b) {
		t.Fatal(err)
	}
	return b
}

// TestPromise1ManyProcesses: targets of one directory, as on several nodes,
// write, replace, read and remove the same blobs.
func TestPromise1ManyProcesses(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 3 {
		tier := tierOf(open(t, vfs.OS, dir))
		wg.Go(func() {
			for n := range 15 {
				b := bytes.Repeat([]byte{byte('a' + i)}, 5000+n)
				place, err := tier.Put(t.Context(), "run/step/shared", bytes.NewReader(b), stripe.Layout{K: 1, Unit: 65536})
				if err == nil {
					err = tier.Verify(t.Context(), place)
				}
				if err == nil {
					err = tier.Remove(t.Context(), place.Blob, func(g uint64) bool { return g != place.Generation })
				}
				if err != nil {
					t.Errorf("process %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	// What one process gave a name while another removed it is told later.
	if _, err := posix.Open(t.Context(), vfs.OS, dir, "p1", posix.Options{Stale: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "target.id" {
			t.Errorf("left: %s", p)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestPromise1OneName(t *testing.T) {
	dir := t.TempDir()
	p := open(t, vfs.OS, dir)
	open(t, vfs.OS, dir)
	_, err := posix.Open(t.Context(), vfs.OS, dir, "p2", posix.Options{})
	if !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("another name got %v, want ErrConflict", err)
	}
	if q, err := posix.Open(t.Context(), vfs.OS, dir, "", posix.Options{}); err != nil || q.Name() != "p1" {
		t.Errorf("no name got %v, want the one there is", err)
	}
	if _, err := posix.Open(t.Context(), vfs.OS, filepath.Join(dir, "none"), "p1", posix.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v, want fs.ErrNotExist", err)
	}
	other := t.TempDir()
	if err := os.Mkdir(filepath.Join(other, "columns"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := posix.Open(t.Context(), vfs.OS, other, "p1", posix.Options{}); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("the directory of a dir: target got %v, want ErrConflict", err)
	}
	// The file system is unmounted under us.
	if err := os.Rename(filepath.Join(dir, ".ckptd"), filepath.Join(other, ".ckptd")); err != nil {
		t.Fatal(err)
	}
	_, err1 := p.Space(t.Context())
	_, err2 := p.Create(t.Context(), remotetier.Key{Blob: "a", Generation: 1}, 4096, remotetier.CreateNew)
	if !errors.Is(err1, catalog.ErrUnavailable) || !errors.Is(err2, catalog.ErrUnavailable) {
		t.Errorf("Space = %v, Create = %v, want ErrUnavailable", err1, err2)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("wrote %v into the mount point, %v", left, err)
	}
}

// TestPromise5Stale: what is young is left alone, what is old goes.
func TestPromise5Stale(t *testing.T) {
	m := vfstest.New(vfstest.Options{})
	p := open(t, m, "/p")
	w, err := p.Create(t.Context(), remotetier.Key{Blob: "a", Generation: 1}, 8192, remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Write(t.Context(), vfs.AlignedBuffer(4096)); err != nil {
		t.Fatal(err)
	}
	staged := func() int {
		e, err := m.ReadDir("/p/.ckptd/staging")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	open(t, m, "/p") // another process
	if staged() != 1 {
		t.Error("a living writer's file was swept")
	}
	if _, err := posix.Open(t.Context(), m, "/p", "p1", posix.Options{Stale: time.Nanosecond}); err != nil || staged() != 0 {
		t.Errorf("%d files after everything was stale, %v", staged(), err)
	}
	if err := errors.Join(w.Write(t.Context(), vfs.AlignedBuffer(4096)), w.Commit(t.Context())); err == nil {
		t.Error("Commit of a column whose file was swept")
	}
}

// TestNetworkErrors: what passes is tried again, what stays has its class.
func TestNetworkErrors(t *testing.T) {
	m := vfstest.New(vfstest.Options{})
	p := open(t, m, "/p")
	tier := tierOf(p)
	failures := 0
	m.OnOp(func(_ int, op, name string) error {
		if op == "rename" && failures < 3 {
			failures++
			return &fs.PathError{Op: op, Path: name, Err: syscall.ESTALE}
		}
		return nil
	})
	place := mustPut(t, tier, "a", []byte("x"))
	if err := tier.Verify(t.Context(), place); err != nil || failures != 3 {
		t.Errorf("after %d stale names: %v", failures, err)
	}
	tries := 0
	m.OnOp(vfstest.FailOn(func(op, _ string) bool { tries++; return op == "rename" }, syscall.ESTALE))
	if _, err := tier.Put(t.Context(), "a", strings.NewReader("y"), stripe.Layout{K: 1}); !errors.Is(err, catalog.ErrUnavailable) || tries > 100 {
		t.Errorf("Put with names that stay stale = %v after %d operations, want ErrUnavailable", err, tries)
	}
	for _, errno := range []error{syscall.ENOTCONN, syscall.ETIMEDOUT, syscall.EHOSTDOWN} {
		m.OnOp(vfstest.FailOn(func(op, _ string) bool { return op == "create" }, errno))
		if _, err := tier.Put(t.Context(), "a", strings.NewReader("y"), stripe.Layout{K: 1}); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("Put with %v = %v, want ErrUnavailable", errno, err)
		}
	}
}

// TestFull: a directory without room says so before any byte comes.
func TestFull(t *testing.T) {
	m := vfstest.New(vfstest.Options{Total: 1 << 20})
	tier := tierOf(open(t, m, "/p"))
	if _, err := tier.Put(t.Context(), "a", bytes.NewReader(make([]byte, 2<<20)), stripe.Layout{K: 1}); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("Put = %v, want ErrNoSpace", err)
	}
}

// TestStripe: lfs is a program of the Lustre client, of which this one is the
// double: it writes down what it was asked.
func TestStripe(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin)
	opt := posix.Options{Stripe: posix.Stripe{Count: 8, Size: 4 << 20}}
	if _, err := posix.Open(t.Context(), vfs.OS, dir, "p1", opt); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "lfs") {
		t.Errorf("without lfs: %v, want ErrInvalid that names it", err)
	}
	said := filepath.Join(bin, "said")
	lfs := fmt.Sprintf("#!/bin/sh\necho \"$@\" >> %s\ntest ! -e %s/broken || { echo not a Lustre file system >&2; exit 22; }\n", said, bin)
	if err := os.WriteFile(filepath.Join(bin, "lfs"), []byte(lfs), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	p, err := posix.Open(t.Context(), vfs.OS, dir, "p1", opt)
	if err != nil {
		t.Fatal(err)
	}
	striped := filepath.Join(dir, ".ckptd/striped")
	want := fmt.Sprintf("setstripe -c 8 -S 4194304 %s\n", striped)
	if b, err := os.ReadFile(said); err != nil || string(b) != want {
		t.Errorf("lfs %q, %v, want %q", b, err, want)
	}
	for size, in := range map[int64]string{20 << 20: striped, 1 << 20: filepath.Join(dir, ".ckptd/staging")} {
		w, err := p.Create(t.Context(), remotetier.Key{Blob: "a", Generation: 1}, size, remotetier.CreateNew)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(t.Context(), vfs.AlignedBuffer(4096)); err != nil {
			t.Fatal(err)
		}
		if e, err := os.ReadDir(in); err != nil || len(e) != 1 {
			t.Errorf("a column of %d bytes: %s holds %v, %v", size, in, e, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bin, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := posix.Open(t.Context(), vfs.OS, dir, "p1", opt); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "not a Lustre file system") {
		t.Errorf("lfs that fails: %v, want what it says", err)
	}
	for s, want := range map[string]posix.Stripe{"4": {Count: 4}, "-1": {Count: -1}, "8:4M": {Count: 8, Size: 4 << 20}, "8:64KiB": {Count: 8, Size: 64 << 10}, "1:1048576": {Count: 1, Size: 1 << 20}} {
		if got, err := posix.ParseStripe(s); err != nil || got != want {
			t.Errorf("ParseStripe(%q) = %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "-2", "x", "4:", "4:1", "4:100000", "4:5G", "4:-1M", "9999"} {
		if _, err := posix.ParseStripe(s); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("ParseStripe(%q) = %v, want ErrInvalid", s, err)
		}
	}
}

// TestListPassesOverStrangers: files and folders of somebody else.
func TestListPassesOverStrangers(t *testing.T) {
	dir := t.TempDir()
	p := open(t, vfs.OS, dir)
	for _, name := range []string{"stray", "a/b/notes.txt", "a/.hidden/.x.g0000000000000001.c00.ckpt", "a b/.x.g0000000000000001.c00.ckpt", "a/.x.g0000000000000001.c99.ckpt",
		"a/.x.plain", "a/.x.g0000000000000001.c00.00000000.data"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for e, err := range p.List(t.Context(), "") {
		t.Errorf("List gives %v, %v", e, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Remove(ctx, remotetier.Key{Blob: "a", Generation: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove = %v, want context.Canceled", err)
	}
}
