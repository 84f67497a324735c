package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestDatasetCacheCommands: what warm, locate, settings and check-shuffle say,
// and the exit codes that scripts go by.
func TestDatasetCacheCommands(t *testing.T) {
	d := startDaemon(t)
	dir := oddTree(t, 2)
	importDataset(t, d, "--raw-from", "2", dir, "team/odd")

	warm := asked[wire.WarmResult](t, d, 0, "dataset", "warm", "team/odd@1")
	if len(warm.Nodes) != 1 || warm.Nodes[0].Node != "n1" || warm.Nodes[0].Verified != warm.Nodes[0].Total || warm.Nodes[0].Total < 6<<20 || warm.Nodes[0].Err != "" {
		t.Errorf("warm: %+v", warm)
	}
	if got := said(t, d, 0, "dataset", "warm", "team/odd", "--nodes", "all"); !strings.HasPrefix(got, "NODE") || !strings.Contains(got, "n1") {
		t.Errorf("warm all: %q", got)
	}
	places := asked[wire.DatasetPlaces](t, d, 0, "dataset", "locate", "team/odd@latest")
	if places.Packs != 3 || places.Bytes != warm.Nodes[0].Total || len(places.Nodes) != 1 || places.Nodes[0].Score != 1 || places.Nodes[0].Packs != 3 {
		t.Errorf("locate: %+v", places)
	}
	if got := said(t, d, 0, "dataset", "locate", "team/odd@1"); !strings.Contains(got, "1.000") || !strings.Contains(got, "3 of 3") {
		t.Errorf("locate: %q", got)
	}
	before := asked[wire.DatasetSettings](t, d, 0, "dataset", "settings")
	changed := asked[wire.DatasetSettings](t, d, 0, "dataset", "settings", "--cache", "1GiB", "--policy", "lru", "--ahead", "9", "--lookahead", "1000", "--retries", "2")
	if want := (wire.DatasetSettings{Cache: 1 << 30, Policy: "lru", Ahead: 9, Lookahead: 1000, Retries: 2}); changed != want || before == want {
		t.Errorf("settings: %+v, before %+v, want %+v", changed, before, want)
	}
	got := said(t, d, 0, "dataset", "settings", "--ahead", "1")
	for _, row := range []string{"1.0 GiB", "lru", "1 pack", "1000 samples"} {
		if !strings.Contains(got, row) {
			t.Errorf("settings say %q, want %q among it", got, row)
		}
	}
	if got := said(t, d, 0, "dataset", "check-shuffle", "team/odd@1", "--batch", "16"); strings.Count(got, "\n") < 6 {
		t.Errorf("check-shuffle: %q", got)
	}

	for _, c := range []struct {
		want int
		says string
		args string
	}{
		{2, "NAME@VERSION", "warm team/odd@x"},
		{2, "", "warm"},
		{2, "", "warm a b"},
		{3, "hint:", "warm team/none"},
		{3, "hint:", "warm team/odd@7"},
		{2, "ckpt node", "warm team/odd --nodes n1,n9"},
		{2, "", "locate team/odd@-1"},
		{3, "hint:", "locate none"},
		{2, "next or lru", "settings --policy mru"},
		{2, "64 packs", "settings --ahead 65"},
		{2, "", "settings --lookahead -1"},
		{2, "100", "settings --retries 101"},
		{2, "", "settings --cache lots"},
		{2, "", "settings --cache -1"},
		{2, "", "settings x"},
		{3, "hint:", "check-shuffle team/none"},
		{2, "--samples", "check-shuffle"},
		{2, "--samples", "check-shuffle team/odd --samples 5"},
		{2, "", "check-shuffle team/odd@1 --group -1"},
		{2, "", "check-shuffle team/odd@1 --batch 0"},
	} {
		args := append([]string{"dataset"}, strings.Fields(c.args)...)
		if got := said(t, d, c.want, args...); !strings.Contains(got, c.says) {
			t.Errorf("%s: says %q, want %q among it", c.args, got, c.says)
		}
	}
	if got := asked[wire.DatasetSettings](t, d, 0, "dataset", "settings"); got.Ahead != 1 || got.Retries != 2 {
		t.Errorf("after changes that were refused: %+v", got)
	}
	bad := asked[failed](t, d, 2, "dataset", "warm", "team/odd", "--nodes", "n9")
	if bad.Error.Hint == "" || !strings.Contains(bad.Error.Message, `"n9"`) {
		t.Errorf("the error in JSON: %+v", bad)
	}
	for _, args := range [][]string{{"warm", "a@1"}, {"settings"}} {
		var out bytes.Buffer
		if code := run(t.Context(), append([]string{"--socket", "/nope/sock", "dataset"}, args...), &out, &out); code != 1 || !strings.Contains(out.String(), "ckptd serve") {
			t.Errorf("no daemon, %q: exit %d, %s", args, code, out.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	if code := run(ctx, []string{"--socket", d.socket, "dataset", "warm", "team/odd"}, &out, &out); code != 1 || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("Ctrl-C: exit %d, %s", code, out.String())
	}
}

// An import that waits for its version waits for that one's packs, though a
// newer version is there.
func TestDatasetImportWaitsForItsOwn(t *testing.T) {
	d := startDaemon(t)
	dir := t.TempDir()
	var versions []catalog.SetID
	c := d.dial()
	st, err := store.New(c, "pets")
	if err != nil {
		t.Fatal(err)
	}
	for i := range byte(2) {
		if err := os.WriteFile(filepath.Join(dir, "a"), random(9000, i), 0o644); err != nil {
			t.Fatal(err)
		}
		importDataset(t, d, "--rehash", dir, "pets")
		base, err := st.Base(t.Context())
		if err != nil || base == nil {
			t.Fatal(base, err)
		}
		versions = append(versions, base.Set)
		if err := base.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var packs [][]catalog.SetID
	for _, set := range versions {
		v, err := st.Version(t.Context(), set)
		if err != nil {
			t.Fatal(err)
		}
		of, err := datasets.PacksOf(v)
		if err != nil || len(of) != 1 || v.Set != set {
			t.Fatalf("%v: packs %v of %v, %v", set, of, v.Set, err)
		}
		packs = append(packs, of)
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	if slices.Equal(packs[0], packs[1]) {
		t.Errorf("both versions have packs %v", packs[0])
	}
	if _, err := st.Version(t.Context(), packs[0][0]); catalog.ClassOf(err) != catalog.ErrInvalid {
		t.Errorf("a pack opened as a version: %v", err)
	}
	j := &datasetImport{app: &app{}, until: catalog.Verified}
	if err := j.wait(t.Context(), c, st, datasets.Version{Set: versions[0]}); err != nil {
		t.Error(err)
	}
}
