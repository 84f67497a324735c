package tcp_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/fabrictest"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
)

// authority makes a certificate that is its own authority, and the
// configuration of both ends with it.
func authority(t *testing.T, mutual bool) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ckptd test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: pool, MinVersion: tls.VersionTLS13}
	if mutual {
		conf.ClientCAs, conf.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return conf
}

func TestFabricWithMutualTLS(t *testing.T) {
	conf := authority(t, true)
	fabrictest.Run(t, "127.0.0.1:0", func(t *testing.T) fabric.Fabric {
		return tcp.New(tcp.Options{TLS: conf, Token: "s3cret", Stall: 3 * time.Second})
	})
}

// quiet is a handler that answers everything with nothing.
type quiet struct{ served atomic.Int64 }

func (*quiet) Greeting() []byte     { return []byte("quiet") }
func (*quiet) Join(fabric.Session)  {}
func (*quiet) Leave(fabric.Session) {}
func (q *quiet) Answer(context.Context, fabric.Session, fabric.Exchange) ([]byte, error) {
	q.served.Add(1)
	return nil, nil
}

// serve runs a listener for the test's time.
func serve(t *testing.T, opt tcp.Options, h fabric.Handler) *tcp.Listener {
	t.Helper()
	l, err := tcp.New(opt).Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})
	return l.(*tcp.Listener)
}

func ask(t *testing.T, opt tcp.Options, check func([]byte) error, addrs ...string) error {
	t.Helper()
	c, err := tcp.New(opt).Connect(addrs, check)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.Do(t.Context(), &fabric.Op{Request: []byte("x")})
}

func TestPromise6PrivateByDefault(t *testing.T) {
	secure, mutual := authority(t, false), authority(t, true)
	for _, c := range []struct {
		addr string
		opt  tcp.Options
		ok   bool
	}{
		{"127.0.0.1:0", tcp.Options{}, true},
		{"[::1]:0", tcp.Options{}, true},
		{"localhost:0", tcp.Options{}, true},
		{"0.0.0.0:0", tcp.Options{}, false},
		{":0", tcp.Options{}, false},
		{"[::]:0", tcp.Options{}, false},
		{"10.1.2.3:0", tcp.Options{Token: "s3cret"}, false},
		{"10.1.2.3:0", tcp.Options{TLS: secure}, false},
		{"10.1.2.3:0", tcp.Options{TLS: secure, Token: "s3cret"}, true},
		{"10.1.2.3:0", tcp.Options{TLS: mutual}, true},
		{"0.0.0.0:0", tcp.Options{Insecure: true}, true},
		{"nowhere", tcp.Options{Insecure: true}, false},
		{"127.0.0.1:0", tcp.Options{Token: strings.Repeat("x", 257)}, false},
	} {
		if err := tcp.New(c.opt).CheckListen(c.addr); (err == nil) != c.ok || !c.ok && !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("CheckListen(%s) = %v, want ok = %v", c.addr, err, c.ok)
		}
	}
}

func TestPromise6WhoIsLetIn(t *testing.T) {
	conf, other := authority(t, true), authority(t, true)
	anonymous := conf.Clone()
	anonymous.Certificates = nil
	for _, c := range []struct {
		name           string
		server, client tcp.Options
		ok             bool
		text           string
	}{
		{"SameToken", tcp.Options{Token: "a"}, tcp.Options{Token: "a"}, true, ""},
		{"OtherToken", tcp.Options{Token: "a"}, tcp.Options{Token: "b"}, false, "token"},
		{"NoTokenHere", tcp.Options{Token: "a"}, tcp.Options{}, false, "token"},
		{"NoTokenThere", tcp.Options{}, tcp.Options{Token: "a"}, false, "token"},
		{"TLSOnlyThere", tcp.Options{TLS: conf}, tcp.Options{}, false, ""},
		{"TLSOnlyHere", tcp.Options{}, tcp.Options{TLS: conf}, false, ""},
		{"OtherAuthority", tcp.Options{TLS: conf}, tcp.Options{TLS: other}, false, "certificate"},
		{"NoCertificate", tcp.Options{TLS: conf}, tcp.Options{TLS: anonymous}, false, ""},
		{"SameAuthority", tcp.Options{TLS: conf}, tcp.Options{TLS: conf}, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.server.Stall, c.client.Dial = time.Second, 5*time.Second
			h := &quiet{}
			err := ask(t, c.client, nil, serve(t, c.server, h).Addr().String())
			if (err == nil) != c.ok || !c.ok && (!errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("Do = %v, want ok = %v", err, c.ok)
			}
			if n := h.served.Load(); (n > 0) != c.ok {
				t.Errorf("%d exchanges were served", n)
			}
		})
	}
	t.Run("AnotherTarget", func(t *testing.T) {
		stranger := errors.New("a stranger")
		err := ask(t, tcp.Options{}, func(b []byte) error {
			if string(b) != "quiet" {
				t.Errorf("greeting %q", b)
			}
			return stranger
		}, serve(t, tcp.Options{}, &quiet{}).Addr().String())
		if !errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "stranger") {
			t.Errorf("Do = %v, want ErrUnavailable", err)
		}
	})
}

