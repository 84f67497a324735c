package bucket

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/ckptd/ckptd/catalog"
)

// answerTimeout bounds the wait for the beginning of an answer: the server may
// be writing a part to its disks, or putting an object together.
const answerTimeout = 2 * time.Minute

// Options of a Bucket; the zero value works.
type Options struct {
	// Transport carries the requests; default the library's, with time limits.
	Transport http.RoundTripper
	// Credentials default to the places of the package's fifth promise.
	Credentials *credentials.Credentials

	Tries    int           // of one request; default 8
	Pause    time.Duration // before the second try, about twice as long before each further one; default 200 ms
	Patience time.Duration // for one request with all its tries; default 2 min
	Timeout  time.Duration // for one try, besides what its bytes take at 1 MiB/s; default 30 s

	// Again is told of each further try; nil: nobody. It must not block.
	Again func(err error, try int, wait time.Duration)
}

func (o *Options) norm(plain bool) error {
	if o.Tries <= 0 {
		o.Tries = 8
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&o.Pause, 200 * time.Millisecond}, {&o.Patience, 2 * time.Minute}, {&o.Timeout, 30 * time.Second}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if o.Transport == nil {
		t, err := minio.DefaultTransport(!plain)
		if err != nil {
			return err
		}
		t.ResponseHeaderTimeout = answerTimeout
		t.MaxIdleConnsPerHost = 64
		t.DisableCompression = true
		o.Transport = t
	}
	return nil
}

// Bucket is an open bucket, or a prefix of one. Its methods may be called
// concurrently. Names are relative to the prefix.
type Bucket struct {
	spec   Spec
	opt    Options
	core   minio.Core
	creds  *chain
	budget budget
}

// Open prepares a client. Nothing is asked of the server until a method is called.
func Open(spec Spec, opt Options) (*Bucket, error) {
	if err := opt.norm(spec.Plain); err != nil {
		return nil, fmt.Errorf("open %v: %w", spec, err)
	}
	b := &Bucket{spec: spec, opt: opt, creds: newChain()}
	if opt.Credentials != nil {
		b.creds = &chain{creds: opt.Credentials}
	}
	b.budget.left = tokens
	lookup := minio.BucketLookupDNS
	if spec.Path {
		lookup = minio.BucketLookupPath
	}
	c, err := minio.New(spec.Endpoint, &minio.Options{
		Creds: b.creds.creds, Secure: !spec.Plain, Transport: opt.Transport, Region: spec.region(), BucketLookup: lookup,
		MaxRetries: 1, // the trying again is ours
	})
	if err != nil {
		return nil, fmt.Errorf("open %v: %w: %w", spec, catalog.ErrInvalid, err)
	}
	b.core = minio.Core{Client: c}
	return b, nil
}

// Close lets go of idle connections.
func (b *Bucket) Close() error {
	if t, ok := b.opt.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// Spec is what Open was given.
func (b *Bucket) Spec() Spec { return b.spec }

func (b *Bucket) String() string { return b.spec.String() }

// key is an object's whole name.
func (b *Bucket) key(name string) string {
	if b.spec.Prefix == "" {
		return name
	}
	return b.spec.Prefix + "/" + name
}

// name is the opposite of key.
func (b *Bucket) name(key string) string {
	if b.spec.Prefix == "" {
		return key
	}
	return strings.TrimPrefix(key, b.spec.Prefix+"/")
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
	ok := false
	err := b.do(ctx, 0, func(ctx context.Context) (err error) {
		ok, err = b.core.BucketExists(ctx, b.spec.Bucket)
		return err
	})
	if err == nil && !ok {
		return fmt.Errorf("%v: %w: there is no such bucket; make it first", b.spec, catalog.ErrInvalid)
	}
	return b.fail("check", "", err)
}

// Stat describes an object; a missing one is fs.ErrNotExist.
func (b *Bucket) Stat(ctx context.Context, name string) (Info, error) {
	var st minio.ObjectInfo
	err := b.do(ctx, 0, func(ctx context.Context) (err error) {
		st, err = b.core.StatObject(ctx, b.spec.Bucket, b.key(name), minio.StatObjectOptions{})
		return err
	})
	if err != nil {
		return Info{}, b.fail("stat", name, err)
	}
	i := Info{Name: name, Size: st.Size, Modified: st.LastModified, ETag: st.ETag, Meta: make(map[string]string, len(st.UserMetadata))}
	for k, v := range st.UserMetadata {
		i.Meta[strings.ToLower(k)] = v
	}
	return i, nil
}

// Put writes a small object in one request.
func (b *Bucket) Put(ctx context.Context, name string, p []byte, meta map[string]string) error {
	_, err := b.put(ctx, name, p, meta, false)
	return err
}

// PutNew is Put unless an object of that name is there: then it is ErrTaken,
// also when that object is of a first try whose answer was lost. A server that
// knows no conditions overwrites.
func (b *Bucket) PutNew(ctx context.Context, name string, p []byte, meta map[string]string) error {
	_, err := b.put(ctx, name, p, meta, true)
	var e minio.ErrorResponse
	if errors.As(err, &e) && e.StatusCode == http.StatusNotImplemented {
		return b.Put(ctx, name, p, meta)
	}
	return err
}

// PutAs is Put, or PutNew, of an object that has metadata like no other: one
// that a lost try made is recognised by it. It gives the object's ETag.
func (b *Bucket) PutAs(ctx context.Context, name string, p []byte, key, value string, isNew bool) (etag string, err error) {
	etag, err = b.put(ctx, name, p, map[string]string{key: value}, isNew)
	if errors.Is(err, ErrTaken) {
		if i, serr := b.Stat(ctx, name); serr == nil && i.Meta[key] == value && i.Size == int64(len(p)) {
			return i.ETag, nil
		}
	}
	return etag, err
}

func (b *Bucket) put(ctx context.Context, name string, p []byte, meta map[string]string, isNew bool) (etag string, err error) {
	opt := putOptions(meta, isNew)
	opt.UserMetadata[crcHeader] = crcOf(p)
	err = b.do(ctx, int64(len(p)), func(ctx context.Context) error {
		i, err := b.core.PutObject(ctx, b.spec.Bucket, b.key(name), bytes.NewReader(p), int64(len(p)), "", "", opt)
		etag = i.ETag
		return err
	})
	return etag, b.fail("put", name, err)
}

const contentType = "application/octet-stream"

func putOptions(meta map[string]string, isNew bool) minio.PutObjectOptions {
	o := minio.PutObjectOptions{UserMetadata: map[string]string{}, DisableContentSha256: true, ContentType: contentType}
	for k, v := range meta {
		o.UserMetadata[k] = v
	}
	if isNew {
		o.SetMatchETagExcept("*")
	}
	return o
}

// The server's checksums.
const (
	crcHeader    = "X-Amz-Checksum-Crc32c"
	crcAlgorithm = "X-Amz-Checksum-Algorithm"
)

// crcOf is the CRC32C of p as the server writes it.
func crcOf(p []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, catalog.Sum32C(p)))
}

// Remove removes an object; a missing one is no error.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	err := b.do(ctx, 0, func(ctx context.Context) error {
		return b.core.RemoveObject(ctx, b.spec.Bucket, b.key(name), minio.RemoveObjectOptions{})
	})
	if err = b.fail("remove", name, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
