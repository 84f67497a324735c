// Package stripe is the pure arithmetic of the remote tier: where each byte of
// a blob lies in its columns, which ranges of which columns answer a read, and
// on which targets the columns go. It does no I/O and holds no bytes.
//
// A blob is cut into stripes of K units plus M parity units; column i is unit
// i of every stripe, one after the other. The whole of the geometry is fixed
// by (K, M, Unit, size of the blob); remotetier/FORMAT.md has it in prose.
//
//  1. Every byte of a blob has exactly one home: Locate and BlobOffset are
//     inverse to each other, and all columns have the same size.
//  2. With no column missing a Plan reads only the 64 KiB blocks that hold
//     wanted bytes; with columns missing, the same rows of K others.
//  3. Place, PlaceMore and ByFree are functions of their arguments alone, frozen
//     by test vectors: no seed, no clock, no library's hash that could change.
package stripe

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Limits and units of the format, in bytes where they have a unit.
const (
	MaxK       = 32
	MaxM       = 8
	Block      = 64 << 10 // what one CRC32C of a column covers; units are multiples of it
	Align      = 4 << 10  // columns are multiples of it, so that O_DIRECT fits
	MinUnit    = Block
	MaxUnit    = 16 << 20
	UnitSize   = 1 << 20 // the default unit
	MaxColumns = MaxK + MaxM
)

// Layout says how a blob is cut: K data units and M parity units a stripe. The
// zero Unit stands for UnitSize; see Norm.
type Layout struct {
	K, M int
	Unit int64 // bytes
}

// Parse reads "K+M", as in "4+2", with the default unit.
func Parse(s string) (Layout, error) {
	k, m, ok := strings.Cut(s, "+")
	l := Layout{Unit: UnitSize}
	var err1, err2 error
	l.K, err1 = strconv.Atoi(k)
	l.M, err2 = strconv.Atoi(m)
	if !ok || err1 != nil || err2 != nil || l.String() != s {
		return Layout{}, fmt.Errorf("layout %q: %w: want K+M, as 4+2", s, catalog.ErrInvalid)
	}
	return l, l.Check()
}

// String gives "K+M"; the unit is not part of it.
func (l Layout) String() string { return strconv.Itoa(l.K) + "+" + strconv.Itoa(l.M) }

// Norm fills in the default unit.
func (l Layout) Norm() Layout {
	if l.Unit == 0 {
		l.Unit = UnitSize
	}
	return l
}

// Check reports what is wrong with the layout, if anything.
func (l Layout) Check() error {
	switch {
	case l.K < 1 || l.K > MaxK:
		return fmt.Errorf("layout %v: %w: K is 1 to %d", l, catalog.ErrInvalid, MaxK)
	case l.M < 0 || l.M > MaxM:
		return fmt.Errorf("layout %v: %w: M is 0 to %d", l, catalog.ErrInvalid, MaxM)
	case l.Unit < MinUnit || l.Unit > MaxUnit || l.Unit%Block != 0:
		return fmt.Errorf("layout %v: %w: unit of %d bytes; want a multiple of 64 KiB up to 16 MiB", l, catalog.ErrInvalid, l.Unit)
	}
	return nil
}

// Columns is the number of columns, data and parity.
func (l Layout) Columns() int { return l.K + l.M }

// Width is the number of blob bytes in a full stripe.
func (l Layout) Width() int64 { return int64(l.K) * l.Unit }

// Stripes is the number of stripes of a blob of size bytes.
func (l Layout) Stripes(size int64) int64 { return ceilDiv(size, l.Width()) }

// UnitOf is the size of the units of stripe s of a blob of size bytes: Unit
// for all but a short last stripe, whose bytes are dealt evenly to its K units
// in whole 4 KiB.
func (l Layout) UnitOf(size, s int64) int64 {
	rest := size - s*l.Width()
	if rest >= l.Width() {
		return l.Unit
	}
	return ceilDiv(ceilDiv(rest, int64(l.K)), Align) * Align
}

// ColumnSize is the data size of every column of a blob of size bytes, a
// multiple of Align.
func (l Layout) ColumnSize(size int64) int64 {
	full := size / l.Width()
	n := full * l.Unit
	if size%l.Width() != 0 {
		n += l.UnitOf(size, full)
	}
	return n
}

// Blocks is the number of CRC blocks of a column of n bytes.
func Blocks(n int64) int64 { return ceilDiv(n, Block) }

// Locate gives the data column and the offset in it of the byte at off of a
// blob of size bytes, 0 <= off < size.
func (l Layout) Locate(size, off int64) (column int, at int64) {
	s := off / l.Width()
	u := l.UnitOf(size, s)
	in := off - s*l.Width()
	return int(in / u), s*l.Unit + in%u
}

// BlobOffset gives the offset in the blob of the byte at offset at of a data
// column. In the padding of the last stripe the result is size or more.
func (l Layout) BlobOffset(size int64, column int, at int64) int64 {
	s := at / l.Unit
	return s*l.Width() + int64(column)*l.UnitOf(size, s) + at - s*l.Unit
}

func ceilDiv(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return a/b + 1
	}
	return (a + b - 1) / b
}
