package tcp_test

import (
	"testing"
	"time"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/fabrictest"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
)

func TestFabric(t *testing.T) {
	fabrictest.Run(t, "127.0.0.1:0", func(t *testing.T) fabric.Fabric { return tcp.New(tcp.Options{Stall: 3 * time.Second}) })
}

func TestFabricWithToken(t *testing.T) {
	fabrictest.Run(t, "127.0.0.1:0", func(t *testing.T) fabric.Fabric {
		return tcp.New(tcp.Options{Token: "s3cret", Stall: 3 * time.Second})
	})
}
