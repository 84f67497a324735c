package s3_test

import (
	"fmt"
	"testing"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/s3"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

func open(t testing.TB, srv *s3test.Server, prefix string, opt s3.Options) *s3.Target {
	t.Helper()
	tg, err := s3.Open(t.Context(), srv.Open(t, prefix, nil), "s3", opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tg.Close() })
	return tg
}

func TestConformance(t *testing.T) {
	srv := s3test.Start(t)
	n := 0
	targettest.Run(t, func(t *testing.T) remotetier.Target {
		n++
		return open(t, srv, fmt.Sprintf("pre/fix%d", n), s3.Options{Trace: func(err error) { t.Errorf("left: %v", err) }})
	})
}
