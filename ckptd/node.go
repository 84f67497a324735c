// Package ckptd is the node daemon: it takes in shards, commits sets, moves
// them between tiers, and serves them back.
//
// Each duty has a file of its own (attach and save in session.go, vote.go,
// commit.go, drain.go, evict.go, collect.go, …): a pure plan and the loop that
// carries it out. All duties are restartable at any instruction: what they
// still have to do follows from the disks and the catalog, never from memory.
//
// The package keeps these promises of the contract: 1 all or nothing, 2
// independent of the job, 3 fenced, 5 never the last copy, 6 prune in two
// phases, 7 checked at every hop, 9 bounded, 10 refuse early, 11 training is
// not hostage, 13 private by default.
package ckptd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Config is what a daemon is told. Zero values mean the defaults given.
type Config struct {
	Name     string // of this node, unique in the catalog; required
	Version  string
	Socket   string // path of the unix socket; required by Run
	Listen   string // host:port of the HTTP and peer listener; "" for none
	TLSCert  string // files, PEM
	TLSKey   string
	TLSCA    string   // for calls to peers; "" means the system's
	Token    string   // asked of callers on Listen
	Insecure bool     // allow Listen off loopback without TLS and token
	UIDs     []uint32 // users besides the daemon's own and root that may use the socket; their group must be able to open it

	Cache        int64               // most bytes of copies of packs, default half of the local tier
	MaxSessions  int                 // connections of SDKs, default 4096
	Layout       string              // default layout of runs, "k+m"; "" by the number of targets
	Unit         int64               // stripe unit, bytes; default 1 MiB
	Compress     string              // what runs without a policy do on the way to the remote tier: "" or catalog.CompressNone, catalog.CompressZstd
	Grace        time.Duration       // between a prune's tombstone and the removal of bytes, default 5 min
	PackPatience time.Duration       // a pack of a dataset that no version names is kept so long, default 24 h
	Incomplete   time.Duration       // abort sets still writing after this, default 1 h
	DraftKeep    time.Duration       // remove drafts that nobody touched for so long, default 72 h
	LeaseTTL     time.Duration       // of the coordinator, default 3 s
	Heartbeat    time.Duration       // of the node's record, default 5 s
	RepairAfter  time.Duration       // how long a target is down before its columns are rebuilt elsewhere, default 15 min
	ScrubEvery   time.Duration       // between two looks at every column of a target; 0: only when ordered
	ScrubGrace   time.Duration       // between the first sight of a column that no record names and its removal, default 1 h
	Probe        time.Duration       // between two looks at each target, default 5 s
	TargetDown   time.Duration       // a target that nobody reached for so long is down, default 30 s
	NATS         string              // for status: "embedded" or a URL
	Data         string              // for status, and where it is remembered what is mounted; "": it is not
	Mounts       []wire.MountRequest // to be there from the beginning
	Log          *slog.Logger        // nil: slog.Default()
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Grace, 5*time.Minute)
	def(&c.PackPatience, 24*time.Hour)
	def(&c.Incomplete, time.Hour)
	def(&c.DraftKeep, 72*time.Hour)
	def(&c.LeaseTTL, 3*time.Second)
	def(&c.Heartbeat, 5*time.Second)
	def(&c.RepairAfter, 15*time.Minute)
	def(&c.ScrubGrace, time.Hour)
	def(&c.Probe, 5*time.Second)
	def(&c.TargetDown, 30*time.Second)
	if c.MaxSessions == 0 {
		c.MaxSessions = 4096
	}
	if c.Unit == 0 {
		c.Unit = 1 << 20
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Tiers are the opened things a node works with. The caller closes them after
// Run has returned.
type Tiers struct {
	Catalog *catalog.Catalog
	Local   *localtier.Tier
	Arena   *localtier.Arena
	Remote  *remotetier.Tier // nil: sets stay local
	Targets Targets          // where those of Remote come from
}

// Node is one daemon.
type Node struct {
	cfg     Config
	cat     *catalog.Catalog
	local   *localtier.Tier
	arena   *localtier.Arena
	remote  *remotetier.Tier
	log     *slog.Logger
	started time.Time
	inv     inventory
	elector catalog.Elector
	stats   Stats
	peers   peerClient

	kickVote, kickDrain, kickCollect, kickEvict, kickLead, kickFollow, kickBeat, kickRepair, kickScrub, kickMount, kickPacks kick
	finishing                                                                                                                sync.WaitGroup // sealed shards being written

	trouble struct {
		sync.Mutex
		lines map[string]string
	}
	lead struct {
		sync.Mutex
		leader string
	}
	flight  *restore.Flight
	reading struct {
		sync.Mutex
		of map[restore.ShardRef]int
	}
	recalled  atomic.Bool // see recall
	tgt       targetUse   // of the remote tier
	repair    repair
	scrub     scrub
	packs     *packs.Cache
	named     namedPacks
	packWaits chan struct{} // a token a request of another node that waits for a pack
	versions  struct {
		sync.Mutex
		of      map[catalog.SetID]*Version
		renewed time.Time
	}
	prefetch prefetch
	mounts   mounts
	drafts   drafts
	stopping chan struct{} // closed when Run ends: long answers end
}

// New prepares a node and takes stock of its disks. Nothing runs until Run.
func New(cfg Config, t Tiers) (*Node, error) {
	if err := catalog.CheckNode(cfg.Name); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	n := &Node{
		cfg: cfg, cat: t.Catalog, local: t.Local, arena: t.Arena, remote: t.Remote,
		log: cfg.Log, started: time.Now(),
		kickVote: newKick(), kickDrain: newKick(), kickCollect: newKick(), kickEvict: newKick(), kickLead: newKick(), kickFollow: newKick(), kickBeat: newKick(), kickRepair: newKick(), kickScrub: newKick(), kickMount: newKick(), kickPacks: newKick(),
	}
	n.elector = catalog.Elector{Catalog: t.Catalog, Node: cfg.Name, TTL: cfg.LeaseTTL}
	n.trouble.lines = make(map[string]string)
	n.stopping = make(chan struct{})
	n.tgt.init(t.Targets)
	if t.Remote != nil && n.tgt.dynamic() { // the flags' own, before the map is known
		if err := n.useTargets(context.Background(), catalog.TargetMap{}, false); err != nil {
			return nil, err
		}
	}
	n.reading.of = make(map[restore.ShardRef]int)
	n.flight = restore.NewFlight(restore.FlightOptions{Memory: flightMemory, Readers: n.readers})
	n.inv.init()
	n.repair.init()
	n.scrub.init()
	n.initMounts()
	n.drafts.init()
	var err error
	if n.peers, err = newPeerClient(cfg); err != nil {
		return nil, err
	}
	n.takeStock()
	n.packWaits = make(chan struct{}, maxPackWaits)
	n.versions.of, n.versions.renewed = make(map[catalog.SetID]*Version), time.Now()
	n.prefetch.init()
	n.openCache()
	return n, nil
}

// Run serves until ctx ends, then stops cleanly: sessions are cut, sealed
// shards that are not on disk yet stay in the arena for the next start.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The arena's segments with unfinished shards are taken before any is lent.
	if err := n.resume(ctx); err != nil {
		return err
	}
	servers, err := n.listen()
	if err != nil {
		return err
	}
	n.log.Info("listening", "socket", n.cfg.Socket, "listen", n.cfg.Listen)
	stop := context.AfterFunc(ctx, func() { close(n.stopping) })
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	// The catalog's mirror stops last of all, when the duties are done with it.
	g.Go(func() error { return n.cat.Run(ctx) })
	g.Go(func() error { return n.loop(ctx, "vote", n.kickVote, voteDelay, n.voteOnce) })
	g.Go(func() error { return n.loop(ctx, "drain", n.kickDrain, 5*time.Second, n.drainOnce) })
	g.Go(func() error { return n.loop(ctx, "evict", n.kickEvict, 10*time.Second, n.evictOnce) })
	g.Go(func() error { return n.loop(ctx, "repair", n.kickRepair, repairEvery, n.repairOnce) })
	g.Go(func() error { return n.loop(ctx, "scrub", n.kickScrub, scrubEvery, n.scrubOnce) })
	g.Go(func() error { return n.loop(ctx, "collect", n.kickCollect, 10*time.Second, n.collectOnce) })
	g.Go(func() error { return n.loop(ctx, "packs", n.kickPacks, packsEvery(n.cfg.PackPatience), n.collectPacks) })
	g.Go(func() error { return n.loop(ctx, "mount", n.kickMount, mountEvery, n.mountOnce) })
	g.Go(func() error { return n.loop(ctx, "drafts", newKick(), draftDuty, n.draftsOnce) })
	g.Go(func() error { return n.watchDrafts(ctx) })
	g.Go(func() error { return n.loop(ctx, "heartbeat", n.kickBeat, n.cfg.Heartbeat, n.beat) })
	g.Go(func() error { return n.loop(ctx, "cache", newKick(), tidyEvery, n.tidyPacks) })
	g.Go(func() error { return n.loop(ctx, "prefetch", n.prefetch.kick, prefetchEvery, n.prefetchOnce) })
	g.Go(func() error { return n.follow(ctx) })
	g.Go(func() error { return n.followTargets(ctx) })
	g.Go(func() error { return n.probeTargets(ctx) })
	g.Go(func() error { return n.campaign(ctx) })
	for _, serve := range servers {
		g.Go(func() error { return serve(ctx) })
	}
	// Mounts go first: what they show needs the mirror and the targets.
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(ctx.Err(), n.endMounts())
	})
	err = g.Wait()
	n.finishing.Wait()
	n.prefetch.wg.Wait()
	n.packs.Close()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, n.closeTargets())
}

