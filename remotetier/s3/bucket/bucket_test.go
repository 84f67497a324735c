package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
)

func TestSpec(t *testing.T) {
	for _, c := range []struct {
		in   string
		want bucket.Spec
		out  string // default in
	}{
		{"s3://bucket", bucket.Spec{Bucket: "bucket", Endpoint: "s3.amazonaws.com"}, ""},
		{"s3://my.bucket-1/a/b/", bucket.Spec{Bucket: "my.bucket-1", Prefix: "a/b", Endpoint: "s3.amazonaws.com"}, "s3://my.bucket-1/a/b"},
		{"s3://bucket/p?endpoint=http://127.0.0.1:7070", bucket.Spec{Bucket: "bucket", Prefix: "p", Endpoint: "127.0.0.1:7070", Plain: true, Path: true}, ""},
		{"s3://bucket/p?endpoint=https://s3.example.com&style=virtual&region=eu-1", bucket.Spec{Bucket: "bucket", Prefix: "p", Endpoint: "s3.example.com", Region: "eu-1"}, "s3://bucket/p?endpoint=https://s3.example.com&region=eu-1&style=virtual"},
		{"s3://bucket/p?region=eu-1&style=path", bucket.Spec{Bucket: "bucket", Prefix: "p", Endpoint: "s3.amazonaws.com", Region: "eu-1", Path: true}, ""},
	} {
		got, err := bucket.Parse(c.in)
		if err != nil || got != c.want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", c.in, got, err, c.want)
		}
		if c.out == "" {
			c.out = c.in
		}
		if got.String() != c.out {
			t.Errorf("String = %q, want %q", got, c.out)
		}
		if again, err := bucket.Parse(got.String()); err != nil || again != got {
			t.Errorf("Parse(%q) = %+v, %v", got, again, err)
		}
	}
	for _, bad := range []string{
		"", "bucket/p", "http://bucket/p", "s3:///p", "s3://B", "s3://ab", "s3://bucket..x/p", "s3://-bucket", "s3://key:secret@bucket/p",
		"s3://bucket/a/../b", "s3://bucket/a//b", "s3://bucket/./b", "s3://bucket:80/p", "s3://bucket/p?endpoint=127.0.0.1:7070", "s3://bucket/p?endpoint=ftp://x",
		"s3://bucket/p?endpoint=http://x/path", "s3://bucket/p?endpoint=http://k:s@x", "s3://bucket/p?style=odd", "s3://bucket/p?nothing=1", "s3://bucket/p?region=", "s3://bucket/p?region=a&region=b", "s3://bucket/p#f",
		"s3://bucket/" + strings.Repeat("x", 800),
	} {
		if got, err := bucket.Parse(bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Parse(%q) = %+v, %v; want ErrInvalid", bad, got, err)
		}
	}
}

