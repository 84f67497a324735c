// Package s3test runs a real S3 server for tests, and breaks the way to it.
package s3test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

// Version of github.com/versity/versitygw that `make` builds into .cache/bin.
const Version = "v1.8.0"

// Keys of the server; Start puts them into the environment as well.
const (
	AccessKey = "ckptd-test"
	SecretKey = "ckptd-test-secret"
)

// Server is versitygw over a temporary directory, with one bucket.
type Server struct {
	Addr   string // host:port
	Dir    string // what it keeps; a bucket is a folder of it
	Bucket string
}

// Program finds the server's program.
func Program(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("CKPTD_VERSITYGW"); p != "" {
		return p
	}
	dir, err := os.Getwd()
	for err == nil {
		p := filepath.Join(dir, ".cache", "bin", "versitygw-"+Version)
		if _, serr := os.Stat(p); serr == nil {
			return p
		}
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("the S3 server of the tests is missing: run `make versitygw`, or name version %s of the program with CKPTD_VERSITYGW", Version)
	return ""
}

// Start runs a server that lives as long as the test. It sets the environment's
// credentials, so the test cannot be parallel.
func Start(t testing.TB) *Server {
	t.Helper()
	program := Program(t)
	t.Setenv("AWS_ACCESS_KEY_ID", AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", SecretKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: l.Addr().String(), Dir: t.TempDir(), Bucket: "ckpt-test"}
	l.Close() // the port is free for it; a race with others is possible and shows as an error
	if err := os.Mkdir(filepath.Join(s.Dir, s.Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	meta := t.TempDir() // for file systems without extended attributes
	cmd := exec.Command(program, "--quiet", "--keep-alive", "--access", AccessKey, "--secret", SecretKey, "--port", s.Addr, "posix", "--sidecar", meta, s.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { _ = cmd.Wait(); close(gone) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		if t.Failed() {
			t.Logf("versitygw said:\n%s", log.String())
		}
	})
	for end, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond); ; {
		c, err := net.Dial("tcp", s.Addr)
		if err == nil {
			c.Close()
			return s
		}
		select {
		case <-tick.C:
		case <-gone:
			t.Fatalf("versitygw ended:\n%s", log.String())
		case <-end:
			t.Fatalf("versitygw does not listen: %v", err)
		}
	}
}

// Spec names a prefix of the bucket.
func (s *Server) Spec(prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=http://%s", s.Bucket, prefix, s.Addr)
}

// Open opens a prefix of the bucket, over a transport of one's own or nil.
func (s *Server) Open(t testing.TB, prefix string, transport http.RoundTripper) *bucket.Bucket {
	t.Helper()
	spec, err := bucket.Parse(s.Spec(prefix))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bucket.Open(spec, bucket.Options{Transport: transport, Credentials: credentials.NewStaticV4(AccessKey, SecretKey, ""), Pause: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Uploads counts the uploads that were begun and neither completed nor abandoned.
func (s *Server) Uploads(t testing.TB) (n int) {
	t.Helper()
	root := filepath.Join(s.Dir, s.Bucket, ".sgwtmp", "multipart")
	objects, _ := os.ReadDir(root) // no folder, no uploads
	for _, o := range objects {
		uploads, err := os.ReadDir(filepath.Join(root, o.Name()))
		if err != nil {
			t.Fatal(err)
		}
		n += len(uploads)
	}
	return n
}

// Fault is what happens to a request.
type Fault uint8

// Faults.
const (
	None    Fault = iota
	Busy          // answered 503 SlowDown, without reaching the server
	Refused       // the connection cannot be made
	Cut           // the answer's body ends in its middle
	Lost          // done by the server, and the answer is lost
)

// Faulty is a transport that breaks requests.
type Faulty struct {
	Base http.RoundTripper                  // default http.DefaultTransport
	When func(n int, r *http.Request) Fault // n counts requests from 0; called one at a time

	mu sync.Mutex
	n  int
}

var errCut = errors.New("s3test: the connection was cut")

func (f *Faulty) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	fault := f.When(f.n, r)
	f.n++
	f.mu.Unlock()
	base := f.Base
	if base == nil {
		base = http.DefaultTransport
	}
	switch fault {
	case Busy:
		if r.Body != nil {
			r.Body.Close()
		}
		const text = `<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`
		return http.ReadResponse(bufio.NewReader(strings.NewReader(fmt.Sprintf("HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s", len(text), text))), r)
	case Refused:
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	resp, err := base.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	switch fault {
	case Cut:
		resp.Body = &cutBody{resp.Body, resp.ContentLength / 2}
	case Lost:
		resp.Body.Close()
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return resp, nil
}

type cutBody struct {
	io.ReadCloser
	left int64
}

func (c *cutBody) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errCut
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
