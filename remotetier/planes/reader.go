package planes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ckptd/ckptd/catalog"
)

// Reader reads a blob from its container. Its methods may be called
// concurrently; it keeps nothing open.
type Reader struct {
	r io.ReaderAt
	x *index

	last struct { // the frame decoded last that was not wanted whole
		sync.Mutex
		frame int
		raw   []byte
	}
}

var _ io.ReaderAt = (*Reader)(nil)

// Is says whether a blob that begins with b is a container.
func Is(b []byte) bool { return len(b) >= len(Magic) && string(b[:len(Magic)]) == Magic }

// contextReader is an io.ReaderAt that can give up.
type contextReader interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// Open reads the index of a container of size bytes. Errors of r are passed on;
// what the container does is ErrCorrupt. A r that has ReadAtContext is read with that.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*Reader, error) {
	fr := &Reader{r: r}
	fr.last.frame = -1
	header := make([]byte, headSize)
	if size < 2*headSize {
		return nil, corrupt("no container: it has %d bytes", size)
	}
	if err := fr.read(ctx, header, 0); err != nil {
		return nil, err
	}
	raw, err := parseHeader(header, size)
	if err != nil {
		return nil, err
	}
	// The length is the file's own: it has as many bytes, or the read fails first.
	n := tailSize(raw)
	tail, err := fr.tail(ctx, size-n, n)
	if err != nil {
		return nil, err
	}
	fr.x, err = parseTail(tail, header, raw, size)
	return fr, err
}

// tail reads n bytes at off, in growing parts: a claim costs no more memory
// than the bytes that were there.
func (r *Reader) tail(ctx context.Context, off, n int64) ([]byte, error) {
	var b []byte
	for have := int64(0); have < n; have = int64(len(b)) {
		grown := make([]byte, min(n, max(1<<20, 2*have)))
		copy(grown, b)
		if err := r.read(ctx, grown[have:], off+have); err != nil {
			return nil, err
		}
		b = grown
	}
	return b, nil
}

// read fills p with the container's bytes from off.
func (r *Reader) read(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var n int
	var err error
	if c, ok := r.r.(contextReader); ok {
		n, err = c.ReadAtContext(ctx, p, off)
	} else {
		n, err = r.r.ReadAt(p, off)
	}
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return corrupt("it ends %d bytes early", len(p)-n)
	}
	return err
}

// Size is the raw bytes of the blob.
func (r *Reader) Size() int64 { return r.x.raw }

// Root is the root of the blob's seal, as the container has it: compare it with
// the one the catalog knows.
func (r *Reader) Root() catalog.Digest { return r.x.seal().Root() }

// ReadAt reads raw bytes, checked, without a context.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext fills p with the blob's raw bytes from off, checked; at its end
// it returns io.EOF, as io.ReaderAt does. With another error it returns 0, and
// p holds nothing of worth.
func (r *Reader) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read planes at %d: %w", off, catalog.ErrInvalid)
	}
	n := int(min(int64(len(p)), max(0, r.x.raw-off)))
	for done := 0; done < n; {
		at := off + int64(done)
		i, skip := int(at/Size), int(at%Size)
		take := min(n-done, r.x.rawSize(i)-skip)
		if err := r.part(ctx, p[done:done+take], i, skip); err != nil {
			return 0, fmt.Errorf("read frame %d: %w", i, err)
		}
		done += take
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// part gives bytes of frame i from skip on. A frame wanted whole is decoded
// into place; another is kept, as its neighbours may be wanted next.
func (r *Reader) part(ctx context.Context, p []byte, i, skip int) error {
	if len(p) == r.x.rawSize(i) {
		return r.frame(ctx, p, i)
	}
	if r.kept(p, i, skip) {
		return nil
	}
	raw := make([]byte, r.x.rawSize(i))
	if err := r.frame(ctx, raw, i); err != nil {
		return err
	}
	copy(p, raw[skip:])
	r.last.Lock()
	defer r.last.Unlock()
	r.last.frame, r.last.raw = i, raw
	return nil
}

func (r *Reader) kept(p []byte, i, skip int) bool {
	r.last.Lock()
	defer r.last.Unlock()
	if r.last.frame != i {
		return false
	}
	copy(p, r.last.raw[skip:])
	return true
}

// scratch has room for a frame, stored and grouped.
type scratch struct{ stored, tmp [Size + 1]byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// frame reads, checks and decodes frame i into raw, and checks that.
func (r *Reader) frame(ctx context.Context, raw []byte, i int) error {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	stored := s.stored[:r.x.sizes[i]]
	if err := r.read(ctx, stored, r.x.starts[i]); err != nil {
		return err
	}
	if got := catalog.Sum32C(stored); got != r.x.sums[i] {
		return corrupt("CRC32C %08x, want %08x", got, r.x.sums[i])
	}
	if err := decode(raw, stored, s.tmp[:len(raw)]); err != nil {
		return corrupt("%v", err)
	}
	for at, block := 0, i*blocksEach; at < len(raw); at, block = at+catalog.BlockSize, block+1 {
		if got := catalog.Sum32C(raw[at:min(at+catalog.BlockSize, len(raw))]); got != r.x.blocks[block] {
			return corrupt("block %d: CRC32C %08x, want %08x", block, got, r.x.blocks[block])
		}
	}
	return nil
}

// Verify decodes and checks every frame.
func (r *Reader) Verify(ctx context.Context) error {
	raw := make([]byte, min(Size, r.x.raw))
	for i := range r.x.sizes {
		if err := r.frame(ctx, raw[:r.x.rawSize(i)], i); err != nil {
			return fmt.Errorf("verify frame %d: %w", i, err)
		}
	}
	return nil
}
