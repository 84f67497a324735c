package tarview

import (
	"encoding/binary"
	"time"
)

const block = 512 // bytes; everything in a tar is a multiple

// Member is one file of the tar.
type Member struct {
	Name  []byte // any bytes but NUL
	Size  int64
	Mode  uint32 // permission bits
	Mtime time.Time

	// Where its bytes are.
	File       int   // entry of the index
	Offset     int64 // within the file
	Pack       int   // of the index
	PackOffset int64
}

func padded(n int64) int64 { return (n + block - 1) &^ (block - 1) }

// headerSize is what comes before a member's bytes: one block, or three and
// more when the name is too long for it.
func (m *Member) headerSize() int64 {
	if len(m.Name) <= 100 {
		return block
	}
	return 2*block + padded(int64(len(m.Name))+1)
}

func (m *Member) span() int64 { return m.headerSize() + padded(m.Size) }

// appendHeader writes GNU headers: they hold names and numbers of any size, and
// bytes that are not UTF-8, and every reader of tars knows them.
func (m *Member) appendHeader(b []byte) []byte {
	if len(m.Name) > 100 {
		b = appendBlock(b, []byte("././@LongLink"), int64(len(m.Name))+1, 0, 0, 'L')
		b = append(b, m.Name...)
		b = append(b, make([]byte, padded(int64(len(m.Name))+1)-int64(len(m.Name)))...)
	}
	return appendBlock(b, m.Name[:min(100, len(m.Name))], m.Size, m.Mode, m.Mtime.Unix(), '0')
}

func appendBlock(b, name []byte, size int64, mode uint32, mtime int64, kind byte) []byte {
	var h [block]byte
	copy(h[:100], name)
	number(h[100:108], int64(mode&0o7777))
	number(h[108:116], 0)
	number(h[116:124], 0)
	number(h[124:136], size)
	number(h[136:148], mtime)
	h[156] = kind
	copy(h[257:265], "ustar  \x00")
	copy(h[148:156], "        ")
	var sum int64
	for _, c := range h {
		sum += int64(c)
	}
	number(h[148:155], sum) // six digits and a NUL, then the space that is there
	return append(b, h[:]...)
}

// number writes octal digits and a NUL, or, what they cannot hold, the bytes
// of a two's complement with the highest bit set.
func number(field []byte, n int64) {
	digits := len(field) - 1
	if n < 0 || n>>(3*digits) != 0 {
		fill := byte(0)
		if n < 0 {
			fill = 0xff
		}
		for i := range field {
			field[i] = fill
		}
		binary.BigEndian.PutUint64(field[len(field)-8:], uint64(n))
		field[0] |= 0x80
		return
	}
	for i := digits - 1; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
}
