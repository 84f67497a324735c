package planes

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// numbers are normally distributed, like weights, at a width of 1, 2 (BF16), 4
// or 8 bytes.
func numbers(seed uint64, size, width int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, size+8)
	for len(b) < size {
		v := r.NormFloat64() * 0.02
		switch width {
		case 8:
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		case 4:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
		case 2:
			b = binary.LittleEndian.AppendUint16(b, uint16(math.Float32bits(float32(v))>>16))
		default:
			b = append(b, byte(r.Uint32()))
		}
	}
	return b[:size]
}

type sealed struct {
	*bytes.Reader
	seal *catalog.Seal
}

func (s sealed) Seal() *catalog.Seal { return s.seal }

// source is bytes with the seal that they had when they were saved.
func source(b []byte) sealed {
	s := &catalog.Seal{Size: int64(len(b))}
	for off := 0; off < len(b); off += catalog.BlockSize {
		s.CRCs = append(s.CRCs, catalog.Sum32C(b[off:min(len(b), off+catalog.BlockSize)]))
	}
	return sealed{bytes.NewReader(b), s}
}

func encoded(t testing.TB, b []byte, layout Layout, opt Options) ([]byte, Stats) {
	t.Helper()
	var out bytes.Buffer
	st, err := Encode(t.Context(), &out, source(b), layout, opt)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int64(out.Len()), st.Stored; got != want {
		t.Fatalf("Stored = %d, but %d bytes were written", want, got)
	}
	return out.Bytes(), st
}

func open(t testing.TB, c []byte) *Reader {
	t.Helper()
	r, err := Open(t.Context(), bytes.NewReader(c), int64(len(c)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readAll(t testing.TB, r *Reader) []byte {
	t.Helper()
	b := make([]byte, r.Size())
	if n, err := r.ReadAt(b, 0); err != nil || n != len(b) {
		t.Fatalf("ReadAt = %d, %v; want %d", n, err, len(b))
	}
	return b
}

// mixed is like a shard: a header, then tensors of several widths, one of them
// not on a multiple of its width.
func mixed(seed uint64) ([]byte, Layout) {
	var l Layout
	b := bytes.Repeat([]byte(`{"name":"a.weight","dtype":"F32"}   `), 113)
	for i, part := range []struct{ size, width int }{
		{3<<20 + 8, 8}, {5 << 20, 4}, {4<<20 + 2, 2}, {1<<20 + 1, 1}, {3 << 20, 4}, {64, 8}, {1 << 20, 2},
	} {
		l.Add(Run{Off: int64(len(b)), Size: int64(part.size), Width: part.width})
		b = append(b, numbers(seed+uint64(i), part.size, part.width)...)
	}
	return b, l
}

func TestPromise1RoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 31, 4096, Size - 1, Size, Size + 1, 2*Size + 4095} {
		for _, width := range []int{1, 2, 4, 8} {
			t.Run(fmt.Sprintf("%dx%d", size, width), func(t *testing.T) {
				b := numbers(7, size, width)
				c, st := encoded(t, b, Layout{{Off: 0, Size: int64(size), Width: width}}, Options{})
				r := open(t, c)
				if got := readAll(t, r); !bytes.Equal(got, b) {
					t.Error("other bytes came back")
				}
				if got, want := r.Root(), source(b).seal.Root(); got != want {
					t.Errorf("Root = %v, want the seal's, %v", got, want)
				}
				if got, most := st.Stored, MaxStored(int64(size)); got > most {
					t.Errorf("%d bytes, at most %d are promised", got, most)
				}
			})
		}
	}
	t.Run("Mixed", func(t *testing.T) {
		b, l := mixed(1)
		c, st := encoded(t, b, l, Options{Parallel: 3})
		r := open(t, c)
		if got := readAll(t, r); !bytes.Equal(got, b) {
			t.Error("other bytes came back")
		}
		if st.Stored > st.Raw*9/10 {
			t.Errorf("%d bytes of %d: hardly any gain", st.Stored, st.Raw)
		}
		if err := r.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("LayoutsMayBeWrong", func(t *testing.T) { // it costs gain, never bytes
		b, _ := mixed(2)
		for _, l := range []Layout{nil, {{Off: 1, Size: int64(len(b)) - 1, Width: 8}}, {{Off: 3, Size: 1 << 40, Width: 4}}} {
			c, _ := encoded(t, b, l, Options{})
			if got := readAll(t, open(t, c)); !bytes.Equal(got, b) {
				t.Errorf("layout %v: other bytes came back", l)
			}
		}
	})
}

// TestGain holds what grouping is for: weights shrink, noise is not blown up.
func TestGain(t *testing.T) {
	const size = 2 * Size
	for _, c := range []struct {
		name  string
		b     []byte
		width int
		most  float64
	}{
		{"BF16", numbers(3, size, 2), 2, 0.75},
		{"F32", numbers(3, size, 4), 4, 0.90},
		{"F64", numbers(3, size, 8), 8, 0.95},
		{"Zeros", make([]byte, size), 4, 0.001},
		{"Text", bytes.Repeat([]byte("all happy families are alike; "), size/30+1)[:size], 1, 0.01},
		{"Noise", numbers(3, size, 1), 1, 1.0001},
		{"NoiseIn4", numbers(3, size, 1), 4, 1.0001},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, st := encoded(t, c.b, Layout{{Size: size, Width: c.width}}, Options{})
			if got := float64(st.Stored) / size; got > c.most {
				t.Errorf("ratio %.4f, want at most %.4f", got, c.most)
			}
		})
	}
}

// counted counts what is fetched.
type counted struct {
	*bytes.Reader
	n atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Reader.ReadAt(p, off)
}

func TestPromise2RangesFetchTheirFrames(t *testing.T) {
	b := numbers(5, 6*Size+777, 2)
	c, _ := encoded(t, b, Layout{{Size: int64(len(b) &^ 1), Width: 2}}, Options{})
	src := &counted{Reader: bytes.NewReader(c)}
	r, err := Open(t.Context(), src, int64(len(c)))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 40 {
		off := rnd.IntN(len(b))
		n := min(len(b)-off, rnd.IntN(Size+Size/2))
		src.n.Store(0)
		p := make([]byte, n)
		if got, err := r.ReadAt(p, int64(off)); got != n || err != nil {
			t.Fatalf("ReadAt %d+%d = %d, %v", off, n, got, err)
		}
		if !bytes.Equal(p, b[off:off+n]) {
			t.Fatalf("%d+%d: other bytes", off, n)
		}
		touched := (off+n+Size-1)/Size - off/Size
		if got, most := src.n.Load(), int64(touched*(Size+1)); got > most {
			t.Errorf("%d+%d fetched %d bytes, at most %d belong to its frames", off, n, got, most)
		}
	}
	t.Run("SmallNeighbours", func(t *testing.T) {
		src.n.Store(0)
		for off := int64(0); off < Size; off += Size / 64 {
			if _, err := r.ReadAt(make([]byte, 100), off); err != nil {
				t.Fatal(err)
			}
		}
		if got := src.n.Load(); got > Size {
			t.Errorf("64 small reads of a frame fetched %d bytes", got)
		}
	})
	t.Run("End", func(t *testing.T) {
		p := make([]byte, 100)
		if n, err := r.ReadAt(p, int64(len(b))-10); n != 10 || err != io.EOF {
			t.Errorf("ReadAt = %d, %v; want 10, EOF", n, err)
		}
		if n, err := r.ReadAt(p, int64(len(b))+10); n != 0 || err != io.EOF {
			t.Errorf("ReadAt = %d, %v; want 0, EOF", n, err)
		}
		if _, err := r.ReadAt(p, -1); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("ReadAt(-1) = %v", err)
		}
	})
}