// blackHole accepts connections and never says anything.
func blackHole(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// TestPromise1SilentTargetCostsItsDeadlineOnce: the first exchanges wait for the dial
// limit, those after know.
func TestPromise1SilentTargetCostsItsDeadlineOnce(t *testing.T) {
	addr := blackHole(t)
	c, err := tcp.New(tcp.Options{Dial: 200 * time.Millisecond}).Connect([]string{addr}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	from := time.Now()
	for range 50 {
		if err := c.Do(t.Context(), &fabric.Op{Request: []byte("x")}); !errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Do = %v, want ErrUnavailable", err)
		}
	}
	if d := time.Since(from); d < 200*time.Millisecond || d > 5*time.Second {
		t.Errorf("50 exchanges with a silent target took %v, want the dial limit of 200ms once", d)
	}
}

// TestPromise7Rails: exchanges go over all addresses, and on over those that are left.
func TestPromise7Rails(t *testing.T) {
	h := []*quiet{{}, {}}
	opt := tcp.Options{Stall: 5 * time.Second}
	a, b := serve(t, opt, h[0]), serve(t, opt, h[1])
	addrs := []string{a.Addr().String(), b.Addr().String(), blackHole(t)}
	c, err := tcp.New(tcp.Options{Dial: time.Second, Stall: 5 * time.Second}).Connect(addrs, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	do := func(n int) {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if err := c.Do(t.Context(), &fabric.Op{Request: []byte("x")}); err != nil {
					t.Errorf("Do with a good address = %v", err)
				}
			})
		}
		wg.Wait()
	}
	do(100)
	first, second := h[0].served.Load(), h[1].served.Load()
	if first < 20 || second < 20 {
		t.Errorf("the addresses served %d and %d exchanges, want both to be used", first, second)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	do(100)
	if n := h[1].served.Load() - second; n < 95 {
		t.Errorf("the address left served %d exchanges of 100", n)
	}
}

// TestPromise3ConnectionsAreBounded: a listener full of connections refuses more, and
// takes new ones when some have gone.
func TestPromise3ConnectionsAreBounded(t *testing.T) {
	l := serve(t, tcp.Options{MaxConns: 3, Stall: time.Second}, &quiet{})
	var idle []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, 48)); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	if err := ask(t, tcp.Options{}, nil, l.Addr().String()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("a fourth connection of three: %v, want ErrUnavailable", err)
	}
	for _, c := range idle { // who does not finish the hello is put out
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, io.EOF) {
			t.Log(err)
		}
	}
	if err := ask(t, tcp.Options{}, nil, l.Addr().String()); err != nil {
		t.Errorf("after they went: %v", err)
	}
}

// TestKeepAlive: an idle connection outlives the target's patience.
func TestKeepAlive(t *testing.T) {
	left := make(chan struct{}, 10)
	h := &leaver{left: left}
	l := serve(t, tcp.Options{Idle: time.Second}, h)
	c, err := tcp.New(tcp.Options{KeepAlive: 30 * time.Millisecond}).Connect([]string{l.Addr().String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Do(t.Context(), &fabric.Op{Request: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-left:
		t.Error("the target gave up a connection that is kept alive")
	case <-time.After(2 * time.Second):
	}
}

type leaver struct {
	quiet
	left chan struct{}
}

func (l *leaver) Leave(fabric.Session) { l.left <- struct{}{} }
