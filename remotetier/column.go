package remotetier

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// The format of a column; FORMAT.md is the reference.
const (
	headerMagic   = "ckptCOLM"
	footerMagic   = "ckptCEND"
	formatVersion = 1
	pageSize      = 4096                 // of header, footer and each page of sums
	pageSums      = pageSize/4 - 2       // block sums in a page
	pageBody      = pageSize - 4         // what the page's own CRC covers
	headerFixed   = 48                   // bytes before the blob's name
	MaxBlobSize   = catalog.MaxShardSize // bytes
)

// Header is the first page of a column: what it is.
type Header struct {
	Key
	Layout  stripe.Layout
	Size    int64    // bytes of the blob
	Targets []string // where the columns went when they were written, by column
}

// ColumnData is the number of data bytes of the column.
func (h *Header) ColumnData() int64 { return h.Layout.ColumnSize(h.Size) }

// FileSize is the number of bytes of the whole column.
func (h *Header) FileSize() int64 { return fileSize(h.ColumnData()) }

func fileSize(data int64) int64 { return pageSize + data + pageSize*pages(data) + pageSize }

// pages is the number of pages of sums of a column with that much data.
func pages(data int64) int64 { return (stripe.Blocks(data) + pageSums - 1) / pageSums }

// seal writes the page's CRC, continued from seed, and returns it.
func sealPage(p []byte, seed uint32) uint32 {
	crc := crc32.Update(seed, catalog.Castagnoli, p[:pageBody])
	binary.LittleEndian.PutUint32(p[pageBody:], crc)
	return crc
}

func checkPage(p []byte, seed uint32) bool {
	return len(p) == pageSize && crc32.Update(seed, catalog.Castagnoli, p[:pageBody]) == binary.LittleEndian.Uint32(p[pageBody:])
}

// check refuses what the format has no room for.
func (h *Header) check() error {
	if err := h.Key.Check(); err != nil {
		return err
	}
	if err := h.Layout.Check(); err != nil {
		return err
	}
	if h.Size < 0 || h.Size > MaxBlobSize || h.Column >= h.Layout.Columns() || len(h.Targets) != h.Layout.Columns() {
		return fmt.Errorf("column %v: %w: size, column or targets out of range", h.Key, catalog.ErrInvalid)
	}
	for _, t := range h.Targets {
		if err := CheckTargetName(t); err != nil {
			return err
		}
	}
	return nil
}

// put encodes the header into p, one zeroed page, and returns its CRC, the
// seed of the other pages. The header must pass check.
func (h *Header) put(p []byte) (seed uint32) {
	le := binary.LittleEndian
	copy(p, headerMagic)
	le.PutUint32(p[8:], formatVersion)
	le.PutUint32(p[12:], stripe.Block)
	le.PutUint64(p[16:], uint64(h.Size))
	le.PutUint64(p[24:], h.Generation)
	le.PutUint32(p[32:], uint32(h.Layout.Unit))
	le.PutUint16(p[36:], uint16(h.Layout.K))
	le.PutUint16(p[38:], uint16(h.Layout.M))
	le.PutUint16(p[40:], uint16(h.Column))
	le.PutUint16(p[42:], uint16(len(h.Blob)))
	n := headerFixed + copy(p[headerFixed:], h.Blob)
	for _, t := range h.Targets {
		p[n] = byte(len(t))
		n += 1 + copy(p[n+1:], t)
	}
	return sealPage(p, 0)
}

// Page encodes the header, which must be right, as the first page of its column.
func (h *Header) Page() []byte {
	p := aligned(pageSize)
	h.put(p)
	return p
}

// ParseHeader decodes the first page of a column; anything but what put
// writes is ErrCorrupt.
func ParseHeader(p []byte) (*Header, error) {
	h, _, err := parseHeader(p)
	return h, err
}