func TestEncodeRefuses(t *testing.T) {
	b := numbers(5, 2*Size, 4)
	l := Layout{{Size: 2 * Size, Width: 4}}
	t.Run("SourceThatDoesNotFitItsSeal", func(t *testing.T) {
		s := source(b)
		bad := bytes.Clone(b)
		bad[Size+5] ^= 1
		_, err := Encode(t.Context(), io.Discard, sealed{bytes.NewReader(bad), s.seal}, l, Options{})
		if !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("err = %v, want ErrCorrupt", err)
		}
		if _, err := Estimate(t.Context(), sealed{bytes.NewReader(bad), s.seal}, l); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("Estimate: %v, want ErrCorrupt", err)
		}
	})
	t.Run("SealOfAnotherSize", func(t *testing.T) {
		s := source(b[:Size])
		if _, err := Encode(t.Context(), io.Discard, sealed{bytes.NewReader(b), s.seal}, l, Options{}); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("err = %v, want ErrCorrupt", err)
		}
	})
	t.Run("NoGain", func(t *testing.T) {
		if _, err := Encode(t.Context(), io.Discard, source(b), l, Options{Most: Size}); !errors.Is(err, ErrNoGain) {
			t.Errorf("err = %v, want ErrNoGain", err)
		}
	})
	t.Run("WriterFails", func(t *testing.T) {
		full := fmt.Errorf("disk: %w", catalog.ErrNoSpace)
		if _, err := Encode(t.Context(), failing{full}, source(b), l, Options{}); !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("err = %v, want ErrNoSpace", err)
		}
	})
	t.Run("Cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Encode(ctx, io.Discard, source(b), l, Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v, want Canceled", err)
		}
	})
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestEstimate(t *testing.T) {
	b := numbers(5, 9*Size, 2)
	l := Layout{{Size: int64(len(b)), Width: 2}}
	_, st := encoded(t, b, l, Options{})
	got, err := Estimate(t.Context(), source(b), l)
	if want := float64(st.Stored) / float64(st.Raw); err != nil || math.Abs(got-want) > 0.02 {
		t.Errorf("Estimate = %.3f, %v; want about %.3f", got, err, want)
	}
	if got, err := Estimate(t.Context(), source(nil), nil); got != 0 || err != nil {
		t.Errorf("Estimate of nothing = %v, %v", got, err)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		name   string
		layout Layout
		off, n int64
		want   []Run
	}{
		{"Empty", nil, 0, 10, []Run{{0, 10, 1}}},
		{"Between", Layout{{4096, 8192, 4}}, 0, 16384, []Run{{0, 4096, 1}, {4096, 8192, 4}, {12288, 4096, 1}}},
		{"Goes on", Layout{{100, 1 << 20, 4}}, 4096, 8192, []Run{{0, 8192, 4}}},
		{"ElementOnTheBorder", Layout{{2, 1 << 20, 8}}, 4096, 8192, []Run{{0, 2, 1}, {2, 8184, 8}, {8186, 6, 1}}},
		{"TooSmall", Layout{{0, 512, 4}, {512, 4096, 2}}, 0, 8192, []Run{{0, 512, 1}, {512, 4096, 2}, {4608, 3584, 1}}},
		{"Touching", Layout{{0, 2048, 4}, {2048, 2048, 2}}, 0, 4096, []Run{{0, 2048, 4}, {2048, 2048, 2}}},
		{"NotAMultiple", Layout{{0, 4097, 2}}, 0, 4097, []Run{{0, 4096, 2}, {4096, 1, 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _ := c.layout.cut(c.off, c.n, 0)
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("cut = %v, want %v", got, c.want)
			}
		})
	}
	t.Run("Many", func(t *testing.T) {
		var l Layout
		for i := range int64(4 * maxRuns) {
			l.Add(Run{Off: i * 1024, Size: 1024, Width: []int{2, 4}[i%2]})
		}
		runs, _ := l.cut(0, Size, 0)
		if got := len(runs); got > maxRuns {
			t.Errorf("%d runs, at most %d fit", got, maxRuns)
		}
		sum := int64(0)
		for _, r := range runs {
			sum += r.Size
		}
		if sum != Size {
			t.Errorf("the runs are %d bytes of %d", sum, Size)
		}
	})
}

