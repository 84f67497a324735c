package remotetier_test

import (
	"hash/crc32"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

func crcOf(p []byte) uint32 { return crc32.Checksum(p, catalog.Castagnoli) }

func TestCombineIsTheCRCOfBothParts(t *testing.T) {
	b := random(stripe.Block*20, 1)
	for cut := 0; cut <= len(b)-stripe.Block; cut += 30_011 {
		whole := b[:cut+stripe.Block]
		if got, want := remotetier.Combine(crcOf(b[:cut]), crcOf(whole[cut:])), crcOf(whole); got != want {
			t.Errorf("combined at %d: %08x, want %08x", cut, got, want)
		}
	}
}

func BenchmarkCombine(b *testing.B) {
	crc := uint32(1)
	for b.Loop() {
		crc = remotetier.Combine(crc, 7)
	}
}
