package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
	"github.com/ckptd/ckptd/sdk/bundle"
	"github.com/ckptd/ckptd/sdk/bundle/objects"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// saved is a daemon with one set of three ranks, 3 MiB and more each, tagged.
func saved(t *testing.T) *daemon {
	t.Helper()
	d := startDaemon(t)
	dir := t.TempDir()
	args := []string{"save", "llama/7b@1200", "--metric", "loss=1.5"}
	for rank := range 3 {
		path := filepath.Join(dir, string(rune('a'+rank))+".safetensors")
		writeShard(t, path, map[string][]byte{"w": random(3<<20+4*rank, byte(rank)), "b": random(400, byte(rank+9))})
		args = append(args, path)
	}
	d.must(args...)
	d.must("tag", "llama/7b@1200", "stage=sft", "good=yes")
	return d
}

// sameFiles compares the shards of two folders.
func sameFiles(t *testing.T, a, b string, ranks int) {
	t.Helper()
	for rank := range ranks {
		x, err1 := os.ReadFile(filepath.Join(a, bundle.ShardFile(rank)))
		y, err2 := os.ReadFile(filepath.Join(b, bundle.ShardFile(rank)))
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
		} else if !bytes.Equal(x, y) {
			t.Errorf("rank %d differs in %s and %s", rank, a, b)
		}
	}
}

