package bucket

import (
	"context"
	"iter"
	"strings"

	"github.com/minio/minio-go/v7"
)

// List gives the objects whose name begins with prefix, by name. It says what
// the server had seen at some moment. A listing that breaks off goes on behind
// the last name it gave.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		last, stop := "", false
		err := b.doLong(ctx, 0, func(ctx context.Context, alive func(bool)) error {
			for o := range b.core.ListObjectsIter(ctx, b.spec.Bucket, minio.ListObjectsOptions{Prefix: b.key(prefix), Recursive: true, StartAfter: last}) {
				if o.Err != nil {
					return o.Err
				}
				last = o.Key
				alive(false)
				if !yield(Info{Name: b.name(o.Key), Size: o.Size, Modified: o.LastModified, ETag: o.ETag}, nil) {
					stop = true
					return nil
				}
				alive(true)
			}
			return ctx.Err()
		})
		if err != nil && !stop {
			yield(Info{}, b.fail("list", prefix, err))
		}
	}
}

// Folder gives the objects whose names begin so up to the next slash, by the
// last part of their names, and the folders that do. One that breaks off is
// begun anew.
func (b *Bucket) Folder(ctx context.Context, begins string) (objects []Info, folders []string, err error) {
	prefix := b.key(begins)
	in := strings.LastIndexByte(prefix, '/') + 1 // of the last part
	err = b.doLong(ctx, 0, func(ctx context.Context, alive func(bool)) error {
		objects, folders = nil, nil
		for o := range b.core.ListObjectsIter(ctx, b.spec.Bucket, minio.ListObjectsOptions{Prefix: prefix}) {
			if o.Err != nil {
				return o.Err
			}
			alive(true)
			name := o.Key[min(in, len(o.Key)):]
			if sub, ok := strings.CutSuffix(name, "/"); ok {
				if sub != "" {
					folders = append(folders, sub)
				}
			} else if name != "" {
				objects = append(objects, Info{Name: name, Size: o.Size, Modified: o.LastModified, ETag: o.ETag})
			}
		}
		return ctx.Err()
	})
	return objects, folders, b.fail("list", begins, err)
}