// flightMemory bounds what the fetches of one node share, in bytes.
const flightMemory = 64 << 20

// kick wakes a loop; many kicks before it looks are one.
type kick chan struct{}

func newKick() kick { return make(kick, 1) }

func (k kick) now() {
	select {
	case k <- struct{}{}:
	default:
	}
}

// maxBackoff bounds the pause after a duty failed.
const maxBackoff = 15 * time.Second

// loop carries out a duty when kicked and every so often, and tries again
// with backoff and jitter when it failed. A failure is loud, never fatal.
func (n *Node) loop(ctx context.Context, duty string, k kick, every time.Duration, once func(context.Context) error) error {
	var backoff time.Duration
	for {
		err := once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.setTrouble(duty, err)
		wait := every
		if err != nil {
			n.stats.DutyErrors.Add(1)
			backoff = min(max(2*backoff, 250*time.Millisecond), maxBackoff)
			wait = backoff/2 + rand.N(backoff)
			n.log.Warn("duty failed, will try again", "duty", duty, "in", wait.Round(time.Millisecond), "err", err)
			select { // a kick does not shorten the pause
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(wait):
			}
			continue
		}
		backoff = 0
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k:
		case <-time.After(wait):
		}
	}
}

// setTrouble records what `ckpt status` shows about a duty; nil clears it.
func (n *Node) setTrouble(key string, err error) {
	n.trouble.Lock()
	defer n.trouble.Unlock()
	if err == nil {
		delete(n.trouble.lines, key)
		return
	}
	n.trouble.lines[key] = fmt.Sprintf("%s: %v", key, err)
}

