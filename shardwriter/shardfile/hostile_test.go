package shardfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func shardFiles(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "*.safetensors"))
	if err != nil || len(names) < 7 {
		t.Fatalf("golden files: %v, %v", names, err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

// checkParse holds ParseHeader's promise for any input: an error of class
// ErrCorrupt, or a header that obeys FORMAT.md.
func checkParse(t testing.TB, b []byte, size int64) *Header {
	t.Helper()
	h, err := ParseHeader(b, size)
	if err != nil {
		if h != nil || !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("error of no class: %v", err)
		}
		if len(err.Error()) > 4096 {
			t.Fatalf("error text of %d bytes", len(err.Error()))
		}
		return nil
	}
	end := h.DataStart
	seen := map[string]bool{}
	for i := range h.Tensors {
		x := &h.Tensors[i]
		n, err := Spec{Name: x.Name, DType: x.DType, Shape: x.Shape, Global: x.Global, Start: x.Start}.Size()
		if err != nil || n != x.Size || x.Offset != end || seen[x.Name] {
			t.Fatalf("accepted tensor %+v after byte %d: %v", x, end, err)
		}
		end += n
		seen[x.Name] = true
		if y, ok := h.Tensor(x.Name); !ok || y.Offset != x.Offset {
			t.Fatalf("Tensor(%q) = %+v, %v", x.Name, y, ok)
		}
	}
	if end != size || h.FileSize != size || h.DataStart+h.DataSize != size {
		t.Fatalf("accepted a header of %d bytes for a file of %d", end, size)
	}
	return h
}

// Promise 3: cut anywhere, a shard is refused.
func TestCutShard(t *testing.T) {
	for _, name := range shardFiles(t) {
		b := testdata(t, name)
		for n := range b {
			if h := checkParse(t, b[:n], int64(n)); h != nil {
				t.Fatalf("%s cut to %d bytes was read", name, n)
			}
			// A file shorter than the size it is said to have.
			if _, err := NewReader(bytes.NewReader(b[:n]), int64(len(b))); err == nil && int64(n) < firstRead {
				t.Fatalf("%s: %d bytes were read as %d", name, n, len(b))
			} else if !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatal(err)
			}
		}
		if checkParse(t, append(slices.Clone(b), 0), int64(len(b)+1)) != nil {
			t.Fatalf("%s with a byte more was read", name)
		}
	}
}

// Promises 3 and 5: flip anything, and the header stays within its rules while
// the seal refuses the file.
func TestFlipShard(t *testing.T) {
	for _, name := range shardFiles(t) {
		good := testdata(t, name)
		seal, err := SealOf(bytes.NewReader(good), int64(len(good)), name)
		if err != nil {
			t.Fatal(err)
		}
		b := slices.Clone(good)
		for i := range b {
			for _, flip := range []byte{1, 0x20, 0x80, 0xff} {
				b[i] ^= flip
				checkParse(t, b, int64(len(b)))
				if flip == 1 {
					if err := Verify(bytes.NewReader(b), seal); !errors.Is(err, catalog.ErrCorrupt) {
						t.Fatalf("%s: byte %d flipped: Verify = %v", name, i, err)
					}
				}
				b[i] = good[i]
			}
		}
	}
}

func TestCutAndFlipSeal(t *testing.T) {
	good := testdata(t, "golden.seal")
	for n := range good {
		if _, err := catalog.ParseSeal(good[:n]); !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("cut to %d: %v", n, err)
		}
		b := slices.Clone(good)
		for bit := range 8 {
			b[n] ^= 1 << bit
			if _, err := catalog.ParseSeal(b); !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("byte %d, bit %d flipped: %v", n, bit, err)
			}
			b[n] = good[n]
		}
	}
	if _, err := catalog.ParseSeal(append(good, 0)); !errors.Is(err, catalog.ErrCorrupt) {
		t.Fatalf("a byte more: %v", err)
	}
}

// file builds a shard file from JSON and data bytes.
func file(json string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(json)))
	return append(append(b, json...), make([]byte, data)...)
}

