package tarview

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// made is a source of samples with names and sizes of every kind; the bytes of
// a member are a function of its sample, its number and the offset.
type made struct {
	n   int64
	bad int64 // sample that cannot be read
}

func (s made) Samples() int64 { return s.n }

func (s made) Members(i int64, into []Member) ([]Member, error) {
	if i == s.bad-1 {
		return nil, catalog.ErrCorrupt
	}
	r := rand.New(rand.NewPCG(uint64(i), 7))
	for k := range 1 + int(i)%3 {
		m := Member{Mode: 0o640, Mtime: time.Unix(1_700_000_000+i, 0), File: int(i), Pack: k, Size: int64(r.IntN(3000))}
		if m.Size%7 == 0 {
			m.Size = m.Size / 7 * 512 // no padding, or nothing at all
		}
		long := strings.Repeat("d/", r.IntN(120))
		if i%50 == 0 {
			long = strings.Repeat("d/", 250+int(i)) // more than one block of name
		}
		m.Name = fmt.Appendf(nil, "%s%06d.%d", long, i, k)
		if i%11 == 0 {
			m.Name = append(m.Name, 0xff, 0xfe) // not UTF-8
		}
		if i == 5 {
			m.Mtime = time.Unix(-77, 0)
		}
		into = append(into, m)
	}
	return into, nil
}

func byteOf(m *Member, off int64) byte {
	return byte(int64(m.File)*31 + int64(m.Pack)*17 + off*7 + off>>8)
}

func (made) ReadMember(_ context.Context, m *Member, p []byte, off int64) error {
	for i := range p {
		p[i] = byteOf(m, off+int64(i))
	}
	return nil
}

// turned is an order: (a*p + b) mod n, a permutation when a and n have nothing in common.
type turned struct{ a, b, n int64 }

func (o turned) At(p int64) int64 { return (o.a*p + o.b) % o.n }

func whole(t testing.TB, src made, o Order, share Share) []byte {
	t.Helper()
	v, err := New(t.Context(), src, o, share)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, v.Size())
	if n, err := v.Reader(src, src).ReadAt(t.Context(), b, 0); err != nil || n != len(b) {
		t.Fatalf("read the whole tar = %d, %v; want %d", n, err, len(b))
	}
	return b
}

// names reads a tar by archive/tar, checks every member against the source,
// and gives the numbers of its samples.
func samplesOf(t *testing.T, src made, b []byte) (samples []int64) {
	t.Helper()
	in := tar.NewReader(bytes.NewReader(b))
	var want []Member
	for {
		h, err := in.Next()
		if err == io.EOF {
			if len(want) > 0 {
				t.Fatalf("the tar ends inside a sample: %d members are missing", len(want))
			}
			return samples
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(want) == 0 {
			base := filepath.Base(h.Name)
			var i int64
			if _, err := fmt.Sscanf(base, "%d.", &i); err != nil {
				t.Fatalf("name %q: %v", h.Name, err)
			}
			samples = append(samples, i)
			want, _ = src.Members(i, nil)
		}
		m := want[0]
		want = want[1:]
		if h.Name != string(m.Name) || h.Size != m.Size || h.Mode != int64(m.Mode) || !h.ModTime.Equal(m.Mtime) {
			t.Fatalf("member %q of %d bytes, mode %o, %v; want %q, %d, %o, %v", h.Name, h.Size, h.Mode, h.ModTime, m.Name, m.Size, m.Mode, m.Mtime)
		}
		got, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		for off, c := range got {
			if c != byteOf(&m, int64(off)) {
				t.Fatalf("member %q differs at byte %d", h.Name, off)
			}
		}
	}
}

// TestEverySampleOnce reads the tars of all ranks, and goes on with another
// world size in the middle of the epoch.
func TestEverySampleOnce(t *testing.T) {
	src := made{n: 1000}
	o := turned{7, 3, 1000}
	for _, worlds := range [][2]int{{1, 1}, {3, 3}, {4, 7}, {7, 2}, {1200, 5}} {
		for _, at := range []int64{0, 1, 513, 999, 1000} {
			seen := make([]int, src.n)
			for p := range at { // what the first world has consumed
				seen[o.At(p)]++
			}
			for rank := range worlds[1] {
				share := Share{Rank: rank, World: worlds[1], At: at}
				got := samplesOf(t, src, whole(t, src, o, share))
				if int64(len(got)) != share.Count(src.n) {
					t.Fatalf("%+v has %d samples, want %d", share, len(got), share.Count(src.n))
				}
				for i, s := range got {
					if want := o.At(share.position(int64(i))); s != want {
						t.Fatalf("%+v: sample %d is %d, want %d", share, i, s, want)
					}
					seen[s]++
				}
			}
			for s, n := range seen {
				if n != 1 {
					t.Fatalf("%v from %d: sample %d was read %d times", worlds, at, s, n)
				}
			}
		}
	}
}

// TestAnyOffset compares random reads, by one reader and by fresh ones, with the whole.
func TestAnyOffset(t *testing.T) {
	src := made{n: 1500}
	o := turned{11, 5, 1500}
	share := Share{Rank: 1, World: 2, At: 100}
	want := whole(t, src, o, share)
	v, err := New(t.Context(), src, o, share)
	if err != nil {
		t.Fatal(err)
	}
	r := v.Reader(src, src)
	rnd := rand.New(rand.NewPCG(1, 2))
	check := func(r *Reader, off, n int) {
		t.Helper()
		p := make([]byte, n)
		got, err := r.ReadAt(t.Context(), p, int64(off))
		fits := min(n, len(want)-off)
		if got != fits || (err != nil) != (fits < n) || err != nil && err != io.EOF {
			t.Fatalf("ReadAt(%d at %d) = %d, %v; want %d", n, off, got, err, fits)
		}
		if !bytes.Equal(p[:got], want[off:off+got]) {
			t.Fatalf("ReadAt(%d at %d): other bytes", n, off)
		}
	}
	for range 2000 {
		check(r, rnd.IntN(len(want)), rnd.IntN(9000))
		check(v.Reader(src, src), rnd.IntN(len(want)), rnd.IntN(9000))
	}
	for off := 0; off < len(want); off += 4096 { // as a plain reader does
		check(r, off, 4096)
	}
	check(r, len(want)-1, 1)
	if n, err := r.ReadAt(t.Context(), make([]byte, 1), int64(len(want))); n != 0 || err != io.EOF {
		t.Errorf("read behind the end = %d, %v; want EOF", n, err)
	}
}

// TestOthersReadIt gives the bytes to tar and to Python.
func TestOthersReadIt(t *testing.T) {
	src := made{n: 300}
	b := whole(t, src, turned{7, 0, 300}, Share{Rank: 0, World: 1})
	file := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	members := 0
	for i := range src.n {
		m, _ := src.Members(i, nil)
		members += len(m)
	}
	for _, args := range [][]string{
		{"tar", "--quoting-style=escape", "-tf", file},
		{"python3", "-c", "import sys,tarfile\nfor m in tarfile.open(sys.argv[1]): print(ascii(m.name), m.size)", file},
	} {
		var stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Fatalf("%s: %v: %s", args[0], err, stderr.String())
		}
		if got := bytes.Count(out, []byte("\n")); got != members {
			t.Errorf("%s lists %d members, want %d", args[0], got, members)
		}
	}
}

