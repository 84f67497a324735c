package shardfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// Promise 4: what cannot be stored is refused before a byte is written.
func TestNewHeaderRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		specs []Spec
		meta  map[string]string
		text  string // that the error must have, to be of use
	}{
		{"UnknownDType", []Spec{{Name: "a", DType: "float32"}}, nil, "BF16"},
		{"NoDType", []Spec{{Name: "a"}}, nil, "known are"},
		{"Reserved", []Spec{{Name: "__metadata__", DType: "U8"}}, nil, "reserved"},
		{"NotUTF8", []Spec{{Name: "\xff", DType: "U8"}}, nil, "UTF-8"},
		{"Twice", []Spec{{Name: "a", DType: "U8"}, {Name: "a", DType: "U8"}}, nil, `"a"`},
		{"Negative", []Spec{{Name: "a", DType: "U8", Shape: []int64{-1}}}, nil, "negative"},
		{"Overflow", []Spec{{Name: "a", DType: "U8", Shape: []int64{math.MaxInt64, math.MaxInt64}}}, nil, "overflows"},
		{"TooLarge", []Spec{{Name: "a", DType: "U8", Shape: []int64{1 << 41}}, {Name: "b", DType: "U8", Shape: []int64{1<<41 + 1}}}, nil, "more ranks"},
		{"TooLargeByHeader", []Spec{{Name: "a", DType: "U8", Shape: []int64{1 << 42}}}, nil, "more ranks"},
		{"HalfByte", []Spec{{Name: "a", DType: "F4", Shape: []int64{5}}}, nil, "whole number of bytes"},
		{"ManyDims", []Spec{{Name: "a", DType: "U8", Shape: make([]int64, MaxDims+1)}}, nil, "dimensions"},
		{"PieceOutside", []Spec{{Name: "a", DType: "U8", Shape: []int64{4}, Global: []int64{8}, Start: []int64{5}}}, nil, "outside"},
		{"PieceNoStart", []Spec{{Name: "a", DType: "U8", Shape: []int64{4}, Global: []int64{8}}}, nil, "start 0"},
		{"ReservedKey", nil, map[string]string{KeyPieces: "{}"}, KeyPieces},
		{"OtherVersion", nil, map[string]string{KeyVersion: "7"}, KeyVersion},
		{"MetaNotUTF8", nil, map[string]string{"a": "\xff"}, "UTF-8"},
		{"MetaTooLarge", nil, map[string]string{"a": strings.Repeat("x", MaxHeader)}, "U8 tensors"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewHeader(c.specs, c.meta)
			if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want ErrInvalid with %q", err, c.text)
			}
		})
	}
}

func TestDTypesAreTheCatalogs(t *testing.T) {
	if len(DTypes) != 22 {
		t.Errorf("%d dtypes, want 22", len(DTypes))
	}
	for i, d := range DTypes {
		if d.Bits() == 0 {
			t.Errorf("the catalog does not know %s", d)
		}
		if i > 0 && d.Bits() > DTypes[i-1].Bits() {
			t.Errorf("%s comes after the narrower %s", d, DTypes[i-1])
		}
	}
}

