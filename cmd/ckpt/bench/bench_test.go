package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		q    float64
		want float64
	}{
		{[]float64{3, 1, 2}, 0.5, 2}, {[]float64{4, 1, 2, 3}, 0.5, 2.5}, {[]float64{7}, 0.99, 7},
		{[]float64{5, 4, 3, 2, 1}, 0.99, 5}, {[]float64{5, 4, 3, 2, 1}, 0.2, 1},
	} {
		if got := quantile(c.v, c.q); got != c.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", c.v, c.q, got, c.want)
		}
	}
}

// TestBars: the median of the pairs' ratios decides, in the direction of the bar.
func TestBars(t *testing.T) {
	b := &bench{opt: Options{Log: func(string) {}}, report: &Report{}}
	b.versus("save.stall", []float64{1, 9, 1.2}, []float64{1, 1, 1}, "three pairs")
	b.versus("restore.local", []float64{85, 95, 30}, []float64{100, 100, 100}, "three pairs")
	b.limit("catalog.latest", 0.004, "a limit")
	b.limit("daemon.memory", 300<<20, "a limit")
	var got []bool
	for _, bar := range b.report.Bars {
		got = append(got, bar.OK)
	}
	if want := []bool{true, false, true, false}; len(got) != 4 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] || got[3] != want[3] {
		t.Errorf("reached %v, want %v", got, want)
	}
	if b.report.OK() {
		t.Error("a report with a missed bar is OK")
	}
	var out bytes.Buffer
	if err := b.report.Print(&out); err != nil || strings.Count(out.String(), "MISSED") != 2 {
		t.Errorf("%v:\n%s", err, out.String())
	}
	enc, err := json.Marshal(b.report)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"name":"save.stall"`, `"ratio":1.2`, `"reach":1.25`, `"better":"lower"`, `"yardstick":null`, `"detail":"a limit"`, `"machine":{"cores":`} {
		if !strings.Contains(string(enc), field) {
			t.Errorf("no %s in %s", field, enc)
		}
	}
}

// TestRefusals: what can never work is said before anything starts.
func TestRefusals(t *testing.T) {
	for _, o := range []Options{{Suite: "sava"}, {Size: 1}, {Size: 17<<20 + 1}, {Pairs: -1}} {
		if _, err := Run(t.Context(), o); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Run(%+v): %v, want ErrInvalid", o, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if dir := "/dev/shm"; fsName(dir) == "tmpfs" {
		if _, err := Run(t.Context(), Options{Dir: dir, Daemon: self}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "tmpfs") {
			t.Errorf("on a tmpfs: %v, want ErrInvalid", err)
		}
	}
}

// TestNothingStays: a daemon that dies at once leaves an error and no folder.
func TestNothingStays(t *testing.T) {
	dir := t.TempDir()
	if fsName(dir) == "tmpfs" {
		t.Log("the temporary directory is a tmpfs: the refusal is all there is to see")
	}
	program := filepath.Join(t.TempDir(), "ckptd")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho no luck\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Run(t.Context(), Options{Suite: "catalog", Dir: dir, Daemon: program})
	if err == nil || fsName(dir) != "tmpfs" && !strings.Contains(err.Error(), "no luck") {
		t.Errorf("Run = %v, want the daemon's last words", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestWorkerArgument(t *testing.T) {
	w := Worker{Socket: "/run/x y", To: "a/b", Attempt: 2, Rank: 3, World: 4, Size: 5 << 20, Dir: "/d"}
	if got, err := ParseWorker(w.arg()); err != nil || got != w {
		t.Errorf("ParseWorker = %+v, %v", got, err)
	}
	for _, bad := range []string{"", "x", strings.Repeat("\x1f", 6)} {
		if _, err := ParseWorker(bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("ParseWorker(%q): %v", bad, err)
		}
	}
}

// TestPlain: the yardsticks move the bytes they say they move.
func TestPlain(t *testing.T) {
	data, err := randomMemory(24<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := plainWrite(path, data); err != nil {
		t.Fatal(err)
	}
	if err := checkFile(path, 0, data); err != nil {
		t.Error(err)
	}
	p, err := mapMemory(int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := plainRead(path, p, readers); err != nil || !bytes.Equal(p, data) {
		t.Errorf("plainRead: %v, equal %v", err, bytes.Equal(p, data))
	}
	if touch(p) != touch(data) || touch(p[:len(p)-9]) == touch(p) {
		t.Error("touch does not read every byte")
	}
	p[5] ^= 1
	if err := checkFile(path, 0, p); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a byte that differs: %v, want ErrCorrupt", err)
	}
	if again, err := randomMemory(24<<20, 1); err != nil || !bytes.Equal(again, data) {
		t.Error("the data is not a function of its seed")
	}
}

// TestCompress: figures without a reach, in the shape of the other bars.
func TestCompress(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var data []byte
	for range 1 << 19 {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(r.NormFloat64())))
	}
	h, err := shardfile.NewHeader([]shardfile.Spec{{Name: "w", DType: "F32", Shape: []int64{1 << 19}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "weights.safetensors")
	if err := os.WriteFile(path, append(bytes.Clone(h.Bytes()), data...), 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := Compress(t.Context(), []string{path}, Options{Pairs: 1})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range report.Bars {
		names = append(names, b.Name)
		if !b.OK || b.Reach != 0 || b.Yardstick == nil || b.Value <= 0 {
			t.Errorf("%+v", b)
		}
	}
	if got, want := strings.Join(names, " "), "compress.weights.ratio compress.weights.encode compress.weights.decode"; got != want {
		t.Errorf("bars %q, want %q", got, want)
	}
	if ratio := report.Bars[0].Value; ratio > 0.9 || ratio < 0.5 {
		t.Errorf("ratio %.3f of normal numbers", ratio)
	}
	if w, err := readWeight(path, "f32"); err != nil {
		t.Error(err)
	} else if half, err := rounded(w); err != nil || len(half.raw) != len(h.Bytes())+len(data)/2 {
		t.Errorf("rounded: %v", err)
	}
	if _, err := Compress(t.Context(), []string{path + "x"}, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestModel(t *testing.T) {
	slow, fast := Model(Figures{Write: 1e9}), Model(Figures{Write: 2e9})
	for i := range slow {
		if slow[i].What == "durable (local)" && slow[i].Time != 2*fast[i].Time {
			t.Errorf("half the disk, not twice the time: %v and %v", slow[i].Time, fast[i].Time)
		}
		if slow[i].Why == "" || slow[i].Value == "" && slow[i].Time <= 0 {
			t.Errorf("row %q without a figure or its arithmetic", slow[i].What)
		}
	}
	f := FiguresOf(&Report{Bars: []Bar{{Name: "save.stall", Value: 0.5}, {Name: "commit.p99", Value: 0.04}}}, 1<<30)
	if f.Memcpy != 2<<30 || f.Commit != 0.04 {
		t.Errorf("FiguresOf = %+v", f)
	}
	var out bytes.Buffer
	if err := PrintModel(&out, Model(f)); err != nil || !strings.Contains(out.String(), "16384") {
		t.Errorf("PrintModel: %v\n%s", err, out.String())
	}
}

// TestInterrupted: a run that is stopped before it begins leaves nothing either.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Run(ctx, Options{Suite: "catalog", Dir: dir, Daemon: "/bin/cat"}); err == nil {
		t.Error("Run after the end of its context succeeded")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
