package order

import (
	"encoding/binary"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
)

// context separates our keys from every other use of BLAKE3; another version
// of the order has another context.
const context = "ckptd 2026-11-24 datasets/order v1"

// Key is what an order is drawn from: words 0 to 7 for samples or slices, 8 to
// 15 for samples within a block.
type Key [16]uint64

// NewKey derives the key of an epoch of a version.
func NewKey(version catalog.Digest, seed, epoch uint64) Key {
	var material [48]byte
	copy(material[:], version[:])
	binary.LittleEndian.PutUint64(material[32:], seed)
	binary.LittleEndian.PutUint64(material[40:], epoch)
	var out [128]byte
	blake3.DeriveKey(context, material[:], out[:])
	var k Key
	for i := range k {
		k[i] = binary.LittleEndian.Uint64(out[8*i:])
	}
	return k
}
