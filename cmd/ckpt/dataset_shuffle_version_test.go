package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/order"
)

func TestCheckShuffleOfAVersion(t *testing.T) {
	d := startDaemon(t)
	src := filepath.Join(t.TempDir(), "rows.jsonl")
	if err := os.WriteFile(src, []byte(strings.Repeat("{}\n", 3000)), 0o600); err != nil {
		t.Fatal(err)
	}
	importDataset(t, d, src, "rows")
	check := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"--socket", d.socket, "--json", "dataset", "check-shuffle"}, args...), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, out, errs := check("rows", "--seed", "5", "--epoch", "2", "--slice", "100", "--batch", "64")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	var got struct {
		Dataset string         `json:"dataset"`
		Digest  catalog.Digest `json:"digest"`
		Samples int64          `json:"samples"`
		Orders  []shuffled     `json:"orders"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Dataset != "rows@1" || got.Samples != 3000 || got.Digest == (catalog.Digest{}) {
		t.Fatalf("%s of %d samples, digest %v", got.Dataset, got.Samples, got.Digest)
	}
	ord, err := order.New(3000, order.NewKey(got.Digest, 5, 2), order.Global)
	if err != nil {
		t.Fatal(err)
	}
	if want := order.Measure(3000, ord.At, order.Mix{Batch: 64, Slice: 100}); got.Orders[0].Quality != want {
		t.Errorf("%+v, want %+v: that of the version's own order", got.Orders[0].Quality, want)
	}
	if code, out, errs := check("nothing"); code != 3 || !strings.Contains(out+errs, "nothing") {
		t.Errorf("a version that is not there: exit code %d: %s", code, errs)
	}
	if code, _, _ := check("rows", "--samples", "10"); code != 2 {
		t.Errorf("--samples beside a version: exit code %d, want 2", code)
	}
}
