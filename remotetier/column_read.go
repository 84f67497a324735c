package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// errForeign: the column is a good one, but not of the blob, generation or
// layout wanted. It counts as missing.
var errForeign = errors.New("belongs to something else")

// column is one opened column. Its reads are checked.
type column struct {
	r       ColumnReader
	head    *Header
	seed    uint32
	content catalog.Digest
	read    *atomic.Int64 // counts bytes; may be shared

	mu struct {
		sync.Mutex
		pages map[int]*sumsPage
		order []int // of arrival
	}
}

// maxPages bounds the pages of sums kept for a column: 4 KiB for 64 MiB each.
const maxPages = 32

// openColumn opens a column and checks its first and last page and its size.
func openColumn(ctx context.Context, t Target, key Key, read *atomic.Int64) (*column, error) {
	r, err := t.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	c := &column{r: r, read: read}
	c.mu.pages = map[int]*sumsPage{}
	if err := c.start(ctx, key); err != nil {
		_ = r.Close()
		return nil, err
	}
	return c, nil
}

func (c *column) start(ctx context.Context, key Key) error {
	page := aligned(pageSize)
	if err := c.fill(ctx, page, 0); err != nil {
		return err
	}
	var err error
	if c.head, c.seed, err = parseHeader(page); err != nil {
		return err
	}
	if c.head.Key != key {
		return fmt.Errorf("column of %v: %w", c.head.Key, errForeign)
	}
	if got, want := c.r.Size(), c.head.FileSize(); got != want {
		return fmt.Errorf("column of %d bytes: %w: want %d", got, catalog.ErrCorrupt, want)
	}
	if err := c.fill(ctx, page, c.head.FileSize()-pageSize); err != nil {
		return err
	}
	c.content, err = parseFooter(page, c.seed, c.head.ColumnData())
	return err
}

func (c *column) close() error { return c.r.Close() }

// fill reads exactly len(p) bytes; less is corruption.
func (c *column) fill(ctx context.Context, p []byte, off int64) error {
	n, err := c.r.ReadAt(ctx, p, off)
	c.read.Add(int64(n))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("column ends at %d: %w", off+int64(n), catalog.ErrCorrupt)
	}
	return err
}

// readData fills p with the column's data from off, a block's beginning, up to
// a block's end or the column's, and checks it.
func (c *column) readData(ctx context.Context, p []byte, off int64) error {
	if err := c.fill(ctx, p, pageSize+off); err != nil {
		return err
	}
	for b := off / stripe.Block; len(p) > 0; b++ {
		n := min(stripe.Block, len(p))
		want, err := c.sum(ctx, b)
		if err != nil {
			return err
		}
		if got := catalog.Sum32C(p[:n]); got != want {
			return fmt.Errorf("block %d: %w: CRC32C %08x, want %08x", b, catalog.ErrCorrupt, got, want)
		}
		p = p[n:]
	}
	return nil
}

// sum gives the CRC of a block, reading its page if need be.
func (c *column) sum(ctx context.Context, block int64) (uint32, error) {
	n := int(block / pageSums)
	c.mu.Lock()
	page := c.mu.pages[n]
	c.mu.Unlock()
	if page == nil {
		data := c.head.ColumnData()
		buf := aligned(pageSize)
		if err := c.fill(ctx, buf, pageSize+data+int64(n)*pageSize); err != nil {
			return 0, err
		}
		var err error
		if page, err = parseSums(buf, c.seed, n, int(min(pageSums, stripe.Blocks(data)-int64(n)*pageSums))); err != nil {
			return 0, err
		}
		c.keep(n, page)
	}
	return page[block%pageSums], nil
}

func (c *column) keep(n int, page *sumsPage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.pages[n] != nil {
		return
	}
	if len(c.mu.order) == maxPages {
		delete(c.mu.pages, c.mu.order[0])
		c.mu.order = c.mu.order[1:]
	}
	c.mu.pages[n] = page
	c.mu.order = append(c.mu.order, n)
}

// matches reports whether the column belongs to the place.
func (c *column) matches(p *catalog.Place, l stripe.Layout) error {
	if c.head.Layout != l || c.head.Size != p.Size {
		return fmt.Errorf("column of %d bytes as %v: %w", c.head.Size, c.head.Layout, errForeign)
	}
	if !p.Content.IsZero() && c.content != p.Content {
		return fmt.Errorf("column of content %v: %w", c.content, errForeign)
	}
	return nil
}

// gone reports whether err says that the column is not there (any more), as
// opposed to: cannot be reached now, or is damaged.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errForeign) }
