package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/ckptd/ckptd/catalog"
)

const (
	// MinPart is the size of a part, in bytes, as long as an object fits into
	// MaxParts of them and its Spec does not say more.
	MinPart  = 32 << 20
	MaxParts = 10_000 // of one object, as S3 has it

	abortTimeout = 30 * time.Second
	// completeBytes makes the limit of putting an object together five minutes
	// longer: some servers copy the parts.
	completeBytes = 300 * minRate
)

// PartSize is how large the parts of an object of size bytes are: a multiple of 1 MiB.
func PartSize(size int64) int64 {
	const mib = 1 << 20
	return max(MinPart, ((size+MaxParts-1)/MaxParts+mib-1)/mib*mib)
}

// PartSize is that of the objects of this bucket.
func (b *Bucket) PartSize(size int64) int64 { return max(PartSize(size), b.spec.Part) }

// Upload is an object on its way in. Close without Complete leaves nothing of it.
type Upload struct {
	b    *Bucket
	name string
	size int64
	part int64
	id   string
	more bool // an earlier one of ours was begun, perhaps, whose answer was lost

	mu    sync.Mutex
	parts []minio.CompletePart // by number; empty ones are missing
	over  bool
}

// Upload begins an object of size bytes, at least one. Its metadata is fixed now.
func (b *Bucket) Upload(ctx context.Context, name string, size int64, meta map[string]string) (*Upload, error) {
	if size < 1 {
		return nil, fmt.Errorf("upload %s: %w: %d bytes; Put writes an empty object", name, catalog.ErrInvalid, size)
	}
	part := b.PartSize(size)
	u := &Upload{b: b, name: name, size: size, part: part, parts: make([]minio.CompletePart, (size+part-1)/part)}
	opt := putOptions(meta, false)
	opt.UserMetadata[crcAlgorithm] = "CRC32C"
	if err := u.begin(ctx, opt); err != nil {
		return nil, b.fail("upload", name, err)
	}
	return u, nil
}

func (u *Upload) begin(ctx context.Context, opt minio.PutObjectOptions) error {
	tries := 0
	err := u.b.do(ctx, 0, func(ctx context.Context) (err error) {
		tries++
		u.id, err = u.b.core.NewMultipartUpload(ctx, u.b.spec.Bucket, u.b.key(u.name), opt)
		return err
	})
	u.more = tries > 1
	if err != nil && u.more {
		err = errors.Join(err, u.abortMore(context.WithoutCancel(ctx)))
	}
	return err
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
	crc := crcOf(p)
	err := u.b.do(ctx, int64(len(p)), func(ctx context.Context) (err error) {
		got, err = u.b.core.PutObjectPart(ctx, u.b.spec.Bucket, u.b.key(u.name), u.id, int(n)+1, bytes.NewReader(p), int64(len(p)), minio.PutObjectPartOptions{
			CustomHeader: http.Header{crcHeader: {crc}}, DisableContentSha256: true,
		})
		return err
	})
	if err != nil {
		return u.b.fail("upload", u.name, err)
	}
	done := minio.CompletePart{PartNumber: int(n) + 1, ETag: got.ETag}
	if got.ChecksumCRC32C != "" { // the server keeps it
		done.ChecksumCRC32C = crc
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[n] = done
	return nil
}

// Complete makes the object of its parts. When the answer is lost and it is
// asked again, the upload may be gone: fs.ErrNotExist then means that the object
// is there, or that somebody abandoned the upload; Stat tells.
func (u *Upload) Complete(ctx context.Context) error {
	_, err := u.complete(ctx, false)
	return err
}

// CompleteAs is Complete of an object that was given metadata like no other:
// one that a lost try made is recognised by it. With isNew an object of that
// name, which is not replaced then, is ErrTaken. It gives the object's ETag.
func (u *Upload) CompleteAs(ctx context.Context, key, value string, isNew bool) (etag string, err error) {
	etag, err = u.complete(ctx, isNew)
	if errors.Is(err, ErrTaken) || errors.Is(err, fs.ErrNotExist) {
		if i, serr := u.b.Stat(ctx, u.name); serr == nil && i.Meta[key] == value && i.Size == u.size {
			u.end()
			return i.ETag, nil
		}
	}
	return etag, err
}

func (u *Upload) complete(ctx context.Context, isNew bool) (etag string, err error) {
	u.mu.Lock()
	parts := slices.Clone(u.parts)
	u.mu.Unlock()
	for i, p := range parts {
		if p.ETag == "" {
			return "", fmt.Errorf("upload %s: %w: part %d of %d was not written", u.name, catalog.ErrIncomplete, i+1, len(parts))
		}
	}
	err = u.b.do(ctx, completeBytes, func(ctx context.Context) error {
		i, err := u.b.core.CompleteMultipartUpload(ctx, u.b.spec.Bucket, u.b.key(u.name), u.id, parts, putOptions(nil, isNew))
		etag = i.ETag
		return err
	})
	if err != nil {
		return "", u.b.fail("complete", u.name, err)
	}
	u.end()
	if u.more {
		_ = u.abortMore(ctx) // what it leaves is AbortUploads' to find
	}
	return etag, nil
}

func (u *Upload) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
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
	err := u.b.Abort(ctx, u.name, u.id)
	if u.more {
		err = errors.Join(err, u.abortMore(ctx))
	}
	return err
}

