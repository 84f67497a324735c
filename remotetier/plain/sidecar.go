package plain

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

const (
	magic    = "ckptSIDE"
	version  = 1
	page     = 4096     // bytes of the sidecar's own page, and of each of the column's
	body     = page - 4 // what the page's CRC covers
	fixed    = 40       // bytes before the names
	pageSums = page/4 - 2
	flagOwn  = 1

	// Head is how many bytes of a sidecar ParseSidecar wants.
	Head = 2 * page
	// MaxTag bounds Sidecar.Tag, in bytes.
	MaxTag = 512
)

// Sidecar is what the beginning of a sidecar says.
type Sidecar struct {
	Key  remotetier.Key
	Blob int64  // bytes of the blob, which is the data
	Data string // last part of the name that only this writing of the data has
	Own  bool   // the data has the blob's own name; Data only tells it from others
	Tag  string // what the store says of the data, if anything: an ETag
}

// dataSize is that of the column's data: the blob's bytes and zeros to a page.
func dataSize(blob int64) int64 { return (blob + page - 1) / page * page }

func sumPages(blob int64) int64 {
	return (stripe.Blocks(dataSize(blob)) + pageSums - 1) / pageSums
}

// FileSize is the number of bytes of the sidecar.
func (s *Sidecar) FileSize() int64 { return Head + page*sumPages(s.Blob) + page }

// Size is the number of bytes of the column.
func (s *Sidecar) Size() int64 { return s.FileSize() - page + dataSize(s.Blob) }

// encode writes the sidecar's own page.
func (s *Sidecar) encode() []byte {
	p := make([]byte, page)
	le := binary.LittleEndian
	copy(p, magic)
	le.PutUint32(p[8:], version)
	if s.Own {
		le.PutUint32(p[12:], flagOwn)
	}
	le.PutUint64(p[16:], uint64(s.Blob))
	le.PutUint64(p[24:], s.Key.Generation)
	le.PutUint16(p[32:], uint16(s.Key.Column))
	le.PutUint16(p[34:], uint16(len(s.Data)))
	le.PutUint16(p[36:], uint16(len(s.Tag)))
	n := fixed + copy(p[fixed:], s.Data)
	copy(p[n:], s.Tag)
	le.PutUint32(p[body:], crc32.Checksum(p[:body], catalog.Castagnoli))
	return p
}

// ParseSidecar reads the first Head bytes of the sidecar of a column, which
// must be that of key.
func ParseSidecar(key remotetier.Key, p []byte) (*Sidecar, error) {
	bad := func(why string) (*Sidecar, error) {
		return nil, fmt.Errorf("sidecar of %v: %w: %s", key, catalog.ErrCorrupt, why)
	}
	le := binary.LittleEndian
	if len(p) < Head || string(p[:8]) != magic {
		return bad("it is none, or was cut")
	}
	own := p[:page]
	if crc32.Checksum(own[:body], catalog.Castagnoli) != le.Uint32(own[body:]) {
		return bad("checksum mismatch")
	}
	if v := le.Uint32(own[8:]); v != version {
		return bad(fmt.Sprintf("version %d is unknown", v))
	}
	size, name, tag := le.Uint64(own[16:]), int(le.Uint16(own[34:])), int(le.Uint16(own[36:]))
	if size > remotetier.MaxBlobSize || name > 255 || tag > MaxTag || le.Uint16(own[38:]) != 0 || le.Uint32(own[12:])&^flagOwn != 0 {
		return bad("unknown flags, or a length is out of range")
	}
	s := &Sidecar{
		Key: key, Blob: int64(size), Own: le.Uint32(own[12:]) == flagOwn,
		Data: string(own[fixed : fixed+name]), Tag: string(own[fixed+name : fixed+name+tag]),
	}
	if !bytes.Equal(own[fixed+name+tag:body], make([]byte, body-fixed-name-tag)) {
		return bad("something follows the names")
	}
	_, base := Split(key.Blob)
	of, kind, ok := Parse(s.Data)
	if !ok || kind != DataKind || of != (remotetier.Key{Blob: base, Generation: key.Generation, Column: key.Column}) ||
		le.Uint64(own[24:]) != key.Generation || int(le.Uint16(own[32:])) != key.Column {
		return bad("it is of another column")
	}
	return s, nil
}

// ReadKey reads from the first Head bytes of a sidecar which column it is of.
func ReadKey(p []byte) (remotetier.Key, error) {
	if len(p) < Head {
		return remotetier.Key{}, fmt.Errorf("sidecar: %w: it was cut", catalog.ErrCorrupt)
	}
	h, err := remotetier.ParseHeader(p[page:Head])
	if err != nil {
		return remotetier.Key{}, err
	}
	return h.Key, nil
}

// ReadFunc reads as io.ReaderAt does, within a context.
type ReadFunc func(ctx context.Context, p []byte, off int64) (int, error)

// ReadAt reads the column, which is put together of its sidecar and its data,
// as io.ReaderAt does. The data is asked for in whole pages where p is.
func (s *Sidecar) ReadAt(ctx context.Context, p []byte, off int64, side, data ReadFunc) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %v at %d: %w", s.Key, off, catalog.ErrInvalid)
	}
	trailer, n := page+dataSize(s.Blob), 0
	for n < len(p) && off < s.Size() {
		var got int
		var err error
		rest := p[n:]
		switch {
		case off < page: // the header
			rest = rest[:min(int64(len(rest)), page-off)]
			got, err = full(ctx, side, rest, page+off, int64(len(rest)))
		case off < trailer:
			rest = rest[:min(int64(len(rest)), trailer-off)]
			blob := max(0, min(int64(len(rest)), s.Blob-(off-page)))
			if blob > 0 {
				got, err = full(ctx, data, rest, off-page, blob)
			}
			if err == nil {
				clear(rest[got:])
				got = len(rest)
			}
		default: // sums and footer
			rest = rest[:min(int64(len(rest)), s.Size()-off)]
			got, err = full(ctx, side, rest, Head+off-trailer, int64(len(rest)))
		}
		n += got
		off += int64(got)
		if err != nil {
			return n, fmt.Errorf("read %v: %w", s.Key, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// full reads want bytes to the beginning of p, which may be longer: the end of
// what is read is right behind them then.
func full(ctx context.Context, read ReadFunc, p []byte, off, want int64) (int, error) {
	n, err := read(ctx, p, off)
	switch {
	case int64(n) == want && (err == nil || errors.Is(err, io.EOF)):
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		return min(n, int(want)), fmt.Errorf("%w: it ends at %d, want %d", catalog.ErrCorrupt, off+int64(n), off+want)
	}
	return min(n, int(want)), err
}
