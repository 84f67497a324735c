//go:build ofi

package ofi_test

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/fabrictest"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
)

// Where and by which provider the tests run. Without these: by the provider
// tcp over loopback, which needs no hardware.
var (
	provider = or(os.Getenv("CKPTD_OFI_PROVIDER"), "tcp")
	addr     = or(os.Getenv("CKPTD_OFI_ADDR"), "127.0.0.1:0")
)

// moved counts what all tests moved by remote memory access.
var moved struct{ read, written, copied atomic.Int64 }

func TestMain(m *testing.M) {
	code := m.Run()
	fmt.Printf("rma: provider %s, %d bytes read and %d bytes written by remote memory access, %d bytes of clients copied\n",
		provider, moved.read.Load(), moved.written.Load(), moved.copied.Load())
	os.Exit(code)
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// open makes a Net of the provider under test.
func open(t testing.TB, opt ofi.Options) ofi.Net {
	t.Helper()
	opt.Provider, opt.Insecure = provider, true
	if opt.Token == "" {
		opt.Token = "s3cret"
	}
	if opt.Dial == 0 {
		opt.Dial = 10 * time.Second
	}
	n, err := ofi.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		st := n.Stats()
		moved.read.Add(st.ReadBytes)
		moved.written.Add(st.WrittenBytes)
		moved.copied.Add(st.CopiedBytes)
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

func TestFabric(t *testing.T) {
	fabrictest.Run(t, addr, func(t *testing.T) fabric.Fabric { return open(t, ofi.Options{Stall: 3 * time.Second}) })
}
