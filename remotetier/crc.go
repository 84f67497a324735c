package remotetier

import (
	"fmt"
	"hash/crc32"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// crcOf sums bytes that are in the cache; others are for catalog.Sum32C.
func crcOf(p []byte) uint32 { return crc32.Checksum(p, catalog.Castagnoli) }

// A CRC is linear over GF(2): the CRC of A followed by B is that of B xor a
// linear map of that of A, which depends on the length of B alone. shift holds
// that map for B of one block, as four tables of a byte each. So the CRCs of a
// column's 64 KiB blocks also give those of the seal's 1 MiB blocks, and each
// byte is summed once.
var shift = func() (t [4][256]uint32) {
	var m matrix // of one zero bit: the register moves down, the bit that falls out adds the polynomial
	m[0] = crc32.Castagnoli
	for i := 1; i < 32; i++ {
		m[i] = 1 << (i - 1)
	}
	for n := 1; n < stripe.Block*8; n *= 2 {
		m = m.squared()
	}
	for i := range t {
		for b := range t[i] {
			t[i][b] = m.times(uint32(b) << (8 * i))
		}
	}
	return t
}()

// matrix is a linear map of 32-bit registers: row i is the image of bit i.
type matrix [32]uint32

func (m *matrix) times(v uint32) (r uint32) {
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			r ^= m[i]
		}
	}
	return r
}

func (m *matrix) squared() (r matrix) {
	for i := range r {
		r[i] = m.times(m[i])
	}
	return r
}

// combine gives the CRC of A followed by B, where B is one block long.
func combine(a, b uint32) uint32 {
	return shift[0][a&0xff] ^ shift[1][a>>8&0xff] ^ shift[2][a>>16&0xff] ^ shift[3][a>>24] ^ b
}

// zeros is the CRC of a block of zeros.
var zeros = crcOf(make([]byte, stripe.Block))

// xorSum gives the CRC of the xor of blocks of n bytes, of which it is given
// the CRCs. A CRC is a linear map of the bytes xor that of as many zeros, and
// of an even number of blocks those constants cancel out.
func xorSum(crcs []uint32, n int) (crc uint32) {
	for _, c := range crcs {
		crc ^= c
	}
	if len(crcs)%2 == 0 {
		if n == stripe.Block {
			return crc ^ zeros
		}
		return crc ^ crcOf(make([]byte, n))
	}
	return crc
}

// sealCheck follows a blob from its first byte to its last and compares it
// with its seal. A nil sealCheck accepts everything.
type sealCheck struct {
	seal *catalog.Seal
	off  int64  // bytes seen
	crc  uint32 // of the seal's block that off is in
}

// block takes the CRC of the next stripe.Block bytes, at an offset that is a
// multiple of that.
func (c *sealCheck) block(crc uint32) error {
	if c == nil {
		return nil
	}
	c.crc = combine(c.crc, crc)
	c.off += stripe.Block
	return c.end()
}

// bytes takes the next bytes themselves.
func (c *sealCheck) bytes(p []byte) error {
	for c != nil && len(p) > 0 {
		n := min(int64(len(p)), catalog.BlockSize-c.off%catalog.BlockSize)
		c.crc = crc32.Update(c.crc, catalog.Castagnoli, p[:n])
		c.off += n
		if err := c.end(); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (c *sealCheck) end() error {
	if c.off%catalog.BlockSize != 0 && c.off != c.seal.Size {
		return nil
	}
	i := int((c.off - 1) / catalog.BlockSize)
	if c.crc != c.seal.CRCs[i] {
		return fmt.Errorf("%s block %d: %w: CRC32C %08x, its seal says %08x", c.seal.Name, i, catalog.ErrCorrupt, c.crc, c.seal.CRCs[i])
	}
	c.crc = 0
	return nil
}
