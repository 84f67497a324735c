package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ckptd/ckptd/catalog"
)

// scratchSize is what a Writer copies at a time when its destination is not
// memory, in bytes.
const scratchSize = 1 << 20

// Writer fills one aggregate pack, record by record. It is for one goroutine.
type Writer struct {
	dst     io.WriterAt // nil: mem
	mem     []byte
	scratch []byte
	limit   int64 // bytes the whole pack may have
	at      int64 // where the next record begins
	bytes   int64 // sum of the records' sizes
	records []Record
	sum     Sum
	done    bool
}

// NewWriter fills a pack of at most limit bytes, written to dst from offset 0
// upwards.
func NewWriter(dst io.WriterAt, limit int64) (*Writer, error) {
	return newWriter(&Writer{dst: dst, scratch: make([]byte, scratchSize), limit: limit})
}

// NewBuffer fills a pack in memory: at most len(mem) bytes. Files are read
// straight into it.
func NewBuffer(mem []byte) (*Writer, error) {
	return newWriter(&Writer{mem: mem, limit: int64(len(mem))})
}

func newWriter(w *Writer) (*Writer, error) {
	if w.limit < headerSize+footerSize || w.limit > MaxSize {
		return nil, fmt.Errorf("pack of up to %d bytes: %w: want %d to %d", w.limit, catalog.ErrInvalid, headerSize+footerSize, int64(MaxSize))
	}
	return w, w.begin()
}

func (w *Writer) begin() error {
	var h [headerSize]byte
	copy(h[:], headerMagic)
	binary.LittleEndian.PutUint32(h[8:], version)
	binary.LittleEndian.PutUint32(h[12:], Align)
	binary.LittleEndian.PutUint32(h[60:], crc32.Checksum(h[:60], catalog.Castagnoli))
	w.at = headerSize
	return w.put(h[:], 0)
}

// Reset begins another pack in the same destination.
func (w *Writer) Reset() error {
	w.records, w.bytes, w.done = w.records[:0], 0, false
	return w.begin()
}

// Len is the number of records, Bytes the sum of their sizes.
func (w *Writer) Len() int     { return len(w.records) }
func (w *Writer) Bytes() int64 { return w.bytes }

// Size is what the pack would have if it were finished now, in bytes.
func (w *Writer) Size() int64 { return sizeOf(w.at, len(w.records)) }

func sizeOf(at int64, records int) int64 { return at + recordSize*int64(records) + footerSize }

// Fits reports whether a record of size bytes has room.
func (w *Writer) Fits(size int64) bool {
	return size >= 0 && size <= w.limit && len(w.records) < MaxRecords &&
		sizeOf(w.at+aligned(size), len(w.records)+1) <= w.limit
}

// ErrChanged is in the error of Append when the source gave more or fewer
// bytes than were announced: the file changed while it was read.
var ErrChanged = errors.New("it changed while it was read")

// Append copies the size bytes of r into the pack. A record of 0 bytes takes
// no room and gets no row in the table.
func (w *Writer) Append(r io.Reader, size int64, stamp uint64) (Record, error) {
	if w.done || !w.Fits(size) {
		return Record{}, fmt.Errorf("append record of %d bytes to a pack: %w: it has %d of %d", size, catalog.ErrNoSpace, w.Size(), w.limit)
	}
	w.sum.Reset()
	for at := w.at; w.sum.size < size; {
		p := w.span(at, size-w.sum.size)
		n, err := io.ReadFull(r, p)
		if err != nil {
			return Record{}, appendErr(w.sum.size+int64(n), size, err)
		}
		_, _ = w.sum.Write(p) // never fails
		if err := w.put(p, at); err != nil {
			return Record{}, err
		}
		at += int64(n)
	}
	if err := atEnd(r); err != nil {
		return Record{}, appendErr(size, size, err)
	}
	rec := w.sum.Record()
	rec.Offset, rec.Stamp = w.at, stamp
	if size == 0 {
		rec.Offset = 0
		return rec, nil
	}
	end := w.at + size
	var pad [Align]byte
	if err := w.put(pad[:aligned(end)-end], end); err != nil {
		return Record{}, err
	}
	w.at, w.bytes, w.records = aligned(end), w.bytes+size, append(w.records, rec)
	return rec, nil
}

