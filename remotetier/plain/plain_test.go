package plain_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

var update = flag.Bool("update", false, "write the golden files anew; a changed byte is a new version of the format")

// pattern is bytes that no library's generator can change.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

const blobName = "run/000000000001-000001/rank-00000.safetensors"

// column gives a blob's column as the Tier writes it.
func column(t testing.TB, blob []byte, l stripe.Layout, c int) (remotetier.Key, []byte) {
	t.Helper()
	var infos []remotetier.TargetInfo
	mems := map[string]*targettest.Mem{}
	for i := range l.Columns() {
		m := targettest.NewMem("t" + string(rune('0'+i)))
		mems[m.Name()] = m
		infos = append(infos, remotetier.TargetInfo{Target: m})
	}
	tier := remotetier.New(infos, remotetier.Options{Generation: func() uint64 { return 0x0123456789abcdef }})
	place, err := tier.Put(t.Context(), blobName, bytes.NewReader(blob), l)
	if err != nil {
		t.Fatal(err)
	}
	key := remotetier.Key{Blob: blobName, Generation: place.Generation, Column: c}
	return key, mems[place.Targets[c]].Column(key)
}

// cut takes a column apart in pieces of some pages.
func cut(t testing.TB, key remotetier.Key, col []byte, pages int) (*plain.Cut, []byte) {
	t.Helper()
	c := plain.NewCut(key, int64(len(col)))
	var data []byte
	for rest := col; len(rest) > 0; {
		n := min(len(rest), pages*4096)
		d, off, err := c.Next(rest[:n])
		if err != nil {
			t.Fatal(err)
		}
		if len(d) > 0 && off != int64(len(data)) {
			t.Fatalf("data goes to %d, want %d", off, len(data))
		}
		data = append(data, d...)
		rest = rest[n:]
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	return c, data[:c.DataSize()]
}

func reader(b []byte) plain.ReadFunc {
	return func(_ context.Context, p []byte, off int64) (int, error) { return bytes.NewReader(b).ReadAt(p, off) }
}

func TestPromise1CutAndReadAgain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, 4095, 4096, 65536, 65537, 300_000, 1022*65536 + 5} {
		blob := pattern(size)
		for _, m := range []int{0, 1} {
			if m == 0 && size > 1<<20 {
				continue // it takes its time
			}
			key, col := column(t, blob, stripe.Layout{K: 1, M: m, Unit: 65536}, m)
			c, data := cut(t, key, col, 1+rnd.IntN(400))
			if !c.Plain() || !bytes.Equal(data, blob) {
				t.Fatalf("%d bytes: plain %v, the data is not the blob", size, c.Plain())
			}
			side := c.Sidecar(plain.DataName(key, 0xabc), "tag", false)
			s, err := plain.ParseSidecar(key, side[:plain.Head])
			if err != nil {
				t.Fatal(err)
			}
			if s.Size() != int64(len(col)) || s.FileSize() != int64(len(side)) || s.Blob != int64(size) || s.Tag != "tag" || s.Own {
				t.Errorf("%d bytes: %+v of %d and %d", size, s, len(col), len(side))
			}
			if got, err := plain.ReadKey(side); err != nil || got != key {
				t.Errorf("ReadKey = %v, %v", got, err)
			}
			for range 50 / (1 + size>>20) {
				lo := rnd.IntN(len(col))
				hi := lo + 1 + rnd.IntN(len(col)-lo)
				p := make([]byte, hi-lo)
				if n, err := s.ReadAt(t.Context(), p, int64(lo), reader(side), reader(data)); n != len(p) || err != nil || !bytes.Equal(p, col[lo:hi]) {
					t.Fatalf("%d bytes: ReadAt [%d, %d) = %d, %v", size, lo, hi, n, err)
				}
			}
			p := make([]byte, 8192)
			if n, err := s.ReadAt(t.Context(), p, int64(len(col))-4096, reader(side), reader(data)); n != 4096 || err != io.EOF {
				t.Errorf("ReadAt over the end = %d, %v", n, err)
			}
			for _, bad := range [][]byte{append(bytes.Clone(data), 'x'), data[:max(0, size-1)]} {
				if _, err := s.ReadAt(t.Context(), make([]byte, len(col)), 0, reader(side), reader(bad)); size > 0 && size%4096 != 0 && !errors.Is(err, catalog.ErrCorrupt) {
					t.Errorf("data of %d bytes instead of %d: %v, want ErrCorrupt", len(bad), size, err)
				}
			}
			again := *s
			again.Own, again.Tag = true, "other"
			if s2, err := plain.ParseSidecar(key, plain.Rename(side, again)); err != nil || *s2 != again {
				t.Errorf("Rename gives %+v, %v", s2, err)
			}
		}
	}
}

func TestPromise1WholeColumns(t *testing.T) {
	key, col := column(t, pattern(300_000), stripe.Layout{K: 2, M: 1, Unit: 65536}, 0)
	for name, b := range map[string][]byte{"two data units": col, "no column": pattern(8192), "another size": col[:len(col)-4096]} {
		c, data := cut(t, key, b, 3)
		if c.Plain() || !bytes.Equal(data, b) {
			t.Errorf("%s: plain %v, want it left whole", name, c.Plain())
		}
	}
	_, one := column(t, pattern(100), stripe.Layout{K: 1, Unit: 65536}, 0)
	other := key
	other.Generation++
	if c, _ := cut(t, other, one, 1); c.Plain() {
		t.Error("a column of another key was cut")
	}
	c := plain.NewCut(key, int64(len(one)))
	one[4096+200] = 1 // behind the blob's end
	if _, _, err := c.Next(one); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("padding that is not zero: %v, want ErrInvalid", err)
	}
	if _, _, err := plain.NewCut(key, 4096).Next(make([]byte, 8192)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("more than the size: %v, want ErrInvalid", err)
	}
}

