package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/posix"
	"github.com/ckptd/ckptd/remotetier/s3"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/remotetier/target"
)

// remoteSyntax is what --remote takes besides none and catalog.
const remoteSyntax = catalog.TargetSyntax

// fromCatalog, as a --remote, stands for the targets of the catalog's map.
const fromCatalog = "catalog"

// parseRemote reads the flags: the targets that they name, and whether those
// of the catalog's map are used too. nil is none at all.
func parseRemote(specs []string, data, node string) (given []catalog.TargetRecord, follow bool, err error) {
	if len(specs) == 0 {
		for i := range 3 {
			dir := filepath.Join(data, "targets", fmt.Sprintf("t%d", i))
			name, err := target.NameOf(vfs.OS, dir)
			if errors.Is(err, fs.ErrNotExist) { // of a node: others may have the same directories
				name = fmt.Sprintf("%.56s-t%d", node, i)
			} else if err != nil {
				return nil, false, fmt.Errorf("target in %s: %w", dir, err)
			}
			specs = append(specs, "dir:"+dir+",name="+name)
		}
	}
	if len(specs) == 1 && specs[0] == "none" {
		return nil, false, nil
	}
	for i, spec := range specs {
		if spec == fromCatalog {
			follow = true
			continue
		}
		r, err := catalog.ParseTarget(spec)
		if err != nil {
			return nil, false, fmt.Errorf("--remote: %w; or catalog, or none", err)
		}
		if r.By = node; r.Scheme == "dir" {
			if r.Node = node; r.Name == "" {
				r.Name = fmt.Sprintf("t%d", i)
			}
		}
		if r.Name != "" && slices.ContainsFunc(given, func(o catalog.TargetRecord) bool { return o.Name == r.Name }) {
			return nil, false, fmt.Errorf("--remote %q: %w: another target has this name", spec, catalog.ErrInvalid)
		}
		given = append(given, r)
	}
	return given, follow, nil
}

// opener opens targets: it knows the networks and engines, and package ckptd
// does not.
type opener struct {
	s     *settings
	token string
	log   *slog.Logger
	tls   func() (*tls.Config, error) // made once, when somebody needs it
	rdma  ofi.Net                     // nil: this program has none
	none  error                       // and why
	warn  sync.Once                   // about memory
}

func newOpener(s *settings, token string, log *slog.Logger, open *opened) *opener {
	o := &opener{s: s, token: token, log: log, tls: sync.OnceValues(func() (*tls.Config, error) {
		return clientTLS(s.TLSCert, s.TLSKey, s.TLSCA)
	})}
	// It opens nothing before there is a target to reach.
	if o.rdma, o.none = ofi.New(ofi.Options{Provider: s.OFIProvider, Token: token}); o.rdma != nil {
		open.add(closeFunc(func() error {
			if st := o.rdma.Stats(); st.DirectBytes+st.CopiedBytes > 0 {
				log.Info("moved by remote memory access", "provider", s.OFIProvider, "direct", st.DirectBytes, "copied", st.CopiedBytes)
			}
			return o.rdma.Close()
		}))
	}
	return o
}

// mapped makes the remote tier's memory known to the fabric that moves bytes
// to and from it without a copy. What it refuses is copied.
func (o *opener) mapped(mem []byte) (unmap func()) {
	if o.rdma == nil {
		return nil
	}
	unmap, err := o.rdma.Register(mem)
	if err != nil {
		o.warn.Do(func() { o.log.Warn("memory is not used by RDMA but copied", "err", err) })
	}
	return unmap
}

// openMember opens a target of the map, and makes nothing: a directory must be
// the one that the map means.
func (o *opener) openMember(ctx context.Context, r catalog.TargetRecord) (ckptd.OpenTarget, error) {
	if r.Scheme == "dir" {
		name, err := target.NameOf(vfs.OS, r.Addrs[0])
		if err != nil {
			return nil, fmt.Errorf("target %s in %s: %w", r.Name, r.Addrs[0], err)
		} else if name != r.Name {
			return nil, fmt.Errorf("target %s in %s: %w: it is the directory of %s", r.Name, r.Addrs[0], catalog.ErrConflict, name)
		}
	}
	return o.open(ctx, r)
}

