package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/pflag"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/target"
)

// memberSettings are the flags of a target that registers in the catalog.
type memberSettings struct {
	NATS, NATSCreds string
	Advertise       []string
	Pool            string
	Weight          float64
	Heartbeat       string
}

func (m *memberSettings) flags(f *pflag.FlagSet) {
	f.StringVar(&m.NATS, "nats", "", "URL of the NATS servers of the catalog, separated by commas: the target registers there and says how it is")
	f.StringVar(&m.NATSCreds, "nats-creds", "", "credentials file for --nats")
	f.StringSliceVar(&m.Advertise, "advertise", nil, "HOST:PORT where daemons reach the target, may be repeated (default what it listens on)")
	f.StringVar(&m.Pool, "pool", "", "pool of targets that it belongs to (default the one it was in, or the default pool)")
	f.Float64Var(&m.Weight, "weight", 0, "its share of new columns relative to the others (default what it was, or 1)")
	f.StringVar(&m.Heartbeat, "heartbeat", "5s", "time between two words of the target to the catalog")
}

// check refuses before anything is opened.
func (m *memberSettings) check(listen []string) error {
	if m.NATS == "" {
		if m.NATSCreds != "" || len(m.Advertise) > 0 || m.Pool != "" || m.Weight != 0 {
			return fmt.Errorf("--nats-creds, --advertise, --pool, --weight: %w: they are of a target that registers; give --nats too", catalog.ErrInvalid)
		}
		return nil
	}
	if m.Pool != "" && catalog.CheckTargetName(m.Pool) != nil {
		return fmt.Errorf("--pool %q: %w: want 1 to %d letters, digits and any of -_.:@/", m.Pool, catalog.ErrInvalid, catalog.MaxTargetName)
	}
	if m.Weight < 0 || m.Weight > 1e9 {
		return fmt.Errorf("--weight %v: %w: want a number above 0", m.Weight, catalog.ErrInvalid)
	}
	for _, a := range m.Advertise {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" || port == "0" {
			return fmt.Errorf("--advertise %q: %w: want HOST:PORT", a, catalog.ErrInvalid)
		}
	}
	if len(m.Advertise) == 0 {
		for _, a := range listen {
			addr, _ := byRDMA(a)
			host, _, err := net.SplitHostPort(addr)
			if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
				return fmt.Errorf("--listen %s: %w: it takes every address of the host, so daemons do not know which; give --advertise HOST:PORT", a, catalog.ErrInvalid)
			}
		}
	}
	_, err := parseDuration("heartbeat", m.Heartbeat)
	return err
}

// joinCluster keeps the target's place in the catalog until ctx ends. NATS
// servers that are away are waited for; the target serves meanwhile.
func (s *targetSettings) joinCluster(ctx context.Context, srv *target.Server, listeners []fabric.Listener, log *slog.Logger) error {
	scheme, err := s.scheme()
	if err != nil {
		return err
	}
	opt := target.MemberOptions{Scheme: scheme, Addrs: s.member.Advertise, Pool: s.member.Pool, Weight: s.member.Weight, Trace: target.MemberTrace{
		Joined: func(v int64) { log.Info("joined the cluster", "name", s.Name, "map", v) },
		Away: func(err error, wait time.Duration) {
			log.Warn("the catalog was not told", "err", err, "in", wait.Round(time.Millisecond))
		},
		Removed: func(v int64) {
			log.Error("this target was taken out of the cluster; it serves on, and joins again when it is started again", "name", s.Name, "map", v)
		},
	}}
	if opt.Every, err = parseDuration("heartbeat", s.member.Heartbeat); err != nil {
		return err
	}
	if len(opt.Addrs) == 0 {
		for _, l := range listeners {
			opt.Addrs = append(opt.Addrs, l.Addr().String())
		}
	}
	trace := func(text string) { log.Debug("nats", "text", text) }
	conn := natscatalog.ConnectOptions{Node: "target " + s.Name, Creds: s.member.NATSCreds, Trace: trace}
	if s.TokenFile != "" {
		if conn.Token, err = readToken(s.TokenFile); err != nil {
			return err
		}
	}
	if conn.TLS, err = natsTLS(s.member.NATS, s.TLSCert, s.TLSKey, s.TLSCA); err != nil {
		return err
	}
	nc, err := natscatalog.Connect(s.member.NATS, conn)
	if err != nil {
		return err
	}
	defer nc.Close()
	cat, err := openBuckets(ctx, func(bucket string) (*natscatalog.Driver, error) {
		return natscatalog.Open(ctx, nc, bucket, natscatalog.Options{Trace: trace})
	}, log)
	if ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return err
	}
	return target.NewMember(srv, cat, opt).Run(ctx)
}
