package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
)

// engine is an existing store that a daemon keeps shards in, as the world
// outside of ckptd sees it.
type engine struct {
	remote string // what --remote says
	pool   string
	read   func(name string) ([]byte, error) // by a blob's name
	made   func(name string) time.Time
}

// engineStory: what is saved lies there as plain files, whole before the
// manifest says so, and a daemon with nothing but them has the sets again.
func engineStory(t *testing.T, e engine) {
	d := newDaemon(t, "n1", "--remote", e.remote).start()
	c, ctx := d.dial(), t.Context()
	one, err := c.Attach(ctx, "llama/7b", "launch 1", 2)
	if err != nil {
		t.Fatal(err)
	}
	const size = 3<<20 + 17
	for step := range int64(2) {
		for rank := range 2 {
			if _, err := save(ctx, c, "llama/7b", step, one, rank, 2, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	ids := []catalog.SetID{{Run: "llama/7b", Step: 0, Attempt: one}, {Run: "llama/7b", Step: 1, Attempt: one}}
	for _, id := range ids {
		mustWait(t, c, id.String(), catalog.Verified)
	}
	st, err := c.Status(ctx)
	if err != nil || st.Remote.Layout != "1+0" {
		t.Errorf("the default layout over one engine is %q, %v, want 1+0", st.Remote.Layout, err)
	}
	if _, err := c.SetPolicy(ctx, "llama/7b", catalog.Policy{Remote: e.pool}); err != nil {
		t.Errorf("the engine's pool as a policy: %v", err)
	}
	for _, id := range ids {
		for rank := range 2 {
			b, err := e.read(id.ShardName(rank))
			if err != nil {
				t.Fatal(err)
			}
			local, err := os.ReadFile(shardFile(t, d, id.String(), rank))
			if err != nil || !bytes.Equal(b, local) {
				t.Errorf("%s is not the shard, byte for byte; %v", id.ShardName(rank), err)
			}
			if w, err := tensor(b, "w"); err != nil || !bytes.Equal(w, content(id.Step, id.Attempt, rank, size)) {
				t.Errorf("%s read as safetensors: equal=%v, %v", id.ShardName(rank), err == nil, err)
			}
			if e.made(id.ShardName(rank)).After(e.made(id.ManifestName())) {
				t.Errorf("%s is younger than the manifest of its set", id.ShardName(rank))
			}
		}
		b, err := e.read(id.ManifestName())
		if err == nil {
			_, err = catalog.ParseManifest(b, catalog.Digest{})
		}
		if err != nil {
			t.Errorf("the manifest: %v", err)
		}
		eventually(t, "the set's record, with its last level", func() error {
			b, err := e.read(id.RecordName())
			var rec catalog.SetRecord
			if err == nil {
				err = json.Unmarshal(b, &rec)
			}
			if err == nil && rec.Level != catalog.Verified {
				err = fmt.Errorf("its level is %v", rec.Level)
			}
			return err
		})
	}
	eventually(t, "the run's record, with its policy", func() error {
		b, err := e.read("llama/7b/run.json")
		if err == nil && !bytes.Contains(b, []byte(e.pool)) {
			err = errors.New("it is old")
		}
		return err
	})

	// Everything but the engine is lost.
	d.kill()
	if err := os.RemoveAll(filepath.Join(d.dir, "data")); err != nil {
		t.Fatal(err)
	}
	d.start()
	c = d.dial()
	if res, err := c.Rebuild(ctx, nil); err != nil || len(res.Problems) > 0 || res.Sets != 2 || res.Shards != 4 {
		t.Fatalf("rebuild: %+v, %v", res, err)
	}
	for _, id := range ids {
		mustLoad(t, c, id.String())
		mustWait(t, c, id.String(), catalog.Verified)
	}
	if p, err := c.Policy(ctx, "llama/7b"); err != nil || p.Remote != e.pool {
		t.Errorf("the policy is %+v, %v", p, err)
	}
}

// tensor reads one tensor of a safetensors file, knowing nothing of ckptd.
func tensor(b []byte, name string) ([]byte, error) {
	if len(b) < 8 || binary.LittleEndian.Uint64(b) > uint64(len(b)-8) {
		return nil, errors.New("no safetensors file")
	}
	n := binary.LittleEndian.Uint64(b)
	var head map[string]struct {
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(dropMetadata(b[8:8+n]), &head); err != nil {
		return nil, err
	}
	at := head[name].Offsets
	return b[8+n:][at[0]:at[1]], nil
}

// dropMetadata takes out the one entry of a header that is no tensor.
func dropMetadata(b []byte) []byte {
	var all map[string]json.RawMessage
	if json.Unmarshal(b, &all) != nil {
		return b
	}
	delete(all, "__metadata__")
	out, _ := json.Marshal(all)
	return out
}

func TestPosixRemote(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	theirs := filepath.Join(dir, "README.txt")
	if err := os.WriteFile(theirs, []byte("not of ckptd"), 0o600); err != nil {
		t.Fatal(err)
	}
	engineStory(t, engine{
		remote: "posix:" + dir + ",name=lustre", pool: "lustre",
		read: func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) },
		made: func(name string) time.Time {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Error(err)
				return time.Time{}
			}
			return info.ModTime()
		},
	})
	if b, err := os.ReadFile(theirs); err != nil || string(b) != "not of ckptd" {
		t.Errorf("somebody's file is %q, %v", b, err)
	}
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name()[0] != '.' && filepath.Ext(p) != ".safetensors" && filepath.Ext(p) != ".json" && d.Name() != "target.id" && p != theirs {
			t.Errorf("in sight: %s", p)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestS3Remote(t *testing.T) {
	srv := s3test.Start(t)
	b := srv.Open(t, "team/ckpt", nil)
	stat := func(name string) bucket.Info {
		i, err := b.Stat(t.Context(), name)
		if err != nil {
			t.Error(err)
		}
		return i
	}
	engineStory(t, engine{
		remote: srv.Spec("team/ckpt") + ",name=store", pool: "store",
		read: func(name string) ([]byte, error) {
			i, err := b.Stat(t.Context(), name)
			if err != nil {
				return nil, err
			}
			p := make([]byte, i.Size)
			return p, b.Get(t.Context(), name, p, 0)
		},
		made: func(name string) time.Time { return stat(name).Modified },
	})
	if n := srv.Uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
	notes, _, err := b.Folder(t.Context(), ".ckptd/notes/")
	if err != nil || len(notes) > 0 {
		t.Errorf("notes are left: %v, %v", notes, err)
	}
}

// TestRemotePerRun: a run's policy says which of several remotes its sets go
// to; what was written before stays where it is, and goes when its set goes.
func TestRemotePerRun(t *testing.T) {
	t.Parallel()
	fsys, flags := t.TempDir(), []string{"--grace", "1ms"}
	var dirs []string
	for i := range 3 {
		dirs = append(dirs, t.TempDir())
		flags = append(flags, "--remote", fmt.Sprintf("dir:%s,name=t%d", dirs[i], i))
	}
	d := newDaemon(t, "n1", append(flags, "--remote", "posix:"+fsys+",name=lustre")...).start()
	c, ctx := d.dial(), t.Context()
	attempt := map[string]int{}
	for _, run := range []string{"on/lustre", "striped"} {
		one, err := c.Attach(ctx, run, "launch 1", 1)
		if err != nil {
			t.Fatal(err)
		}
		attempt[run] = one
	}
	step := func(run string, n int64) catalog.SetID {
		t.Helper()
		if _, err := save(ctx, c, run, n, attempt[run], 0, 1, 100_000); err != nil {
			t.Fatal(err)
		}
		id := catalog.SetID{Run: catalog.Run(run), Step: n, Attempt: attempt[run]}
		mustWait(t, c, id.String(), catalog.Verified)
		return id
	}
	if _, err := c.SetPolicy(ctx, "striped", catalog.Policy{Remote: "no-such-pool"}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a pool that is not there: %v, want ErrInvalid", err)
	}
	if _, err := c.SetPolicy(ctx, "on/lustre", catalog.Policy{Remote: "lustre"}); err != nil {
		t.Fatal(err)
	}
	first, other := step("on/lustre", 1), step("striped", 1)
	if _, err := c.SetPolicy(ctx, "on/lustre", catalog.Policy{}); err != nil {
		t.Fatal(err)
	}
	second := step("on/lustre", 2)
	there := func(name string) (places int) {
		for _, root := range append([]string{fsys}, dirs...) {
			sub := name
			if root != fsys {
				sub = filepath.Join("columns", name) // a folder of columns
			}
			if _, err := os.Stat(filepath.Join(root, sub)); err == nil {
				if root == fsys {
					places += 100
				} else {
					places++
				}
			}
		}
		return places
	}
	for name, want := range map[string]int{first.ShardName(0): 100, other.ShardName(0): 3, second.ShardName(0): 3} {
		if got := there(name); got != want {
			t.Errorf("%s is at %d, want %d: 100 is the file system, 1 each directory", name, got, want)
		}
	}
	for _, id := range []catalog.SetID{first, other, second} {
		mustLoad(t, c, id.String(), "remote")
	}
	if _, err := c.Remove(ctx, first.String()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed set leaves the file system", func() error {
		if _, err := os.Stat(filepath.Join(fsys, filepath.FromSlash(first.Dir()))); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("its folder: %v", err)
		}
		return nil
	})
	mustLoad(t, c, second.String(), "remote")
}
