package shardfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// Promise 3. An accepted header, written again from what was read of it, is
// read as the same.
func FuzzParseHeader(f *testing.F) {
	for _, name := range shardFiles(f) {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h := checkParse(t, b, int64(len(b)))
		r, err := ReadHeader(bytes.NewReader(b), int64(len(b)))
		if (err == nil) != (h != nil) || h != nil && !reflect.DeepEqual(r, h) {
			t.Fatalf("ReadHeader and ParseHeader disagree: %v", err)
		}
		// The same bytes as the JSON alone, whatever length they claim.
		if len(b) > 8 {
			c := bytes.Clone(b)
			binary.LittleEndian.PutUint64(c, uint64(len(c)-8))
			checkParse(t, c, int64(len(c)))
		}
		if h == nil {
			return
		}
		specs := make([]Spec, len(h.Tensors))
		for i, x := range h.Tensors {
			specs[i] = Spec{Name: x.Name, DType: x.DType, Shape: x.Shape, Global: x.Global, Start: x.Start}
		}
		again, err := NewHeader(specs, h.Meta)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		back, err := ParseHeader(again.Bytes(), again.FileSize)
		if err != nil || !reflect.DeepEqual(back, again) {
			t.Fatalf("written again, %q reads otherwise: %v", bytes.TrimRight(again.Bytes(), " "), err)
		}
	})
}

// An accepted seal is exactly what Marshal gives.
func FuzzParseSeal(f *testing.F) {
	f.Add(testdata(f, "golden.seal"))
	f.Add((&catalog.Seal{}).Marshal())
	f.Add((&catalog.Seal{Name: "x", Size: 1 << 21, CRCs: []uint32{1, 2}, Info: []byte("{}")}).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(b []byte) {
			s, err := catalog.ParseSeal(b)
			if err != nil {
				if !errors.Is(err, catalog.ErrCorrupt) {
					t.Fatalf("error of no class: %v", err)
				}
				return
			}
			if !bytes.Equal(s.Marshal(), b) {
				t.Fatalf("%x was read as %+v, which is another seal", b, s)
			}
		}
		check(b)
		if len(b) >= 4 { // past the checksum, where the fields are believed
			body := bytes.Clone(b[:len(b)-4])
			check(binary.LittleEndian.AppendUint32(body, crc32.Checksum(body, catalog.Castagnoli)))
		}
	})
}

// FuzzParseNPY: any text is an array that can be stored, or an error of a class.
func FuzzParseNPY(f *testing.F) {
	f.Add("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }")
	f.Add(`{"descr": [('x', '<f4')], "fortran_order": True, "shape": ()}`)
	f.Add("{}")
	f.Fuzz(func(t *testing.T, text string) {
		spec, err := parseNPY(text)
		if err != nil {
			if c := catalog.ClassOf(err); c != catalog.ErrCorrupt && c != catalog.ErrInvalid {
				t.Fatalf("error of class %v: %v", c, err)
			}
			return
		}
		if spec.DType.Bits() == 0 || spec.Shape == nil {
			t.Fatalf("accepted %q as %+v", text, spec)
		}
	})
}
