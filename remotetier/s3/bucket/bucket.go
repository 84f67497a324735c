package bucket

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/ckptd/ckptd/catalog"
)

const (
	tries     = 5 // of a request by the library, which does not try one whose answer breaks off
	rounds    = 3 // of those
	readTries = 5 // of a read that was cut in its middle; each has its own tries
	// answerTimeout bounds the wait for the beginning of an answer: the server may
	// be writing a part to its disks.
	answerTimeout = 2 * time.Minute
	roleTimeout   = 2 * time.Second // of asking the machine for its role
)

// Options of a Bucket; the zero value works.
type Options struct {
	// Transport carries the requests; default the library's, with time limits.
	Transport http.RoundTripper
	// Credentials default to the places of the package's fifth promise.
	Credentials *credentials.Credentials
}

// Bucket is an open bucket, or a prefix of one. Its methods may be called
// concurrently. Names are relative to the prefix.
type Bucket struct {
	spec Spec
	core minio.Core
}

// Open prepares a client. Nothing is asked of the server until a method is called.
func Open(spec Spec, opt Options) (*Bucket, error) {
	if opt.Transport == nil {
		t, err := minio.DefaultTransport(!spec.Plain)
		if err != nil {
			return nil, fmt.Errorf("open %v: %w", spec, err)
		}
		t.ResponseHeaderTimeout = answerTimeout
		t.MaxIdleConnsPerHost = 32
		t.DisableCompression = true
		opt.Transport = t
	}
	if opt.Credentials == nil {
		opt.Credentials = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{},
			&credentials.IAM{Client: &http.Client{Timeout: roleTimeout}},
		})
	}
	lookup := minio.BucketLookupDNS
	if spec.Path {
		lookup = minio.BucketLookupPath
	}
	c, err := minio.New(spec.Endpoint, &minio.Options{
		Creds: opt.Credentials, Secure: !spec.Plain, Transport: opt.Transport,
		Region: spec.region(), BucketLookup: lookup, MaxRetries: tries,
	})
	if err != nil {
		return nil, fmt.Errorf("open %v: %w: %w", spec, catalog.ErrInvalid, err)
	}
	return &Bucket{spec: spec, core: minio.Core{Client: c}}, nil
}

// Spec is what Open was given.
func (b *Bucket) Spec() Spec { return b.spec }

func (b *Bucket) String() string { return b.spec.String() }

// again does a request, and once more when its answer broke off. What it asks
// for must mean the same when it is asked twice.
func again(ctx context.Context, do func() error) (err error) {
	for range rounds {
		if err = do(); err == nil || ctx.Err() != nil || classOf(minio.ToErrorResponse(err)) != catalog.ErrUnavailable {
			return err
		}
	}
	return err
}

// key is an object's whole name.
func (b *Bucket) key(name string) string {
	if b.spec.Prefix == "" {
		return name
	}
	return b.spec.Prefix + "/" + name
}

// Info describes an object.
type Info struct {
	Name     string
	Size     int64 // bytes
	Modified time.Time
	ETag     string            // changes with the bytes
	Meta     map[string]string // as it was given, keys in lower case; not in lists
}

// Check asks whether the bucket is there and the credentials are good for it.
func (b *Bucket) Check(ctx context.Context) error {
	ok, err := b.core.BucketExists(ctx, b.spec.Bucket)
	if err == nil && !ok {
		return fmt.Errorf("%v: %w: there is no such bucket; make it first", b.spec, catalog.ErrInvalid)
	}
	return b.fail("check", "", err)
}

// Stat describes an object; a missing one is fs.ErrNotExist.
func (b *Bucket) Stat(ctx context.Context, name string) (Info, error) {
	st, err := b.core.StatObject(ctx, b.spec.Bucket, b.key(name), minio.StatObjectOptions{})
	if err != nil {
		return Info{}, b.fail("stat", name, err)
	}
	i := Info{Name: name, Size: st.Size, Modified: st.LastModified, ETag: st.ETag, Meta: make(map[string]string, len(st.UserMetadata))}
	for k, v := range st.UserMetadata {
		i.Meta[strings.ToLower(k)] = v
	}
	return i, nil
}