func damage(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestExportImport: a set leaves one catalog as plain files and comes into
// another, empty one, byte for byte, with what was said about it.
func TestExportImport(t *testing.T) {
	a := saved(t)
	out := filepath.Join(t.TempDir(), "new", "folder")
	first := into[exported](a, "export", "llama/7b@latest", out)
	if first.Set != "llama/7b@1200#1" || first.Kept != 0 || first.Sent != first.Bytes || first.Files[len(first.Files)-1] != "manifest.json" || len(first.Files) != 8 {
		t.Errorf("export says %+v", first)
	}
	for rank := range 3 { // any tool reads them
		got := readShard(t, filepath.Join(out, bundle.ShardFile(rank)))
		sameTensors(t, got, map[string][]byte{"w": random(3<<20+4*rank, byte(rank)), "b": random(400, byte(rank+9))})
	}
	left, err := os.ReadDir(out)
	if err != nil || len(left) != len(first.Files) {
		t.Errorf("the folder holds %v, %v", left, err)
	}
	export := func(what string, sent int64) {
		t.Helper()
		if got := into[exported](a, "export", "llama/7b@1200", out); got.Sent != sent || got.Kept != got.Bytes-sent || got.Bytes != first.Bytes {
			t.Errorf("%s: %+v, want %d bytes sent", what, got, sent)
		}
	}
	sizeOf := func(names ...string) (n int64) {
		for _, name := range names {
			st, err := os.Stat(filepath.Join(out, name))
			if err != nil {
				t.Fatal(err)
			}
			n += st.Size()
		}
		return n
	}
	export("again", 0)
	want := sizeOf("rank-00001.safetensors", "rank-00001.safetensors.seal", "manifest.json")
	for _, gone := range []string{"rank-00001.safetensors", "manifest.json"} {
		if err := os.Remove(filepath.Join(out, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(out, ".rank-00001.safetensors.exporting"), []byte("left by a kill"), 0o644); err != nil {
		t.Fatal(err)
	}
	want -= sizeOf("rank-00001.safetensors.seal") // it is there
	export("after an interruption", want)
	damage(t, filepath.Join(out, "rank-00002.safetensors"), 2<<20+5)
	export("after damage", sizeOf("rank-00002.safetensors"))

	b := startDaemon(t, "--name", "other")
	got := into[imported](b, "import", out)
	if got.Set != "llama/7b@1200#1" || got.Source != first.Set || got.Already {
		t.Errorf("import says %+v", got)
	}
	detail := into[wire.SetDetail](b, "show", "llama/7b@latest")
	if detail.Tags["stage"] != "sft" || detail.Tags["good"] != "yes" || detail.Metrics["loss"] != 1.5 || detail.World != 3 || detail.State != catalog.Committed {
		t.Errorf("the imported set is %+v", detail.Set)
	}
	back := filepath.Join(t.TempDir(), "back")
	b.must("restore", "llama/7b@latest", back)
	sameFiles(t, out, back, 3)
	again := filepath.Join(t.TempDir(), "again")
	b.must("export", "llama/7b@1200", again)
	sameFiles(t, out, again, 3)
	if got := into[imported](b, "import", out); !got.Already || got.Set != "llama/7b@1200#1" {
		t.Errorf("a second import says %+v", got)
	}
	if got := into[imported](b, "import", out, "llama/7b@1300"); got.Set != "llama/7b@1300#1" {
		t.Errorf("another step of the same run: %+v", got)
	}
	if got := into[imported](b, "import", out, "copy/of@7"); got.Set != "copy/of@7#1" {
		t.Errorf("under another name: %+v", got)
	}

	// Another set: nothing is overwritten, on either side.
	dir := t.TempDir()
	writeShard(t, filepath.Join(dir, "x.safetensors"), map[string][]byte{"w": random(1000, 77)})
	a.must("save", "llama/7b@1201", filepath.Join(dir, "x.safetensors"))
	refused := func(d *daemon, words string, args ...string) {
		t.Helper()
		if code, _, errs := d.ckpt(args...); code != 6 || !strings.Contains(errs, words) {
			t.Errorf("ckpt %v: exit %d, %s; want 6 and %q", args, code, errs, words)
		}
	}
	refused(a, "another set is there", "export", "llama/7b@1201", out)
	refused(a, "x.safetensors", "export", "llama/7b@1201", dir)
	other := filepath.Join(t.TempDir(), "other")
	a.must("export", "llama/7b@1201", other)
	refused(b, "never overwritten", "import", other, "llama/7b@1200")
	b.must("save", "job/x@1", filepath.Join(dir, "x.safetensors"))
	refused(b, "would fence it", "import", other, "job/x@2")
	if got := into[imported](b, "import", other, "job/x@2", "--new-attempt"); got.Set != "job/x@2#2" {
		t.Errorf("with --new-attempt: %+v", got)
	}
	if got := into[imported](b, "import", other, "llama/7b@1200", "--new-attempt"); got.Set != "llama/7b@1200#2" {
		t.Errorf("the same step with --new-attempt: %+v", got)
	}
	if code, _, _ := b.ckpt("import", t.TempDir()); code != 3 {
		t.Errorf("import of an empty folder: exit %d, want 3", code)
	}
	for _, bad := range [][]string{{"import", "gs://x/y"}, {"export", "llama/7b@1200", "ftp://x"}, {"import", out, "a@latest"}, {"import"}, {"export", "x@1"}} {
		if code, _, errs := b.ckpt(bad...); code != 2 {
			t.Errorf("ckpt %v: exit %d, %s; want 2", bad, code, errs)
		}
	}
}

// TestImportHostile: whatever is wrong with the files, the import says so with
// exit code 4, and nothing of it is listed.
func TestImportHostile(t *testing.T) {
	d := saved(t)
	good := filepath.Join(t.TempDir(), "good")
	d.must("export", "llama/7b@1200", good)
	swap := func(dir, x, y string) {
		t.Helper()
		x, y = filepath.Join(dir, x), filepath.Join(dir, y)
		if err := errors.Join(os.Rename(x, x+".t"), os.Rename(y, x), os.Rename(x+".t", y)); err != nil {
			t.Fatal(err)
		}
	}
	rewrite := func(dir, name, old, new string) {
		t.Helper()
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, []byte(old)) {
			t.Fatalf("%s: %v, no %q", name, err, old)
		}
		if err := os.WriteFile(path, bytes.Replace(b, []byte(old), []byte(new), 1), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		harm func(dir string)
	}{
		{"FlippedShard", func(dir string) { damage(t, filepath.Join(dir, "rank-00002.safetensors"), 3<<20) }},
		{"FlippedHeader", func(dir string) { damage(t, filepath.Join(dir, "rank-00000.safetensors"), 20) }},
		{"FlippedSeal", func(dir string) { damage(t, filepath.Join(dir, "rank-00001.safetensors.seal"), 40) }},
		{"FlippedManifest", func(dir string) { damage(t, filepath.Join(dir, "manifest.json"), 30) }},
		{"FlippedRecord", func(dir string) { damage(t, filepath.Join(dir, "set.json"), 5) }},
		{"CutShard", func(dir string) { _ = os.Truncate(filepath.Join(dir, "rank-00001.safetensors"), 1<<20) }},
		{"CutManifest", func(dir string) { _ = os.Truncate(filepath.Join(dir, "manifest.json"), 100) }},
		{"EmptyManifest", func(dir string) { _ = os.Truncate(filepath.Join(dir, "manifest.json"), 0) }},
		{"LongManifest", func(dir string) { _ = os.Truncate(filepath.Join(dir, "manifest.json"), 2<<30) }},
		{"LongSeal", func(dir string) { _ = os.Truncate(filepath.Join(dir, "rank-00000.safetensors.seal"), 1<<40) }},
		{"NoShard", func(dir string) { _ = os.Remove(filepath.Join(dir, "rank-00001.safetensors")) }},
		{"NoSeal", func(dir string) { _ = os.Remove(filepath.Join(dir, "rank-00001.safetensors.seal")) }},
		{"NoRecord", func(dir string) { _ = os.Remove(filepath.Join(dir, "set.json")) }},
		{"SwappedShards", func(dir string) { swap(dir, "rank-00000.safetensors", "rank-00001.safetensors") }},
		{"SwappedWithSeals", func(dir string) {
			swap(dir, "rank-00000.safetensors", "rank-00001.safetensors")
			swap(dir, "rank-00000.safetensors.seal", "rank-00001.safetensors.seal")
		}},
		{"AnotherRun", func(dir string) { rewrite(dir, "set.json", `"run":"llama/7b"`, `"run":"../../etc"`) }},
		{"AnotherWorld", func(dir string) { rewrite(dir, "set.json", `"world":3`, `"world":4`) }},
		{"Link", func(dir string) {
			_ = os.Remove(filepath.Join(dir, "rank-00001.safetensors"))
			_ = os.Symlink(filepath.Join(good, "rank-00001.safetensors"), filepath.Join(dir, "rank-00001.safetensors"))
		}},
		{"Folder", func(dir string) {
			_ = os.Remove(filepath.Join(dir, "rank-00001.safetensors.seal"))
			_ = os.Mkdir(filepath.Join(dir, "rank-00001.safetensors.seal"), 0o755)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copyDir(t, good)
			c.harm(dir)
			code, _, errs := d.ckpt("import", dir, "hostile/"+c.name+"@1")
			if code != 4 || !strings.Contains(errs, "damaged or were changed") {
				t.Errorf("exit %d, %s; want 4, and what to do", code, errs)
			}
			if code, out, _ := d.ckpt("ls", "hostile/"+c.name); code == 0 && strings.Contains(out, "@1") {
				t.Errorf("it is listed:\n%s", out)
			}
		})
	}
	d.must("import", good, "hostile/good@1") // nothing of the above is in the way
}

// TestImportGoesOn: an import that was stopped leaves nothing and can be run
// again; one that was killed goes on with what the daemon has.
func TestImportGoesOn(t *testing.T) {
	a := saved(t)
	out := filepath.Join(t.TempDir(), "out")
	a.must("export", "llama/7b@1200", out)
	b := startDaemon(t)
	c := b.dial()
	s, err := bundle.Open(t.Context(), bundle.NewDir(out))
	if err != nil {
		t.Fatal(err)
	}

	// Ctrl-C in the middle.
	ctx, cancel := context.WithCancel(t.Context())
	read := int64(0)
	_, err = bundle.Import(ctx, c, s, bundle.ImportOptions{Options: bundle.Options{Progress: func(n int64) {
		if read += n; read > 5<<20 {
			cancel()
		}
	}}})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("import with the context's end: %v", err)
	}
	if sets, err := c.Sets(t.Context(), "llama/7b", false); err == nil && len(sets) > 0 {
		t.Errorf("after Ctrl-C there are %+v", sets)
	}
	if got := into[imported](b, "import", out); got.Already {
		t.Errorf("the import after Ctrl-C says %+v", got)
	}
	b.must("rm", "llama/7b@1200")

	// Killed after its first shard: with nobody to undo it, the shard is there.
	at := ckpt.At("again/and", 5)
	attempt, err := c.Attach(t.Context(), at.Run, "ckpt import", 3)
	if err != nil {
		t.Fatal(err)
	}
	sh, err := s.Shard(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	save, err := c.Save(t.Context(), at, ckpt.Rank(1, 3), ckpt.Attempt(attempt), ckpt.Metrics(s.Manifest().Metrics))
	if err != nil {
		t.Fatal(err)
	}
	if err := save.Shard(sh.Header().Bytes(), sh.Size(), sh); err != nil {
		t.Fatal(err)
	}
	if _, err := save.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := into[imported](b, "import", out, "again/and@5"); got.Set != "again/and@5#1" {
		t.Errorf("the import after a kill says %+v", got)
	}
	back := filepath.Join(t.TempDir(), "back")
	b.must("restore", "again/and@5", back)
	sameFiles(t, out, back, 3)
}

// TestExportGoesOn: an export that is stopped has no manifest, and the next one
// keeps what is whole.
func TestExportGoesOn(t *testing.T) {
	d := saved(t)
	c := d.dial()
	r, err := c.Open(t.Context(), "llama/7b@1200")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	info, err := c.Resolve(t.Context(), "llama/7b@1200")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	ctx, cancel := context.WithCancel(t.Context())
	done := int64(0)
	_, err = bundle.Export(ctx, r, info, bundle.NewDir(out), bundle.Options{Progress: func(n int64) {
		if done += n; done > 5<<20 {
			cancel()
		}
	}})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("export with the context's end: %v", err)
	}
	if _, err := os.Stat(filepath.Join(out, "manifest.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a stopped export has a manifest: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(out, ".*")); len(left) > 0 {
		t.Errorf("a stopped export left %v", left)
	}
	if _, err := bundle.Open(t.Context(), bundle.NewDir(out)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a stopped export opens: %v", err)
	}
	d.must("export", "llama/7b@1200", out)
	s, err := bundle.Open(t.Context(), bundle.NewDir(out))
	if err != nil {
		t.Fatal(err)
	}
	for rank := range s.Manifest().Shards {
		sh, err := s.Shard(t.Context(), rank)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, io.NewSectionReader(sh, 0, sh.Size())); err != nil {
			t.Error(err)
		}
		sh.Close()
	}
	var rec catalog.SetRecord
	if b, err := os.ReadFile(filepath.Join(out, "set.json")); err != nil || json.Unmarshal(b, &rec) != nil || rec.Tags["good"] != "yes" || rec.Place != nil {
		t.Errorf("set.json is %+v, %v", rec, err)
	}
}

// TestExportS3: the same by way of a bucket: whole, interrupted, over a way that
// breaks, and never over another set.
func TestExportS3(t *testing.T) {
	server := s3test.Start(t)
	a := startDaemon(t)
	dir := t.TempDir()
	big := random(40<<20, 1) // two parts
	writeShard(t, filepath.Join(dir, "0.safetensors"), map[string][]byte{"w": big})
	writeShard(t, filepath.Join(dir, "1.safetensors"), map[string][]byte{"w": random(4<<20, 2)})
	a.must("save", "llama/7b@5", filepath.Join(dir, "0.safetensors"), filepath.Join(dir, "1.safetensors"))
	a.must("tag", "llama/7b@5", "k=v")
	spec := server.Spec("sets/one")

	// Stopped in the middle: no manifest, no upload is left.
	c := a.dial()
	r, err := c.Open(t.Context(), "llama/7b@5")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	info, err := c.Resolve(t.Context(), "llama/7b@5")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := int64(0)
	_, err = bundle.Export(ctx, r, info, objects.New(server.Open(t, "sets/one", nil)), bundle.Options{Progress: func(n int64) {
		if done += n; done > 10<<20 {
			cancel()
		}
	}})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("export with the context's end: %v", err)
	}
	if code, _, _ := a.ckpt("import", spec, "x@1"); code != 3 || server.Uploads(t) != 0 {
		t.Errorf("after a stopped export: import exits %d, want 3; %d uploads are left", code, server.Uploads(t))
	}

	first := into[exported](a, "export", "llama/7b@5", spec)
	if first.Dest != spec || len(first.Files) != 6 {
		t.Errorf("export says %+v", first)
	}
	if got := into[exported](a, "export", "llama/7b@5", spec); got.Sent != 0 || got.Kept != first.Bytes {
		t.Errorf("a second export says %+v", got)
	}
	b := startDaemon(t)
	if got := into[imported](b, "import", spec); got.Set != "llama/7b@5#1" {
		t.Errorf("import says %+v", got)
	}
	if detail := into[wire.SetDetail](b, "show", "llama/7b@5"); detail.Tags["k"] != "v" {
		t.Errorf("the imported set is %+v", detail.Set)
	}
	back, plain := filepath.Join(t.TempDir(), "back"), filepath.Join(t.TempDir(), "plain")
	b.must("restore", "llama/7b@5", back)
	a.must("export", "llama/7b@5", plain)
	sameFiles(t, plain, back, 2)

	// A way on which every third request fails in some manner, both ways.
	faults := []s3test.Fault{s3test.None, s3test.None, s3test.Busy, s3test.None, s3test.None, s3test.Cut, s3test.None, s3test.None, s3test.Lost, s3test.None, s3test.Refused}
	broken := objects.New(server.Open(t, "sets/two", &s3test.Faulty{When: func(n int, _ *http.Request) s3test.Fault { return faults[n%len(faults)] }}))
	if _, err := bundle.Export(t.Context(), r, info, broken, bundle.Options{}); err != nil {
		t.Fatal(err)
	}
	s, err := bundle.Open(t.Context(), broken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Import(t.Context(), b.dial(), s, bundle.ImportOptions{To: ckpt.At("two", 2)}); err != nil {
		t.Fatal(err)
	}
	two := filepath.Join(t.TempDir(), "two")
	b.must("restore", "two@2", two)
	sameFiles(t, plain, two, 2)
	// Uploads whose first answer was lost are nobody's; the sweep finds them. A
	// server may still carry out a request whose client has gone, so that one
	// sweep can come too early.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := server.Open(t, "", nil).AbortUploads(t.Context(), "", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if server.Uploads(t) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d uploads are left", server.Uploads(t))
		}
	}

	if code, _, errs := a.ckpt("export", "llama/7b@5", "s3://ckpt-test/x?endpoint=http://127.0.0.1:1"); code != 1 || !strings.Contains(errs, "endpoint") {
		t.Errorf("export to nowhere: exit %d, %s", code, errs)
	}

	// Never over another set; damage is found.
	a.must("save", "llama/7b@6", filepath.Join(dir, "1.safetensors"))
	if code, _, errs := a.ckpt("export", "llama/7b@6", spec); code != 6 {
		t.Errorf("export over another set: exit %d, %s", code, errs)
	}
	damage(t, filepath.Join(server.Dir, server.Bucket, "sets/one", bundle.ShardFile(1)), 2<<20)
	if code, _, errs := b.ckpt("import", spec, "bad@1"); code != 4 || !strings.Contains(errs, "damaged") {
		t.Errorf("import of a damaged object: exit %d, %s", code, errs)
	}
	for _, bad := range []string{"s3://UPPER/x", "s3://ckpt-test?endpoint=http://" + server.Addr, "s3://no-such-bucket/x?endpoint=http://" + server.Addr} {
		if code, _, errs := a.ckpt("export", "llama/7b@5", bad); code != 2 {
			t.Errorf("export to %s: exit %d, %s; want 2", bad, code, errs)
		}
	}
}
