package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew: a new version of the format")

// TestGoldenIndex holds the format fast.
func TestGoldenIndex(t *testing.T) {
	const file = "testdata/pets.index"
	got := build(t, pets())
	if *rewrite {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the bytes changed: that is a new version of the format")
	}
}

// use calls every method with everything there is, and wants ErrCorrupt or
// values within their bounds.
func use(t testing.TB, x *Index) {
	t.Helper()
	check := func(what string, err error) bool {
		if err != nil && !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
		return err == nil
	}
	n := min(x.Len(), 1000)
	for i := range n {
		e, err := x.Entry(i)
		if !check("Entry", err) {
			continue
		}
		if i > 0 && (e.Parent >= i || len(e.Name) < 1) || e.Kind == Folder && (e.Count < 0 || e.First <= i || e.First+e.Count > x.Len()) {
			t.Errorf("entry %d = %+v", i, e)
		}
		if p, err := x.Path(i); check("Path", err) && len(p) > MaxPath {
			t.Errorf("a path of %d bytes", len(p))
		}
		if e.Kind == Folder {
			k, ok, err := x.Lookup(i, []byte("cats"))
			if check("Lookup", err) && ok && (k < e.First || k >= e.First+e.Count) {
				t.Errorf("Lookup in %d = %d", i, k)
			}
		}
		if e.Kind == File {
			_, _, err := x.FindHash(e.Hash)
			check("FindHash", err)
		}
	}
	for i := range min(x.Packs(), 1000) {
		if p, err := x.Pack(i); check("Pack", err) && p.FirstSample+p.Samples > x.Samples() {
			t.Errorf("pack %d = %+v", i, p)
		}
	}
	for _, i := range []int64{0, 1, 2, 3, 12, 13, 14, 62, 63, x.Samples() / 2, x.Samples() - 1} {
		if i < 0 || i >= x.Samples() {
			continue
		}
		fields, err := x.Sample(i, nil)
		if !check("Sample", err) {
			continue
		}
		for _, f := range fields {
			e, err := x.Entry(f.File)
			if err == nil && (e.Kind != File || f.Offset < 0 || f.Size < 0 || f.Offset+f.Size > e.Size) {
				t.Errorf("sample %d has %+v of a file of %d", i, f, e.Size)
			}
		}
	}
}

// resum makes the header's checksum fit, as an attacker would.
func resum(b []byte) {
	if len(b) >= headerSize {
		binary.LittleEndian.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], catalog.Castagnoli))
	}
}

// TestPromise12IndexEveryByte: an index cut at any length is refused; one
// flipped at any byte never passes Check, and does no harm when it is used
// nevertheless, whether or not the header's checksum was made to fit.
func TestPromise12IndexEveryByte(t *testing.T) {
	golden := build(t, pets())
	for n := range golden {
		if _, err := Open(golden[:n:n]); !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := Open(append(bytes.Clone(golden), 0)); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
	for at := range golden {
		for _, mask := range []byte{0x01, 0x80, 0xff} {
			b := bytes.Clone(golden)
			b[at] ^= mask
			if _, err := Open(b); at < headerSize && !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("byte %d of the header flipped: %v", at, err)
			}
			resum(b)
			x, err := Open(b)
			if err != nil {
				if !errors.Is(err, catalog.ErrCorrupt) {
					t.Fatalf("byte %d flipped: %v", at, err)
				}
				continue
			}
			if !bytes.Equal(b, golden) { // the checksum's own bytes were mended
				if err := x.Check(t.Context()); !errors.Is(err, catalog.ErrCorrupt) {
					t.Fatalf("byte %d flipped: Check = %v", at, err)
				}
			}
			use(t, x)
		}
	}
}

// TestPromise12IndexPacksTable: no byte of what names packs can change unnoticed,
// so that nobody takes a pack for one that the index does not name.
func TestPromise12IndexPacksTable(t *testing.T) {
	good := build(t, pets())
	named := func(b []byte) (ids []catalog.SetID, err error) {
		x, err := Open(b)
		if err == nil {
			err = x.CheckPacks()
		}
		for i := 0; err == nil && i < x.Packs(); i++ {
			var p Pack
			p, err = x.Pack(i)
			ids = append(ids, p.Set)
		}
		return ids, err
	}
	want, err := named(good)
	if err != nil || len(want) == 0 {
		t.Fatalf("%v, %v", want, err)
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= bit
			if got, err := named(b); err == nil && !slices.Equal(got, want) {
				t.Errorf("byte %d: it names %v, want %v", i, got, want)
			} else if err != nil && !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("byte %d: %v, want ErrCorrupt", i, err)
			}
		}
	}
}

// TestPromise12IndexCrafted sets words to what an attacker would try.
func TestPromise12IndexCrafted(t *testing.T) {
	golden := build(t, pets())
	rng := rand.New(rand.NewPCG(5, 6))
	values := []uint64{0, 1, 2, 3, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<40 + 1, 1<<48 - 1, 1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1<<64 - 8}
	for range 20_000 {
		b := bytes.Clone(golden)
		for range 1 + rng.IntN(3) {
			at := rng.IntN(len(b)/4) * 4
			if rng.IntN(4) == 0 {
				at = 16 + rng.IntN(400/4)*4 // counts and sections
			}
			v := values[rng.IntN(len(values))] + uint64(rng.IntN(3))
			if rng.IntN(2) == 0 && at+8 <= len(b) {
				binary.LittleEndian.PutUint64(b[at:], v)
			} else {
				binary.LittleEndian.PutUint32(b[at:], uint32(v))
			}
		}
		resum(b)
		if x, err := Open(b); err == nil {
			use(t, x)
		} else if !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatal(err)
		}
	}
}

func FuzzOpenIndex(f *testing.F) {
	golden := build(f, pets())
	f.Add(golden)
	f.Add(golden[:headerSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		resum(b)
		x, err := Open(b)
		if err != nil {
			if !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		use(t, x)
	})
}
