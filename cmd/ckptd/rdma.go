package main

import (
	"fmt"
	"strings"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
)

// ofiPrefix begins an address that is listened at by RDMA.
const ofiPrefix = "ofi:"

const ofiProviderUsage = "provider of libfabric for ofi: addresses: verbs, or tcp for trying it without a card"

// networks are the fabrics that a target listens by.
type networks struct {
	tcp  *tcp.Fabric
	rdma ofi.Net // nil: no address wants it
	opt  ofi.Options
}

// byRDMA gives the address behind the prefix.
func byRDMA(listen string) (addr string, ok bool) { return strings.CutPrefix(listen, ofiPrefix) }

// check refuses addresses before anything is opened.
func (n *networks) check(listen []string) error {
	for _, l := range listen {
		if addr, ok := byRDMA(l); ok {
			if err := n.opt.CheckListen(addr); err != nil {
				return fmt.Errorf("--listen: %w; give --token-file and --insecure", err)
			}
			continue
		}
		if err := n.tcp.CheckListen(l); err != nil {
			return fmt.Errorf("%w; give --tls-cert, --tls-key and --token-file, or --insecure", err)
		}
	}
	return nil
}

// listen opens an address.
func (n *networks) listen(l string) (fabric.Listener, error) {
	addr, ok := byRDMA(l)
	if !ok {
		return n.tcp.Listen(l)
	}
	return n.rdma.Listen(addr)
}

// wantsRDMA reports whether one of the addresses is listened at by RDMA.
func wantsRDMA(listen []string) (some, all bool) {
	all = len(listen) > 0
	for _, l := range listen {
		_, ok := byRDMA(l)
		some, all = some || ok, all && ok
	}
	return some, all
}

// scheme is how daemons reach a target that registers itself: it has one.
func (s *targetSettings) scheme() (string, error) {
	some, all := wantsRDMA(s.Listen)
	switch {
	case some && !all:
		return "", fmt.Errorf("--listen: %w: a target that registers by --nats is reached in one way: give ofi: addresses, or others", catalog.ErrInvalid)
	case some:
		return "ofi", nil
	case s.TLSCert != "":
		return "tls", nil
	}
	return "tcp", nil
}
