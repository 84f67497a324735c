package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

func sideName(key remotetier.Key) string {
	folder, _ := plain.Split(key.Blob)
	return plain.Join(folder, plain.SidecarName(key))
}

func wholeName(key remotetier.Key) string {
	folder, _ := plain.Split(key.Blob)
	return plain.Join(folder, plain.WholeName(key))
}

// headBytes is how much of a sidecar is read at once: all of it for blobs of
// up to 900 MB.
const headBytes = 64 << 10

// sidecar reads the beginning of a committed column's sidecar.
func (t *Target) sidecar(ctx context.Context, key remotetier.Key) (s *plain.Sidecar, head []byte, etag string, err error) {
	head = make([]byte, headBytes)
	n, info, err := t.b.Read(ctx, sideName(key), "", head, 0)
	if err != nil {
		return nil, nil, "", err
	}
	s, err = plain.ParseSidecar(key, head[:n])
	return s, head[:n], info.ETag, err
}

// located is the object that has a column's data.
type located struct{ object, etag string }

// locate finds the data: under the name that only it has, or under the blob's
// if the object there says that it is this one. fs.ErrNotExist if it is at
// neither.
func (t *Target) locate(ctx context.Context, s *plain.Sidecar) (located, error) {
	folder, _ := plain.Split(s.Key.Blob)
	names := []string{plain.Join(folder, s.Data), s.Key.Blob}
	if s.Own { // where it was put
		names[0], names[1] = names[1], names[0]
	}
	for _, name := range names {
		info, err := t.b.Stat(ctx, name)
		switch {
		case missing(err):
		case err != nil:
			return located{}, err
		case info.Meta[metaData] != s.Data:
		case info.Size != s.Blob:
			return located{}, fmt.Errorf("%s: %w: %d bytes, want %d", name, catalog.ErrCorrupt, info.Size, s.Blob)
		default:
			return located{name, info.ETag}, nil
		}
	}
	return located{}, fs.ErrNotExist
}

// reader reads a column.
type reader struct {
	t    *Target
	key  remotetier.Key
	side *plain.Sidecar // nil: a whole column
	head []byte         // the beginning of the sidecar
	etag string         // of the sidecar
	size int64

	mu struct {
		sync.Mutex
		data located
	}
}

// Open reads a column. One whose data is gone, or another object's, is
// ErrCorrupt: it is there, and damaged.
func (t *Target) Open(ctx context.Context, key remotetier.Key) (remotetier.ColumnReader, error) {
	if err := errors.Join(ctx.Err(), key.Check()); err != nil {
		return nil, err
	}
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	r, err := t.openKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("open %v: %w", key, err)
	}
	return r, nil
}

// openTries is how often a column may be replaced under somebody who opens it.
const openTries = 4

func (t *Target) openKey(ctx context.Context, key remotetier.Key) (*reader, error) {
	for range openTries {
		r := &reader{t: t, key: key}
		var err error
		if r.side, r.head, r.etag, err = t.sidecar(ctx, key); missing(err) {
			info, err := t.b.Stat(ctx, wholeName(key))
			if err != nil {
				return nil, err
			}
			r.side, r.size, r.mu.data = nil, info.Size, located{wholeName(key), info.ETag}
			return r, nil
		} else if err != nil {
			return nil, err
		}
		r.size = r.side.Size()
		if r.mu.data, err = t.locate(ctx, r.side); err == nil {
			return r, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		now, _, _, err := t.sidecar(ctx, key)
		if err == nil && now.Data == r.side.Data {
			break
		}
	}
	return nil, fmt.Errorf("%w: its data is not there", catalog.ErrCorrupt)
}

func (r *reader) Size() int64  { return r.size }
func (r *reader) Close() error { return nil }

func (r *reader) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("read %v at %d: %w", r.key, off, catalog.ErrInvalid)
	case r.side != nil:
		n, err = r.side.ReadAt(ctx, p, off, r.readSide, r.readData)
	default:
		want := max(0, min(int64(len(p)), r.size-off))
		n, err = r.readData(ctx, p[:want], off)
		if err == nil && int64(n) < want {
			err = fmt.Errorf("read %v: %w: it ends at %d, want %d", r.key, catalog.ErrCorrupt, off+int64(n), off+want)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *reader) readSide(ctx context.Context, p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(r.head)) {
		n = copy(p, r.head[off:])
	}
	if n == len(p) {
		return n, nil
	}
	got, _, err := r.t.b.Read(ctx, sideName(r.key), r.etag, p[n:], off+int64(n))
	return n + got, r.moved(err)
}

// readData reads of the object that was found when the column was opened; one
// that got the blob's name since is looked for once more.
func (r *reader) readData(ctx context.Context, p []byte, off int64) (int, error) {
	if r.side != nil {
		p = p[:max(0, min(int64(len(p)), r.side.Blob-off))]
	}
	r.mu.Lock()
	at := r.mu.data
	r.mu.Unlock()
	n, _, err := r.t.b.Read(ctx, at.object, at.etag, p, off)
	if r.side != nil && (missing(err) || errors.Is(err, bucket.ErrTaken)) {
		if at, err = r.t.locate(ctx, r.side); err == nil {
			r.mu.Lock()
			r.mu.data = at
			r.mu.Unlock()
			n, _, err = r.t.b.Read(ctx, at.object, at.etag, p, off)
		}
	}
	return n, r.moved(err)
}

// moved: what was opened is not there any more, or is another.
func (r *reader) moved(err error) error {
	if errors.Is(err, bucket.ErrTaken) {
		return fmt.Errorf("column %v: %w: it was replaced meanwhile: %w", r.key, fs.ErrNotExist, err)
	}
	return err
}
