// Package objects keeps exported sets in S3 buckets: it is a bundle.Store below
// a prefix.
//
//  1. An object that is there is whole: larger ones are uploaded in parts and
//     appear at the end; an upload that fails is abandoned.
//  2. What an object must be is in its metadata from the beginning of its
//     upload, so that Has need not read it back.
//  3. A manifest is never overwritten: it is put on the condition that there is
//     none, where the server knows conditions.
package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/sdk/bundle"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	rootKey = "ckptd-root" // of the metadata: the root of the object's seal
	// small is up to how many bytes an object goes in one request.
	small = 8 << 20
	// stale is how old an upload must be to be taken for one whose export was killed.
	stale = 24 * time.Hour
)

// Store is a prefix of a bucket.
type Store struct{ b *bucket.Bucket }

var _ bundle.Store = (*Store)(nil)

// New makes a store of an open bucket. Below its prefix is one set, and nothing else.
func New(b *bucket.Bucket) *Store { return &Store{b} }

func (s *Store) String() string { return s.b.String() }

// Ready asks for the bucket, and abandons uploads that were left by exports
// that were killed a day or more ago.
func (s *Store) Ready(ctx context.Context) (release func() error, err error) {
	if s.b.Spec().Prefix == "" {
		return nil, fmt.Errorf("%v: %w: name a prefix of the bucket; a set has one of its own", s, catalog.ErrInvalid)
	}
	if err := s.b.Check(ctx); err != nil {
		return nil, s.advise(err)
	}
	// Who may not list uploads can export all the same.
	if _, err := s.b.AbortUploads(ctx, "", time.Now().Add(-stale)); err != nil && ctx.Err() != nil {
		return nil, err
	}
	return func() error { return nil }, nil
}

// advise adds what to do about a server that does not answer, or not to us.
func (s *Store) advise(err error) error {
	switch {
	case errors.Is(err, catalog.ErrUnavailable):
		return wire.WithHint(err, "the server of the bucket does not answer, or is busy: is %s the right endpoint? The same command goes on where this one ended", s.b.Spec().Endpoint)
	case errors.Is(err, catalog.ErrInvalid):
		return wire.WithHint(err, "bucket, endpoint= and region= are in the name; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role")
	}
	return err
}

// Has asks for the object's size and metadata.
func (s *Store) Has(ctx context.Context, name string, size int64, root catalog.Digest) (bool, error) {
	st, err := s.b.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Size == size && st.Meta[rootKey] == root.String(), s.advise(err)
}

// Create begins an object: one request for a small one, an upload for another.
func (s *Store) Create(ctx context.Context, name string, size int64, root catalog.Digest) (bundle.File, error) {
	meta := map[string]string{rootKey: root.String()}
	if size <= small {
		return &smallFile{s: s, name: name, meta: meta, root: root, b: make([]byte, size)}, nil
	}
	u, err := s.b.Upload(ctx, name, size, meta)
	if err != nil {
		return nil, s.advise(err)
	}
	return &largeFile{u, s, name, size, root}, nil
}

type smallFile struct {
	s    *Store
	name string
	meta map[string]string
	root catalog.Digest
	b    []byte
}

func (f *smallFile) Part() int64 { return small }

func (f *smallFile) WriteAt(_ context.Context, p []byte, off int64) error {
	if n := copy(f.b[min(off, int64(len(f.b))):], p); n < len(p) {
		return fmt.Errorf("write %s at %d: %w: outside its %d bytes", f.name, off, catalog.ErrInvalid, len(f.b))
	}
	return nil
}

func (f *smallFile) Commit(ctx context.Context) error {
	if f.name != bundle.ManifestFile {
		return f.s.advise(f.s.b.Put(ctx, f.name, f.b, f.meta))
	}
	err := f.s.b.PutNew(ctx, f.name, f.b, f.meta)
	if errors.Is(err, catalog.ErrConflict) {
		return f.s.mine(ctx, f.name, int64(len(f.b)), f.root, err)
	}
	return f.s.advise(err)
}

func (f *smallFile) Close() error { return nil }

// mine forgives a conflict with what we wrote ourselves: the answer to the
// first try was lost.
func (s *Store) mine(ctx context.Context, name string, size int64, root catalog.Digest, conflict error) error {
	has, err := s.Has(ctx, name, size, root)
	if err != nil {
		return err
	}
	if !has {
		return conflict
	}
	return nil
}

type largeFile struct {
	*bucket.Upload
	s    *Store
	name string
	size int64
	root catalog.Digest
}

func (f *largeFile) Part() int64 { return f.PartSize() }

func (f *largeFile) WriteAt(ctx context.Context, p []byte, off int64) error {
	return f.s.advise(f.Upload.Part(ctx, p, off))
}

func (f *largeFile) Commit(ctx context.Context) error {
	err := f.Complete(ctx)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrConflict) {
		// Completed before, and the answer was lost: the upload is gone and the object there.
		return f.s.mine(ctx, f.name, f.size, f.root, err)
	}
	return f.s.advise(err)
}

type object struct {
	s    *Store
	name string
	size int64
}

// Open asks for the object's size; its bytes are read in ranges.
func (s *Store) Open(ctx context.Context, name string) (bundle.Object, error) {
	st, err := s.b.Stat(ctx, name)
	if err != nil {
		return nil, s.advise(err)
	}
	return &object{s, name, st.Size}, nil
}

func (o *object) Size() int64  { return o.size }
func (o *object) Close() error { return nil }

func (o *object) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := o.s.b.Get(ctx, o.name, p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", catalog.ErrCorrupt, err)
	}
	return o.s.advise(err)
}
