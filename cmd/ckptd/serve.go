package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
	"github.com/ckptd/ckptd/ckptd"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/traffic"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newServe() *cobra.Command {
	var s settings
	var config string
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the daemon of this node", Args: cobra.NoArgs,
		Long: "Run the daemon of this node. With no flags it is complete by itself: a catalog inside\n" +
			"the process, data below the user's data directory, and three directories as remote targets.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config != "" {
				if err := s.merge(config, cmd.Flags()); err != nil {
					return err
				}
			}
			return serve(cmd.Context(), s)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "TOML file with the same settings; flags win")
	s.flags(cmd.Flags())
	return cmd
}

// opened closes what was opened, last first.
type opened struct{ closers []io.Closer }

func (o *opened) add(c io.Closer) { o.closers = append(o.closers, c) }

func (o *opened) Close() error {
	var errs []error
	for i := len(o.closers) - 1; i >= 0; i-- {
		errs = append(errs, o.closers[i].Close())
	}
	o.closers = nil
	return errors.Join(errs...)
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

func serve(ctx context.Context, s settings) (err error) {
	log, err := newLog(s.LogLevel)
	if err != nil {
		return err
	}
	cfg, err := nodeConfig(&s, log)
	if err != nil {
		return err
	}
	if s.StopAtEOF {
		var stop func()
		if ctx, stop, err = untilEOF(ctx, os.Stdin); err != nil {
			return err
		}
		defer stop()
	}
	var open opened
	defer func() { err = errors.Join(err, open.Close()) }()
	tiers, err := openTiers(ctx, &s, cfg, log, &open)
	if err != nil {
		return err
	}
	node, err := ckptd.New(cfg, tiers)
	if err != nil {
		return err
	}
	log.Info("ckptd starts", "node", cfg.Name, "data", cfg.Data, "catalog", cfg.NATS, "version", version)
	err = node.Run(ctx)
	log.Info("ckptd stopped", "err", err)
	return err
}

func newLog(name string) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return nil, fmt.Errorf("--log-level %q: %w: want debug, info, warn or error", name, catalog.ErrInvalid)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), nil
}

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("--token-file %s: %w: it is empty", path, catalog.ErrInvalid)
	}
	return token, nil
}

func nodeConfig(s *settings, log *slog.Logger) (cfg ckptd.Config, err error) {
	if cfg.Name, err = nodeName(s.Name); err != nil {
		return cfg, err
	}
	if s.Data, err = filepath.Abs(s.Data); err != nil {
		return cfg, err
	}
	if s.Socket == "" {
		s.Socket = ckptd.DefaultSocket()
	}
	cfg.Version, cfg.Socket, cfg.Data, cfg.Log = version, s.Socket, s.Data, log
	cfg.Listen, cfg.TLSCert, cfg.TLSKey, cfg.TLSCA, cfg.Insecure = s.Listen, s.TLSCert, s.TLSKey, s.TLSCA, s.Insecure
	cfg.Layout, cfg.MaxSessions, cfg.Compress = s.Layout, s.MaxSessions, s.Compress
	if err := (&catalog.Policy{Compress: s.Compress}).Check(); err != nil {
		return cfg, fmt.Errorf("--%w", err)
	}
	if cfg.Unit, err = parseSize("unit", s.Unit); err != nil {
		return cfg, err
	}
	if cfg.Grace, err = parseDuration("grace", s.Grace); err != nil {
		return cfg, err
	}
	if cfg.Incomplete, err = parseDuration("incomplete", s.Incomplete); err != nil {
		return cfg, err
	}
	if cfg.RepairAfter, err = parseDuration("repair-after", s.RepairAfter); err != nil {
		return cfg, err
	}
	if cfg.PackPatience, err = parseDuration("pack-patience", s.PacksStay); err != nil {
		return cfg, err
	}
	if cfg.DraftKeep, err = parseDuration("draft-keep", s.DraftKeep); err != nil {
		return cfg, err
	}
	if cfg.ScrubGrace, err = parseDuration("scrub-grace", s.ScrubGrace); err != nil {
		return cfg, err
	}
	if s.ScrubEvery != "0" {
		if cfg.ScrubEvery, err = parseDuration("scrub-every", s.ScrubEvery); err != nil {
			return cfg, err
		}
	}
	if cfg.Probe, err = parseDuration("target-probe", s.TargetProbe); err != nil {
		return cfg, err
	}
	if cfg.TargetDown, err = parseDuration("target-down", s.TargetDown); err != nil {
		return cfg, err
	}
	for _, u := range s.AllowUIDs {
		v, err := strconv.ParseUint(u, 10, 32)
		if err != nil {
			return cfg, fmt.Errorf("--allow-uid %q: %w: want a number", u, catalog.ErrInvalid)
		}
		cfg.UIDs = append(cfg.UIDs, uint32(v))
	}
	for _, spec := range s.Mounts {
		req, err := parseMount(spec, wire.MountRequest{AllowOther: s.MountOther, Checked: s.MountCheck})
		if err != nil {
			return cfg, fmt.Errorf("--mount %s: %w", spec, err)
		}
		cfg.Mounts = append(cfg.Mounts, req)
	}
	if s.TokenFile != "" {
		if cfg.Token, err = readToken(s.TokenFile); err != nil {
			return cfg, err
		}
	}
	cfg.NATS = "embedded"
	if s.NATS != "" {
		cfg.NATS = s.NATS
	}
	if cfg.Cache, err = parseSize("cache", s.Cache); err != nil {
		return cfg, err
	}
	return cfg, nil
}

