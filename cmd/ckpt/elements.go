package main

import (
	"encoding/binary"
	"math"

	"github.com/ckptd/ckptd/catalog"
)

// elements gives the bytes of one element, and how to read it as a number; nil
// for types that are not compared as numbers.
func elements(d catalog.DType) (width int, number func([]byte) float64) {
	le := binary.LittleEndian
	switch d {
	case "F64":
		return 8, func(b []byte) float64 { return math.Float64frombits(le.Uint64(b)) }
	case "F32":
		return 4, func(b []byte) float64 { return float64(math.Float32frombits(le.Uint32(b))) }
	case "BF16":
		return 2, func(b []byte) float64 { return float64(math.Float32frombits(uint32(le.Uint16(b)) << 16)) }
	case "F16":
		return 2, func(b []byte) float64 { return small(uint32(le.Uint16(b)), 5, 10, true) }
	case "F8_E4M3": // no infinity; all ones is NaN
		return 1, func(b []byte) float64 {
			if b[0]&0x7f == 0x7f {
				return math.NaN()
			}
			return small(uint32(b[0]), 4, 3, false)
		}
	case "F8_E5M2":
		return 1, func(b []byte) float64 { return small(uint32(b[0]), 5, 2, true) }
	case "I64":
		return 8, func(b []byte) float64 { return float64(int64(le.Uint64(b))) }
	case "U64":
		return 8, func(b []byte) float64 { return float64(le.Uint64(b)) }
	case "I32":
		return 4, func(b []byte) float64 { return float64(int32(le.Uint32(b))) }
	case "U32":
		return 4, func(b []byte) float64 { return float64(le.Uint32(b)) }
	case "I16":
		return 2, func(b []byte) float64 { return float64(int16(le.Uint16(b))) }
	case "U16":
		return 2, func(b []byte) float64 { return float64(le.Uint16(b)) }
	case "I8":
		return 1, func(b []byte) float64 { return float64(int8(b[0])) }
	case "U8":
		return 1, func(b []byte) float64 { return float64(b[0]) }
	}
	return 1, nil
}

// small reads a binary float of 1 + exp + man bits; with ieee the largest
// exponent means infinity and NaN.
func small(bits uint32, exp, man int, ieee bool) float64 {
	sign := 1.0
	if bits>>(exp+man)&1 == 1 {
		sign = -1
	}
	e := int(bits>>man) & (1<<exp - 1)
	m := float64(bits&(1<<man-1)) / float64(uint32(1)<<man)
	bias := 1<<(exp-1) - 1
	switch {
	case ieee && e == 1<<exp-1 && m == 0:
		return sign * math.Inf(1)
	case ieee && e == 1<<exp-1:
		return math.NaN()
	case e == 0:
		return sign * math.Ldexp(m, 1-bias)
	}
	return sign * math.Ldexp(1+m, e-bias)
}