func TestLargeNumbers(t *testing.T) {
	m := Member{Name: []byte("x"), Size: 9 << 30, Mode: 0o644, Mtime: time.Unix(1<<35, 0)}
	h, err := tar.NewReader(bytes.NewReader(m.appendHeader(nil))).Next()
	if err != nil || h.Size != m.Size || !h.ModTime.Equal(m.Mtime) {
		t.Fatalf("header = %+v, %v; want %d bytes, %v", h, err, m.Size, m.Mtime)
	}
}

func TestRefusals(t *testing.T) {
	src := made{n: 10}
	for _, share := range []Share{{0, 0, 0}, {-1, 1, 0}, {1, 1, 0}, {0, 1, -1}, {0, 1, 11}, {0, catalog.MaxWorld + 1, 0}} {
		if _, err := New(t.Context(), src, turned{3, 0, 10}, share); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", share, err)
		}
	}
	if _, err := New(t.Context(), made{n: 10, bad: 4}, turned{3, 0, 10}, Share{0, 1, 0}); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a damaged sample: %v, want ErrCorrupt", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(ctx, src, turned{3, 0, 10}, Share{0, 1, 0}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// BenchmarkNew is what a view costs beside the index and the order, a sample.
func BenchmarkNew(b *testing.B) {
	src := flat{n: 1 << 20}
	for b.Loop() {
		if _, err := New(b.Context(), src, turned{7, 0, src.n}, Share{0, 1, 0}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(src.n), "ns/sample")
}

type flat struct{ n int64 }

func (s flat) Samples() int64 { return s.n }
func (s flat) Members(i int64, into []Member) ([]Member, error) {
	return append(into, Member{Name: []byte("0123456789.jpg"), Size: i % 100_000}), nil
}

// FuzzView: any part of any rank's tar is that part of the whole.
func FuzzView(f *testing.F) {
	f.Add(uint16(300), uint8(3), uint8(1), uint16(20), uint32(700), uint16(3000))
	f.Add(uint16(0), uint8(1), uint8(0), uint16(0), uint32(0), uint16(2000))
	f.Fuzz(func(t *testing.T, n uint16, world, rank uint8, at uint16, off uint32, size uint16) {
		src := made{n: int64(n % 400)}
		o := turned{1, 5, max(1, src.n)}
		share := Share{Rank: int(rank), World: int(world), At: int64(at)}
		v, err := New(t.Context(), src, o, share)
		if err != nil {
			if share.Check(src.n) == nil {
				t.Fatal(err)
			}
			return
		}
		b := whole(t, src, o, share)
		p := make([]byte, size)
		got, err := v.Reader(src, src).ReadAt(t.Context(), p, int64(off))
		want := b[min(int64(off), int64(len(b))):]
		want = want[:min(len(want), len(p))]
		if got != len(want) || !bytes.Equal(p[:got], want) || err != nil && err != io.EOF || err == nil && got < len(p) {
			t.Fatalf("%d bytes at %d of %d: %d, %v, want %d", size, off, len(b), got, err, len(want))
		}
	})
}
