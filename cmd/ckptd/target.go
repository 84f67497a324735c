package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/target"
)

// targetSettings are the flags of target.
type targetSettings struct {
	Dir, Name, Domain      string
	Listen                 []string
	TLSCert, TLSKey, TLSCA string
	TokenFile              string
	Insecure               bool
	OFIProvider            string
	Buffers                string
	MaxConns, DiskOps      int
	LogLevel               string
	member                 memberSettings
}

func newTarget() *cobra.Command {
	var s targetSettings
	cmd := &cobra.Command{
		Use: "target", Short: "Serve one directory of the remote tier to daemons", Args: cobra.NoArgs,
		Long: "Serve one directory as a stripe target of the remote tier. Daemons use it by\n" +
			"--remote tcp:HOST:PORT (or tls:, ofi:), or, with --nats, by --remote catalog: then the target\n" +
			"registers itself, and daemons follow. The directory needs no index: a target can be\n" +
			"stopped, moved and started again.",
		RunE: func(cmd *cobra.Command, _ []string) error { return runTarget(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVar(&s.Dir, "dir", "", "directory of the target, made when missing; it should have a disk of its own")
	f.StringSliceVar(&s.Listen, "listen", nil, "HOST:PORT, or ofi:HOST:PORT for RDMA, may be repeated: several networks to the same target; off loopback it needs TLS and a token")
	f.StringVar(&s.Name, "name", "", "name of the target, unique and for ever (default the directory's, or the host's name and the directory's)")
	f.StringVar(&s.Domain, "domain", "", "what fails together with this target: a host, a rack")
	f.StringVar(&s.TLSCert, "tls-cert", "", "certificate file, PEM: turns TLS on")
	f.StringVar(&s.TLSKey, "tls-key", "", "key file of --tls-cert, PEM")
	f.StringVar(&s.TLSCA, "tls-ca", "", "file of the authorities that sign clients, PEM: clients must then show certificates")
	f.StringVar(&s.TokenFile, "token-file", "", "file with the secret that clients must know")
	f.BoolVar(&s.Insecure, "insecure", false, "allow listening off loopback without TLS and token")
	f.StringVar(&s.OFIProvider, "ofi-provider", "verbs", ofiProviderUsage)
	f.StringVar(&s.Buffers, "buffers", "64MiB", "memory for columns on their way to the disk")
	f.IntVar(&s.MaxConns, "max-conns", 1024, "connections at one time, for each --listen")
	f.IntVar(&s.DiskOps, "disk-ops", 16, "writes, commits and look-ups on the disk at one time")
	f.StringVar(&s.LogLevel, "log-level", "info", "debug, info, warn or error")
	s.member.flags(f)
	return cmd
}

// runTarget serves until ctx ends.
func runTarget(ctx context.Context, s targetSettings) (err error) {
	log, err := newLog(s.LogLevel)
	if err != nil {
		return err
	}
	opt, err := s.fabric()
	if err != nil {
		return err
	}
	nets := &networks{tcp: tcp.New(opt), opt: ofi.Options{Provider: s.OFIProvider, Token: opt.Token, Insecure: opt.Insecure, MaxConns: opt.MaxConns}}
	if err := nets.check(s.Listen); err != nil {
		return err
	}
	if err := target.CheckDomain(s.Domain); err != nil {
		return fmt.Errorf("--domain: %w", err)
	}
	if err := s.member.check(s.Listen); err != nil {
		return err
	}
	if s.member.NATS != "" {
		if _, err := s.scheme(); err != nil {
			return err
		}
	}
	var open opened
	defer func() { err = errors.Join(err, open.Close()) }()
	if opt.Buffers, err = s.buffers(); err != nil {
		return err
	}
	open.add(opt.Buffers)
	nets.tcp, nets.opt.Buffers = tcp.New(opt), opt.Buffers
	if rdma, _ := wantsRDMA(s.Listen); rdma {
		if nets.rdma, err = ofi.New(nets.opt); err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		open.add(nets.rdma)
	}
	if s.Name, err = targetName(s.Name, s.Dir); err != nil {
		return err
	}
	dir, err := target.OpenDir(vfs.OS, s.Dir, s.Name)
	if err != nil {
		return err
	}
	open.add(dir)
	srv, err := target.NewServer(dir, target.ServerOptions{Domain: s.Domain, DiskOps: s.DiskOps, Trace: target.ServerTrace{
		GaveUp: func(key remotetier.Key) { log.Info("gave up what a client had left", "column", key.String()) },
		Failed: func(op string, err error) { log.Warn("refused or failed", "op", op, "err", err) },
	}})
	if err != nil {
		return err
	}
	var listeners []fabric.Listener
	for _, addr := range s.Listen {
		l, err := nets.listen(addr)
		if err != nil {
			return err
		}
		open.add(l)
		listeners = append(listeners, l)
		log.Info("target listens", "addr", l.Addr().String(), "name", s.Name, "domain", s.Domain, "dir", s.Dir, "tls", opt.TLS != nil, "version", version)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveTarget(gctx, srv, listeners, log) })
	if s.member.NATS != "" {
		g.Go(func() error { return s.joinCluster(gctx, srv, listeners, log) })
	}
	if err = g.Wait(); errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	st := srv.Stats()
	if nets.rdma != nil {
		moved := nets.rdma.Stats()
		log.Info("moved by remote memory access", "provider", s.OFIProvider, "read", moved.ReadBytes, "written", moved.WrittenBytes)
	}
	log.Info("target stopped", "name", s.Name, "columns", st.Columns, "bytes_in", st.BytesIn, "bytes_out", st.BytesOut, "failed", st.Failed, "err", err)
	return err
}

// serveTarget serves, and tells now and then what was done.
func serveTarget(ctx context.Context, srv *target.Server, listeners []fabric.Listener, log *slog.Logger) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, listeners...) }()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	var last target.Stats
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if st := srv.Stats(); st != last {
				log.Info("target", "stats", fmt.Sprintf("%+v", st))
				last = st
			}
		}
	}
}

