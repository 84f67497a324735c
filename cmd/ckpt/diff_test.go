package main

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func TestElementsAreReadAsNumbers(t *testing.T) {
	u16 := func(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
	for _, c := range []struct {
		dtype catalog.DType
		bytes []byte
		want  float64
	}{
		{"F64", binary.LittleEndian.AppendUint64(nil, math.Float64bits(-2.5)), -2.5},
		{"F32", binary.LittleEndian.AppendUint32(nil, math.Float32bits(1.25)), 1.25},
		{"BF16", u16(0xc040), -3},
		{"F16", u16(0x3c00), 1}, {"F16", u16(0xc000), -2}, {"F16", u16(0x0001), math.Ldexp(1, -24)}, {"F16", u16(0x7bff), 65504}, {"F16", u16(0xfc00), math.Inf(-1)},
		{"F8_E4M3", []byte{0x38}, 1}, {"F8_E4M3", []byte{0x7e}, 448}, {"F8_E4M3", []byte{0x81}, -math.Ldexp(1, -9)},
		{"F8_E5M2", []byte{0x3c}, 1}, {"F8_E5M2", []byte{0x7b}, 57344}, {"F8_E5M2", []byte{0x7c}, math.Inf(1)},
		{"I8", []byte{0xff}, -1}, {"U8", []byte{0xff}, 255}, {"I16", u16(0xfffe), -2}, {"U16", u16(0xfffe), 65534},
		{"I64", binary.LittleEndian.AppendUint64(nil, 1<<63), -(1 << 63)},
	} {
		width, number := elements(c.dtype)
		if width != len(c.bytes) || number(c.bytes) != c.want {
			t.Errorf("%s %x = %v in %d bytes, want %v", c.dtype, c.bytes, number(c.bytes), width, c.want)
		}
	}
	for dtype, b := range map[catalog.DType][]byte{"F16": u16(0x7e00), "F8_E4M3": {0xff}, "F8_E5M2": {0x7f}, "BF16": u16(0x7fc0)} {
		if _, number := elements(dtype); !math.IsNaN(number(b)) {
			t.Errorf("%s %x is not NaN", dtype, b)
		}
	}
	if width, number := elements("F4"); width != 1 || number != nil {
		t.Error("F4 is compared as numbers")
	}
}

func TestDiffCountsBytesAndTheLargestStep(t *testing.T) {
	f := func(list ...float32) (b []byte) {
		for _, v := range list {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
		return b
	}
	nan := float32(math.NaN())
	d := diffTensor{DType: "F32", Size: 20}
	d.add(f(1, 2, 3, 4, nan), f(1, 2.5, 3, 1, 0))
	if d.Bytes == 0 || d.MaxDiff == nil || *d.MaxDiff != 3 || d.NotNums != 1 {
		t.Errorf("got %+v", d)
	}
	same := diffTensor{DType: "F32", Size: 8}
	same.add(f(nan, 1), f(nan, 1))
	if same.Bytes != 0 || same.MaxDiff != nil || same.NotNums != 0 {
		t.Errorf("equal bytes differ: %+v", same)
	}
	inf := diffTensor{DType: "F32", Size: 4}
	inf.add(f(0), f(float32(math.Inf(1))))
	if *inf.MaxDiff != math.MaxFloat64 {
		t.Errorf("infinity: %v", *inf.MaxDiff)
	}
}
