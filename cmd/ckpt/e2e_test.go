package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

func random(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed, byte(n)}).Read(b)
	return b
}

// writeShard writes a safetensors file as the safetensors package would: no
// padding, no metadata of ours.
func writeShard(t *testing.T, path string, tensors map[string][]byte) {
	t.Helper()
	var specs []shardfile.Spec
	for name, b := range tensors {
		specs = append(specs, shardfile.Spec{Name: name, DType: "F32", Shape: []int64{int64(len(b) / 4)}})
	}
	slices.SortFunc(specs, func(a, b shardfile.Spec) int { return strings.Compare(a.Name, b.Name) })
	h := []byte("{")
	off := 0
	for i, s := range specs {
		if i > 0 {
			h = append(h, ',')
		}
		h = fmt.Appendf(h, `%q:{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}`, s.Name, s.Shape[0], off, off+len(tensors[s.Name]))
		off += len(tensors[s.Name])
	}
	h = append(h, '}')
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h...)
	for _, s := range specs {
		file = append(file, tensors[s.Name]...)
	}
	if err := os.WriteFile(path, file, 0o644); err != nil {
		t.Fatal(err)
	}
}

// readShard gives the tensors of a file by name.
func readShard(t *testing.T, path string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := shardfile.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	out := make(map[string][]byte)
	for _, tensor := range r.Tensors() {
		out[tensor.Name] = make([]byte, tensor.Size)
		if err := r.ReadTensor(tensor.Name, out[tensor.Name]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func sameTensors(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d tensors, want %d", len(got), len(want))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

// files writes two ranks' shards and returns their paths and tensors.
func files(t *testing.T, seed byte) (paths []string, want []map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	for rank := range 2 {
		m := map[string][]byte{
			fmt.Sprintf("layer%d.weight", rank): random(9<<20+4, seed), fmt.Sprintf("layer%d.bias", rank): random(400, seed), "step": random(4, seed),
		}
		path := filepath.Join(dir, fmt.Sprintf("part-%d.safetensors", rank))
		writeShard(t, path, m)
		paths, want = append(paths, path), append(want, m)
	}
	return paths, want
}

func TestMainJob(t *testing.T) {
	d := startDaemon(t)
	paths, want := files(t, 1)
	d.must(append([]string{"save", "a/b@10", "--metric", "loss=2.5"}, paths...)...)
	d.must(append([]string{"save", "a/b@20", "--level", "verified"}, paths...)...)

	runs := into[struct{ Runs []wire.Run }](d, "ls").Runs
	if len(runs) != 1 || runs[0].Name != "a/b" || runs[0].Sets != 2 || runs[0].Latest.Step != 20 {
		t.Errorf("runs: %+v", runs)
	}
	sets := into[struct{ Sets []wire.Set }](d, "ls", "a/b").Sets
	if len(sets) != 2 || sets[0].Step != 20 || sets[0].Level != catalog.Verified || sets[1].Metrics["loss"] != 2.5 {
		t.Errorf("sets: %+v", sets)
	}
	d.must("wait", "a/b@10", "--level", "verified")
	detail := into[wire.SetDetail](d, "show", "a/b@10", "--tensors")
	if len(detail.Shards) != 2 || len(detail.Tensors) != 6 || detail.Shards[0].Remote == nil {
		t.Errorf("show: %+v", detail)
	}
	if why := d.must("why", "a/b@10"); !strings.Contains(why, "committed") {
		t.Errorf("why: %s", why)
	}

	t.Run("Restore", func(t *testing.T) {
		for _, from := range []string{"", "local", "remote"} {
			dest := filepath.Join(t.TempDir(), "out")
			d.must("restore", "a/b@latest:remote", dest, "--from", from)
			for rank := range want {
				path := filepath.Join(dest, fmt.Sprintf("rank-%05d.safetensors", rank))
				sameTensors(t, readShard(t, path), want[rank])
				stored, err := os.ReadFile(detailPath(d, rank))
				restored, rerr := os.ReadFile(path)
				if err != nil || rerr != nil || !bytes.Equal(stored, restored) {
					t.Errorf("from %q: the restored shard is not the stored one: %v %v", from, err, rerr)
				}
			}
			b, err := os.ReadFile(filepath.Join(dest, "manifest.json"))
			if err != nil {
				t.Fatal(err)
			}
			if m, err := catalog.ParseManifest(b, into[wire.SetDetail](d, "show", "a/b@20").Manifest); err != nil || m.World != 2 {
				t.Errorf("manifest: %v", err)
			}
		}
	})
	t.Run("RestoreOnly", func(t *testing.T) {
		for _, from := range []string{"local", "remote"} {
			dest := filepath.Join(t.TempDir(), "out")
			d.must("restore", "a/b@10", dest, "--only", "*.bias", "--only", "layer1.w*", "--from", from)
			sameTensors(t, readShard(t, filepath.Join(dest, "rank-00000.safetensors")), map[string][]byte{"layer0.bias": want[0]["layer0.bias"]})
			sameTensors(t, readShard(t, filepath.Join(dest, "rank-00001.safetensors")), map[string][]byte{"layer1.bias": want[1]["layer1.bias"], "layer1.weight": want[1]["layer1.weight"]})
		}
		dest := filepath.Join(t.TempDir(), "out")
		if code, _, _ := d.ckpt("restore", "a/b@10", dest, "--only", "nope*"); code != 3 {
			t.Errorf("no tensor matches: exit code %d, want 3", code)
		}
	})
	t.Run("RestoreOverSomething", func(t *testing.T) {
		dest := t.TempDir() // empty: may be filled
		d.must("restore", "a/b@10", dest)
		before, _ := os.ReadDir(dest)
		if code, _, errs := d.ckpt("restore", "a/b@20", dest); code != 6 {
			t.Errorf("exit code %d, want 6: %s", code, errs)
		}
		if after, _ := os.ReadDir(dest); len(after) != len(before) {
			t.Error("the folder was touched")
		}
	})
	t.Run("Diff", func(t *testing.T) {
		changed, _ := files(t, 1)
		b, _ := os.ReadFile(changed[1])
		i := bytes.Index(b, want[1]["layer1.bias"])
		v := math.Float32frombits(binary.LittleEndian.Uint32(b[i:]))
		b[i] ^= 1 // the last bit of its first number
		os.WriteFile(changed[1], b, 0o644)
		writeShard(t, changed[0], map[string][]byte{"layer0.weight": want[0]["layer0.weight"], "step": want[0]["step"], "new": random(8, 9)})
		d.must(append([]string{"save", "a/b@30"}, changed...)...)
		got := into[diffResult](d, "diff", "a/b@20", "a/b@30")
		if len(got.Added) != 1 || got.Added[0].Name != "new" || len(got.Removed) != 1 || got.Removed[0].Name != "layer0.bias" ||
			len(got.Changed) != 1 || got.Changed[0].Name != "layer1.bias" || got.Changed[0].Bytes != 1 || got.Same != 3 {
			t.Errorf("diff: %+v (of %v)", got, v)
		}
		if same := into[diffResult](d, "diff", "a/b@20", "a/b@10"); same.Same != 5 || len(same.Changed) != 0 {
			t.Errorf("equal sets differ: %+v", same)
		}
	})
	t.Run("TagPinPruneRm", func(t *testing.T) {
		d.must("wait", "a/b@30", "--level", "verified")
		if s := into[wire.Set](d, "tag", "a/b@20", "good=yes", "x=1"); s.Tags["good"] != "yes" {
			t.Errorf("tags: %v", s.Tags)
		}
		if s := into[wire.Set](d, "tag", "a/b@20", "x-"); len(s.Tags) != 1 {
			t.Errorf("tags: %v", s.Tags)
		}
		d.must("pin", "a/b@20")
		dry := d.must("prune", "a/b", "--keep-last", "1", "--dry-run")
		wet := d.must("prune", "a/b", "--keep-last", "1")
		if strings.ReplaceAll(dry, "would remove", "removed") != wet || !strings.Contains(wet, "remove  a/b@10") || !strings.Contains(wet, "keep    a/b@20") {
			t.Errorf("dry run:\n%sreal run:\n%s", dry, wet)
		}
		d.must("unpin", "a/b@20")
		d.must("rm", "a/b@20")
		if sets := into[struct{ Sets []wire.Set }](d, "ls", "a/b").Sets; len(sets) != 1 || sets[0].Step != 30 {
			t.Errorf("sets: %+v", sets)
		}
		if code, _, _ := d.ckpt("show", "a/b@77"); code != 3 {
			t.Errorf("no such set: exit code %d, want 3", code)
		}
	})
	t.Run("Catalog", func(t *testing.T) {
		before := d.must("ls", "a/b", "--json")
		d.must("catalog", "fsck")
		d.must("catalog", "rebuild")
		if after := d.must("ls", "a/b", "--json"); after != before {
			t.Errorf("after a rebuild:\n%s\nbefore:\n%s", after, before)
		}
	})
	t.Run("Policy", func(t *testing.T) {
		d.must("policy", "a/b", "set", "layout=1+1", "keep-last=3", "keep-within=7d", "verify=no")
		p := into[wire.PolicyRequest](d, "policy", "a/b").Policy
		if p.Layout != "1+1" || p.Retention.KeepLast != 3 || p.Retention.KeepWithin != 7*24*time.Hour || !p.NoVerify {
			t.Errorf("policy: %+v", p)
		}
		d.must("policy", "a/b", "set", "layout=", "verify=yes")
		if p := into[wire.PolicyRequest](d, "policy", "a/b").Policy; p.Layout != "" || p.NoVerify || p.Retention.KeepLast != 3 {
			t.Errorf("policy: %+v", p)
		}
	})
	t.Run("Look", func(t *testing.T) {
		s := into[wire.Status](d, "status")
		if s.Node != "n1" || len(s.Remote.Targets) != 3 {
			t.Errorf("status: %+v", s)
		}
		if n := into[struct{ Nodes []wire.Node }](d, "node", "ls").Nodes; len(n) != 1 || !n[0].Alive {
			t.Errorf("nodes: %+v", n)
		}
		if n := into[struct{ Targets []wire.Target }](d, "target", "ls").Targets; len(n) != 3 {
			t.Errorf("targets: %+v", n)
		}
		for _, args := range [][]string{{"status"}, {"ls"}, {"ls", "a/b", "-a"}, {"show", "a/b@latest", "-t"}, {"node", "ls"}, {"target", "ls"}, {"policy", "a/b"}, {"verify", "--all"}} {
			if out := d.must(args...); out == "" {
				t.Errorf("ckpt %v prints nothing", args)
			}
		}
		if out := d.must("__complete", "show", "a/b@"); !strings.Contains(out, "a/b@30\n") || !strings.Contains(out, "a/b@latest\n") {
			t.Errorf("completion: %s", out)
		}
	})
}

// detailPath is where the daemon keeps a shard of a/b@20.
func detailPath(d *daemon, rank int) string {
	return into[wire.SetDetail](d, "show", "a/b@20").Shards[rank].Path
}

func TestSaveNPZ(t *testing.T) {
	d := startDaemon(t)
	path := filepath.Join(t.TempDir(), "x.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"w": random(5<<20, 3), "b": random(40, 3)}
	z := zip.NewWriter(f)
	for name, b := range want {
		head := fmt.Sprintf("{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }", len(b)/4)
		head += strings.Repeat(" ", 63-(10+len(head))%64) + "\n"
		w, err := z.Create(name + ".npy")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "\x93NUMPY\x01\x00%s%s", binary.LittleEndian.AppendUint16(nil, uint16(len(head))), head)
		w.Write(b)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	d.must("save", "npz@1", path)
	dest := filepath.Join(t.TempDir(), "out")
	d.must("restore", "npz@1", dest)
	sameTensors(t, readShard(t, filepath.Join(dest, "rank-00000.safetensors")), want)

	os.WriteFile(path, []byte("no archive"), 0o644)
	if code, _, errs := d.ckpt("save", "npz@2", path); code != 4 {
		t.Errorf("a broken archive: exit code %d, want 4: %s", code, errs)
	}
}

func TestCorruptCopies(t *testing.T) {
	d := startDaemon(t, "--remote", "none")
	paths, _ := files(t, 2)
	spoil := func(ref string) {
		d.must(append([]string{"save", ref}, paths...)...)
		f, err := os.OpenFile(into[wire.SetDetail](d, "show", ref).Shards[1].Path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.WriteAt([]byte{1, 2, 3}, 5<<20)
	}
	spoil("a@1")
	dest := filepath.Join(t.TempDir(), "out")
	if code, _, errs := d.ckpt("restore", "a@1", dest); code != 4 {
		t.Errorf("restore: exit code %d, want 4: %s", code, errs)
	}
	if left, _ := os.ReadDir(filepath.Dir(dest)); len(left) != 0 {
		t.Errorf("a failed restore left %v", left)
	}
	spoil("a@2")
	code, out, errs := d.ckpt("verify", "a@2")
	if code != 4 || !strings.Contains(out, "a@2#2  1") {
		t.Errorf("verify: exit code %d, want 4: %s%s", code, out, errs)
	}
}

// interrupt is Ctrl-C at the first progress that is shown.
type interrupt struct{ cancel func() }

func (i interrupt) Write(p []byte) (int, error) {
	i.cancel()
	return len(p), nil
}

// interrupted runs a command that is stopped in its middle.
func (d *daemon) interrupted(args ...string) error {
	ctx, cancel := context.WithCancel(d.t.Context())
	defer cancel()
	clock := time.Unix(0, 0)
	a := &app{out: io.Discard, err: interrupt{cancel}, now: func() time.Time { clock = clock.Add(time.Minute); return clock }}
	root := newRoot(a)
	root.SetArgs(append([]string{"--socket", d.socket}, args...))
	return root.ExecuteContext(ctx)
}

func TestCtrlCLeavesNothing(t *testing.T) {
	d := startDaemon(t)
	paths, want := files(t, 4)
	for _, args := range [][]string{paths, {paths[0], paths[1], paths[0], paths[1], paths[0], paths[1]}} {
		if err := d.interrupted(append([]string{"save", "a@1"}, args...)...); err == nil {
			t.Error("an interrupted save worked")
		}
		sets := into[struct{ Sets []wire.Set }](d, "ls", "a", "--all").Sets
		for _, s := range sets {
			if s.State == catalog.Committed {
				t.Errorf("an interrupted save left %+v", s)
			}
		}
	}
	d.must(append([]string{"save", "a@1"}, paths...)...)
	parent := t.TempDir()
	if err := d.interrupted("restore", "a@1", filepath.Join(parent, "out")); err == nil {
		t.Error("an interrupted restore worked")
	}
	if left, _ := os.ReadDir(parent); len(left) != 0 {
		t.Errorf("an interrupted restore left %v", left)
	}
	d.must("restore", "a@1", filepath.Join(parent, "out"))
	sameTensors(t, readShard(t, filepath.Join(parent, "out", "rank-00001.safetensors")), want[1])
}

func TestWaitTimesOutWith7(t *testing.T) {
	d := startDaemon(t, "--remote", "none")
	paths, _ := files(t, 5)
	d.must(append([]string{"save", "a@1"}, paths...)...)
	begin := time.Now()
	if code, _, errs := d.ckpt("wait", "a@1", "--level", "remote", "--timeout", "300ms"); code != 7 || !strings.Contains(errs, "hint: ") {
		t.Errorf("exit code %d, want 7: %s", code, errs)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a wait of 300ms took %v", took)
	}
}

func TestWatchTellsOfASave(t *testing.T) {
	d := startDaemon(t)
	paths, _ := files(t, 6)
	d.must(append([]string{"save", "a@1"}, paths...)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := lookout{want: "a@", cancel: cancel}
	code := make(chan int, 1)
	go func() { code <- run(ctx, []string{"--socket", d.socket, "watch", "a"}, seen, io.Discard) }()
	for step := 2; ; step++ { // whenever the watch has begun, the next save shows
		d.must(append([]string{"save", fmt.Sprintf("a@%d", step)}, paths...)...)
		select {
		case got := <-code: // ended by its Ctrl-C, or by itself
			if ctx.Err() == nil || got != 0 {
				t.Errorf("watch ended with exit code %d, want 0 after Ctrl-C", got)
			}
			return
		default:
		}
	}
}

// lookout presses Ctrl-C when it reads what it wants.
type lookout struct {
	want   string
	cancel func()
}

func (l lookout) Write(p []byte) (int, error) {
	if strings.Contains(string(p), l.want) {
		l.cancel()
	}
	return len(p), nil
}

func TestDaemonKilledAndRestarted(t *testing.T) {
	d := startDaemon(t)
	paths, want := files(t, 7)
	d.must(append([]string{"save", "a@1"}, paths...)...)
	d.stop(syscall.SIGKILL)
	if code, _, errs := d.ckpt("ls"); code != 1 || !strings.Contains(errs, d.socket) {
		t.Errorf("no daemon: exit code %d: %s", code, errs)
	}
	d.start()
	d.must("wait", "a@1", "--level", "verified", "--timeout", "30s")
	dest := filepath.Join(t.TempDir(), "out")
	d.must("restore", "a@1", dest)
	sameTensors(t, readShard(t, filepath.Join(dest, "rank-00000.safetensors")), want[0])
}