// goldenSidecar is that of column 1 of a 1+1 blob of 70,000 bytes.
func goldenSidecar(t testing.TB) (remotetier.Key, []byte) {
	key, col := column(t, pattern(70_000), stripe.Layout{K: 1, M: 1, Unit: 65536}, 1)
	c, _ := cut(t, key, col, 1)
	return key, c.Sidecar(plain.DataName(key, 0x00c0ffee), `"0123-2"`, true)
}

func TestGoldenSidecar(t *testing.T) {
	key, side := goldenSidecar(t)
	name := filepath.Join("testdata", "sidecar.golden")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(name, side, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(side, want) {
		t.Error("the bytes differ from those written before")
	}
	for _, n := range []struct{ got, want string }{
		{plain.SidecarName(key), ".rank-00000.safetensors.g0123456789abcdef.c01.ckpt"},
		{plain.WholeName(key), ".rank-00000.safetensors.g0123456789abcdef.c01.col"},
		{plain.DataName(key, 0xc0ffee), ".rank-00000.safetensors.g0123456789abcdef.c01.00c0ffee.data"},
		{plain.ClaimName("rank-00000.safetensors"), ".rank-00000.safetensors.plain"},
	} {
		if n.got != n.want {
			t.Errorf("name %s, want %s", n.got, n.want)
		}
	}
}

func TestPromise2EveryByteOfASidecar(t *testing.T) {
	key, side := goldenSidecar(t)
	head := side[:plain.Head]
	for i := range 4096 { // its own page; the column's pages have their own sums
		for _, x := range []byte{1, 0x80, 0xff} {
			head[i] ^= x
			if _, err := plain.ParseSidecar(key, head); !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("byte %d flipped: %v, want ErrCorrupt", i, err)
			}
			head[i] ^= x
		}
		if _, err := plain.ParseSidecar(key, head[:i]); !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("cut at %d: %v, want ErrCorrupt", i, err)
		}
	}
	for _, other := range []remotetier.Key{
		{Blob: key.Blob, Generation: key.Generation + 1, Column: 1}, {Blob: key.Blob, Generation: key.Generation}, {Blob: "run/other", Generation: key.Generation, Column: 1},
	} {
		if _, err := plain.ParseSidecar(other, head); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("as the sidecar of %v: %v, want ErrCorrupt", other, err)
		}
	}
}

func TestPromise3Names(t *testing.T) {
	key := remotetier.Key{Blob: "a/" + strings.Repeat("n", remotetier.MaxBlobPart), Generation: 1<<64 - 1, Column: 39}
	_, base := plain.Split(key.Blob)
	of := remotetier.Key{Blob: base, Generation: key.Generation, Column: key.Column}
	seen := map[string]bool{}
	for _, c := range []struct {
		name string
		key  remotetier.Key
		kind plain.Kind
	}{
		{plain.SidecarName(key), of, plain.SidecarKind}, {plain.WholeName(key), of, plain.WholeKind},
		{plain.DataName(key, 1), of, plain.DataKind}, {plain.ClaimName(base), remotetier.Key{Blob: base}, plain.ClaimKind},
	} {
		if got, kind, ok := plain.Parse(c.name); !ok || got != c.key || kind != c.kind {
			t.Errorf("Parse(%s) = %v, %v, %v", c.name, got, kind, ok)
		}
		if len(c.name) > 255 || remotetier.CheckBlob(c.name) == nil || seen[c.name] {
			t.Errorf("%s is %d bytes long, a blob's name, or another's", c.name, len(c.name))
		}
		seen[c.name] = true
	}
	for _, bad := range []string{"", ".", ".plain", "..plain", ".a.ckpt", "a.g0000000000000001.c00.ckpt", ".g0000000000000001.c00.ckpt", ".a.g000000000000001.c00.ckpt",
		".a.g0000000000000001.c40.ckpt", ".a.g0000000000000001.c00.data", ".a.g0000000000000001.c00.0000000g.data", ".a/b.plain", ".a b.plain", ".a.g0000000000000001.c00.tmp"} {
		if key, kind, ok := plain.Parse(bad); ok {
			t.Errorf("Parse(%q) = %v, %v", bad, key, kind)
		}
	}
}

func FuzzParseSidecar(f *testing.F) {
	key, side := goldenSidecar(f)
	f.Add(side[:plain.Head])
	f.Add([]byte("ckptSIDE"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := plain.ParseSidecar(key, b)
		if err != nil {
			if !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			return
		}
		if s.Size() < 8192 || s.FileSize() < 12288 || s.Blob < 0 {
			t.Errorf("%+v", s)
		}
		empty := func(context.Context, []byte, int64) (int, error) { return 0, io.EOF }
		if n, err := s.ReadAt(t.Context(), make([]byte, 100), 0, empty, empty); err == nil || n != 0 {
			t.Errorf("ReadAt of nothing = %d, %v", n, err)
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add(".a.g0000000000000001.c00.ckpt")
	f.Add(".a.g0000000000000001.c00.0000000f.data")
	f.Add(".a.plain")
	f.Fuzz(func(t *testing.T, name string) {
		key, kind, ok := plain.Parse(name)
		if !ok {
			return
		}
		if strings.Contains(name, "/") || remotetier.CheckBlob(key.Blob) != nil || remotetier.CheckBlob(name) == nil {
			t.Errorf("%q is taken for %v, %v", name, key, kind)
		}
	})
}