func TestPartSize(t *testing.T) {
	for _, c := range []struct{ size, want int64 }{{1, 32 << 20}, {32 << 30, 32 << 20}, {1 << 40, 105 << 20}, {1 << 42, 420 << 20}} {
		if got := bucket.PartSize(c.size); got != c.want || (c.size+got-1)/got > bucket.MaxParts {
			t.Errorf("PartSize(%d) = %d, want %d", c.size, got, c.want)
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// upload writes b in its parts, the last one first.
func upload(ctx context.Context, b *bucket.Bucket, name string, p []byte, meta map[string]string) error {
	u, err := b.Upload(ctx, name, int64(len(p)), meta)
	if err != nil {
		return err
	}
	defer u.Close()
	part := int(u.PartSize())
	for off := (len(p) - 1) / part * part; off >= 0; off -= part {
		if err := u.Part(ctx, p[off:min(off+part, len(p))], int64(off)); err != nil {
			return err
		}
	}
	return u.Complete(ctx)
}

func mustHold(t *testing.T, b *bucket.Bucket, name string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := b.Get(t.Context(), name, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v, equal %v", name, err, bytes.Equal(got, want))
	}
}

func TestBucket(t *testing.T) {
	s := s3test.Start(t)
	b := s.Open(t, "some/prefix", nil)
	ctx := t.Context()
	if err := b.Check(ctx); err != nil {
		t.Fatal(err)
	}
	big := random(bucket.MinPart + 12345)
	t.Run("PutAndUpload", func(t *testing.T) {
		if err := b.Put(ctx, "small", []byte("some bytes"), map[string]string{"Ckptd-Root": "abc"}); err != nil {
			t.Fatal(err)
		}
		if err := b.Put(ctx, "empty", nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := upload(ctx, b, "folder/big", big, map[string]string{"ckptd-root": "def"}); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bucket.Info{"small": {Size: 10, Meta: map[string]string{"ckptd-root": "abc"}}, "empty": {}, "folder/big": {Size: int64(len(big)), Meta: map[string]string{"ckptd-root": "def"}}} {
			got, err := b.Stat(ctx, name)
			if err != nil || got.Size != want.Size || got.Meta["ckptd-root"] != want.Meta["ckptd-root"] || got.ETag == "" {
				t.Errorf("Stat(%s) = %+v, %v; want %+v", name, got, err, want)
			}
		}
		mustHold(t, b, "small", []byte("some bytes"))
		mustHold(t, b, "folder/big", big)
		p := make([]byte, 1000)
		if err := b.Get(ctx, "folder/big", p, bucket.MinPart-500); err != nil || !bytes.Equal(p, big[bucket.MinPart-500:][:1000]) {
			t.Errorf("a range over two parts: %v", err)
		}
		if err := b.Put(ctx, "small", []byte("others"), nil); err != nil {
			t.Fatal(err)
		}
		mustHold(t, b, "small", []byte("others"))
		if err := b.Get(ctx, "small", make([]byte, 7), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a read past the end: %v", err)
		}
	})
	t.Run("PutNew", func(t *testing.T) {
		if err := b.PutNew(ctx, "new", []byte("first"), nil); err != nil {
			t.Fatal(err)
		}
		if err := b.PutNew(ctx, "new", []byte("second"), nil); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("over what is there: %v, want ErrConflict", err)
		}
		mustHold(t, b, "new", []byte("first"))
		if err := b.Remove(ctx, "new"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("List", func(t *testing.T) {
		var names []string
		for i, err := range b.List(ctx, "") {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, i.Name)
		}
		if want := []string{"empty", "folder/big", "small"}; !slices.Equal(names, want) {
			t.Errorf("List = %v, want %v", names, want)
		}
	})
	t.Run("Abandoned", func(t *testing.T) {
		u, err := b.Upload(ctx, "never", 100, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Complete(ctx); !errors.Is(err, catalog.ErrIncomplete) {
			t.Errorf("Complete without its part: %v", err)
		}
		for _, bad := range []struct{ n, off int64 }{{99, 0}, {100, 1}, {100, -1}, {1, bucket.MinPart}} {
			if err := u.Part(ctx, make([]byte, bad.n), bad.off); !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("Part of %d at %d: %v", bad.n, bad.off, err)
			}
		}
		if err := u.Part(ctx, make([]byte, 100), 0); err != nil {
			t.Fatal(err)
		}
		if n := s.Uploads(t); n != 1 {
			t.Errorf("%d uploads are under way, want 1", n)
		}
		if err := errors.Join(u.Close(), u.Close()); err != nil {
			t.Error(err)
		}
		if _, err := b.Stat(ctx, "never"); !errors.Is(err, fs.ErrNotExist) || s.Uploads(t) != 0 {
			t.Errorf("an abandoned upload is there: %v, %d uploads", err, s.Uploads(t))
		}
		if u, err = b.Upload(ctx, "dead", 100, nil); err != nil { // its process dies
			t.Fatal(err)
		}
		if n, err := b.AbortUploads(ctx, "", time.Now().Add(-time.Hour)); n != 0 || err != nil {
			t.Errorf("AbortUploads of old ones = %d, %v", n, err)
		}
		if n, err := b.AbortUploads(ctx, "", time.Now().Add(time.Hour)); n != 1 || err != nil || s.Uploads(t) != 0 {
			t.Errorf("AbortUploads = %d, %v; %d are left", n, err, s.Uploads(t))
		}
		if err := u.Close(); err != nil {
			t.Errorf("Close of an upload that is gone: %v", err)
		}
	})
	t.Run("Errors", func(t *testing.T) {
		if _, err := b.Stat(ctx, "nothing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat: %v", err)
		}
		if err := b.Get(ctx, "nothing", make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get: %v", err)
		}
		if err := errors.Join(b.Remove(ctx, "small"), b.Remove(ctx, "small")); err != nil {
			t.Errorf("Remove: %v", err)
		}
		spec := b.Spec()
		spec.Bucket = "no-such-bucket"
		o, err := bucket.Open(spec, bucket.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Check(ctx); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("no bucket: Check = %v", err)
		}
		if err := o.Put(ctx, "x", nil, nil); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("no bucket: Put = %v", err)
		}
		if o, err = bucket.Open(b.Spec(), bucket.Options{Credentials: credentials.NewStaticV4(s3test.AccessKey, "wrong", "")}); err != nil {
			t.Fatal(err)
		}
		if err := o.Put(ctx, "x", nil, nil); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "AWS_SECRET_ACCESS_KEY") {
			t.Errorf("a wrong secret: %v", err)
		}
	})
}

// TestFaults: a busy server, connections that break before, in and after a
// request: all is as if it had been asked once.
func TestFaults(t *testing.T) {
	s := s3test.Start(t)
	big := random(bucket.MinPart + 777)
	for _, c := range []struct {
		name string
		when func(n int, r *http.Request) s3test.Fault
	}{
		{"EveryOtherBusy", func(n int, _ *http.Request) s3test.Fault { return s3test.Fault((n + 1) % 2) }}, // Busy is 1
		{"EveryOtherRefused", func(n int, _ *http.Request) s3test.Fault { return []s3test.Fault{s3test.Refused, s3test.None}[n%2] }},
		{"ReadsCut", func(n int, r *http.Request) s3test.Fault {
			if r.Method == http.MethodGet && r.Header.Get("Range") != "" && n%3 != 0 {
				return s3test.Cut
			}
			return s3test.None
		}},
		{"PartsLost", func(n int, r *http.Request) s3test.Fault {
			if r.Method == http.MethodPut && n%2 == 1 {
				return s3test.Lost
			}
			return s3test.None
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := s.Open(t, c.name, &s3test.Faulty{When: c.when})
			if err := upload(t.Context(), b, "big", big, nil); err != nil {
				t.Fatal(err)
			}
			if err := b.Put(t.Context(), "small", []byte("x"), nil); err != nil {
				t.Fatal(err)
			}
			mustHold(t, b, "big", big)
			mustHold(t, b, "small", []byte("x"))
			if n := s.Uploads(t); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
		})
	}
	t.Run("GivesUp", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b := s.Open(t, "down", &s3test.Faulty{When: func(int, *http.Request) s3test.Fault { return s3test.Refused }})
		if err := b.Put(ctx, "x", nil, nil); err == nil {
			t.Error("Put without a server succeeded")
		}
		asked := 0
		b = s.Open(t, "busy", &s3test.Faulty{When: func(int, *http.Request) s3test.Fault { asked++; return s3test.Busy }})
		if err := b.Put(t.Context(), "x", nil, nil); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("a server that stays busy: %v, want ErrUnavailable", err)
		}
		if asked < 3 || asked > 30 {
			t.Errorf("a busy server was asked %d times", asked)
		}
	})
}
