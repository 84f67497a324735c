package shardfile

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

var update = flag.Bool("update", false, "write the golden files of our own encoder (a new version of the format!)")

// pattern is the content of every golden tensor; gen_golden.py has the same function.
func pattern(name string, dtype catalog.DType, size int64) []byte {
	seed, mask := crc32.ChecksumIEEE([]byte(name)), byte(0xff)
	if dtype == "BOOL" {
		mask = 1
	}
	b := make([]byte, size)
	for j := range b {
		b[j] = byte(seed>>(8*(j%4))) + byte(j*7)
		b[j] &= mask
	}
	return b
}

// mixed are the tensors of ckptd-mixed: all dtypes, whole and in pieces, and
// names that need escapes.
func mixed() ([]Spec, map[string]string) {
	var specs []Spec
	for _, d := range DTypes {
		specs = append(specs, Spec{Name: "all." + string(d), DType: d, Shape: []int64{2, 4}})
	}
	specs = append(specs,
		Spec{Name: "scalar", DType: "F32"},
		Spec{Name: "empty", DType: "BF16", Shape: []int64{3, 0}},
		Spec{Name: "größe/\"層\"\\\n😀", DType: "U8", Shape: []int64{3}},
		Spec{Name: "piece.rows", DType: "F32", Shape: []int64{2, 3}, Global: []int64{8, 3}, Start: []int64{6, 0}},
		Spec{Name: "piece.empty", DType: "I8", Shape: []int64{0}, Global: []int64{5}, Start: []int64{5}},
	)
	Arrange(specs)
	return specs, map[string]string{KeyState: `{"epoch":3,"note":"a \"quoted\" 層"}`, "format": "ckptd"}
}

func encodeGolden(t testing.TB, specs []Spec, meta map[string]string) []byte {
	t.Helper()
	h, err := NewHeader(specs, meta)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err = Encode(&b, h, func(i int) (io.Reader, error) {
		return bytes.NewReader(pattern(h.Tensors[i].Name, h.Tensors[i].DType, h.Tensors[i].Size)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func goldenSeal(t testing.TB, shard []byte) *catalog.Seal {
	t.Helper()
	s, err := SealOf(bytes.NewReader(shard), int64(len(shard)), "llama/7b/000000001200-000003/rank-00000.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	s.Info = []byte(`{"set":{"run":"llama/7b","step":1200,"attempt":3},"rank":0,"world":1,"sealed":"2026-01-02T03:04:05Z"}`)
	return s
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compareGolden holds got against a committed file, or with -update writes it.
func compareGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", name), got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(testdata(t, name), got) {
		t.Errorf("%s is not what the encoder writes: that is a new version of the format", name)
	}
}

// Promise 1: the same tensors give the same bytes, for ever.
func TestGoldenWritten(t *testing.T) {
	shard := encodeGolden(t, first(mixed()), second(mixed()))
	compareGolden(t, "ckptd-mixed.safetensors", shard)
	compareGolden(t, "ckptd-empty.safetensors", encodeGolden(t, nil, nil))
	compareGolden(t, "golden.seal", goldenSeal(t, shard).Marshal())
}

func first[A, B any](a A, _ B) A  { return a }
func second[A, B any](_ A, b B) B { return b }

func TestGoldenSealRead(t *testing.T) {
	b, shard := testdata(t, "golden.seal"), testdata(t, "ckptd-mixed.safetensors")
	s, err := catalog.ParseSeal(b)
	if err != nil {
		t.Fatal(err)
	}
	if want := goldenSeal(t, shard); !reflect.DeepEqual(s, want) {
		t.Errorf("seal = %+v, want %+v", s, want)
	}
	if err := Verify(bytes.NewReader(shard), s); err != nil {
		t.Error(err)
	}
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "\n```\n"+hex.Dump(b)+"```\n") {
		t.Errorf("FORMAT.md shows other bytes of golden.seal than these:\n%s", hex.Dump(b))
	}
	if !strings.Contains(string(doc), "`"+s.Root().String()+"`") {
		t.Errorf("FORMAT.md does not show the golden seal's root %v", s.Root())
	}
}

type expected struct {
	Tensors map[string]struct {
		DType catalog.DType `json:"dtype"`
		Shape []int64       `json:"shape"`
	} `json:"tensors"`
	Meta map[string]string `json:"meta"`
}

func expectations(t testing.TB) map[string]expected {
	t.Helper()
	want := map[string]expected{}
	if err := json.Unmarshal(testdata(t, "expect.json"), &want); err != nil {
		t.Fatal(err)
	}
	return want
}

// Promise 2: what the safetensors package wrote is read.
func TestGoldenOfSafetensors(t *testing.T) {
	for name, want := range expectations(t) {
		if !strings.HasSuffix(name, ".safetensors") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b := testdata(t, name)
			r, err := NewReader(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Header().Meta; !maps.Equal(got, want.Meta) {
				t.Errorf("Meta = %q, want %q", got, want.Meta)
			}
			checkTensors(t, r, want)
		})
	}
}

func checkTensors(t *testing.T, r *Reader, want expected) {
	t.Helper()
	if got, want := len(r.Tensors()), len(want.Tensors); got != want {
		t.Errorf("%d tensors, want %d", got, want)
	}
	for name, w := range want.Tensors {
		got, err := r.Tensor(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if got.DType != w.DType || !slices.Equal(got.Shape, w.Shape) {
			t.Errorf("%q is %s %v, want %s %v", name, got.DType, got.Shape, w.DType, w.Shape)
		}
		p := make([]byte, got.Size)
		if err := r.ReadTensor(name, p); err != nil {
			t.Error(err)
		} else if !bytes.Equal(p, pattern(name, got.DType, got.Size)) {
			t.Errorf("%q has other bytes than were written", name)
		}
		if q, err := io.ReadAll(r.Section(name)); err != nil || !bytes.Equal(p, q) {
			t.Errorf("Section(%q) differs from ReadTensor (%v)", name, err)
		}
	}
}

// Promises 1 and 2: what was laid out is what is read, to the last field.
func TestRoundTrip(t *testing.T) {
	specs, meta := mixed()
	h, err := NewHeader(specs, meta)
	if err != nil {
		t.Fatal(err)
	}
	b := testdata(t, "ckptd-mixed.safetensors")
	got, err := ParseHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, h) {
		t.Errorf("parsed %+v\nwritten %+v", got, h)
	}
	if h.DataStart%Align != 0 || h.DataStart != int64(len(h.Bytes())) || h.FileSize != int64(len(b)) || h.DataSize != h.FileSize-h.DataStart {
		t.Errorf("DataStart %d, DataSize %d, FileSize %d of a file of %d", h.DataStart, h.DataSize, h.FileSize, len(b))
	}
	for _, x := range got.Tensors {
		if bits := x.DType.Bits(); bits >= 8 && x.Offset%(bits/8) != 0 {
			t.Errorf("Arrange left %q of %d bits at offset %d", x.Name, bits, x.Offset)
		}
	}
	prefix, err := ParseHeader(b[:h.DataStart], int64(len(b)))
	if err != nil || !reflect.DeepEqual(prefix, h) {
		t.Errorf("the prefix gives %+v, %v", prefix, err)
	}
	if again := encodeGolden(t, specs, got.Meta); !bytes.Equal(again, b) {
		t.Error("the parsed metadata gives other bytes")
	}
}