// abortMore abandons uploads of the name that were begun by requests whose
// answers were lost. Another writer of the same name at this very moment would
// lose its upload too, and begin again.
func (u *Upload) abortMore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	return u.b.uploads(ctx, u.name, func(name string, o minio.ObjectMultipartInfo) error {
		if name != u.name || o.UploadID == u.id && !u.over {
			return nil
		}
		return u.b.Abort(ctx, name, o.UploadID)
	})
}

// Abort abandons an upload. One that is not there is no error.
func (b *Bucket) Abort(ctx context.Context, name, id string) error {
	err := b.do(ctx, 0, func(ctx context.Context) error {
		return b.core.AbortMultipartUpload(ctx, b.spec.Bucket, b.key(name), id)
	})
	if err = b.fail("abandon", name, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// AbortUploads abandons the uploads below a prefix that began before a time:
// what processes that died have left.
func (b *Bucket) AbortUploads(ctx context.Context, prefix string, before time.Time) (n int, err error) {
	return b.AbortUploadsOf(ctx, prefix, before, func(string) bool { return true })
}

// AbortUploadsOf is AbortUploads of the names that are ours.
func (b *Bucket) AbortUploadsOf(ctx context.Context, prefix string, before time.Time, ours func(name string) bool) (n int, err error) {
	err = b.uploads(ctx, prefix, func(name string, u minio.ObjectMultipartInfo) error {
		if !u.Initiated.Before(before) || !ours(name) {
			return nil
		}
		n++
		return b.Abort(ctx, name, u.UploadID)
	})
	return n, err
}

// maxPages bounds a listing of uploads, of 1,000 each.
const maxPages = 1000

// uploads calls f for the uploads in progress whose names begin with a prefix.
func (b *Bucket) uploads(ctx context.Context, prefix string, f func(name string, u minio.ObjectMultipartInfo) error) error {
	key, id := "", ""
	for range maxPages {
		var page minio.ListMultipartUploadsResult
		if err := b.do(ctx, 0, func(ctx context.Context) (err error) {
			page, err = b.core.ListMultipartUploads(ctx, b.spec.Bucket, b.key(prefix), key, id, "", 1000)
			return err
		}); err != nil {
			return b.fail("list uploads", prefix, err)
		}
		for _, u := range page.Uploads {
			if err := f(b.name(u.Key), u); err != nil {
				return err
			}
		}
		if !page.IsTruncated || page.NextKeyMarker == key && page.NextUploadIDMarker == id {
			return nil
		}
		key, id = page.NextKeyMarker, page.NextUploadIDMarker
	}
	return nil
}

// copyPart is how much the server copies in one request, in bytes.
const copyPart = 256 << 20

// CopyNew makes the server copy an object of that ETag to a name that is free;
// ErrTaken if it is not.
func (b *Bucket) CopyNew(ctx context.Context, from, etag string, size int64, to string, meta map[string]string) error {
	u := &Upload{b: b, name: to, size: size}
	if err := u.begin(ctx, putOptions(meta, false)); err != nil { // the server has sums of its own
		return b.fail("copy", from, err)
	}
	defer u.Close() // after complete it does nothing; before, what it cannot abandon is old some day
	step := max(copyPart, PartSize(size))
	for off := int64(0); off < size; off += step {
		var part minio.CompletePart
		if err := b.do(ctx, completeBytes, func(ctx context.Context) (err error) {
			part, err = b.core.CopyObjectPart(ctx, b.spec.Bucket, b.key(from), b.spec.Bucket, b.key(to), u.id, len(u.parts)+1, off, min(step, size-off),
				map[string]string{"X-Amz-Copy-Source-If-Match": etag})
			return err
		}); err != nil {
			return b.fail("copy", from, err)
		}
		u.parts = append(u.parts, part)
	}
	_, err := u.complete(ctx, true)
	return err
}
