package shardfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/ckptd/ckptd/catalog"
)

// bufSize is the unit of copies, in bytes; it is a seal's block.
const bufSize = catalog.BlockSize

// Encode writes a whole shard file. next gives the data of tensor i of
// h.Tensors, called once for each in turn; a reader that has a Close method is
// closed. One that gives more or fewer bytes than its tensor takes is
// ErrInvalid, and what was written to w is then useless.
func Encode(w io.Writer, h *Header, next func(i int) (io.Reader, error)) error {
	if _, err := w.Write(h.Bytes()); err != nil {
		return fmt.Errorf("write shard header: %w", err)
	}
	buf := make([]byte, min(bufSize, max(h.DataSize, 1)))
	for i := range h.Tensors {
		if err := encodeTensor(w, &h.Tensors[i], i, next, buf); err != nil {
			return fmt.Errorf("write tensor %q: %w", h.Tensors[i].Name, err)
		}
	}
	return nil
}

func encodeTensor(w io.Writer, t *catalog.Tensor, i int, next func(i int) (io.Reader, error), buf []byte) (err error) {
	r, err := next(i)
	if err != nil {
		return err
	}
	if c, ok := r.(io.Closer); ok {
		defer func() { err = errors.Join(err, c.Close()) }()
	}
	for left := t.Size; left > 0; {
		n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: its data ends %d bytes early", catalog.ErrInvalid, left-int64(n))
		} else if err != nil {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	// One byte more: to meet the end, where a reader that checks a sum says
	// whether it was right, and to notice data that does not end.
	switch n, err := io.ReadFull(r, buf[:1]); {
	case n > 0:
		return fmt.Errorf("%w: its data is longer than %d bytes", catalog.ErrInvalid, t.Size)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// Reader reads the tensors of a shard file. Its methods may be called
// concurrently if those of the file may. It checks the file's format; that the
// data is what was written is for Verify, or for whoever reads through the seal.
type Reader struct {
	r io.ReaderAt
	h *Header
}

// NewReader reads the header of a shard file of size bytes.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, h: h}, nil
}

// Header is the file's header.
func (r *Reader) Header() *Header { return r.h }

// Tensors lists the tensors in the order of their data. The caller must not change them.
func (r *Reader) Tensors() []catalog.Tensor { return r.h.Tensors }

// Tensor finds a tensor; a missing one is fs.ErrNotExist.
func (r *Reader) Tensor(name string) (catalog.Tensor, error) {
	t, ok := r.h.Tensor(name)
	if !ok {
		return t, fmt.Errorf("tensor %q: %w", name, fs.ErrNotExist)
	}
	return t, nil
}

// ReadTensor reads the whole of a tensor into p, which must have its size.
func (r *Reader) ReadTensor(name string, p []byte) error {
	t, err := r.Tensor(name)
	if err != nil {
		return err
	}
	if int64(len(p)) != t.Size {
		return fmt.Errorf("tensor %q: %w: %d bytes of room for %d", name, catalog.ErrInvalid, len(p), t.Size)
	}
	if len(p) == 0 {
		return nil
	}
	if err := readFull(r.r, p, t.Offset); err != nil {
		return fmt.Errorf("tensor %q: %w", name, err)
	}
	return nil
}

// Section is a tensor's data; nil when there is no such tensor.
func (r *Reader) Section(name string) *io.SectionReader {
	t, ok := r.h.Tensor(name)
	if !ok {
		return nil
	}
	return io.NewSectionReader(r.r, t.Offset, t.Size)
}