func TestCraftedHeaders(t *testing.T) {
	one := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"a":{"dtype":%q,"shape":%s,"data_offsets":%s}}`, dtype, shape, offsets)
	}
	u8 := func(name string, from, to int) string {
		return fmt.Sprintf(`%q:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`, name, to-from, from, to)
	}
	pieces := func(p string) string {
		return fmt.Sprintf(`{"__metadata__":{"ckptd.pieces":%q},"a":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]}}`, p)
	}
	for _, c := range []struct {
		name, json string
		data       int
		ok         bool
	}{
		{"Plain", `{` + u8("a", 0, 4) + `}`, 4, true},
		{"AnyOrder", `{` + u8("a", 4, 6) + `,` + u8("b", 0, 4) + `}`, 6, true},
		{"EmptyBetween", `{` + u8("a", 0, 4) + `,` + u8("b", 4, 8) + `,` + u8("c", 4, 4) + `}`, 8, true},
		{"UnknownField", `{"a":{"dtype":"U8","x":[1.5e-3,{"y":null}],"shape":[1],"data_offsets":[0,1]}}`, 1, true},
		{"MetaNull", `{"__metadata__":null}`, 0, true},
		{"MetaLast", `{` + u8("a", 0, 1) + `,"__metadata__":{"k":"v"}}`, 1, true},
		{"Spaces", "{ \n\t" + u8("a", 0, 1) + " \r }  \n", 1, true},
		{"Escapes", `{"\u0061\/\ud83d\ude00":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, true},
		{"HugeEmpty", one("F64", "[0,9223372036854775807,9223372036854775807]", "[0,0]"), 0, true},
		{"Piece", pieces(`{"a":{"global":[4,3],"start":[2,0]}}`), 6, true},

		{"NotObject", `[]`, 0, false},
		{"Empty", ``, 0, false},
		{"LeadingSpace", ` {}`, 0, false},
		{"TrailingValue", `{}{}`, 0, false},
		{"TrailingNul", "{}\x00", 0, false},
		{"NoClose", `{` + u8("a", 0, 1), 1, false},
		{"TrailingComma", `{` + u8("a", 0, 1) + `,}`, 1, false},
		{"TwoOfAName", `{` + u8("a", 0, 1) + `,` + u8("a", 1, 2) + `}`, 2, false},
		{"TwoOfANameEscaped", `{` + u8("a", 0, 1) + `,"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2, false},
		{"TwoMeta", `{"__metadata__":{},"__metadata__":{}}`, 0, false},
		{"TwoMetaKeys", `{"__metadata__":{"a":"1","a":"1"}}`, 0, false},
		{"MetaNumber", `{"__metadata__":{"a":1}}`, 0, false},
		{"TwoDTypes", `{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, false},
		{"NoShape", `{"a":{"dtype":"U8","data_offsets":[0,1]}}`, 1, false},
		{"CaseOfKeys", `{"a":{"DType":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, false},
		{"UnknownDType", one("F128", "[1]", "[0,16]"), 16, false},
		{"Hole", `{` + u8("a", 0, 2) + `,` + u8("b", 3, 4) + `}`, 4, false},
		{"HoleAtStart", `{` + u8("a", 1, 2) + `}`, 2, false},
		{"Overlap", `{` + u8("a", 0, 2) + `,` + u8("b", 1, 4) + `}`, 4, false},
		{"EmptyInside", `{` + u8("a", 0, 4) + `,` + u8("b", 2, 2) + `}`, 4, false},
		{"DataLeft", `{` + u8("a", 0, 2) + `}`, 3, false},
		{"DataMissing", `{` + u8("a", 0, 4) + `}`, 3, false},
		{"Backwards", one("U8", "[1]", "[1,0]"), 1, false},
		{"ThreeOffsets", one("U8", "[1]", "[0,1,1]"), 1, false},
		{"OneOffset", one("U8", "[1]", "[0]"), 1, false},
		{"WrongSize", one("F32", "[2]", "[0,4]"), 4, false},
		{"Overflow", one("F32", "[4611686018427387904,4611686018427387904,0]", "[0,0]"), 0, false},
		{"OverflowToFit", one("U8", "[4294967296,4294967296]", "[0,0]"), 0, false},
		{"BitsOverflow", one("F64", "[1152921504606846976]", "[0,0]"), 0, false},
		{"NumberTooLarge", one("U8", "[9223372036854775808]", "[0,0]"), 0, false},
		{"NumberHuge", one("U8", "[99999999999999999999999]", "[0,0]"), 0, false},
		{"Negative", one("U8", "[-1]", "[0,0]"), 0, false},
		{"Fraction", one("U8", "[1.0]", "[0,1]"), 1, false},
		{"Exponent", one("U8", "[1e0]", "[0,1]"), 1, false},
		{"LeadingZero", one("U8", "[01]", "[0,1]"), 1, false},
		{"HalfByte", one("F4", "[3]", "[0,1]"), 1, false},
		{"SixBits", one("F6_E2M3", "[2]", "[0,1]"), 1, false},
		{"ManyDims", one("U8", "["+strings.Repeat("1,", MaxDims)+"1]", "[0,1]"), 1, false},
		{"BadUTF8", "{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, false},
		{"LoneSurrogate", `{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, false},
		{"HighHigh", `{"\ud800\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, false},
		{"ControlInString", "{\"a\n\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, false},
		{"BadEscape", `{"\x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, false},
		{"Deep", `{"a":{"x":` + strings.Repeat("[", 1<<20), 0, false},
		{"FutureVersion", `{"__metadata__":{"ckptd.version":"2"}}`, 0, false},
		{"Omitted", `{"__metadata__":{"ckptd.omitted":"[]"}}`, 0, false},
		{"PieceOfNothing", pieces(`{"b":{"global":[4,3],"start":[2,0]}}`), 6, false},
		{"PieceTwice", pieces(`{"a":{"global":[4,3],"start":[2,0]},"a":{"global":[4,3],"start":[2,0]}}`), 6, false},
		{"PieceOutside", pieces(`{"a":{"global":[4,3],"start":[3,0]}}`), 6, false},
		{"PieceStartOverflow", pieces(`{"a":{"global":[4,3],"start":[9223372036854775807,0]}}`), 6, false},
		{"PieceGlobalOverflow", pieces(`{"a":{"global":[9223372036854775807,9223372036854775807],"start":[0,0]}}`), 6, false},
		{"PieceFewDims", pieces(`{"a":{"global":[4],"start":[0]}}`), 6, false},
		{"PieceNoStart", pieces(`{"a":{"global":[4,3]}}`), 6, false},
		{"PieceEmpty", pieces(`{"a":{"global":[],"start":[]}}`), 6, false},
		{"PiecesEmpty", pieces(``), 6, false},
		{"PiecesNotJSON", pieces(`{"a":`), 6, false},
		{"PiecesTwoValues", pieces(`{} {}`), 6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := file(c.json, c.data)
			if h := checkParse(t, b, int64(len(b))); (h != nil) != c.ok {
				_, err := ParseHeader(b, int64(len(b)))
				t.Errorf("accepted = %v, want %v (%v)", h != nil, c.ok, err)
			}
		})
	}
}

// endless is a file of zeros, as long as anybody likes, after a few real bytes.
type endless struct{ head []byte }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	return len(p), nil
}

