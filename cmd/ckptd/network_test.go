package main

import (
	"errors"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
)

// TestNetworks: which addresses a target may listen at by RDMA, and how
// daemons are told to reach it.
func TestNetworks(t *testing.T) {
	for _, c := range []struct {
		listen []string
		cert   string
		scheme string // "": refused
	}{
		{[]string{"127.0.0.1:0"}, "", "tcp"},
		{[]string{"127.0.0.1:0"}, "cert.pem", "tls"},
		{[]string{"ofi:127.0.0.1:0"}, "", "ofi"},
		{[]string{"ofi:10.0.0.1:7000", "ofi:10.0.1.1:7000"}, "", "ofi"},
		{[]string{"ofi:127.0.0.1:0", "127.0.0.1:0"}, "", ""},
	} {
		s := targetSettings{Listen: c.listen, TLSCert: c.cert}
		if got, err := s.scheme(); got != c.scheme || (err == nil) != (c.scheme != "") || err != nil && !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%v: scheme %q, %v, want %q", c.listen, got, err, c.scheme)
		}
	}
	for _, c := range []struct {
		listen   string
		token    string
		insecure bool
		ok       bool
	}{
		{"ofi:127.0.0.1:0", "", false, true},
		{"ofi:10.0.0.1:7000", "s3cret", false, false},
		{"ofi:10.0.0.1:7000", "", true, false},
		{"ofi:10.0.0.1:7000", "s3cret", true, true},
		{"ofi:nowhere", "s3cret", true, false},
	} {
		n := &networks{tcp: tcp.New(tcp.Options{}), opt: ofi.Options{Token: c.token, Insecure: c.insecure}}
		if err := n.check([]string{c.listen}); (err == nil) != c.ok || err != nil && !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s with token %q, insecure %v: %v, want ok = %v", c.listen, c.token, c.insecure, err, c.ok)
		}
	}
}