func TestEncodeHoldsReadersToTheirSize(t *testing.T) {
	h, err := NewHeader([]Spec{{Name: "a", DType: "U8", Shape: []int64{10}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for _, c := range []struct {
		name string
		r    io.Reader
		err  error
		want error
	}{
		{"Exact", strings.NewReader(strings.Repeat("x", 10)), nil, nil},
		{"Short", strings.NewReader("x"), nil, catalog.ErrInvalid},
		{"Long", strings.NewReader(strings.Repeat("x", 11)), nil, catalog.ErrInvalid},
		{"ReadFails", io.MultiReader(strings.NewReader("x"), errReader{boom}), nil, boom},
		{"FailsAtItsEnd", io.MultiReader(strings.NewReader(strings.Repeat("x", 10)), errReader{boom}), nil, boom},
		{"NextFails", nil, boom, boom},
		{"CloseFails", closer{strings.NewReader(strings.Repeat("x", 10)), boom}, nil, boom},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			err := Encode(&b, h, func(int) (io.Reader, error) { return c.r, c.err })
			if !errors.Is(err, c.want) {
				t.Errorf("Encode = %v, want %v", err, c.want)
			}
			if err == nil && int64(b.Len()) != h.FileSize {
				t.Errorf("%d bytes written, want %d", b.Len(), h.FileSize)
			}
		})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type closer struct {
	io.Reader
	err error
}

func (c closer) Close() error { return c.err }

func TestReaderRefuses(t *testing.T) {
	b := testdata(t, "ckptd-mixed.safetensors")
	r, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Tensor("nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Tensor = %v, want fs.ErrNotExist", err)
	}
	if err := r.ReadTensor("nobody", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadTensor = %v, want fs.ErrNotExist", err)
	}
	if s := r.Section("nobody"); s != nil {
		t.Errorf("Section = %v, want nil", s)
	}
	if err := r.ReadTensor("scalar", make([]byte, 5)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("ReadTensor into too much room = %v, want ErrInvalid", err)
	}
}

// A header larger than the first read, and than one piece of growth.
func TestLargeHeader(t *testing.T) {
	specs := make([]Spec, 20_000)
	for i := range specs {
		specs[i] = Spec{Name: fmt.Sprintf("layers.%d.weight", i), DType: "BF16", Shape: []int64{1, 2}}
	}
	b := encodeGolden(t, specs, nil)
	r, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(r.Tensors()), len(specs); got != want {
		t.Errorf("%d tensors, want %d", got, want)
	}
	if got := allocated(func() { checkParse(t, b, int64(len(b))) }); got > 20*uint64(r.Header().DataStart) {
		t.Errorf("%d bytes allocated for a header of %d", got, r.Header().DataStart)
	}
}

func TestShardOf(t *testing.T) {
	b := testdata(t, "ckptd-mixed.safetensors")
	h, err := ParseHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	seal := goldenSeal(t, b)
	s := ShardOf(h, 0, "n1", seal)
	if s.Size != h.FileSize || s.Header != h.DataStart || s.Root != seal.Root() || len(s.Tensors) != len(h.Tensors) || s.Meta[KeyState] != h.Meta[KeyState] {
		t.Errorf("ShardOf = %+v", s)
	}
	m := catalog.Manifest{Version: 1, Set: catalog.SetID{Run: "llama/7b", Step: 1200, Attempt: 3}, World: 1, Shards: []catalog.Shard{s}}
	enc, root, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := catalog.ParseManifest(enc, root); err != nil {
		t.Error(err)
	}
}

func TestManifestMetaIsBounded(t *testing.T) {
	big := strings.Repeat("x", MaxManifestMeta/2)
	meta := map[string]string{"a": big, KeyState: big + "x", "c": "small", KeyVersion: "1"}
	got := manifestMeta(meta)
	var omitted []string
	if err := json.Unmarshal([]byte(got[KeyOmitted]), &omitted); err != nil {
		t.Fatal(err)
	}
	if len(omitted) != 1 || omitted[0] != KeyState || got["a"] != big || got["c"] != "small" || len(got) != 4 || len(meta) != 4 {
		t.Errorf("kept %d entries, omitted %q", len(got), omitted)
	}
	monstrous := manifestMeta(map[string]string{strings.Repeat("k", 2*MaxManifestMeta): "v"})
	if got, want := monstrous[KeyOmitted], "null"; got != want || len(monstrous) != 1 {
		t.Errorf("omitted = %q in %d entries, want %q alone", got, len(monstrous), want)
	}
}

func BenchmarkParseHeader(b *testing.B) {
	specs := make([]Spec, 10_000)
	for i := range specs {
		specs[i] = Spec{Name: fmt.Sprintf("model.layers.%d.self_attn.weight", i), DType: "BF16", Shape: []int64{4096, 4096}, Global: []int64{32768, 4096}, Start: []int64{4096, 0}}
	}
	h, err := NewHeader(specs, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("New", func(b *testing.B) {
		b.SetBytes(h.DataStart)
		for b.Loop() {
			if _, err := NewHeader(specs, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Parse", func(b *testing.B) {
		b.SetBytes(h.DataStart)
		for b.Loop() {
			if _, err := ParseHeader(h.Bytes(), h.FileSize); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("EncodingJSON", func(b *testing.B) { // the yardstick
		b.SetBytes(h.DataStart)
		for b.Loop() {
			var m map[string]json.RawMessage
			if err := json.Unmarshal(h.Bytes()[8:], &m); err != nil {
				b.Fatal(err)
			}
			for k, v := range m {
				var x struct {
					DType       string
					Shape       []int64
					DataOffsets []int64 `json:"data_offsets"`
				}
				if k != metadataKey {
					if err := json.Unmarshal(v, &x); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	p := pattern("x", "U8", 64<<20)
	s, err := SealOf(bytes.NewReader(p), int64(len(p)), "x")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if err := Verify(bytes.NewReader(p), s); err != nil {
			b.Fatal(err)
		}
	}
}
