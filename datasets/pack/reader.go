package pack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"

	"github.com/ckptd/ckptd/catalog"
)

const (
	headerMagic = "ckptPACK"
	footerMagic = "ckptPEND"
	version     = 1
)

// Reader reads the table of an aggregate pack. It holds no part of it, and is
// safe for concurrent use if its source is.
type Reader struct {
	src   io.ReaderAt
	table int64 // where it begins
	n     int
	bytes int64
}

// Open checks the header, the footer and the whole table of the pack of size
// bytes; not the records' bytes, which Read and Check do.
func Open(src io.ReaderAt, size int64) (*Reader, error) {
	if size < headerSize+Align+recordSize+footerSize || size > MaxSize {
		return nil, corrupt("%d bytes are no aggregate", size)
	}
	var h, f [64]byte
	if err := readAt(src, h[:], 0); err != nil {
		return nil, err
	}
	if err := readAt(src, f[:], size-footerSize); err != nil {
		return nil, err
	}
	if err := checkHeader(h[:]); err != nil {
		return nil, err
	}
	r := &Reader{src: src}
	crc, err := r.parseFooter(f[:], size)
	if err != nil {
		return nil, err
	}
	return r, r.checkTable(crc)
}

func checkHeader(h []byte) error {
	le := binary.LittleEndian
	switch {
	case string(h[:8]) != headerMagic:
		return corrupt("no aggregate pack")
	case crc32.Checksum(h[:60], catalog.Castagnoli) != le.Uint32(h[60:]):
		return corrupt("the header's checksum differs")
	case le.Uint32(h[8:]) != version:
		return corrupt("version %d is unknown", le.Uint32(h[8:]))
	case le.Uint32(h[12:]) != Align:
		return corrupt("alignment %d is unknown", le.Uint32(h[12:]))
	case !allZero(h[16:60]):
		return corrupt("the header has something in what is to be zero")
	}
	return nil
}

func (r *Reader) parseFooter(f []byte, size int64) (crc uint32, err error) {
	le := binary.LittleEndian
	table, n, bytes := le.Uint64(f[16:]), le.Uint64(f[24:]), le.Uint64(f[32:])
	switch {
	case string(f[:8]) != footerMagic:
		return 0, corrupt("no footer: it was cut short")
	case crc32.Checksum(f[:60], catalog.Castagnoli) != le.Uint32(f[60:]):
		return 0, corrupt("the footer's checksum differs")
	case le.Uint32(f[8:]) != version:
		return 0, corrupt("version %d is unknown", le.Uint32(f[8:]))
	case le.Uint32(f[12:]) != 0 || !allZero(f[40:56]):
		return 0, corrupt("the footer has something in what is to be zero")
	case n < 1 || n > MaxRecords || table > uint64(size) || bytes > table:
		return 0, corrupt("%d records, table at %d of %d", n, table, size)
	case sizeOf(int64(table), int(n)) != size:
		return 0, corrupt("%d records and a table at %d do not make %d bytes", n, table, size)
	}
	r.table, r.n, r.bytes = int64(table), int(n), int64(bytes)
	return le.Uint32(f[56:]), nil
}

// checkTable holds the table against its checksum and its own rules.
func (r *Reader) checkTable(want uint32) error {
	at, sum, crc := int64(headerSize), int64(0), uint32(0)
	for chunk, err := range r.chunks() {
		if err != nil {
			return err
		}
		crc = crc32.Update(crc, catalog.Castagnoli, chunk)
		for ; len(chunk) > 0; chunk = chunk[recordSize:] {
			rec, err := parseRecord(chunk)
			if err != nil {
				return err
			}
			if rec.Offset != at || rec.Size > r.table-at {
				return corrupt("a record of %d bytes at %d, want one at %d within %d", rec.Size, rec.Offset, at, r.table)
			}
			at += aligned(rec.Size)
			sum += rec.Size
		}
	}
	switch {
	case crc != want:
		return corrupt("the table's checksum differs")
	case at != r.table || sum != r.bytes:
		return corrupt("records of %d bytes up to %d, the footer says %d up to %d", sum, at, r.bytes, r.table)
	}
	return nil
}

// chunks gives the table, up to 64 KiB at a time.
func (r *Reader) chunks() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		buf := make([]byte, min(64<<10, recordSize*r.n))
		for at, left := r.table, recordSize*r.n; left > 0; {
			chunk := buf[:min(left, len(buf))]
			if err := readAt(r.src, chunk, at); err != nil {
				yield(nil, err)
				return
			}
			at, left = at+int64(len(chunk)), left-len(chunk)
			if !yield(chunk, nil) {
				return
			}
		}
	}
}

func parseRecord(b []byte) (Record, error) {
	le := binary.LittleEndian
	off, size := le.Uint64(b), le.Uint64(b[8:])
	if off > MaxSize || size < 1 || size > MaxSize || le.Uint32(b[20:]) != 0 {
		return Record{}, corrupt("a record of %d bytes at %d", size, off)
	}
	return Record{Offset: int64(off), Size: int64(size), CRC: le.Uint32(b[16:]), Stamp: le.Uint64(b[24:]), Hash: catalog.Digest(b[32:64])}, nil
}

// Len is the number of records, Bytes the sum of their sizes.
func (r *Reader) Len() int     { return r.n }
func (r *Reader) Bytes() int64 { return r.bytes }

// Records gives the table in order.
func (r *Reader) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for chunk, err := range r.chunks() {
			if err != nil {
				yield(Record{}, err)
				return
			}
			for ; len(chunk) > 0; chunk = chunk[recordSize:] {
				if rec, err := parseRecord(chunk); !yield(rec, err) || err != nil {
					return
				}
			}
		}
	}
}

// Read gives the bytes of rec to w, and then says whether they are the ones
// that were packed.
func (r *Reader) Read(rec Record, w io.Writer) error {
	if rec.Offset < headerSize || rec.Size < 0 || rec.Offset > r.table-rec.Size {
		return fmt.Errorf("read record of %d bytes at %d: %w: the pack has records from %d to %d", rec.Size, rec.Offset, catalog.ErrInvalid, headerSize, r.table)
	}
	var sum Sum
	n, err := io.Copy(io.MultiWriter(&sum, w), io.NewSectionReader(r.src, rec.Offset, rec.Size))
	if err != nil {
		return fmt.Errorf("read record at %d: %w", rec.Offset, err)
	}
	if got := sum.Record(); n != rec.Size || got.CRC != rec.CRC || got.Hash != rec.Hash {
		return corrupt("the record at %d: CRC32C %08x, want %08x", rec.Offset, got.CRC, rec.CRC)
	}
	return nil
}

// Check reads every byte of the pack.
func (r *Reader) Check(ctx context.Context) error {
	for rec, err := range r.Records() {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if err := r.Read(rec, io.Discard); err != nil {
			return err
		}
		var pad [Align]byte
		end := rec.Offset + rec.Size
		p := pad[:aligned(end)-end]
		if err := readAt(r.src, p, end); err != nil {
			return err
		}
		if !allZero(p) {
			return corrupt("something stands behind the record at %d", rec.Offset)
		}
	}
	return nil
}

func readAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return corrupt("it ends at %d", off+int64(n))
	}
	return fmt.Errorf("read pack at %d: %w", off, err)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
