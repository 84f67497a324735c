package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

// store is the NATS server of a test, which may go away and come back, and the
// catalog in it.
type store struct {
	t    *testing.T
	dir  string
	addr string
	srv  *natscatalog.Server // nil: away
}

func (s *store) up() {
	s.t.Helper()
	srv, err := natscatalog.Embed(s.dir, natscatalog.EmbedOptions{Listen: s.addr})
	if err != nil {
		s.t.Fatal(err)
	}
	s.srv = srv
}

func (s *store) down() {
	if s.srv == nil {
		return
	}
	if err := s.srv.Close(); err != nil {
		s.t.Errorf("NATS: %v", err)
	}
	s.srv = nil
}

func (s *store) url() string { return "nats://" + s.addr }

// open gives the catalog. It needs the server to be up.
func (s *store) open() *catalog.Catalog {
	s.t.Helper()
	nc, err := s.srv.Conn()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	open := func(bucket string) *natscatalog.Driver {
		d, err := natscatalog.Open(s.t.Context(), nc, bucket, natscatalog.Options{})
		if err != nil {
			s.t.Fatal(err)
		}
		return d
	}
	return catalog.New(open("ckptd"), open("ckptd-parts"))
}

// A target registers although it was started before NATS; another directory of
// its name is refused; it says when it is stopped.
func TestTargetRegisters(t *testing.T) {
	s := &store{t: t, dir: t.TempDir(), addr: freePort(t, "127.0.0.1:0")}
	t.Cleanup(s.down)
	p := startTarget(t, "a", "--nats", s.url(), "--heartbeat", "200ms", "--domain", "rack1", "--pool", "fast", "--weight", "2")
	if _, err := p.dial().Space(t.Context()); err != nil {
		t.Errorf("it does not serve while the catalog is away: %v", err)
	}
	s.up()
	cat := s.open()
	var r catalog.TargetRecord
	eventually(t, "the target registers", func() error {
		m, err := cat.Targets(t.Context())
		if err != nil {
			return err
		}
		if old := m.Find("a", ""); old == nil {
			return fmt.Errorf("the map is %+v", m)
		} else {
			r = *old
		}
		st, err := cat.TargetStatus(t.Context(), "a", "")
		if err == nil && (st.Beat < 2 || st.Total == 0 || st.Columns != 0) {
			err = fmt.Errorf("status %+v", st)
		}
		return err
	})
	if r.Scheme != "tcp" || r.Addrs[0] != p.addr || r.Domain != "rack1" || r.Pool != "fast" || r.Weight != 2 || r.State != catalog.TargetUp {
		t.Errorf("record %+v", r)
	}
	t.Run("AnotherDirectory", func(t *testing.T) {
		cmd := program("target", "--dir", filepath.Join(t.TempDir(), "a"), "--name", "a", "--listen", "127.0.0.1:0", "--nats", s.url())
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); err == nil || code != 6 || !strings.Contains(string(out), "another --name") {
			t.Errorf("exit code %d: %s", code, out)
		}
	})
	t.Run("Refused", func(t *testing.T) {
		for _, args := range [][]string{
			{"--listen", "0.0.0.0:0", "--insecure", "--nats", s.url()},
			{"--listen", "127.0.0.1:0", "--nats", s.url(), "--advertise", "nowhere"},
			{"--listen", "127.0.0.1:0", "--nats", s.url(), "--pool", "no pool"},
			{"--listen", "127.0.0.1:0", "--pool", "fast"},
		} {
			cmd := program(append([]string{"target", "--dir", filepath.Join(t.TempDir(), "b")}, args...)...)
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 2 {
				t.Errorf("%v: exit code %d: %s", args, code, out)
			}
		}
	})
	s.down()
	s.up()
	cat = s.open()
	last, err := cat.TargetStatus(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the target beats again", func() error {
		st, err := cat.TargetStatus(t.Context(), "a", "")
		if err == nil && st.Beat <= last.Beat {
			err = fmt.Errorf("status %+v", st)
		}
		return err
	})
	// The catalog is lost, and somebody makes a new one: the target enters itself.
	s.down()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.up()
	cat = s.open()
	eventually(t, "the target is in the new catalog", func() error {
		m, err := cat.Targets(t.Context())
		if err == nil && m.Find("a", "") == nil {
			err = fmt.Errorf("the map is %+v", m)
		}
		return err
	})
	if err := p.term(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if st, err := cat.TargetStatus(context.WithoutCancel(t.Context()), "a", ""); err != nil || !st.Stopped {
		t.Errorf("after it was stopped: %+v, %v", st, err)
	}
}
