package targettest_test

import (
	"testing"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

func TestMem(t *testing.T) {
	targettest.Run(t, func(*testing.T) remotetier.Target { return targettest.NewMem("mem") })
}
