package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"os"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew: a new version of the format")

// TestGoldenPack holds the format fast.
func TestGoldenPack(t *testing.T) {
	const file = "testdata/small.pack"
	got, _, _ := build(t, 1, 64, 200)
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

// check opens and reads everything of b; it says whether b is a good pack.
func check(t testing.TB, b []byte) bool {
	t.Helper()
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err == nil {
		for rec, err := range r.Records() {
			if err != nil {
				t.Errorf("a record of a table that was checked: %v", err)
			} else if rec.Offset < headerSize || rec.Offset+rec.Size > int64(len(b)) {
				t.Errorf("record %+v of %d bytes", rec, len(b))
			}
		}
		err = r.Check(t.Context())
	}
	if err != nil && !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	return err == nil
}

// TestPromise12PackEveryByte: a pack cut at any length, or flipped at any
// byte, is refused.
func TestPromise12PackEveryByte(t *testing.T) {
	golden, _, _ := build(t, 1, 64, 200)
	if !check(t, golden) {
		t.Fatal("the golden pack is refused")
	}
	for n := range golden {
		if check(t, golden[:n]) {
			t.Errorf("cut at %d it was taken", n)
		}
	}
	for at := range golden {
		for _, mask := range []byte{0x01, 0x80, 0xff} {
			b := bytes.Clone(golden)
			b[at] ^= mask
			if check(t, b) {
				t.Errorf("byte %d xor %02x was taken", at, mask)
			}
		}
	}
}

// mend makes the checksums of header, table and footer fit, as an attacker would.
func mend(b []byte) {
	if len(b) < headerSize+footerSize {
		return
	}
	le, f := binary.LittleEndian, b[len(b)-footerSize:]
	le.PutUint32(b[60:], crc32.Checksum(b[:60], catalog.Castagnoli))
	if at := le.Uint64(f[16:]); at <= uint64(len(b)-footerSize) {
		le.PutUint32(f[56:], crc32.Checksum(b[at:len(b)-footerSize], catalog.Castagnoli))
	}
	le.PutUint32(f[60:], crc32.Checksum(f[:60], catalog.Castagnoli))
}

// TestPromise12PackMended: nor does it help to make the checksums fit; all
// but stamps and hashes is fixed by what else is there.
func TestPromise12PackMended(t *testing.T) {
	golden, _, records := build(t, 1, 64, 200)
	table := len(golden) - footerSize - recordSize*len(records)
	for at := range golden {
		for _, mask := range []byte{0x01, 0x80, 0xff} {
			b := bytes.Clone(golden)
			b[at] ^= mask
			mend(b)
			stamp := at >= table && at < len(golden)-footerSize && (at-table)%recordSize/8 == 3
			if check(t, b) && !stamp && !bytes.Equal(b, golden) {
				t.Errorf("byte %d xor %02x was taken", at, mask)
			}
		}
	}
}

// liar claims a size that it does not have.
type liar struct{ io.ReaderAt }

func TestShorterThanItSays(t *testing.T) {
	golden, _, _ := build(t, 1, 64, 200)
	if _, err := Open(liar{bytes.NewReader(golden)}, int64(len(golden))+64); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a source that is shorter than its size: %v", err)
	}
}

func FuzzOpenPack(f *testing.F) {
	golden, _, _ := build(f, 1, 64, 200)
	f.Add(golden)
	f.Fuzz(func(t *testing.T, b []byte) {
		mend(b)
		check(t, b)
	})
}
