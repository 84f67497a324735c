package s3_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
)

// proxy stands before the server and breaks requests that pass it.
type proxy struct {
	mu    sync.Mutex
	n     int
	fault func(n int, r *http.Request) fault // n counts from 0; nil: none
	addr  string
}

// fault is what happens to a request.
type fault uint8

const (
	fine    fault = iota
	busy          // 503 SlowDown, without the server
	broken        // 500 InternalError, without the server
	cutUp         // the connection is cut while the request's body is on its way
	cutDown       // the connection is cut in the middle of the answer's body
	lost          // the server did it, and the connection is cut before the answer
	silent        // no answer until the client gives up
	refused       // 403, as when a key was withdrawn
)

func startProxy(t testing.TB, srv *s3test.Server) *proxy {
	t.Helper()
	p := &proxy{}
	to := &url.URL{Scheme: "http", Host: srv.Addr}
	forward := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }, // which is signed
		ErrorLog:     log.New(io.Discard, "", 0),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(r *http.Response) error {
			switch r.Request.Context().Value(faultKey{}) {
			case lost:
				return errors.New("lost")
			case cutDown:
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.MultiReader(io.LimitReader(r.Body, r.ContentLength/2), failing{}), r.Body}
			}
			return nil
		},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		f := fine
		if p.fault != nil {
			f = p.fault(p.n, r)
		}
		p.n++
		p.mu.Unlock()
		refuse := func(status int, code string) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(status)
			fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>by the test</Message></Error>`, code)
		}
		switch f {
		case busy:
			refuse(http.StatusServiceUnavailable, "SlowDown")
			return
		case broken:
			refuse(http.StatusInternalServerError, "InternalError")
			return
		case refused:
			refuse(http.StatusForbidden, "AccessDenied")
			return
		case silent:
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return
		case cutUp:
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		}
		forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	p.addr = u.Host
	return p
}

// breaks sets what happens from now on and starts counting anew.
func (p *proxy) breaks(f func(n int, r *http.Request) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.n = f, 0
}

// count is how many requests came since.
func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// bucket opens a prefix of the bucket by way of the proxy.
func (p *proxy) bucket(t testing.TB, srv *s3test.Server, prefix string, opt bucket.Options) *bucket.Bucket {
	t.Helper()
	spec, err := bucket.Parse(fmt.Sprintf("s3://%s/%s?endpoint=http://%s", srv.Bucket, prefix, p.addr))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bucket.Open(spec, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

type faultKey struct{}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut") }