// Get fills p with the bytes of an object from off. One that ends earlier is
// io.ErrUnexpectedEOF. A read that is cut goes on where it was.
func (b *Bucket) Get(ctx context.Context, name string, p []byte, off int64) error {
	var err error
	for try := 0; len(p) > 0 && try < readTries; try++ {
		var n int
		n, err = b.get(ctx, name, p, off)
		p, off = p[n:], off+int64(n)
		if n > 0 {
			try = 0
		}
		if err != nil && (ctx.Err() != nil || !errors.Is(err, catalog.ErrUnavailable)) {
			return err
		}
	}
	if len(p) > 0 {
		return err
	}
	return nil
}

func (b *Bucket) get(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	opt := minio.GetObjectOptions{}
	if err := opt.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, fmt.Errorf("read %s: %w: %w", name, catalog.ErrInvalid, err)
	}
	body, info, _, err := b.core.GetObject(ctx, b.spec.Bucket, b.key(name), opt)
	if err != nil {
		return 0, b.fail("read", name, err)
	}
	defer body.Close()
	n, err = io.ReadFull(body, p)
	switch {
	case err == nil:
		return n, nil
	case info.Size < int64(len(p)) && (err == io.EOF || err == io.ErrUnexpectedEOF) && int64(n) == info.Size:
		return n, fmt.Errorf("read %s at %d: %w", name, off+int64(n), io.ErrUnexpectedEOF)
	}
	return n, fmt.Errorf("read %s at %d of %v: %w: %w", name, off+int64(n), b.spec, catalog.ErrUnavailable, err)
}

// Put writes a small object in one request.
func (b *Bucket) Put(ctx context.Context, name string, p []byte, meta map[string]string) error {
	return b.fail("put", name, b.put(ctx, name, p, minio.PutObjectOptions{UserMetadata: meta}))
}

// PutNew is Put unless an object of that name is there: then it is ErrConflict,
// also when that object is of a first try whose answer was lost. A server that
// knows no conditions overwrites.
func (b *Bucket) PutNew(ctx context.Context, name string, p []byte, meta map[string]string) error {
	opt := minio.PutObjectOptions{UserMetadata: meta}
	opt.SetMatchETagExcept("*")
	err := b.put(ctx, name, p, opt)
	if minio.ToErrorResponse(err).StatusCode == http.StatusNotImplemented {
		return b.Put(ctx, name, p, meta)
	}
	return b.fail("put", name, err)
}

func (b *Bucket) put(ctx context.Context, name string, p []byte, opt minio.PutObjectOptions) error {
	opt.DisableContentSha256, opt.ContentType = true, contentType
	return again(ctx, func() error {
		_, err := b.core.PutObject(ctx, b.spec.Bucket, b.key(name), bytes.NewReader(p), int64(len(p)), sum(p), "", opt)
		return err
	})
}

const contentType = "application/octet-stream"

func sum(p []byte) string {
	m := md5.Sum(p)
	return base64.StdEncoding.EncodeToString(m[:])
}

// Remove removes an object; a missing one is no error.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	err := b.core.RemoveObject(ctx, b.spec.Bucket, b.key(name), minio.RemoveObjectOptions{})
	if err = b.fail("remove", name, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// List gives the objects whose name begins with prefix, by name. It says what
// the server had seen at some moment.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for o := range b.core.ListObjectsIter(ctx, b.spec.Bucket, minio.ListObjectsOptions{Prefix: b.key(prefix), Recursive: true}) {
			if o.Err != nil {
				yield(Info{}, b.fail("list", prefix, o.Err))
				return
			}
			name := o.Key
			if b.spec.Prefix != "" {
				name = strings.TrimPrefix(name, b.spec.Prefix+"/")
			}
			if !yield(Info{Name: name, Size: o.Size, Modified: o.LastModified, ETag: o.ETag}, nil) {
				return
			}
		}
	}
}
