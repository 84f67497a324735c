package target

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// What sums knows of FORMAT.md: a column's header, and its pages of sums.
const (
	headerMagic = "ckptCOLM"
	footerMagic = "ckptCEND"
	pageSums    = 1022
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sums checks a column while it is being received: the checksums that arrive
// behind the data are held against those of the data. So what is acknowledged
// is what the client has encoded, whatever lay between. Bytes that are no
// column are not checked. It keeps 4 bytes for each 64 KiB.
type sums struct {
	size int64 // of the file
	off  int64
	data int64 // of the column, bytes; -1: it is no column
	seed uint32
	crcs []uint32
	crc  uint32 // of the block being received
	err  error
}

// add takes the next bytes, whole pages of them.
func (s *sums) add(b []byte) {
	for len(b) > 0 && s.err == nil && s.data >= 0 {
		switch {
		case s.off == 0:
			s.header(b[:pageSize])
			b = s.next(b, pageSize)
		case s.off < pageSize+s.data:
			b = s.next(b, s.block(b))
		default:
			s.trailer(b[:pageSize])
			b = s.next(b, pageSize)
		}
	}
}

func (s *sums) next(b []byte, n int) []byte {
	s.off += int64(n)
	return b[n:]
}

func (s *sums) bad(what string, at int64) {
	s.err = fmt.Errorf("%w: %s %d does not fit the bytes received", catalog.ErrCorrupt, what, at)
}

// header reads the geometry of a column from its first page.
func (s *sums) header(p []byte) {
	if string(p[:8]) != headerMagic {
		s.data = -1
		return
	}
	s.seed = crc32.Checksum(p[:pageSize-4], castagnoli)
	if s.seed != binary.LittleEndian.Uint32(p[pageSize-4:]) {
		s.bad("header", 0)
		return
	}
	if binary.LittleEndian.Uint32(p[8:]) != 1 { // newer than this target
		s.data = -1
		return
	}
	l := stripe.Layout{
		K: int(binary.LittleEndian.Uint16(p[36:])), M: int(binary.LittleEndian.Uint16(p[38:])), Unit: int64(binary.LittleEndian.Uint32(p[32:])),
	}
	size := binary.LittleEndian.Uint64(p[16:])
	if l.Check() != nil || size > 1<<42 {
		s.bad("geometry of the header", 0)
		return
	}
	s.data = l.ColumnSize(int64(size))
	blocks := stripe.Blocks(s.data)
	if want := pageSize + s.data + (blocks+pageSums-1)/pageSums*pageSize + pageSize; want != s.size {
		s.bad("size in the header", want)
		return
	}
	s.crcs = make([]uint32, 0, blocks)
}

// block sums what of b belongs to the block under way.
func (s *sums) block(b []byte) int {
	at := s.off - pageSize
	end := min(at/stripe.Block*stripe.Block+stripe.Block, s.data)
	n := min(int64(len(b)), end-at)
	if s.crc == 0 { // a block's beginning, or as good as that
		s.crc = catalog.Sum32C(b[:n])
	} else {
		s.crc = crc32.Update(s.crc, castagnoli, b[:n])
	}
	if at+n == end {
		s.crcs = append(s.crcs, s.crc)
		s.crc = 0
	}
	return int(n)
}

// trailer holds a page of sums against those of the data, or checks the footer.
func (s *sums) trailer(p []byte) {
	page := (s.off - pageSize - s.data) / pageSize
	if crc32.Update(s.seed, castagnoli, p[:pageSize-4]) != binary.LittleEndian.Uint32(p[pageSize-4:]) {
		s.bad("page of sums", page)
		return
	}
	if s.off == s.size-pageSize {
		if string(p[:8]) != footerMagic || binary.LittleEndian.Uint64(p[16:]) != uint64(s.data) {
			s.bad("footer", page)
		}
		return
	}
	if binary.LittleEndian.Uint32(p[pageSize-8:]) != uint32(page) {
		s.bad("number of the page of sums", page)
		return
	}
	for i, crc := range s.crcs[page*pageSums : min((page+1)*pageSums, int64(len(s.crcs)))] {
		if binary.LittleEndian.Uint32(p[4*i:]) != crc {
			s.bad("CRC32C of block", page*pageSums+int64(i))
			return
		}
	}
}

// check says whether all that was received fits.
func (s *sums) check() error { return s.err }