func openTiers(ctx context.Context, s *settings, cfg ckptd.Config, log *slog.Logger, open *opened) (t ckptd.Tiers, err error) {
	disks := s.Disks
	if len(disks) == 0 {
		disks = []string{filepath.Join(s.Data, "local")}
	}
	quota, err := parseSize("quota", s.Quota)
	if err != nil {
		return t, err
	}
	size, err := parseSize("arena", s.Arena)
	if err != nil {
		return t, err
	}
	rate, err := parseSize("drain-rate", s.DrainRate)
	if err != nil {
		return t, err
	}
	repair, err := parseSize("repair-rate", s.RepairRate)
	if err != nil {
		return t, err
	}
	scrub, err := parseSize("scrub-rate", s.ScrubRate)
	if err != nil {
		return t, err
	}
	records, follow, err := parseRemote(s.Remote, s.Data, cfg.Name)
	if err != nil {
		return t, err
	}
	arenaDir := s.ArenaDir
	if arenaDir == "" {
		sum := sha256.Sum256([]byte(s.Data))
		arenaDir = fmt.Sprintf("/dev/shm/ckptd-%d-%x", os.Getuid(), sum[:6])
	}
	if t.Arena, err = localtier.OpenArena(arenaDir, localtier.ArenaOptions{Size: size, Trace: localTrace(log)}); err != nil {
		return t, err
	}
	open.add(t.Arena)
	unfinished := ckptd.Unfinished(t.Arena)
	if t.Local, err = localtier.Open(vfs.OS, localtier.Options{
		Dirs: disks, Quota: quota, Trace: localTrace(log),
		Keep: func(staging string) bool { return slices.Contains(unfinished, staging) },
	}); err != nil {
		return t, err
	}
	open.add(t.Local)
	if len(records) > 0 || follow {
		o := newOpener(s, cfg.Token, log, open)
		t.Targets = ckptd.Targets{Follow: follow, Open: o.openMember, Make: o.open, News: ckptd.NewTargetNews(log)}
		if t.Targets.Given, err = o.openGiven(ctx, records, open); err != nil {
			return t, err
		}
		t.Remote = remotetier.New(nil, remotetier.Options{
			Rate: rate, Traffic: traffic.Options{Rates: map[traffic.Class]int64{traffic.Repair: repair, traffic.Scrub: scrub}}, Trace: t.Targets.News.Trace(), Mapped: o.mapped,
		})
	}
	t.Catalog, err = openCatalog(ctx, s, cfg, log, open)
	return t, err
}

func localTrace(log *slog.Logger) localtier.Trace {
	return localtier.Trace{
		DirectFallback: func(dir string) { log.Warn("no O_DIRECT there: writes go through the page cache", "dir", dir) },
		Quarantined:    func(name string, cause error) { log.Warn("quarantined", "blob", name, "err", cause) },
		Orphan:         func(path string) { log.Info("removed what a crash had left", "path", path) },
		DiskFailed:     func(dir string, err error) { log.Error("disk failed", "dir", dir, "err", err) },
		ArenaShrunk:    func(have, want int64) { log.Warn("the arena is smaller than asked for", "have", have, "want", want) },
	}
}

// openCatalog connects to the servers given, or runs one inside the process.
func openCatalog(ctx context.Context, s *settings, cfg ckptd.Config, log *slog.Logger, open *opened) (*catalog.Catalog, error) {
	trace := func(text string) { log.Debug("nats", "text", text) }
	var conf *tls.Config
	if s.NATSListen != "" && s.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(s.TLSCert, s.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		conf = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	}
	opt := natscatalog.Options{Trace: trace, Warn: func(text string) { log.Warn("catalog", "text", text) }}
	var nc *nats.Conn
	var err error
	if s.NATS != "" {
		conn := natscatalog.ConnectOptions{Node: cfg.Name, Token: cfg.Token, Creds: s.NATSCreds, Trace: trace}
		if conn.TLS, err = natsTLS(s.NATS, s.TLSCert, s.TLSKey, s.TLSCA); err != nil {
			return nil, err
		}
		nc, err = natscatalog.Connect(s.NATS, conn)
	} else {
		var srv *natscatalog.Server
		srv, err = natscatalog.Embed(filepath.Join(s.Data, "catalog"), natscatalog.EmbedOptions{
			Listen: s.NATSListen, Token: cfg.Token, TLS: conf, Insecure: s.Insecure, Trace: trace,
		})
		if err != nil {
			return nil, err
		}
		open.add(srv)
		nc, err = srv.Conn()
	}
	if err != nil {
		return nil, err
	}
	open.add(closeFunc(func() error { nc.Close(); return nil }))
	return openBuckets(ctx, func(bucket string) (*natscatalog.Driver, error) { return natscatalog.Open(ctx, nc, bucket, opt) }, log)
}

// natsTLS is how NATS servers are met; nil: as the URL says, with the system's
// authorities.
func natsTLS(url, cert, key, ca string) (*tls.Config, error) {
	if !strings.Contains(url, "tls://") || ca == "" && cert == "" {
		return nil, nil
	}
	return clientTLS(cert, key, ca)
}

// openBuckets waits for the catalog as long as it takes: a node that starts
// before its NATS servers is not an error.
func openBuckets(ctx context.Context, bucket func(string) (*natscatalog.Driver, error), log *slog.Logger) (*catalog.Catalog, error) {
	for {
		records, err := bucket("ckptd")
		if err == nil {
			parts, perr := bucket("ckptd-parts")
			if perr == nil {
				return catalog.New(records, parts), nil
			}
			err = perr
		}
		if !errors.Is(err, catalog.ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		}
		log.Warn("the catalog is not there yet, waiting", "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
