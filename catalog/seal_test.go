package catalog

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"
)

func TestSealRoundTrip(t *testing.T) {
	for name, s := range map[string]*Seal{
		"Empty":    {CRCs: []uint32{}},
		"Short":    {Name: "a/000000000001-000001/rank-00000.safetensors", Size: 5, CRCs: []uint32{7}, Info: []byte(`{"rank":0}`)},
		"Whole":    {Name: "a", Size: 2 * BlockSize, CRCs: []uint32{1, 0xffffffff}},
		"OneMore":  {Name: "a", Size: 2*BlockSize + 1, CRCs: []uint32{1, 2, 3}},
		"AllOfAll": {Name: strings.Repeat("n", MaxSealName), Size: 1, CRCs: []uint32{1}, Info: make([]byte, MaxSealInfo)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSeal(s.Marshal())
			if err != nil || !reflect.DeepEqual(got, s) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestSealRootIsOfTheBytesAlone(t *testing.T) {
	s := Seal{Name: "a", Size: 5, CRCs: []uint32{7}, Info: []byte("x")}
	other := Seal{Name: "b", Size: 5, CRCs: []uint32{7}}
	if s.Root() != other.Root() {
		t.Error("the root depends on the name or the info")
	}
	for _, o := range []Seal{{Size: 6, CRCs: []uint32{7}}, {Size: 5, CRCs: []uint32{8}}, {Size: 5}} {
		if s.Root() == o.Root() {
			t.Errorf("%+v has the same root", o)
		}
	}
}

// Promise 12: a seal cut at any byte or with any bit flipped is ErrCorrupt.
func TestPromise12Seal(t *testing.T) {
	good := (&Seal{Name: "a/b", Size: 2*BlockSize + 3, CRCs: []uint32{1, 2, 3}, Info: []byte(`{}`)}).Marshal()
	check := func(what string, b []byte) {
		t.Helper()
		if s, err := ParseSeal(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v, want ErrCorrupt", what, s, err)
		}
	}
	for n := range good {
		check("cut", good[:n])
		for bit := range 8 {
			b := append([]byte(nil), good...)
			b[n] ^= 1 << bit
			check("flipped", b)
			// Also by somebody who mends the checksum afterwards, unless it was only content.
			if n < sealFixed && n >= 8 {
				binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], Castagnoli))
				s, err := ParseSeal(b)
				if err == nil && Blocks(s.Size) != len(s.CRCs) {
					t.Errorf("byte %d: a seal of %d bytes with %d sums", n, s.Size, len(s.CRCs))
				} else if err != nil && !errors.Is(err, ErrCorrupt) {
					t.Errorf("byte %d: %v", n, err)
				}
			}
		}
	}
	check("longer", append(append([]byte(nil), good...), 0))
}

func FuzzParseSeal(f *testing.F) {
	f.Add((&Seal{Name: "a", Size: 3, CRCs: []uint32{1}, Info: []byte("i")}).Marshal())
	f.Add([]byte(sealMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 { // let the fuzzer past the checksum
			binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], Castagnoli))
		}
		s, err := ParseSeal(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v is not ErrCorrupt", err)
			}
			return
		}
		if string(s.Marshal()) != string(b) {
			t.Error("the seal prints differently")
		}
	})
}

func TestCheckBlock(t *testing.T) {
	p := make([]byte, BlockSize)
	s := Seal{Name: "a", Size: BlockSize + 3, CRCs: []uint32{crc32.Checksum(p, Castagnoli), crc32.Checksum([]byte{1, 2, 3}, Castagnoli)}}
	if err := errors.Join(s.CheckBlock(0, p), s.CheckBlock(1, []byte{1, 2, 3})); err != nil {
		t.Error(err)
	}
	flipped := append([]byte(nil), p...)
	flipped[BlockSize-1]++
	for what, err := range map[string]error{
		"flipped": s.CheckBlock(0, flipped), "short": s.CheckBlock(0, p[1:]), "long": s.CheckBlock(1, []byte{1, 2, 3, 4}),
		"other block": s.CheckBlock(1, p), "before": s.CheckBlock(-1, p), "behind": s.CheckBlock(2, nil),
	} {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
}

func TestDigestText(t *testing.T) {
	d := Digest{1, 0xab}
	var back Digest
	if b, err := d.MarshalText(); err != nil || back.UnmarshalText(b) != nil || back != d {
		t.Errorf("%v reads %v", d, back)
	}
	if err := back.UnmarshalText(nil); err != nil || !back.IsZero() || back.String() != "" {
		t.Errorf("no digest reads %v, %v", back, err)
	}
	for _, s := range []string{"0", strings.Repeat("g", 64), strings.Repeat("0", 63), strings.Repeat("0", 66)} {
		if err := back.UnmarshalText([]byte(s)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v, want ErrCorrupt", s, err)
		}
	}
}
