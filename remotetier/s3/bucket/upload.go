package bucket

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/ckptd/ckptd/catalog"
)

const (
	// MinPart is the size of a part, in bytes, as long as an object fits into
	// MaxParts of them.
	MinPart  = 32 << 20
	MaxParts = 10_000 // of one object, as S3 has it

	abortTimeout = 30 * time.Second
)

// PartSize is how large the parts of an object of size bytes are: a multiple of 1 MiB.
func PartSize(size int64) int64 {
	const mib = 1 << 20
	return max(MinPart, ((size+MaxParts-1)/MaxParts+mib-1)/mib*mib)
}

// Upload is an object on its way in. Close without Complete leaves nothing of it.
type Upload struct {
	b    *Bucket
	name string
	size int64
	part int64
	id   string

	mu    sync.Mutex
	parts []minio.CompletePart // by number; empty ones are missing
	over  bool
}

// Upload begins an object of size bytes, at least one. Its metadata is fixed now.
func (b *Bucket) Upload(ctx context.Context, name string, size int64, meta map[string]string) (*Upload, error) {
	part := PartSize(size)
	if size < 1 {
		return nil, fmt.Errorf("upload %s: %w: %d bytes; Put writes an empty object", name, catalog.ErrInvalid, size)
	}
	var id string
	if err := again(ctx, func() (err error) { // a first one whose answer was lost is AbortUploads' to find
		id, err = b.core.NewMultipartUpload(ctx, b.spec.Bucket, b.key(name), minio.PutObjectOptions{UserMetadata: meta, ContentType: contentType})
		return err
	}); err != nil {
		return nil, b.fail("upload", name, err)
	}
	return &Upload{b: b, name: name, size: size, part: part, id: id, parts: make([]minio.CompletePart, (size+part-1)/part)}, nil
}

// PartSize is how many bytes each part has, but the last.
func (u *Upload) PartSize() int64 { return u.part }

// Part writes the part at off, a multiple of PartSize. Several may be on their
// way, and one may come again.
func (u *Upload) Part(ctx context.Context, p []byte, off int64) error {
	n := off / u.part
	if off < 0 || off%u.part != 0 || off >= u.size || int64(len(p)) != min(u.part, u.size-off) {
		return fmt.Errorf("upload %s: %w: %d bytes at %d are no part", u.name, catalog.ErrInvalid, len(p), off)
	}
	var got minio.ObjectPart
	md5 := sum(p)
	if err := again(ctx, func() (err error) {
		got, err = u.b.core.PutObjectPart(ctx, u.b.spec.Bucket, u.b.key(u.name), u.id, int(n)+1, bytes.NewReader(p), int64(len(p)), minio.PutObjectPartOptions{
			Md5Base64: md5, DisableContentSha256: true,
		})
		return err
	}); err != nil {
		return u.b.fail("upload", u.name, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[n] = minio.CompletePart{PartNumber: int(n) + 1, ETag: got.ETag}
	return nil
}

// Complete makes the object of its parts. When the answer is lost and it is
// asked again, the upload may be gone: fs.ErrNotExist then means that the object
// is there, or that somebody abandoned the upload; Stat tells.
func (u *Upload) Complete(ctx context.Context) error {
	u.mu.Lock()
	parts := slices.Clone(u.parts)
	u.mu.Unlock()
	for i, p := range parts {
		if p.ETag == "" {
			return fmt.Errorf("upload %s: %w: part %d of %d was not written", u.name, catalog.ErrIncomplete, i+1, len(parts))
		}
	}
	if err := again(ctx, func() error {
		_, err := u.b.core.CompleteMultipartUpload(ctx, u.b.spec.Bucket, u.b.key(u.name), u.id, parts, minio.PutObjectOptions{})
		return err
	}); err != nil {
		return u.b.fail("complete", u.name, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	return nil
}

// Close abandons the upload unless it is complete. It does so also when the
// context of the parts has ended.
func (u *Upload) Close() error {
	u.mu.Lock()
	over := u.over
	u.over = true
	u.mu.Unlock()
	if over {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	return u.b.fail("abandon", u.name, ignoreGone(u.b.core.AbortMultipartUpload(ctx, u.b.spec.Bucket, u.b.key(u.name), u.id)))
}

// ignoreGone takes an upload that is not there for one that was abandoned.
func ignoreGone(err error) error {
	if err != nil && minio.ToErrorResponse(err).Code == "NoSuchUpload" {
		return nil
	}
	return err
}

// AbortUploads abandons the uploads below a prefix that began before a time:
// what processes that died have left.
func (b *Bucket) AbortUploads(ctx context.Context, prefix string, before time.Time) (n int, err error) {
	for u := range b.core.ListIncompleteUploads(ctx, b.spec.Bucket, b.key(prefix), true) {
		if u.Err != nil {
			return n, b.fail("list uploads", prefix, u.Err)
		}
		if !u.Initiated.Before(before) {
			continue
		}
		if err := ignoreGone(b.core.AbortMultipartUpload(ctx, b.spec.Bucket, u.Key, u.UploadID)); err != nil {
			return n, b.fail("abandon", u.Key, err)
		}
		n++
	}
	return n, nil
}
