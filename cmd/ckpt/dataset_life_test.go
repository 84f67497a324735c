package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// asked runs a command and gives its answer in JSON.
func asked[T any](t *testing.T, d *daemon, want int, args ...string) (v T) {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), append([]string{"--socket", d.socket, "--json"}, args...), &out, &errs); code != want {
		t.Fatalf("%q: exit %d, want %d: %s%s", args, code, want, out.String(), errs.String())
	}
	if err := json.NewDecoder(&out).Decode(&v); err != nil {
		t.Fatalf("%q: %v in %s", args, err, out.String())
	}
	return v
}

// said runs a command and gives what it prints.
func said(t *testing.T, d *daemon, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(t.Context(), append([]string{"--socket", d.socket}, args...), &out, &out); code != want {
		t.Fatalf("%q: exit %d, want %d: %s", args, code, want, out.String())
	}
	return out.String()
}

type failed struct {
	Error wire.Error `json:"error"`
}

// TestDatasetLife: two versions that share packs are listed, shown, verified,
// tagged, pinned and removed with the commands that people use.
func TestDatasetLife(t *testing.T) {
	d := startDaemon(t)
	if got := said(t, d, 0, "dataset", "ls"); !strings.HasPrefix(got, "DATASET") || strings.Count(got, "\n") != 1 {
		t.Errorf("without datasets: %q", got)
	}
	dir := oddTree(t, 2)
	importDataset(t, d, "--raw-from", "2", dir, "team/odd")
	if err := os.WriteFile(filepath.Join(dir, "c1/new"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	importDataset(t, d, "--raw-from", "2", dir, "team/odd")

	list := asked[struct{ Datasets []wire.Dataset }](t, d, 0, "dataset", "ls").Datasets
	if len(list) != 1 || list[0].Name != "team/odd" || list[0].Versions != 2 || list[0].Packs != 4 || list[0].Latest == nil || list[0].Latest.Version != 2 {
		t.Fatalf("%+v", list)
	}
	versions := asked[struct{ Versions []wire.DatasetVersion }](t, d, 0, "dataset", "ls", "team/odd").Versions
	if len(versions) != 2 || versions[0].Ref != "team/odd@2" || versions[1].Ref != "team/odd@1" {
		t.Fatalf("%+v", versions)
	}
	if v := versions[1]; v.Files != 205 || v.Samples != 205 || v.Packs != 3 || v.Level < catalog.Local || v.Digest.IsZero() || v.Bytes < 6<<20 || v.Stored < v.Bytes || v.Err != "" {
		t.Errorf("%+v", v)
	}
	show := asked[wire.DatasetDetail](t, d, 0, "dataset", "show", "team/odd@1")
	if len(show.PackList) != 3 || show.Digest != versions[1].Digest || !strings.Contains(show.Schema, "tree") || len(show.Events) == 0 {
		t.Errorf("%+v", show)
	}
	raw, samples := 0, int64(0)
	for _, p := range show.PackList {
		if !p.Shared || p.Level < catalog.Local {
			t.Errorf("%+v: version 2 names it too", p)
		}
		if p.Raw {
			raw++
		}
		samples += p.Samples
	}
	if raw != 2 || samples < 200 {
		t.Errorf("%d packs of one file, %d samples", raw, samples)
	}
	if got := said(t, d, 0, "dataset", "show", "team/odd"); !strings.Contains(got, "team/odd@2") || !strings.Contains(got, "206 files") {
		t.Errorf("show of the newest:\n%s", got)
	}
	if v := asked[wire.VerifyResult](t, d, 0, "dataset", "verify", "team/odd", "--deep"); v.Sets != 5 || v.Copies < 5 || v.Bytes < 6<<20 || len(v.Bad) != 0 {
		t.Errorf("%+v", v)
	}
	if got := said(t, d, 0, "dataset", "tag", "team/odd@1", "split=train"); got != "team/odd@1  split=train\n" {
		t.Errorf("tag says %q", got)
	}
	if got := said(t, d, 0, "dataset", "pin", "team/odd@1"); got != "team/odd@1 is pinned\n" {
		t.Errorf("pin says %q", got)
	}
	if got := said(t, d, 0, "dataset", "ls", "team/odd"); !strings.Contains(got, "(pinned) split=train") {
		t.Errorf("ls:\n%s", got)
	}

	// What cannot be done, and what to do instead.
	for _, c := range []struct {
		code int
		text string
		args []string
	}{
		{6, "pinned; unpin it first", []string{"rm", "team/odd@1"}},
		{2, "say which version", []string{"rm", "team/odd"}},
		{3, "`ckpt dataset ls` lists the datasets", []string{"show", "team/none"}},
		{3, "`ckpt dataset ls` lists the datasets", []string{"ls", "none"}},
		{3, "file does not exist", []string{"verify", "team/odd@7"}},
		{3, "file does not exist", []string{"rm", "team/odd@7"}},
		{2, "want NAME@VERSION", []string{"show", "team/odd@x"}},
		{2, "versions count from 1", []string{"pin", "team/odd@0"}},
		{2, "want K=V", []string{"tag", "team/odd@1", "split"}},
		{2, "reserved", []string{"ls", "_packs/team/odd"}},
	} {
		if got := said(t, d, c.code, append([]string{"dataset"}, c.args...)...); !strings.Contains(got, c.text) {
			t.Errorf("%q says %q, want %q in it", c.args, got, c.text)
		}
		if e := asked[failed](t, d, c.code, append([]string{"dataset"}, c.args...)...).Error; e.Message == "" || e.Hint == "" {
			t.Errorf("%q with --json: %+v", c.args, e)
		}
	}
	// A pack goes only with the versions that name it.
	if got := said(t, d, 2, "rm", show.PackList[0].ID); !strings.Contains(got, "ckpt dataset rm NAME@VERSION") {
		t.Errorf("rm of a pack says %q", got)
	}
	c, err := ckpt.Dial(t.Context(), d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	open, err := c.OpenDataset(t.Context(), "team/odd@1")
	if err != nil {
		t.Fatal(err)
	}
	said(t, d, 0, "dataset", "unpin", "team/odd@1")
	if got := said(t, d, 6, "dataset", "rm", "team/odd@1"); !strings.Contains(got, "is reading it") {
		t.Errorf("rm of what is read says %q", got)
	}
	if r := asked[wire.DatasetDetail](t, d, 0, "dataset", "show", "team/odd@1").Leases; len(r) == 0 {
		t.Error("show names no reader")
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	if got := said(t, d, 0, "dataset", "rm", "team/odd@1"); got != "team/odd@1 is pruned\n" {
		t.Errorf("rm says %q", got)
	}
	if got := said(t, d, 0, "dataset", "ls", "team/odd", "--all"); !strings.Contains(got, "pruned") {
		t.Errorf("ls --all:\n%s", got)
	}
	wantDataset(t, d, "team/odd", dir)
	if v := asked[wire.VerifyResult](t, d, 0, "dataset", "verify", "team/odd@2"); v.Sets != 5 || len(v.Bad) != 0 {
		t.Errorf("version 2 without version 1: %+v", v)
	}
	// What no version has is collected after a day; now it would be an import's.
	if got := asked[struct{ Datasets []wire.Dataset }](t, d, 0, "dataset", "ls").Datasets; got[0].Versions != 1 || got[0].Packs != 4 {
		t.Errorf("%+v", got)
	}
}
