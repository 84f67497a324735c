package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/ckptd/ckptd/catalog"
)

// Get fills p with the bytes of an object from off. One that ends earlier is
// io.ErrUnexpectedEOF. A read that is cut goes on where it was.
func (b *Bucket) Get(ctx context.Context, name string, p []byte, off int64) error {
	n, _, err := b.Read(ctx, name, "", p, off)
	if err == nil && n < len(p) {
		err = fmt.Errorf("read %s at %d: %w", name, off+int64(n), io.ErrUnexpectedEOF)
	}
	return err
}

// errCut: a body ended before its length.
var errCut = errors.New("the answer was cut")

// Read reads the bytes of an object from off into p, as many as there are. With
// an ETag (empty: any) an object that has another is ErrTaken. A body that is
// cut is asked for again from where it was cut, and what it says of the object
// is held against what the first one said.
func (b *Bucket) Read(ctx context.Context, name, etag string, p []byte, off int64) (n int, info Info, err error) {
	if len(p) == 0 {
		return 0, info, nil
	}
	err = b.do(ctx, int64(len(p)), func(ctx context.Context) error {
		var o minio.GetObjectOptions
		if etag != "" {
			_ = o.SetMatchETag(etag) // fails for an empty one only
		}
		if err := o.SetRange(off+int64(n), off+int64(len(p))-1); err != nil {
			return fmt.Errorf("%w: %w", catalog.ErrInvalid, err)
		}
		body, now, _, err := b.core.GetObject(ctx, b.spec.Bucket, b.key(name), o)
		if err != nil {
			return err
		}
		defer body.Close()
		if n > 0 && now.ETag != info.ETag {
			return fmt.Errorf("%w: it was replaced meanwhile", ErrTaken)
		}
		info = Info{Name: name, ETag: now.ETag, Modified: now.LastModified}
		got, err := io.ReadFull(body, p[n:])
		n += got
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if int64(got) == now.Size { // all there is
				return nil
			}
			err = errCut
		}
		return err
	})
	var e minio.ErrorResponse
	if errors.As(err, &e) && e.StatusCode == http.StatusRequestedRangeNotSatisfiable { // it ends before, or is empty
		return n, info, nil
	}
	return n, info, b.fail("read", name, err)
}