func (n *Node) troubles() []string {
	n.trouble.Lock()
	defer n.trouble.Unlock()
	lines := make([]string, 0, len(n.trouble.lines))
	for _, l := range n.trouble.lines {
		lines = append(lines, l)
	}
	return lines
}

// event adds a line to a set's story, for people; its loss is harmless.
func (n *Node) event(ctx context.Context, id catalog.SetID, what, format string, args ...any) {
	e := catalog.Event{Time: time.Now(), Node: n.cfg.Name, What: what, Detail: fmt.Sprintf(format, args...)}
	n.log.Debug("event", "set", id.String(), "what", what, "detail", e.Detail)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := n.cat.Log(ctx, id, e); err != nil {
		n.log.Debug("event lost", "set", id.String(), "what", what, "err", err)
	}
}

// beat announces this node.
func (n *Node) beat(ctx context.Context) error {
	u := n.local.Usage()
	_, bytes := n.inv.backlog()
	r := catalog.NodeRecord{
		Name: n.cfg.Name, Addr: n.cfg.Listen, Started: n.started, Seen: time.Now(),
		Capacity: u.Quota, Used: u.Used, Backlog: bytes, Trouble: n.troubles(),
	}
	n.tellTargets(&r)
	return n.cat.PutNode(ctx, r)
}

// alive says whether a node's heartbeat is recent.
func (n *Node) alive(r catalog.NodeRecord) bool {
	return r.Name == n.cfg.Name || time.Since(r.Seen) < 4*n.cfg.Heartbeat
}
