package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd"
)

// settings are the flags of serve; a TOML file given by --config may hold the
// same names, and flags win over it.
type settings struct {
	Data        string   `toml:"data"`
	Disks       []string `toml:"disks"`
	Name        string   `toml:"name"`
	Socket      string   `toml:"socket"`
	Listen      string   `toml:"listen"`
	TLSCert     string   `toml:"tls-cert"`
	TLSKey      string   `toml:"tls-key"`
	TLSCA       string   `toml:"tls-ca"`
	TokenFile   string   `toml:"token-file"`
	Insecure    bool     `toml:"insecure"`
	NATS        string   `toml:"nats"`
	NATSListen  string   `toml:"nats-listen"`
	NATSCreds   string   `toml:"nats-creds"`
	Remote      []string `toml:"remote"`
	OFIProvider string   `toml:"ofi-provider"`
	Layout      string   `toml:"layout"`
	Unit        string   `toml:"unit"`
	Compress    string   `toml:"compress"`
	DrainRate   string   `toml:"drain-rate"`
	RepairRate  string   `toml:"repair-rate"`
	RepairAfter string   `toml:"repair-after"`
	ScrubRate   string   `toml:"scrub-rate"`
	ScrubEvery  string   `toml:"scrub-every"`
	ScrubGrace  string   `toml:"scrub-grace"`
	PacksStay   string   `toml:"pack-patience"`
	Arena       string   `toml:"arena"`
	ArenaDir    string   `toml:"arena-dir"`
	Quota       string   `toml:"quota"`
	Cache       string   `toml:"cache"`
	MaxSessions int      `toml:"max-sessions"`
	Grace       string   `toml:"grace"`
	Incomplete  string   `toml:"incomplete"`
	DraftKeep   string   `toml:"draft-keep"`
	TargetProbe string   `toml:"target-probe"`
	TargetDown  string   `toml:"target-down"`
	AllowUIDs   []string `toml:"allow-uids"`
	Mounts      []string `toml:"mounts"`
	MountOther  bool     `toml:"mount-allow-other"`
	MountCheck  bool     `toml:"mount-checked"`
	StopAtEOF   bool     `toml:"stop-at-eof"`
	LogLevel    string   `toml:"log-level"`
}

func (s *settings) flags(f *pflag.FlagSet) {
	f.StringVar(&s.Data, "data", defaultData(), "directory of everything the daemon keeps")
	f.StringSliceVar(&s.Disks, "disk", nil, "directory of the local tier on a disk of its own, may be repeated (default DATA/local)")
	f.StringVar(&s.Name, "name", "", "name of this node, unique in the catalog (default the host's name)")
	f.StringVar(&s.Socket, "socket", os.Getenv("CKPTD_SOCKET"), "path of the unix socket (default $CKPTD_SOCKET, or "+ckptd.DefaultSocket()+")")
	f.StringVar(&s.Listen, "listen", "", "HOST:PORT for HTTP and for other nodes; off loopback it needs TLS and a token")
	f.StringVar(&s.TLSCert, "tls-cert", "", "certificate file of --listen and --nats-listen, and what tls: targets are shown, PEM")
	f.StringVar(&s.TLSKey, "tls-key", "", "key file of --tls-cert, PEM")
	f.StringVar(&s.TLSCA, "tls-ca", "", "file of the authorities that sign other nodes and tls: targets, PEM (default the system's)")
	f.StringVar(&s.TokenFile, "token-file", "", "file with the secret that callers of --listen and --nats-listen must know, and that targets over the network share")
	f.BoolVar(&s.Insecure, "insecure", false, "allow listening off loopback without TLS and token")
	f.StringVar(&s.NATS, "nats", "", "URL of NATS servers with JetStream, separated by commas (default a server inside the daemon)")
	f.StringVar(&s.NATSListen, "nats-listen", "", "HOST:PORT where the server inside the daemon takes other nodes")
	f.StringVar(&s.NATSCreds, "nats-creds", "", "credentials file for --nats")
	f.StringArrayVar(&s.Remote, "remote", nil, "a remote target, may be repeated: "+remoteSyntax+"; catalog: those that are registered in the catalog; none: to keep sets local (default three directories below DATA/targets)")
	f.StringVar(&s.OFIProvider, "ofi-provider", "verbs", ofiProviderUsage)
	f.StringVar(&s.Layout, "layout", "", "data and parity columns of runs without a policy, as 4+2 (default by the number of targets)")
	f.StringVar(&s.Unit, "unit", "1MiB", "stripe unit")
	f.StringVar(&s.Compress, "compress", "", "zstd: compress shards of runs without a policy on their way to the remote tier, without loss (default none)")
	f.StringVar(&s.DrainRate, "drain-rate", "", "most bytes a second that the drain and verification may move (default no limit)")
	f.StringVar(&s.RepairRate, "repair-rate", "", "most bytes a second that the rebuilding and moving of columns may read and write (default no limit)")
	f.StringVar(&s.RepairAfter, "repair-after", "15m", "a target that is down for so long has its columns rebuilt on others")
	f.StringVar(&s.ScrubRate, "scrub-rate", "50MiB", "most bytes a second that this node has looked at in the background, on the targets' disks (0: no limit)")
	f.StringVar(&s.ScrubEvery, "scrub-every", "7d", "time between two looks at every column of a target (0: only when ordered by ckpt scrub)")
	f.StringVar(&s.PacksStay, "pack-patience", "24h", "a pack of a dataset that no version names is removed so long after its import gave its last sign of life")
	f.StringVar(&s.ScrubGrace, "scrub-grace", "1h", "a column that no record names is removed so long after it was first seen")
	f.StringVar(&s.Arena, "arena", "", "shared memory for saves (default a quarter of memory, at most 8GiB)")
	f.StringVar(&s.ArenaDir, "arena-dir", "", "directory of the arena, on a tmpfs (default below /dev/shm)")
	f.StringVar(&s.Quota, "quota", "", "most bytes of the local tier (default 90% of its file systems)")
	f.StringVar(&s.Cache, "cache", "", "most bytes of copies of datasets' packs, within --quota (default half of it)")
	f.IntVar(&s.MaxSessions, "max-sessions", 4096, "connections of SDKs at one time")
	f.StringVar(&s.Grace, "grace", "5m", "time between a prune and the removal of bytes")
	f.StringVar(&s.Incomplete, "incomplete", "1h", "abort sets still being written after this long")
	f.StringVar(&s.DraftKeep, "draft-keep", "72h", "remove drafts of the mount (RUN/.write/STEP) that nobody touched for this long")
	f.StringVar(&s.TargetProbe, "target-probe", "5s", "time between two looks at each target; two without an answer make it suspect")
	f.StringVar(&s.TargetDown, "target-down", "30s", "a target that nobody reached for so long is down: what it held is rebuilt elsewhere")
	f.StringSliceVar(&s.AllowUIDs, "allow-uid", nil, "user id that may use the socket besides the daemon's own and root, may be repeated")
	f.StringArrayVar(&s.Mounts, "mount", nil, "empty folder in which to show checkpoints and datasets as files, as ckpt mount, may be repeated: "+mountSyntax)
	f.BoolVar(&s.MountOther, "mount-allow-other", false, "let other users look into --mount too")
	f.BoolVar(&s.MountCheck, "mount-checked", false, "check every byte that is read from --mount, instead of having the kernel read files itself")
	f.BoolVar(&s.StopAtEOF, "stop-at-eof", false, "stop when standard input, a pipe, ends: when the process that started the daemon is gone")
	f.StringVar(&s.LogLevel, "log-level", "info", "debug, info, warn or error")
}

