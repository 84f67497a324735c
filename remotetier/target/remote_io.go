package target

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// remoteWriter is a column being written on a far target.
type remoteWriter struct {
	r         *Remote
	key       remotetier.Key
	id        uint64
	size, off int64
	done      bool
}

// maxPiece bounds the bytes of one exchange, so that a slow one does not meet
// its time limit.
const maxPiece = 16 << 20

// Write returns when the target has the bytes on its disk, if not yet durable.
func (w *remoteWriter) Write(ctx context.Context, p []byte) error {
	if w.done {
		return fmt.Errorf("write %v: %w", w.key, fs.ErrClosed)
	}
	if len(p)%pageSize != 0 || int64(len(p)) > w.size-w.off {
		return fmt.Errorf("write %v: %w: %d bytes at %d of %d", w.key, catalog.ErrInvalid, len(p), w.off, w.size)
	}
	for len(p) > 0 {
		n := min(len(p), maxPiece)
		op := &fabric.Op{Request: newMessage(opWrite).putU64(w.id).putU64(uint64(w.off)).b, Out: p[:n]}
		if err := w.r.do(ctx, op); err != nil {
			return err
		}
		w.off += int64(n)
		p = p[n:]
	}
	return ctx.Err()
}

// Commit returns when the column is durable and visible.
func (w *remoteWriter) Commit(ctx context.Context) error {
	if w.done {
		return fmt.Errorf("commit %v: %w", w.key, fs.ErrClosed)
	}
	if err := w.r.do(ctx, &fabric.Op{Request: newMessage(opCommit).putU64(w.id).b}); err != nil {
		return err
	}
	w.done = true
	return nil
}

// abortTime bounds Close, which has no context.
const abortTime = 2 * time.Second

// Close gives up what was not committed. A target that cannot be told now is
// told later, or finds out by itself.
func (w *remoteWriter) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	ctx, cancel := context.WithTimeout(context.Background(), abortTime)
	defer cancel()
	err := w.r.do(ctx, &fabric.Op{Request: newMessage(opAbort).putU64(w.id).b})
	if err != nil && maybeDone(err) {
		w.r.orphan(w.id)
	}
	return err
}

// remoteReader reads a column of a far target. It holds nothing there.
type remoteReader struct {
	r     *Remote
	key   remotetier.Key
	size  int64
	ends  [2 * pageSize]byte // the first and the last page
	known bool               // ends holds them
}

func (r *remoteReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read %v at %d: %w", r.key, off, catalog.ErrInvalid)
	}
	want := int(min(int64(len(p)), max(0, r.size-off)))
	n := r.fromEnds(p[:want], off)
	for n < want {
		part := p[n:min(want, n+maxPiece)]
		op := &fabric.Op{Request: newMessage(opRead).putU64(uint64(off + int64(n))).putKey(r.key).b, In: part}
		if err := r.r.do(ctx, op); err != nil {
			return n, err
		}
		if n += op.N; op.N < len(part) {
			return n, fmt.Errorf("read %v: %w: it ends at %d of %d", r.key, catalog.ErrCorrupt, off+int64(n), r.size)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fromEnds answers from the pages that came with the size, where they hold
// all of p.
func (r *remoteReader) fromEnds(p []byte, off int64) int {
	end := off + int64(len(p))
	switch {
	case !r.known || len(p) == 0:
		return 0
	case end <= pageSize:
		return copy(p, r.ends[off:])
	case off >= r.size-pageSize:
		return copy(p, r.ends[pageSize+off-(r.size-pageSize):])
	}
	return 0
}

func (r *remoteReader) Size() int64  { return r.size }
func (r *remoteReader) Close() error { return nil }