func TestLayoutOf(t *testing.T) {
	at := int64(4096)
	var tensors []catalog.Tensor
	for _, d := range []catalog.DType{"F64", "C64", "F32", "F32", "BF16", "F8_E4M3", "U8", "F4", "I16"} {
		tensors = append(tensors, catalog.Tensor{DType: d, Offset: at, Size: 8000})
		at += 8000
	}
	got := fmt.Sprint(LayoutOf(tensors))
	if want := "[{4096 8000 8} {12096 24000 4} {36096 8000 2} {68096 8000 2}]"; got != want {
		t.Errorf("LayoutOf = %s, want %s", got, want)
	}
}

func TestGroup(t *testing.T) {
	for _, width := range []int{1, 2, 4, 8} {
		for _, elements := range []int{0, 1, 7, 8, 9, 64, 1001} {
			src := numbers(9, elements*width, 1)
			got, back := make([]byte, len(src)), make([]byte, len(src))
			if width == 1 {
				continue // never grouped
			}
			group(got, src, width)
			for i := range elements {
				for j := range width {
					if got[j*elements+i] != src[i*width+j] {
						t.Fatalf("width %d: byte %d of element %d of %d is not in its plane", width, j, i, elements)
					}
				}
			}
			if ungroup(back, got, width); !bytes.Equal(back, src) {
				t.Errorf("width %d, %d elements: ungroup is not the inverse", width, elements)
			}
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	raw := numbers(1, 8*Size, 2)
	for b.Loop() {
		if _, err := Encode(b.Context(), io.Discard, source(raw), Layout{{Size: int64(len(raw)), Width: 2}}, Options{Parallel: 1}); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(raw)))
}

func BenchmarkDecode(b *testing.B) {
	raw := numbers(1, 8*Size, 2)
	c, _ := encoded(b, raw, Layout{{Size: int64(len(raw)), Width: 2}}, Options{})
	r := open(b, c)
	for b.Loop() {
		if err := r.Verify(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(raw)))
}