// merge takes from the file what no flag said.
func (s *settings) merge(path string, f *pflag.FlagSet) error {
	var file map[string]any
	var unused settings
	meta, err := toml.DecodeFile(path, &unused)
	if err != nil {
		return fmt.Errorf("--config %s: %w: %v", path, catalog.ErrInvalid, err)
	}
	if keys := meta.Undecoded(); len(keys) > 0 {
		return fmt.Errorf("--config %s: %w: %q is no setting", path, catalog.ErrInvalid, keys[0])
	}
	if _, err := toml.DecodeFile(path, &file); err != nil {
		return fmt.Errorf("--config %s: %w: %v", path, catalog.ErrInvalid, err)
	}
	flagOf := map[string]string{"disks": "disk", "allow-uids": "allow-uid", "mounts": "mount"}
	for key, v := range file {
		name := key
		if n, ok := flagOf[key]; ok {
			name = n
		}
		if f.Changed(name) {
			continue
		}
		values, ok := v.([]any)
		if !ok {
			values = []any{v}
		}
		for _, v := range values {
			if err := f.Set(name, fmt.Sprint(v)); err != nil {
				return fmt.Errorf("--config %s: %s: %w: %v", path, key, catalog.ErrInvalid, err)
			}
		}
	}
	return nil
}

func defaultData() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "ckptd")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "share", "ckptd")
	}
	return "/var/lib/ckptd"
}

// parseSize reads "64MiB", "2GB", "1048576".
func parseSize(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	units := []struct {
		suffix string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}}
	num, factor := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if strings.HasSuffix(num, u.suffix) {
			num, factor = strings.TrimSpace(strings.TrimSuffix(num, u.suffix)), u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || v < 0 || v*float64(factor) > 1<<60 {
		return 0, fmt.Errorf("--%s %q: %w: want a size as 64MiB or 2GB", flag, s, catalog.ErrInvalid)
	}
	return int64(v * float64(factor)), nil
}

func parseDuration(flag, s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if v, err := strconv.ParseFloat(days, 64); err == nil && v > 0 {
			return time.Duration(v * 24 * float64(time.Hour)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("--%s %q: %w: want a time as 90s, 5m or 1h", flag, s, catalog.ErrInvalid)
	}
	return d, nil
}

func nodeName(name string) (string, error) {
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("the host has no name; give --name: %w", err)
		}
		name = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
				return r
			}
			return '-'
		}, host)
	}
	return name, catalog.CheckNode(name)
}