// fabric makes the options of the network.
func (s *targetSettings) fabric() (opt tcp.Options, err error) {
	switch {
	case s.Dir == "":
		return opt, fmt.Errorf("--dir: %w: give the directory of the target", catalog.ErrInvalid)
	case len(s.Listen) == 0:
		return opt, fmt.Errorf("--listen: %w: give HOST:PORT; 127.0.0.1:0 takes any port", catalog.ErrInvalid)
	case s.TLSCA != "" && s.TLSCert == "":
		return opt, fmt.Errorf("--tls-ca: %w: it needs --tls-cert", catalog.ErrInvalid)
	}
	opt.Insecure, opt.MaxConns = s.Insecure, s.MaxConns
	if s.TokenFile != "" {
		if opt.Token, err = readToken(s.TokenFile); err != nil {
			return opt, err
		}
	}
	if s.TLSCert == "" {
		return opt, nil
	}
	cert, err := tls.LoadX509KeyPair(s.TLSCert, s.TLSKey)
	if err != nil {
		return opt, fmt.Errorf("TLS certificate: %w", err)
	}
	opt.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	if s.TLSCA != "" {
		if opt.TLS.ClientCAs, err = loadCA(s.TLSCA); err != nil {
			return opt, err
		}
		opt.TLS.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return opt, nil
}

func (s *targetSettings) buffers() (*fabric.Buffers, error) {
	size, err := parseSize("buffers", s.Buffers)
	if err != nil {
		return nil, err
	}
	if size < 1<<20 {
		return nil, fmt.Errorf("--buffers %s: %w: want at least 1MiB", s.Buffers, catalog.ErrInvalid)
	}
	return fabric.NewBuffers(size, 0)
}

// targetName is the name the directory has, or one for a new directory.
func targetName(name, dir string) (string, error) {
	if name != "" {
		return name, nil
	}
	name, err := target.NameOf(vfs.OS, dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return name, err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the host has no name; give --name: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	name = host + "-" + filepath.Base(dir)
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '-'
	}, name[:min(len(name), remotetier.MaxTargetName)]), nil
}
