package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/zeebo/blake3"
)

// million adds n files of 10 KB in folders of 1,000, each a sample.
func million(t testing.TB, n int) *Builder {
	b := NewBuilder()
	for p := range n/25_000 + 1 {
		if _, err := b.AddPack(packOf(p, 256<<20, false)); err != nil {
			t.Fatal(err)
		}
	}
	path := []byte("train/class-0000/image-000000000000000000.jpg")
	for i := range n {
		path = fmt.Appendf(path[:0], "train/class-%04d/image-%018d.jpg", i/1000, i)
		var key [8]byte
		binary.LittleEndian.PutUint64(key[:], uint64(i))
		id, err := b.Add(Add{Path: string(path), Kind: File, Mode: 0o644, Mtime: time.Unix(1_700_000_000, 0), Size: 10_000,
			Pack: i / 25_000, Offset: int64(64 + i%25_000*10_048), CRC: uint32(i), Hash: blake3.Sum256(key[:])})
		if err == nil {
			err = b.Whole(id)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestPromise5MemoryOfABuilder: at most 200 bytes an entry, and 32 a field.
func TestPromise5MemoryOfABuilder(t *testing.T) {
	const n = 200_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b := million(t, n)
	if _, err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	got := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes an entry and its sample", got)
	if got > 232 {
		t.Errorf("%d bytes an entry and its sample, want at most 232", got)
	}
	runtime.KeepAlive(b)
}

func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		var out bytes.Buffer
		if _, err := million(b, 1_000_000).WriteTo(&out); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(out.Len())/1e6, "MB")
	}
}

func BenchmarkSample(b *testing.B) {
	var out bytes.Buffer
	if _, err := million(b, 1_000_000).WriteTo(&out); err != nil {
		b.Fatal(err)
	}
	x := open(b, out.Bytes())
	var fields []Field
	i := int64(0)
	for b.Loop() {
		i = (i + 611_953) % x.Samples()
		var err error
		if fields, err = x.Sample(i, fields[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	var out bytes.Buffer
	if _, err := million(b, 1_000_000).WriteTo(&out); err != nil {
		b.Fatal(err)
	}
	x := open(b, out.Bytes())
	for b.Loop() {
		if _, err := x.Find("train/class-0777/image-000000000000777123.jpg"); err != nil {
			b.Fatal(err)
		}
	}
}
