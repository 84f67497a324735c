package catalog

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

func TestSum32CIsCRC32C(t *testing.T) {
	if got, want := Sum32C([]byte("123456789")), uint32(0xe3069283); got != want { // the check value of the catalogue of CRCs
		t.Errorf("Sum32C(123456789) = %08x, want %08x", got, want)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 40<<10)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for range 2000 {
		lo := rng.IntN(len(p))
		q := p[lo : lo+rng.IntN(len(p)-lo)]
		if got, want := Sum32C(q), crc32.Checksum(q, Castagnoli); got != want {
			t.Fatalf("Sum32C of %d bytes at %d = %08x, want %08x", len(q), lo, got, want)
		}
	}
}

// Bytes that are in no cache, as those of an arena that a rank has just filled.
func BenchmarkSum32C(b *testing.B) {
	p := make([]byte, 256<<20)
	for i := range p {
		p[i] = byte(i * 7)
	}
	for name, sum := range map[string]func([]byte) uint32{
		"Sum32C":   Sum32C,
		"Checksum": func(p []byte) uint32 { return crc32.Checksum(p, Castagnoli) },
	} {
		b.Run(fmt.Sprint(name), func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				for i := 0; i < len(p); i += BlockSize {
					sum(p[i : i+BlockSize])
				}
			}
		})
	}
}
