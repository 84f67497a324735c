package shardfile

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ckptd/ckptd/catalog"
)

// MaxDims bounds a tensor's number of dimensions (numpy stops at 64).
const MaxDims = 256

// DTypes are the element types of the format, widest first.
var DTypes = []catalog.DType{
	"F64", "I64", "U64", "C64",
	"F32", "I32", "U32",
	"F16", "BF16", "I16", "U16",
	"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL",
	"F6_E2M3", "F6_E3M2", "F4",
}

// dtypeByName saves the scanner a string for every tensor it meets.
var dtypeByName = func() map[string]catalog.DType {
	m := make(map[string]catalog.DType, len(DTypes))
	for _, d := range DTypes {
		m[string(d)] = d
	}
	return m
}()

// Spec is a tensor to be stored: the whole of it, or with Global and Start one
// piece of a larger one.
type Spec struct {
	Name  string
	DType catalog.DType
	Shape []int64 // of the bytes stored here; empty for a scalar
	// Global and Start are both empty, or have one number a dimension: the
	// whole tensor's shape, and where in it this piece begins.
	Global, Start []int64
}

// Size is the number of bytes the tensor takes. Anything that cannot be stored
// is ErrInvalid.
func (s Spec) Size() (int64, error) {
	if err := CheckSpec(s); err != nil {
		return 0, err
	}
	return sizeOf(s.DType, s.Shape)
}

// CheckSpec says, with ErrInvalid, why a tensor cannot be stored.
func CheckSpec(s Spec) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("tensor %q: %w: %s", s.Name, catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Name == metadataKey:
		return bad("the name is reserved by the safetensors format")
	case !utf8.ValidString(s.Name):
		return bad("the name is not UTF-8")
	case dtypeByName[string(s.DType)] == "":
		return bad("unknown dtype %q; known are %s", s.DType, knownDTypes())
	}
	if _, err := sizeOf(s.DType, s.Shape); err != nil {
		return bad("%v", err)
	}
	if err := checkPiece(s.DType, s.Shape, s.Global, s.Start); err != nil {
		return bad("%v", err)
	}
	return nil
}

func knownDTypes() string {
	names := make([]string, len(DTypes))
	for i, d := range DTypes {
		names[i] = string(d)
	}
	return strings.Join(names, ", ")
}

// Arrange sorts specs by falling width of their elements and otherwise leaves
// their order alone. Laid out like this each tensor begins at a multiple of
// its own width, which readers that map the file (torch) need; in a file of one
// dtype any order will do.
func Arrange(specs []Spec) {
	slices.SortStableFunc(specs, func(a, b Spec) int { return cmp.Compare(alignBits(b.DType), alignBits(a.DType)) })
}

// alignBits is a dtype's width as far as it matters for alignment: six-bit
// elements come in groups of three bytes and align to nothing, like four-bit ones.
func alignBits(d catalog.DType) int64 {
	if b := d.Bits(); b >= 8 {
		return b
	}
	return 4
}

// sizeOf gives the bytes of a tensor. Like the safetensors crate it multiplies
// from left to right and refuses an overflow even if a zero follows.
// Its errors have no class: a spec's are ErrInvalid, a file's ErrCorrupt.
func sizeOf(d catalog.DType, shape []int64) (int64, error) {
	if len(shape) > MaxDims {
		return 0, fmt.Errorf("it has %d dimensions; at most %d are possible", len(shape), MaxDims)
	}
	n := uint64(1)
	for _, dim := range shape {
		if dim < 0 {
			return 0, fmt.Errorf("dimension %d is negative", dim)
		}
		hi, lo := bits.Mul64(n, uint64(dim))
		if hi != 0 {
			return 0, fmt.Errorf("the product of shape %v overflows", clip(shape))
		}
		n = lo
	}
	hi, lo := bits.Mul64(n, uint64(d.Bits()))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, fmt.Errorf("the size of shape %v overflows", clip(shape))
	}
	if lo%8 != 0 {
		return 0, fmt.Errorf("shape %v of %s is %d bits, which is not a whole number of bytes; pad the last dimension", clip(shape), d, lo)
	}
	return int64(lo / 8), nil
}

// clip keeps hostile shapes out of error texts.
func clip(shape []int64) []int64 { return shape[:min(len(shape), 16)] }

// checkPiece checks the place of a piece in its whole.
func checkPiece(d catalog.DType, shape, global, start []int64) error {
	if len(global) == 0 && len(start) == 0 {
		return nil
	}
	if len(global) != len(shape) || len(start) != len(shape) {
		return fmt.Errorf("global has %d and start %d numbers for %d dimensions", len(global), len(start), len(shape))
	}
	n := uint64(1)
	for i, dim := range shape {
		if start[i] < 0 || global[i] < 0 || start[i] > global[i] || dim > global[i]-start[i] {
			return fmt.Errorf("dimension %d: piece %d+%d lies outside the whole, which has %d", i, start[i], dim, global[i])
		}
		hi, lo := bits.Mul64(n, uint64(global[i]))
		if hi != 0 {
			return fmt.Errorf("the product of global shape %v overflows", clip(global))
		}
		n = lo
	}
	if hi, lo := bits.Mul64(n, uint64(d.Bits())); hi != 0 || lo > math.MaxInt64 {
		return fmt.Errorf("the size of global shape %v overflows", clip(global))
	}
	return nil
}
