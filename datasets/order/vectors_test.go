package order

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

var update = flag.Bool("update", false, "rewrite testdata")

// vectors is testdata/vectors.json, which other languages test themselves by.
// Words of 64 bits are strings: JSON's numbers hold 53 bits.
type vectors struct {
	Version int         `json:"version"`
	Keys    []keyVector `json:"keys"`
	Orders  []vector    `json:"orders"`
	Cursors []string    `json:"cursors"`
	Bad     []string    `json:"bad_cursors"`
}

type keyVector struct {
	Digest string   `json:"digest"`
	Seed   string   `json:"seed"`
	Epoch  string   `json:"epoch"`
	Words  []string `json:"words"` // hex
}

type vector struct {
	Digest string  `json:"digest"`
	Seed   string  `json:"seed"`
	Epoch  string  `json:"epoch"`
	N      int64   `json:"n"`
	Mode   string  `json:"mode"`
	At     []int64 `json:"positions"`
	Sample []int64 `json:"samples"`
	Count  int64   `json:"count"`  // positions 0 to count-1 …
	Hash   string  `json:"sha256"` // … and SHA-256 of their samples, 8 bytes each
}

func makeVectors(t *testing.T) vectors {
	v := vectors{Version: 1}
	keys := []struct {
		d           catalog.Digest
		seed, epoch uint64
	}{{digest(0), 0, 0}, {digest(1), 42, 7}, {digest(200), 1<<64 - 1, 1<<64 - 1}}
	for _, k := range keys {
		kv := keyVector{Digest: hex.EncodeToString(k.d[:]), Seed: strconv.FormatUint(k.seed, 10), Epoch: strconv.FormatUint(k.epoch, 10)}
		for _, w := range NewKey(k.d, k.seed, k.epoch) {
			kv.Words = append(kv.Words, fmt.Sprintf("%016x", w))
		}
		v.Keys = append(v.Keys, kv)
		for _, n := range []int64{0, 1, 2, 3, 10, 1000, 65536, 1_281_167, 1<<32 + 1, MaxSamples} {
			for _, m := range []Mode{Global, Window(1, 1), Window(7, 3), Window(1000, 16), Window(MaxSamples, 1)} {
				v.Orders = append(v.Orders, makeVector(t, k.d, k.seed, k.epoch, n, m, min(n, 2000)))
			}
		}
	}
	for _, n := range []int64{1_281_167, 1<<40 + 1} {
		for _, m := range []Mode{Global, Window(5000, 16)} {
			v.Orders = append(v.Orders, makeVector(t, digest(5), 2026, 3, n, m, 1_000_000))
		}
	}
	for _, c := range cursors() {
		v.Cursors = append(v.Cursors, c.String())
	}
	good := v.Cursors[0]
	v.Bad = []string{"", good + ";", good + " ", good[1:] + "x", "@1" + good[10:], "a@0" + good[10:], "a/@1" + good[10:], "../a@1" + good[10:], good[:len(good)-1], "a@01" + good[10:]}
	return v
}

func makeVector(t *testing.T, d catalog.Digest, seed, epoch uint64, n int64, m Mode, count int64) vector {
	t.Helper()
	o, err := New(n, NewKey(d, seed, epoch), m)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{
		Digest: hex.EncodeToString(d[:]), Seed: strconv.FormatUint(seed, 10), Epoch: strconv.FormatUint(epoch, 10),
		N: n, Mode: m.String(), At: []int64{}, Sample: []int64{}, Count: count,
	}
	for _, p := range []int64{0, 1, 2, n / 3, n / 2, n - 2, n - 1} {
		if p >= 0 && p < n {
			v.At, v.Sample = append(v.At, p), append(v.Sample, o.At(p))
		}
	}
	h := sha256.New()
	for p := range count {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(o.At(p)))
		h.Write(b[:])
	}
	v.Hash = hex.EncodeToString(h.Sum(nil))
	return v
}

// TestGoldenVectors holds version 1 fast: a number that changes is a new version.
func TestGoldenVectors(t *testing.T) {
	v := makeVectors(t)
	var got bytes.Buffer
	e := json.NewEncoder(&got)
	e.SetEscapeHTML(false)
	head, _ := json.Marshal(v.Version)
	fmt.Fprintf(&got, "{\"version\": %s,\n\"keys\": [\n", head)
	lines(t, e, &got, v.Keys)
	got.WriteString("],\n\"orders\": [\n")
	lines(t, e, &got, v.Orders)
	got.WriteString("],\n\"cursors\": [\n")
	lines(t, e, &got, v.Cursors)
	got.WriteString("],\n\"bad_cursors\": [\n")
	lines(t, e, &got, v.Bad)
	got.WriteString("]}\n")
	const file = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the order's numbers differ from %s: that would be another version", file)
	}
	var back vectors
	if err := json.Unmarshal(want, &back); err != nil || len(back.Orders) != len(v.Orders) {
		t.Errorf("%s: %d orders, %v", file, len(back.Orders), err)
	}
	for _, s := range v.Bad {
		if _, err := ParseCursor(s); err == nil {
			t.Errorf("ParseCursor(%q) worked", s)
		}
	}
}

// lines writes a list with one element a line, so that a diff reads well.
func lines[T any](t *testing.T, e *json.Encoder, b *bytes.Buffer, list []T) {
	t.Helper()
	for i, v := range list {
		if err := e.Encode(v); err != nil {
			t.Fatal(err)
		}
		if i < len(list)-1 {
			b.Truncate(b.Len() - 1)
			b.WriteString(",\n")
		}
	}
}