func parseHeader(p []byte) (h *Header, seed uint32, err error) {
	bad := func(why string) (*Header, uint32, error) {
		return nil, 0, fmt.Errorf("column header: %w: %s", catalog.ErrCorrupt, why)
	}
	le := binary.LittleEndian
	if len(p) != pageSize || string(p[:8]) != headerMagic {
		return bad("no column")
	}
	if !checkPage(p, 0) {
		return bad("checksum mismatch")
	}
	if v := le.Uint32(p[8:]); v != formatVersion {
		return bad(fmt.Sprintf("version %d is unknown", v))
	}
	if le.Uint32(p[12:]) != stripe.Block || le.Uint32(p[44:]) != 0 {
		return bad("unknown block size or flags")
	}
	size, nameLen := le.Uint64(p[16:]), int(le.Uint16(p[42:]))
	if size > MaxBlobSize || nameLen > MaxBlobName {
		return bad("a length is out of range")
	}
	h = &Header{
		Key:    Key{Blob: string(p[headerFixed : headerFixed+nameLen]), Generation: le.Uint64(p[24:]), Column: int(le.Uint16(p[40:]))},
		Layout: stripe.Layout{K: int(le.Uint16(p[36:])), M: int(le.Uint16(p[38:])), Unit: int64(le.Uint32(p[32:]))},
		Size:   int64(size),
	}
	if err := h.Layout.Check(); err != nil {
		return bad(err.Error())
	}
	rest := p[headerFixed+nameLen : pageBody]
	for range h.Layout.Columns() {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return bad("the targets do not fit")
		}
		end := 1 + int(rest[0])
		h.Targets = append(h.Targets, string(rest[1:end]))
		rest = rest[end:]
	}
	for _, b := range rest {
		if b != 0 {
			return bad("something follows the targets")
		}
	}
	if err := h.check(); err != nil {
		return bad(err.Error())
	}
	return h, le.Uint32(p[pageBody:]), nil
}

// putSums encodes page number n of the column's sums into p, one zeroed page.
func putSums(p []byte, seed uint32, n int, sums []uint32) {
	for i, s := range sums {
		binary.LittleEndian.PutUint32(p[4*i:], s)
	}
	binary.LittleEndian.PutUint32(p[4*pageSums:], uint32(n))
	sealPage(p, seed)
}

// parseSums decodes page number n, which holds count sums.
func parseSums(p []byte, seed uint32, n, count int) (*sumsPage, error) {
	if !checkPage(p, seed) || binary.LittleEndian.Uint32(p[4*pageSums:]) != uint32(n) {
		return nil, fmt.Errorf("page %d of the column's sums: %w: checksum mismatch", n, catalog.ErrCorrupt)
	}
	s := new(sumsPage)
	for i := range s {
		s[i] = binary.LittleEndian.Uint32(p[4*i:])
		if i >= count && s[i] != 0 {
			return nil, fmt.Errorf("page %d of the column's sums: %w: something follows the last sum", n, catalog.ErrCorrupt)
		}
	}
	return s, nil
}

// sumsPage holds the CRCs of pageSums blocks.
type sumsPage [pageSums]uint32

// putFooter encodes the last page of a column into p, one zeroed page.
func putFooter(p []byte, seed uint32, data int64, content catalog.Digest) {
	copy(p, footerMagic)
	binary.LittleEndian.PutUint32(p[8:], formatVersion)
	binary.LittleEndian.PutUint64(p[16:], uint64(data))
	copy(p[24:56], content[:])
	sealPage(p, seed)
}

// parseFooter decodes the last page of a column with that much data.
func parseFooter(p []byte, seed uint32, data int64) (content catalog.Digest, err error) {
	bad := func(why string) (catalog.Digest, error) {
		return catalog.Digest{}, fmt.Errorf("column footer: %w: %s", catalog.ErrCorrupt, why)
	}
	if len(p) != pageSize || string(p[:8]) != footerMagic {
		return bad("no footer")
	}
	if !checkPage(p, seed) {
		return bad("checksum mismatch")
	}
	le := binary.LittleEndian
	if le.Uint32(p[8:]) != formatVersion || le.Uint32(p[12:]) != 0 || le.Uint64(p[16:]) != uint64(data) {
		return bad("unknown version or flags, or another size")
	}
	for _, b := range p[56:pageBody] {
		if b != 0 {
			return bad("something follows the content")
		}
	}
	return catalog.Digest(p[24:56]), nil
}
