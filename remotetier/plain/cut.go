package plain

import (
	"bytes"
	"fmt"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// Cut takes a column's bytes from the first to the last and says where each
// of them goes. It keeps what goes to the sidecar: 1/16384 of the column.
type Cut struct {
	key   remotetier.Key
	size  int64 // bytes of the column
	off   int64 // bytes taken
	plain bool
	blob  int64  // bytes of the blob, if plain
	side  []byte // header, sums and footer, if plain
}

// NewCut begins a column of size bytes.
func NewCut(key remotetier.Key, size int64) *Cut { return &Cut{key: key, size: size} }

// Next takes the next bytes, whole pages, and gives those of them that are
// data, and where they go in the file or object that holds it. Padding behind
// the blob's end is given too: DataSize says where to cut.
func (c *Cut) Next(p []byte) (data []byte, off int64, err error) {
	if len(p) == 0 || len(p)%page != 0 || int64(len(p)) > c.size-c.off {
		return nil, 0, fmt.Errorf("write %v: %w: %d bytes at %d of %d", c.key, catalog.ErrInvalid, len(p), c.off, c.size)
	}
	if c.off == 0 {
		c.begin(p[:page])
	}
	off = c.off
	c.off += int64(len(p))
	if !c.plain {
		return p, off, nil
	}
	from, to := page-off, page+dataSize(c.blob)-off // of the data, in p
	from, to = max(0, min(from, int64(len(p)))), max(0, min(to, int64(len(p))))
	c.side = append(append(c.side, p[:from]...), p[to:]...)
	data, off = p[from:to], off+from-page
	if pad := min(int64(len(data)), off+int64(len(data))-c.blob); pad > 0 && !bytes.Equal(data[int64(len(data))-pad:], make([]byte, pad)) {
		return nil, 0, fmt.Errorf("write %v: %w: something follows the blob's end", c.key, catalog.ErrInvalid)
	}
	return data, off, nil
}

// begin decides by the first page.
func (c *Cut) begin(first []byte) {
	h, err := remotetier.ParseHeader(first)
	if err != nil || h.Key != c.key || h.Layout.K != 1 || h.FileSize() != c.size {
		return
	}
	c.plain, c.blob = true, h.Size
}

// Begun reports whether Plain and DataSize are known: the first page came.
func (c *Cut) Begun() bool { return c.off > 0 }

// Plain says that the data is the blob, and the rest is for a sidecar.
func (c *Cut) Plain() bool { return c.plain }

// DataSize is the number of bytes of the data: of the blob, or of a column
// left whole.
func (c *Cut) DataSize() int64 {
	if c.plain {
		return c.blob
	}
	return c.size
}

// Complete reports what is missing, if anything.
func (c *Cut) Complete() error {
	if c.off != c.size {
		return fmt.Errorf("commit %v: %w: %d of %d bytes were written", c.key, catalog.ErrInvalid, c.off, c.size)
	}
	return nil
}

// Sidecar gives the bytes of the sidecar of a complete plain column, whose
// data is called so and tagged so; own: under the blob's own name.
func (c *Cut) Sidecar(data, tag string, own bool) []byte {
	s := Sidecar{Key: c.key, Blob: c.blob, Data: data, Own: own, Tag: tag}
	return append(s.encode(), c.side...)
}

// Rename gives a sidecar's bytes with another word on where the data is.
func Rename(side []byte, s Sidecar) []byte { return append(s.encode(), side[page:]...) }
