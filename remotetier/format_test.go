package remotetier_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

var update = flag.Bool("update", false, "write the golden files anew; a changed byte is a new version of the format")

// golden compares b with a file of testdata.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("%s: the bytes differ from those written before", name)
	}
}

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

// goldenBlob is put as 2+1: one full stripe of 64 KiB units and a short one.
const goldenSize = 131072 + 5000

func goldenWorld(t *testing.T) (*world, catalog.Place) {
	t.Helper()
	w := newWorld(3, remotetier.Options{Generation: func() uint64 { return 0x0123456789abcdef }})
	p, err := w.Put(t.Context(), "run/golden", bytes.NewReader(pattern(goldenSize)), layout(2, 1, 65536))
	if err != nil {
		t.Fatal(err)
	}
	return w, p
}

func TestGoldenColumns(t *testing.T) {
	w, p := goldenWorld(t)
	for c := range 3 {
		col := w.mem(p, c).Column(keyOf(p, c))
		golden(t, fmt.Sprintf("header-c%02d.golden", c), col[:remotetier.PageSize])
		golden(t, fmt.Sprintf("trailer-c%02d.golden", c), col[len(col)-2*remotetier.PageSize:])
	}
	col := w.mem(p, 2).Column(keyOf(p, 2))
	golden(t, "column-c02.golden", col)
	golden(t, "place.golden", fmt.Appendf(nil, "%s %s %d %d %016x %v %v\n", p.Blob, p.Layout, p.Unit, p.Size, p.Generation, p.Targets, p.Content))
}

// TestGoldenParity: the code must stay what it was, for every layout in use.
func TestGoldenParity(t *testing.T) {
	var out []byte
	for _, l := range []stripe.Layout{layout(2, 1, 65536), layout(2, 2, 65536), layout(4, 2, 65536), layout(8, 3, 65536), layout(32, 8, 65536)} {
		units := make([][]byte, l.Columns())
		for i := range units {
			units[i] = make([]byte, 64)
			if i < l.K {
				copy(units[i], pattern(64 * l.K)[64*i:])
			}
		}
		if err := remotetier.SumParity(l, units); err != nil {
			t.Fatal(err)
		}
		for _, u := range units[l.K:] {
			out = fmt.Appendf(out, "%v %x\n", l, u)
		}
	}
	golden(t, "parity.golden", out)
}

// column opens one column's bytes by itself, as a 1-column blob's reader would.
func readColumn(t *testing.T, p catalog.Place, cols [][]byte) ([]byte, error) {
	t.Helper()
	w := &world{}
	var infos []remotetier.TargetInfo
	for i, name := range p.Targets {
		m := targettest.NewMem(name)
		m.SetColumn(keyOf(p, i), cols[i])
		w.mems = append(w.mems, m)
		infos = append(infos, remotetier.TargetInfo{Target: m})
	}
	w.Tier = remotetier.New(infos, remotetier.Options{})
	b, _, err := readAll(t, w.Tier, p)
	if err == nil {
		if verr := w.Verify(t.Context(), p); verr != nil && !errors.Is(verr, catalog.ErrCorrupt) {
			t.Errorf("Verify = %v", verr)
		}
	}
	return b, err
}

// TestHostileColumns cuts and flips one column of a 1+0 blob, everywhere that
// is not mere data: what is not refused must be right.
func TestHostileColumns(t *testing.T) {
	w := newWorld(1, remotetier.Options{})
	want := pattern(70_000)
	p, err := w.Put(t.Context(), "run/hostile", bytes.NewReader(want), layout(1, 0, 65536))
	if err != nil {
		t.Fatal(err)
	}
	col := w.mem(p, 0).Column(keyOf(p, 0))
	try := func(what string, bad []byte) {
		if got, err := readColumn(t, p, [][]byte{bad}); err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s: wrong bytes", what)
		} else if err == nil {
			t.Errorf("%s: was read", what)
		} else if !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	edge := func(i int) bool { return i < 4096+100 || i > len(col)-3*4096 }
	for i := range len(col) {
		if edge(i) && i%19 == 0 || i%997 == 0 {
			if i > 0 {
				try(fmt.Sprintf("cut at %d", i), col[:i])
			}
			bad := slices.Clone(col)
			bad[i] ^= 1 << (i % 8)
			if i >= 4096+70_000 && i < 4096+73728 {
				continue // padding: checked by its block's sum below
			}
			try(fmt.Sprintf("flip at %d", i), bad)
		}
	}
	try("longer", append(slices.Clone(col), 0))
}