// Promise 3: a length that is only claimed costs nothing.
func TestClaimedLengths(t *testing.T) {
	for _, n := range []uint64{MaxHeader, MaxHeader + 1, 1 << 40, 1 << 62, 1 << 63, math.MaxUint64 - 7, math.MaxUint64} {
		b := append(binary.LittleEndian.AppendUint64(nil, n), "{}"...)
		for _, size := range []int64{-1, 0, 7, 8, 10, 1 << 30, catalog.MaxShardSize, catalog.MaxShardSize + 1, math.MaxInt64} {
			got := allocated(func() {
				checkParse(t, b, size)
				if _, err := ReadHeader(bytes.NewReader(b), size); !errors.Is(err, catalog.ErrCorrupt) {
					t.Errorf("length %d in a file of %d: %v", n, size, err)
				}
			})
			if got > 1<<20 {
				t.Errorf("length %d in a file of %d: %d bytes allocated", n, size, got)
			}
		}
	}
	// A file that really has that many bytes may cost as many, no more than twice.
	head := append(binary.LittleEndian.AppendUint64(nil, MaxHeader), "{}"...)
	if _, err := ReadHeader(endless{head}, catalog.MaxShardSize); !errors.Is(err, catalog.ErrCorrupt) {
		t.Error(err)
	}
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestReadErrorsKeepTheirClass(t *testing.T) {
	for _, want := range []error{fs.ErrPermission, catalog.ErrUnavailable} {
		if _, err := NewReader(failing{want}, 100); !errors.Is(err, want) || errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("NewReader = %v, want %v", err, want)
		}
		if err := Verify(failing{want}, &catalog.Seal{Size: 1, CRCs: []uint32{0}}); !errors.Is(err, want) || errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("Verify = %v, want %v", err, want)
		}
	}
}

func TestVerify(t *testing.T) {
	for _, size := range []int64{0, 1, catalog.BlockSize - 1, catalog.BlockSize, catalog.BlockSize + 1, 3*catalog.BlockSize + 5} {
		b := pattern("x", "U8", size)
		s, err := SealOf(bytes.NewReader(b), size, "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(bytes.NewReader(b), s); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		if back, err := catalog.ParseSeal(s.Marshal()); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("size %d: the seal reads back as %+v, %v", size, back, err)
		}
		if err := Verify(bytes.NewReader(append(b, 0)), s); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("size %d, a byte more: %v", size, err)
		}
		if size == 0 {
			continue
		}
		if err := Verify(bytes.NewReader(b[:size-1]), s); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("size %d, a byte less: %v", size, err)
		}
		b[size-1] ^= 1
		if err := Verify(bytes.NewReader(b[:size]), s); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("size %d, the last byte flipped: %v", size, err)
		}
		if _, err := SealOf(bytes.NewReader(b), size+9, "x"); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("SealOf beyond the end: %v", err)
		}
		s.CRCs = s.CRCs[1:]
		if err := Verify(bytes.NewReader(b), s); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("size %d, a seal with a block less: %v", size, err)
		}
	}
}
