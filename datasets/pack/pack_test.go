package pack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// build makes a pack of files with the given sizes and gives it with its files.
func build(t testing.TB, sizes ...int) (pack []byte, files [][]byte, records []Record) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	mem := make([]byte, 1<<20)
	w, err := NewBuffer(mem)
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range sizes {
		b := make([]byte, size)
		for k := range b {
			b[k] = byte(rng.Uint32())
		}
		if _, err := w.Append(bytes.NewReader(b), int64(size), Stamp(fmt.Sprintf("f%d", i), int64(size), time.Unix(1700000000, int64(i)))); err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	want := w.Size()
	size, records, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if size != want {
		t.Errorf("the pack has %d bytes, Size said %d", size, want)
	}
	return mem[:size], files, records
}

// memory is an io.WriterAt.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func TestWriteAndRead(t *testing.T) {
	b, files, records := build(t, 1, 63, 64, 65, 4096, 70_000)
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Len(), len(files); got != want {
		t.Fatalf("Len = %d, want %d", got, want)
	}
	i := 0
	for rec, err := range r.Records() {
		if err != nil {
			t.Fatal(err)
		}
		if rec != records[i] {
			t.Errorf("record %d = %+v, want %+v", i, rec, records[i])
		}
		if rec.Offset%Align != 0 {
			t.Errorf("record %d begins at %d", i, rec.Offset)
		}
		var got bytes.Buffer
		if err := r.Read(rec, &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), files[i]) {
			t.Errorf("record %d has other bytes", i)
		}
		i++
	}
	if err := r.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	t.Run("ToAFile", func(t *testing.T) {
		var m memory
		w, err := NewWriter(&m, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range files {
			if _, err := w.Append(bytes.NewReader(f), int64(len(f)), records[i].Stamp); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.b, b) {
			t.Error("the same records give other bytes in a file than in memory")
		}
	})
}

// TestPromise3AppendThatFails: a source that ends early, goes on, or breaks
// leaves nothing behind.
func TestPromise3AppendThatFails(t *testing.T) {
	want, _, _ := build(t, 100, 200)
	rng := rand.New(rand.NewPCG(1, 2))
	mem := bytes.Repeat([]byte{0xAA}, 1<<20) // used before
	w, err := NewBuffer(mem)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk on fire")
	for i, size := range []int{100, 200} {
		junk := strings.Repeat("x", 1000)
		if _, err := w.Append(strings.NewReader(junk), 999, 0); !errors.Is(err, ErrChanged) || !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("a longer source: %v", err)
		}
		if _, err := w.Append(strings.NewReader(junk), 1001, 0); !errors.Is(err, ErrChanged) {
			t.Errorf("a shorter source: %v", err)
		}
		if _, err := w.Append(io.MultiReader(strings.NewReader(junk), &failing{broken}), 2000, 0); !errors.Is(err, broken) {
			t.Errorf("a broken source: %v", err)
		}
		if _, err := w.Append(strings.NewReader(""), 1<<20, 0); !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("too large: %v", err)
		}
		if rec, err := w.Append(strings.NewReader(""), 0, 0); err != nil || rec.Offset != 0 || rec.Hash.IsZero() {
			t.Errorf("an empty file: %+v, %v", rec, err)
		}
		b := make([]byte, size)
		for k := range b {
			b[k] = byte(rng.Uint32())
		}
		if _, err := w.Append(bytes.NewReader(b), int64(size), Stamp(fmt.Sprintf("f%d", i), int64(size), time.Unix(1700000000, int64(i)))); err != nil {
			t.Fatal(err)
		}
	}
	size, _, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mem[:size], want) {
		t.Error("failed appends left a trace")
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestLimits(t *testing.T) {
	w, err := NewBuffer(make([]byte, headerSize+Align+recordSize+footerSize))
	if err != nil {
		t.Fatal(err)
	}
	if !w.Fits(Align) || w.Fits(Align+1) || w.Fits(-1) || w.Fits(1<<62) {
		t.Error("Fits")
	}
	if _, _, err := w.Finish(); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("an empty pack: %v", err)
	}
	if _, err := w.Append(strings.NewReader(strings.Repeat("x", Align)), Align, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(strings.NewReader(""), 0, 0); err == nil {
		t.Error("Append after Finish")
	}
	if _, err := NewBuffer(nil); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a buffer of no bytes: %v", err)
	}
}

func TestMeta(t *testing.T) {
	var s Sum
	_, _ = s.Write([]byte("some bytes"))
	want := s.Record()
	want.Stamp = 7
	raw, got, err := ParseMeta(RawMeta(want))
	if err != nil || !raw || got != want {
		t.Errorf("ParseMeta = %v, %+v, %v, want %+v", raw, got, err, want)
	}
	if raw, _, err := ParseMeta(AggregateMeta()); raw || err != nil {
		t.Errorf("aggregate: %v, %v", raw, err)
	}
	for key := range RawMeta(want) {
		m := RawMeta(want)
		m[key] = "?"
		if _, _, err := ParseMeta(m); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("bad %s: %v", key, err)
		}
	}
}