// open opens one target, and makes a directory that is new. One over the
// network that has a name need not answer.
func (o *opener) open(ctx context.Context, r catalog.TargetRecord) (ckptd.OpenTarget, error) {
	switch r.Scheme {
	case "dir":
		return target.OpenDir(vfs.OS, r.Addrs[0], r.Name)
	case "posix":
		path, spec, striped := strings.Cut(r.Addrs[0], catalog.StripeMark)
		opt := posix.Options{Trace: func(err error) { o.log.Warn("not cleared away", "err", err) }}
		if striped {
			var err error
			if opt.Stripe, err = posix.ParseStripe(spec); err != nil {
				return nil, err
			}
		}
		return posix.Open(ctx, vfs.OS, path, r.Name, opt)
	case "s3":
		spec, err := bucket.Parse(r.Addrs[0])
		if err != nil {
			return nil, err
		}
		b, err := bucket.Open(spec, bucket.Options{Again: func(err error, try int, wait time.Duration) {
			o.log.Debug("a request is tried again", "target", r.Name, "try", try, "in", wait.Round(time.Millisecond), "err", err)
		}})
		if err != nil {
			return nil, err
		}
		return s3.Open(ctx, b, r.Name, s3.Options{Trace: func(err error) { o.log.Warn("not cleared away", "err", err) }})
	case "tcp", "tls":
		opt := tcp.Options{Token: o.token}
		if r.Scheme == "tls" {
			var err error
			if opt.TLS, err = o.tls(); err != nil {
				return nil, err
			}
		}
		return target.Dial(ctx, tcp.New(opt), r.Addrs, target.RemoteOptions{Name: r.Name, Domain: r.Domain})
	}
	if r.Scheme == "ofi" {
		if o.rdma == nil {
			return nil, fmt.Errorf("target %s: %w", r.Name, o.none)
		}
		return target.Dial(ctx, o.rdma, r.Addrs, target.RemoteOptions{Name: r.Name, Domain: r.Domain})
	}
	return nil, fmt.Errorf("target %s: %w: this daemon cannot open a %s target", r.Name, catalog.ErrInvalid, r.Scheme)
}

// openGiven opens the targets that the flags name, those over the network side
// by side: one that is away costs the others nothing.
func (o *opener) openGiven(ctx context.Context, records []catalog.TargetRecord, open *opened) ([]ckptd.GivenTarget, error) {
	given := make([]ckptd.GivenTarget, len(records))
	errs := make([]error, len(records))
	var wg sync.WaitGroup
	for i, r := range records {
		wg.Go(func() {
			t, err := o.open(ctx, r)
			if err != nil {
				errs[i] = fmt.Errorf("--remote: %w", err)
				return
			}
			r.Name = t.Name()
			given[i] = ckptd.GivenTarget{Record: r, Target: t}
			if _, err := t.Space(ctx); err != nil {
				o.log.Warn("a target is away; it is used when it is back", "target", r.Name, "addrs", r.Addrs, "err", err)
			}
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	seen := map[string]bool{}
	for _, g := range given {
		if g.Target == nil {
			continue
		}
		open.add(g.Target)
		if err == nil && seen[g.Record.Name] {
			err = fmt.Errorf("--remote: %w: two targets are named %q", catalog.ErrInvalid, g.Record.Name)
		}
		seen[g.Record.Name] = true
	}
	return given, err
}

// clientTLS is how targets are met: ca (default the system's) signs them, cert
// (optional) is what this side shows.
func clientTLS(cert, key, ca string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13}
	if cert != "" {
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{c}
	}
	if ca != "" {
		pool, err := loadCA(ca)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = pool
	}
	return conf, nil
}

func loadCA(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("--tls-ca %s: %w: it holds no certificate", path, catalog.ErrInvalid)
	}
	return pool, nil
}
