package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// Checker is what a Target may be beside: one that can read a column where it
// lies and hold it against its own sums, so that none of its bytes travel.
type Checker interface {
	// CheckColumn reads all of a column. ErrCorrupt says that some part of it
	// does not fit its sums, and which; fs.ErrNotExist that it is not there.
	// Whether it is the column that its name says is for the caller to see:
	// the answer has the header's. pace (nil: none) is told how many bytes were
	// read, now and then, and waits as long as the caller wants it to.
	CheckColumn(ctx context.Context, key Key, pace Pace) (ColumnInfo, error)
}

// Pace waits until n more bytes may be read or written.
type Pace func(ctx context.Context, n int64) error

// ColumnInfo is what a column says of itself: its header, and from its footer
// the BLAKE3 of the blob.
type ColumnInfo struct {
	Header
	Content catalog.Digest
}

// CheckPiece is how many bytes of a column's data are checked in one go,
// where nothing else is asked for: whole blocks.
const CheckPiece = 256 * stripe.Block

// CheckTarget checks a column of any target: where it lies if the target is a
// Checker, and otherwise by reading it, a piece of at most len(buf) bytes at a
// time. buf is page-aligned and holds a block or more.
func CheckTarget(ctx context.Context, t Target, key Key, buf []byte, pace Pace) (ColumnInfo, error) {
	if c, ok := t.(Checker); ok {
		return c.CheckColumn(ctx, key, pace)
	}
	r, err := t.Open(ctx, key)
	if err != nil {
		return ColumnInfo{}, err
	}
	defer r.Close()
	return CheckReader(ctx, r, buf, pace)
}

// CheckReader checks a whole column by way of buf, which is page-aligned and
// holds a block or more.
func CheckReader(ctx context.Context, r ColumnReader, buf []byte, pace Pace) (ColumnInfo, error) {
	return CheckPieces(ctx, pace, func(off, n int64) (ColumnInfo, error) { return CheckRange(ctx, r, off, n, buf) })
}

// CheckPieces checks a column a piece at a time, each by a call of check,
// which does what CheckRange does.
func CheckPieces(ctx context.Context, pace Pace, check func(off, n int64) (ColumnInfo, error)) (ColumnInfo, error) {
	var info ColumnInfo
	for off := int64(0); off == 0 || off < info.ColumnData(); off += CheckPiece {
		got, err := check(off, CheckPiece)
		if err != nil {
			return ColumnInfo{}, err
		}
		if off > 0 && (got.Key != info.Key || got.Content != info.Content || got.Size != info.Size || got.Layout != info.Layout) {
			return ColumnInfo{}, fmt.Errorf("check %v: %w: it was replaced meanwhile", info.Key, catalog.ErrConflict)
		}
		info = got
		if pace == nil {
			continue
		}
		if err := pace(ctx, 3*pageSize+min(CheckPiece, info.ColumnData()-off)); err != nil {
			return ColumnInfo{}, err
		}
	}
	return info, nil
}

// CheckRange checks what a column says of itself, its size, and the blocks of
// its data from off, where a block begins, for n bytes or to its end. buf is
// page-aligned and holds a block or more.
func CheckRange(ctx context.Context, r ColumnReader, off, n int64, buf []byte) (ColumnInfo, error) {
	if off < 0 || off%stripe.Block != 0 || n < 0 || len(buf) < stripe.Block {
		return ColumnInfo{}, fmt.Errorf("check of %d bytes at %d: %w", n, off, catalog.ErrInvalid)
	}
	h, seed, content, err := readEnds(ctx, r, buf[:pageSize])
	if err != nil {
		return ColumnInfo{}, err
	}
	buf = buf[:len(buf)/stripe.Block*stripe.Block]
	data := h.ColumnData()
	var page *sumsPage
	for end := off + min(n, max(0, data-off)); off < end; {
		block := off / stripe.Block
		if number := block / pageSums; page == nil || block%pageSums == 0 {
			if page, err = readSums(ctx, r, buf[:pageSize], h, seed, int(number)); err != nil {
				return ColumnInfo{}, err
			}
		}
		left := (pageSums - block%pageSums) * stripe.Block // that the page has sums of
		part := buf[:min(int64(len(buf)), end-off, left)]
		if err := readFull(ctx, r, part, pageSize+off); err != nil {
			return ColumnInfo{}, err
		}
		off += int64(len(part))
		for ; len(part) > 0; block++ {
			b := part[:min(stripe.Block, len(part))]
			if got, want := catalog.Sum32C(b), page[block%pageSums]; got != want {
				return ColumnInfo{}, badBlock(block, got, want)
			}
			part = part[len(b):]
		}
	}
	return ColumnInfo{Header: *h, Content: content}, nil
}

func badBlock(block int64, got, want uint32) error {
	return fmt.Errorf("block %d: %w: CRC32C %08x, want %08x", block, catalog.ErrCorrupt, got, want)
}

// readEnds reads a column's first and last page into page, one after the
// other, and checks them and the column's size.
func readEnds(ctx context.Context, r ColumnReader, page []byte) (h *Header, seed uint32, content catalog.Digest, err error) {
	if err = readFull(ctx, r, page, 0); err != nil {
		return nil, 0, content, err
	}
	if h, seed, err = parseHeader(page); err != nil {
		return nil, 0, content, err
	}
	if got, want := r.Size(), h.FileSize(); got != want {
		return nil, 0, content, fmt.Errorf("column of %d bytes: %w: want %d", got, catalog.ErrCorrupt, want)
	}
	if err = readFull(ctx, r, page, h.FileSize()-pageSize); err != nil {
		return nil, 0, content, err
	}
	content, err = parseFooter(page, seed, h.ColumnData())
	return h, seed, content, err
}

// readSums reads a page of sums by way of page.
func readSums(ctx context.Context, r ColumnReader, page []byte, h *Header, seed uint32, number int) (*sumsPage, error) {
	data := h.ColumnData()
	if err := readFull(ctx, r, page, pageSize+data+int64(number)*pageSize); err != nil {
		return nil, err
	}
	return parseSums(page, seed, number, int(min(pageSums, stripe.Blocks(data)-int64(number)*pageSums)))
}

// readFull reads exactly len(p) bytes; less is corruption.
func readFull(ctx context.Context, r ColumnReader, p []byte, off int64) error {
	n, err := r.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("column ends at %d: %w", off+int64(n), catalog.ErrCorrupt)
	}
	return err
}