// TestHostilePages flips every byte and cuts every length of each kind of page
// by itself.
func TestHostilePages(t *testing.T) {
	w, p := goldenWorld(t)
	col := w.mem(p, 0).Column(keyOf(p, 0))
	seed, err := remotetier.HeaderSeed(col[:4096])
	if err != nil {
		t.Fatal(err)
	}
	n := len(col)
	for _, c := range []struct {
		name  string
		page  []byte
		parse func([]byte) error
	}{
		{"header", col[:4096], func(p []byte) error { _, err := remotetier.ParseHeader(p); return err }},
		{"sums", col[n-8192 : n-4096], func(p []byte) error { _, err := remotetier.ParseSums(p, seed, 0, 2); return err }},
		{"footer", col[n-4096:], func(p []byte) error { _, err := remotetier.ParseFooter(p, seed, 65536+4096); return err }},
	} {
		if err := c.parse(c.page); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for i := range c.page {
			bad := slices.Clone(c.page)
			bad[i] ^= 1 << (i % 8)
			if err := c.parse(bad); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%s: flip at %d: %v, want ErrCorrupt", c.name, i, err)
			}
			if err := c.parse(c.page[:i]); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%s: cut at %d: %v, want ErrCorrupt", c.name, i, err)
			}
		}
	}
	if _, err := remotetier.ParseSums(col[n-8192:n-4096], seed, 1, 2); !errors.Is(err, catalog.ErrCorrupt) {
		t.Error("a page of sums was taken for another")
	}
	other := w.mem(p, 1).Column(keyOf(p, 1))
	seed1, _ := remotetier.HeaderSeed(other[:4096])
	if _, err := remotetier.ParseFooter(col[n-4096:], seed1, 65536+4096); !errors.Is(err, catalog.ErrCorrupt) {
		t.Error("a footer was taken for another column's")
	}
}

// resum makes a crafted header pass its checksum.
func resum(p []byte) []byte {
	binary.LittleEndian.PutUint32(p[4092:], crcOf(p[:4092]))
	return p
}

// TestCraftedHeaders have right checksums and wrong fields.
func TestCraftedHeaders(t *testing.T) {
	w, p := goldenWorld(t)
	head := w.mem(p, 0).Column(keyOf(p, 0))[:4096]
	for _, c := range []struct {
		what string
		off  int
		b    []byte
	}{
		{"version 2", 8, []byte{2}}, {"block size", 14, []byte{2}}, {"size of 2^63", 23, []byte{0x80}}, {"size of 2^56", 23, []byte{1}}, {"unit 0", 32, []byte{0, 0, 0, 0}},
		{"unit of 4 GiB", 32, []byte{0, 0, 255, 255}}, {"k 0", 36, []byte{0}}, {"k 33", 36, []byte{33}}, {"m 9", 38, []byte{9}}, {"column 3", 40, []byte{3}}, {"k 3", 36, []byte{3}},
		{"no name", 42, []byte{0}}, {"name of 65535", 42, []byte{255, 255}}, {"name of 1025", 42, []byte{1, 4}}, {"flags", 44, []byte{1}}, {"name ../", 48, []byte("../")}, {"name /", 48, []byte("/")},
		{"target name of 255", 58, []byte{255}}, {"target name of 0", 58, []byte{0}}, {"something behind", 4000, []byte{1}},
	} {
		bad := slices.Clone(head)
		copy(bad[c.off:], c.b)
		if h, err := remotetier.ParseHeader(resum(bad)); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %+v, %v, want ErrCorrupt", c.what, h, err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	for c := range 3 {
		if b, err := os.ReadFile(fmt.Sprintf("testdata/header-c%02d.golden", c)); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 4096 {
			b = resum(slices.Clone(b)) // get past the checksum
		}
		h, err := remotetier.ParseHeader(b)
		if err != nil {
			if !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			return
		}
		if h.FileSize() < 8192 || h.FileSize()%4096 != 0 || h.Key.Check() != nil || len(h.Targets) != h.Layout.Columns() {
			t.Errorf("took %+v", h)
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add("run/a/g0123456789abcdef.c07.col")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := remotetier.ParseKey(s); err == nil && k.Path() != s {
			t.Errorf("%q became %q", s, k.Path())
		}
	})
}
