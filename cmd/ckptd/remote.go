package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/target"
)

const remoteSyntax = "dir:PATH, tcp:HOST:PORT[+HOST:PORT…] or tls:HOST:PORT[+HOST:PORT…], then [,name=N][,domain=D][,weight=W]"

// remoteSpec is one --remote.
type remoteSpec struct {
	dir          string   // of a target in this process
	addrs        []string // of one in another; more than one are ways to the same
	tls          bool
	name, domain string // empty: what the target says
	weight       float64
}

func parseRemote(specs []string, data string) ([]remoteSpec, error) {
	if len(specs) == 0 {
		for i := range 3 {
			specs = append(specs, fmt.Sprintf("dir:%s,name=t%d", filepath.Join(data, "targets", fmt.Sprintf("t%d", i)), i))
		}
	}
	if len(specs) == 1 && specs[0] == "none" {
		return nil, nil
	}
	var out []remoteSpec
	for i, spec := range specs {
		t, err := parseOneRemote(spec)
		if err != nil {
			return nil, err
		}
		if t.dir != "" && t.name == "" {
			t.name = fmt.Sprintf("t%d", i)
		}
		if t.name != "" && slices.ContainsFunc(out, func(o remoteSpec) bool { return o.name == t.name }) {
			return nil, fmt.Errorf("--remote %q: %w: another target has this name", spec, catalog.ErrInvalid)
		}
		out = append(out, t)
	}
	return out, nil
}

func parseOneRemote(spec string) (t remoteSpec, err error) {
	bad := func(why string) (remoteSpec, error) {
		return t, fmt.Errorf("--remote %q: %w: %s", spec, catalog.ErrInvalid, why)
	}
	kind, rest, _ := strings.Cut(spec, ":")
	fields := strings.Split(rest, ",")
	t = remoteSpec{weight: 1, tls: kind == "tls"}
	switch kind {
	case "dir":
		if t.dir = fields[0]; t.dir == "" {
			return bad("the path is empty")
		}
	case "tcp", "tls":
		t.addrs = strings.Split(fields[0], "+")
		for _, a := range t.addrs {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				return bad(fmt.Sprintf("%q is no HOST:PORT", a))
			}
		}
	default:
		return bad("want " + remoteSyntax + "; or none")
	}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "name":
			if remotetier.CheckTargetName(v) != nil {
				return bad("a name is 1 to 64 letters, digits and any of -_.:@/")
			}
			t.name = v
		case "domain":
			t.domain = v
		case "weight":
			w, err := strconv.ParseFloat(v, 64)
			if err != nil || w <= 0 {
				return bad("weight is a number above 0")
			}
			t.weight = w
		default:
			return bad(fmt.Sprintf("%q is not known; name, domain and weight are", k))
		}
	}
	return t, nil
}

// openTargets opens all targets, those over the network side by side: one that
// is away costs the others nothing.
func openTargets(ctx context.Context, specs []remoteSpec, s *settings, token string, log *slog.Logger, open *opened) ([]remotetier.TargetInfo, error) {
	var conf *tls.Config
	if slices.ContainsFunc(specs, func(t remoteSpec) bool { return t.tls }) {
		var err error
		if conf, err = clientTLS(s.TLSCert, s.TLSKey, s.TLSCA); err != nil {
			return nil, err
		}
	}
	infos := make([]remotetier.TargetInfo, len(specs))
	var g errgroup.Group
	for i, spec := range specs {
		info := &infos[i]
		info.Domain, info.Weight = spec.domain, spec.weight
		if spec.dir != "" {
			d, err := target.OpenDir(vfs.OS, spec.dir, spec.name)
			if err != nil {
				_ = g.Wait() // the first error is told
				return nil, err
			}
			open.add(d)
			info.Target = d
			continue
		}
		opt := tcp.Options{Token: token}
		if spec.tls {
			opt.TLS = conf
		}
		g.Go(func() error {
			r, err := target.Dial(ctx, tcp.New(opt), spec.addrs, target.RemoteOptions{Name: spec.name, Domain: spec.domain})
			if err != nil {
				return fmt.Errorf("--remote: %w", err)
			}
			info.Target, info.Domain = r, r.Domain()
			if _, err := r.Space(ctx); err != nil {
				log.Warn("a target is away; it is used when it is back", "target", r.Name(), "addrs", spec.addrs, "err", err)
				if info.Domain == "" {
					log.Warn("its failure domain is known after the next start of the daemon; domain= says it now", "target", r.Name())
				}
			}
			return nil
		})
	}
	err := g.Wait()
	seen := map[string]bool{}
	for i := range infos {
		r, ok := infos[i].Target.(*target.Remote)
		if ok {
			open.add(r)
		}
		if err == nil && seen[infos[i].Name()] {
			err = fmt.Errorf("--remote: %w: two targets are named %q", catalog.ErrInvalid, infos[i].Name())
		}
		if err == nil {
			seen[infos[i].Name()] = true
		}
	}
	return infos, err
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
