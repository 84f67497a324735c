package planes

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// goldenRaw is what testdata/golden.planes holds: text, floats and noise, small
// enough to be damaged at every byte.
func goldenRaw() ([]byte, Layout) {
	b := bytes.Repeat([]byte("the header of a shard. "), 20)
	l := Layout{}
	for i, width := range []int{4, 2, 8} {
		l.Add(Run{Off: int64(len(b)), Size: 1024, Width: width})
		b = append(b, numbers(uint64(i), 1024, width)...)
	}
	return append(b, numbers(3, 99, 1)...), l
}

func golden(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/golden.planes")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var update = flag.Bool("update", false, "write the golden files anew")

func TestGoldenFrames(t *testing.T) {
	raw, l := goldenRaw()
	if *update {
		c, _ := encoded(t, raw, l, Options{})
		if err := os.WriteFile("testdata/golden.planes", c, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := readAll(t, open(t, golden(t))); !bytes.Equal(got, raw) {
		t.Error("the golden container decodes to other bytes")
	}
}

// readHostile reads all that a damaged container lets one read.
func readHostile(b []byte) error {
	r, err := Open(context.Background(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	return r.Verify(context.Background())
}

func TestPromise4CutAndFlipped(t *testing.T) {
	c := golden(t)
	t.Run("CutAtEveryLength", func(t *testing.T) {
		for n := range c {
			if err := readHostile(c[:n]); !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("cut to %d bytes: %v, want ErrCorrupt", n, err)
			}
		}
		if err := readHostile(append(bytes.Clone(c), 0)); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("a byte too long: %v, want ErrCorrupt", err)
		}
	})
	t.Run("FlippedAtEveryByte", func(t *testing.T) {
		for i := range c {
			for _, bits := range []byte{1, 0x80, 0xff} {
				bad := bytes.Clone(c)
				bad[i] ^= bits
				if err := readHostile(bad); !errors.Is(err, catalog.ErrCorrupt) {
					t.Fatalf("byte %d flipped by %#x: %v, want ErrCorrupt", i, bits, err)
				}
			}
		}
	})
	t.Run("OfTwoContainers", func(t *testing.T) {
		other, _ := encoded(t, numbers(77, 4096, 4), nil, Options{})
		for _, bad := range [][]byte{append(bytes.Clone(c[:headSize]), other[headSize:]...), append(bytes.Clone(other[:headSize]), c[headSize:]...)} {
			if err := readHostile(bad); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("err = %v, want ErrCorrupt", err)
			}
		}
	})
}

// TestPromise3EveryFrameByte damages a frame and mends the checksums around it,
// so that the decoder and the blocks' checksums alone are in the way: no read
// may succeed with other bytes.
func TestPromise3EveryFrameByte(t *testing.T) {
	raw, _ := goldenRaw()
	c := golden(t)
	x := open(t, c).x
	frame := c[headSize:x.starts[1]]
	container := func(frame []byte) []byte {
		b := append(putHeader(x.raw), frame...)
		bad := &index{raw: x.raw, sizes: []uint32{uint32(len(frame))}, sums: []uint32{catalog.Sum32C(frame)}, blocks: x.blocks}
		return append(b, bad.putTail(int64(len(b)), b[:headSize])...)
	}
	read := func(what string, frame []byte) {
		b := container(frame)
		r, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)))
		if err == nil {
			got := make([]byte, r.Size())
			if _, err = r.ReadAt(got, 0); err == nil && !bytes.Equal(got, raw) {
				t.Fatalf("%s: other bytes were given away", what)
			}
		}
		if err != nil && !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	if !bytes.Equal(container(frame), c) {
		t.Fatal("the test does not build what Encode wrote")
	}
	for i := range frame {
		for _, bits := range []byte{1, 2, 0x80, 0xff} {
			bad := bytes.Clone(frame)
			bad[i] ^= bits
			read(fmt.Sprintf("byte %d flipped by %#x", i, bits), bad)
		}
		read(fmt.Sprintf("cut to %d bytes", i), frame[:i])
	}
}

func TestPromise4Claims(t *testing.T) {
	claim := func(raw uint64) []byte {
		b := putHeader(0)
		le.PutUint64(b[16:], raw)
		le.PutUint32(b[28:], crc32.Checksum(b[:28], catalog.Castagnoli))
		return append(b, make([]byte, headSize)...)
	}
	for _, raw := range []uint64{1, 1 << 20, 1 << 42, 1<<42 + 1, 1 << 63, 1<<64 - 1} {
		if err := readHostile(claim(raw)); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("a claim of %d bytes: %v, want ErrCorrupt", raw, err)
		}
	}
	t.Run("FileThatIsNotThere", func(t *testing.T) { // a size that only a catalog claims
		size := MaxStored(1 << 42)
		b := claim(1 << 42)
		allocs := testing.AllocsPerRun(1, func() {
			if _, err := Open(context.Background(), bytes.NewReader(b), size); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("err = %v, want ErrCorrupt", err)
			}
		})
		if allocs > 1000 {
			t.Errorf("%v allocations", allocs)
		}
	})
}

func FuzzOpenPlanes(f *testing.F) {
	f.Add(golden(f))
	small, _ := encoded(f, numbers(1, 300, 4), nil, Options{})
	f.Add(small)
	empty, _ := encoded(f, nil, nil, Options{})
	f.Add(empty)
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := readHostile(b); err != nil && !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("err = %v, want ErrCorrupt", err)
		}
	})
}

func FuzzDecodePlanes(f *testing.F) {
	g := golden(f)
	r := open(f, g)
	f.Add(g[headSize:r.x.starts[1]], uint16(r.Size()))
	f.Add([]byte{formRaw, 1, 2}, uint16(2))
	f.Fuzz(func(t *testing.T, stored []byte, size uint16) {
		raw, tmp := make([]byte, size), make([]byte, size)
		_ = decode(raw, stored, tmp) // it must return
	})
}