// Add copies p into the pack; rec is what a Sum says of it, with the stamp. It
// is for those who had to know the hash before.
func (w *Writer) Add(p []byte, rec Record) (Record, error) {
	size := int64(len(p))
	if rec.Size != size || size == 0 {
		return Record{}, fmt.Errorf("add record to a pack: %w: %d bytes, the record says %d", catalog.ErrInvalid, size, rec.Size)
	}
	if w.done || !w.Fits(size) {
		return Record{}, fmt.Errorf("add record of %d bytes to a pack: %w: it has %d of %d", size, catalog.ErrNoSpace, w.Size(), w.limit)
	}
	if err := w.put(p, w.at); err != nil {
		return Record{}, err
	}
	rec.Offset = w.at
	end := w.at + size
	var pad [Align]byte
	if err := w.put(pad[:aligned(end)-end], end); err != nil {
		return Record{}, err
	}
	w.at, w.bytes, w.records = aligned(end), w.bytes+size, append(w.records, rec)
	return rec, nil
}

// errMore is what atEnd says of a source that goes on.
var errMore = errors.New("more bytes than announced")

// atEnd reads one byte more than there should be.
func atEnd(r io.Reader) error {
	var b [1]byte
	switch _, err := io.ReadFull(r, b[:]); {
	case err == nil:
		return errMore
	case err == io.EOF:
		return nil
	default:
		return err
	}
}

func appendErr(got, want int64, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF || err == errMore {
		return fmt.Errorf("append record of %d bytes: %w (%d bytes, then %w): %w", want, ErrChanged, got, err, catalog.ErrConflict)
	}
	return fmt.Errorf("append record of %d bytes: after %d: %w", want, got, err)
}

// span is where the next n bytes, or the first of them, are to be read into.
func (w *Writer) span(at, n int64) []byte {
	n = min(n, scratchSize) // so that what is summed is in the cache
	if w.dst == nil {
		return w.mem[at : at+n]
	}
	return w.scratch[:n]
}

// put writes p at off; what span gave is there already when the pack is memory.
func (w *Writer) put(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if w.dst == nil {
		if &p[0] != &w.mem[off] {
			copy(w.mem[off:], p)
		}
		return nil
	}
	if _, err := w.dst.WriteAt(p, off); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	return nil
}

// Finish writes the table and the footer, and gives the size of the pack. The
// records are in the order they were appended in.
func (w *Writer) Finish() (size int64, records []Record, err error) {
	if w.done {
		return 0, nil, fmt.Errorf("finish pack: %w: it is finished", catalog.ErrInvalid)
	}
	if len(w.records) == 0 {
		return 0, nil, fmt.Errorf("finish pack: %w: it has no record", catalog.ErrInvalid)
	}
	at, crc := w.at, uint32(0)
	chunk := make([]byte, 0, min(scratchSize, recordSize*len(w.records)))
	flush := func() error {
		crc = crc32.Update(crc, catalog.Castagnoli, chunk)
		err := w.put(chunk, at)
		at += int64(len(chunk))
		chunk = chunk[:0]
		return err
	}
	for _, r := range w.records {
		if len(chunk) == cap(chunk) {
			if err := flush(); err != nil {
				return 0, nil, err
			}
		}
		chunk = appendRecord(chunk, r)
	}
	if err := flush(); err != nil {
		return 0, nil, err
	}
	var f [footerSize]byte
	copy(f[:], footerMagic)
	binary.LittleEndian.PutUint32(f[8:], version)
	binary.LittleEndian.PutUint64(f[16:], uint64(w.at))
	binary.LittleEndian.PutUint64(f[24:], uint64(len(w.records)))
	binary.LittleEndian.PutUint64(f[32:], uint64(w.bytes))
	binary.LittleEndian.PutUint32(f[56:], crc)
	binary.LittleEndian.PutUint32(f[60:], crc32.Checksum(f[:60], catalog.Castagnoli))
	if err := w.put(f[:], at); err != nil {
		return 0, nil, err
	}
	w.done = true
	return at + footerSize, w.records, nil
}

func appendRecord(b []byte, r Record) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Size))
	b = binary.LittleEndian.AppendUint32(b, r.CRC)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, r.Stamp)
	return append(b, r.Hash[:]...)
}
