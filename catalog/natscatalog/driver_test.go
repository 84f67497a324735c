package natscatalog_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

func embed(t testing.TB, dir string, opt natscatalog.EmbedOptions) *natscatalog.Server {
	t.Helper()
	s, err := natscatalog.Embed(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // some tests close it themselves
	return s
}

func inProcess(t testing.TB, s *natscatalog.Server) *nats.Conn {
	t.Helper()
	nc, err := s.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func open(t testing.TB, nc *nats.Conn, bucket string, opt natscatalog.Options) *natscatalog.Driver {
	t.Helper()
	d, err := natscatalog.Open(t.Context(), nc, bucket, opt)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestEmbedded(t *testing.T) {
	catalogtest.Run(t, func(t *testing.T) catalog.Driver {
		s := embed(t, t.TempDir(), natscatalog.EmbedOptions{})
		return open(t, inProcess(t, s), "catalog", natscatalog.Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
	})
}
