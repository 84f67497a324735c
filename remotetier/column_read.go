package remotetier

import (
	"context"
	"errors"
	"fmt"
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
	r       counted
	head    *Header
	seed    uint32
	content catalog.Digest

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
	c := &column{r: counted{r, read}}
	c.mu.pages = map[int]*sumsPage{}
	if err := c.start(ctx, key); err != nil {
		_ = r.Close()
		return nil, err
	}
	return c, nil
}

func (c *column) start(ctx context.Context, key Key) (err error) {
	c.head, c.seed, c.content, err = readEnds(ctx, c.r, aligned(pageSize))
	if err == nil && c.head.Key != key {
		err = fmt.Errorf("column of %v: %w", c.head.Key, errForeign)
	}
	return err
}

func (c *column) close() error { return c.r.Close() }

// counted counts the bytes read of a column, into a counter that may be shared.
type counted struct {
	ColumnReader
	read *atomic.Int64
}

func (r counted) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := r.ColumnReader.ReadAt(ctx, p, off)
	r.read.Add(int64(n))
	return n, err
}

// readData fills p with the column's data from off, a block's beginning, up to
// a block's end or the column's, and checks it.
func (c *column) readData(ctx context.Context, p []byte, off int64) error {
	if err := readFull(ctx, c.r, p, pageSize+off); err != nil {
		return err
	}
	for b := off / stripe.Block; len(p) > 0; b++ {
		n := min(stripe.Block, len(p))
		want, err := c.sum(ctx, b)
		if err != nil {
			return err
		}
		if got := catalog.Sum32C(p[:n]); got != want {
			return badBlock(b, got, want)
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
		var err error
		if page, err = readSums(ctx, c.r, aligned(pageSize), c.head, c.seed, n); err != nil {
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
