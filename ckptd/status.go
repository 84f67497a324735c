package ckptd

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

func (n *Node) getStatus(ctx context.Context, c *app.RequestContext) error {
	s := wire.Status{Node: n.cfg.Name, Version: n.cfg.Version, Started: n.started, Socket: n.cfg.Socket, Data: n.cfg.Data}
	err := n.cat.Sync(ctx)
	sets, _ := n.cat.Known("")
	s.Catalog.URL, s.Catalog.Connected, s.Catalog.Coordinator, s.Catalog.Sets = n.cfg.NATS, err == nil, n.leader(), len(sets)
	a := n.arena.Stats()
	s.Arena.Size, s.Arena.Lent, s.Arena.Waiting, s.Arena.Warm = a.Size, int64(a.Lent)*n.arena.SegmentSize(), a.Waiting, a.Warm
	u := n.local.Usage()
	s.Local.Quota, s.Local.Used, s.Local.Reserved, s.Local.Free = u.Quota, u.Used, u.Reserved, u.Free
	s.Local.Disks, s.Trouble = []wire.Disk{}, []string{}
	for _, d := range u.Disks {
		s.Local.Disks = append(s.Local.Disks, wire.Disk{Dir: d.Dir, Used: d.Used, Free: d.Free, Err: d.Err})
		if d.Err != "" {
			s.Trouble = append(s.Trouble, fmt.Sprintf("disk %s: %s", d.Dir, d.Err))
		}
	}
	s.Remote.Targets = []wire.Target{}
	s.Trouble = append(s.Trouble, n.troubles()...)
	if n.remote != nil {
		s.Remote.Layout = n.defaultSpec("")
		s.Remote.Targets = n.usedRows(ctx)
		for _, t := range s.Remote.Targets {
			if t.Trouble != "" && !t.State.Kept() {
				s.Trouble = append(s.Trouble, fmt.Sprintf("target %s: %s", t.Name, t.Trouble))
			}
		}
		if said := n.spreadTrouble(); said != "" {
			s.Trouble = append(s.Trouble, said)
		}
	}
	if err != nil {
		s.Trouble = append(s.Trouble, err.Error())
	}
	if bad := n.cat.Damaged(); len(bad) > 0 {
		s.Trouble = append(s.Trouble, fmt.Sprintf("catalog: %d records cannot be read, the first is %s; `ckpt catalog rebuild` writes them anew", len(bad), bad[0]))
	}
	s.Backlog.Votes = len(n.inv.unstated())
	for _, j := range n.drainPlan() {
		if j.verify {
			s.Backlog.Verify++
		} else {
			s.Backlog.Drain++
			s.Backlog.DrainBytes += j.shard.Size
		}
	}
	s.Cache = n.tellCache()
	s.Cache.Reading = n.tellReaders()
	s.Drafts = n.tellDrafts()
	s.Mounts = n.mountRows()
	s.Repair = n.tellRepairing()
	slices.Sort(s.Trouble)
	return reply(c, s)
}

func (n *Node) getNodes(ctx context.Context, c *app.RequestContext) error {
	nodes, err := n.cat.Nodes(ctx)
	if err != nil {
		return err
	}
	rows := []wire.Node{}
	for _, r := range nodes {
		rows = append(rows, wire.Node{NodeRecord: r, Alive: n.alive(r)})
	}
	return reply(c, map[string]any{"nodes": rows})
}

// getMetrics is the Prometheus text format, version 0.0.4.
func (n *Node) getMetrics(_ context.Context, c *app.RequestContext) error {
	var b strings.Builder
	counter := func(name, help string, v int64) {
		kind := "counter"
		if !strings.HasSuffix(name, "_total") {
			kind = "gauge"
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", name, help, name, kind, name, v)
	}
	st := &n.stats
	counter("ckptd_saves_total", "Shards sealed.", st.Saves.Load())
	counter("ckptd_saved_bytes_total", "Bytes of shards sealed.", st.SavedBytes.Load())
	counter("ckptd_votes_total", "Shards stated durable.", st.Votes.Load())
	counter("ckptd_commits_total", "Sets committed by this node.", st.Commits.Load())
	counter("ckptd_drained_bytes_total", "Bytes of shards copied to the remote tier.", st.DrainedBytes.Load())
	counter("ckptd_drained_stored_bytes_total", "The same as the remote tier keeps them, before parity.", st.StoredBytes.Load())
	counter("ckptd_verified_bytes_total", "Bytes of shards read back from the remote tier.", st.VerifiedBytes.Load())
	counter("ckptd_mended_columns_total", "Columns of the remote tier rebuilt or moved by this node.", st.MendedColumns.Load())
	counter("ckptd_mended_bytes_total", "Bytes written for them.", st.MendedBytes.Load())
	counter("ckptd_mend_blobs", "Blobs of which columns are to be rebuilt or moved, by any node.", int64(n.repairState().Blobs))
	counter("ckptd_scrubbed_bytes_total", "Bytes of columns of the remote tier that were looked at.", st.ScrubbedBytes.Load())
	counter("ckptd_scrub_bad_total", "Columns that a scrub found missing or not what they should be.", st.ScrubBad.Load())
	counter("ckptd_scrub_removed_total", "Columns removed that no record named.", st.ScrubRemoved.Load())
	counter("ckptd_evicted_shards_total", "Local copies given up for room.", st.Evicted.Load())
	counter("ckptd_quarantined_shards_total", "Local copies that failed a check.", st.Quarantined.Load())
	counter("ckptd_pruned_sets_total", "Sets pruned by this node.", st.Pruned.Load())
	counter("ckptd_drafts_dropped_total", "Files of drafts dropped because they were written beyond the quota.", st.DraftsDropped.Load())
	counter("ckptd_drafts_expired_total", "Drafts removed that nobody had touched for long.", st.DraftsExpired.Load())
	counter("ckptd_loads_total", "Shards handed to clients.", st.Loads.Load())
	counter("ckptd_loaded_bytes_total", "Bytes handed to clients.", st.LoadedBytes.Load())
	counter("ckptd_remote_read_bytes_total", "Bytes read from the remote tier for clients.", st.RemoteBytes.Load())
	counter("ckptd_duty_errors_total", "Failures of background duties, each tried again.", st.DutyErrors.Load())
	counter("ckptd_goroutines", "Goroutines of the daemon.", int64(runtime.NumGoroutine()))
	counter("ckptd_sessions", "Open sessions.", st.Sessions.Load())
	shards, bytes := n.inv.backlog()
	counter("ckptd_backlog_shards", "Shards here that are not remote yet.", int64(shards))
	counter("ckptd_backlog_bytes", "Bytes of them.", bytes)
	u, a := n.local.Usage(), n.arena.Stats()
	counter("ckptd_local_used_bytes", "Bytes on the local tier.", u.Used)
	counter("ckptd_local_drafts_bytes", "Bytes on the local tier in drafts.", u.Writing)
	counter("ckptd_local_quota_bytes", "Bytes the local tier may use.", u.Quota)
	counter("ckptd_arena_lent_bytes", "Bytes of the arena that are lent.", int64(a.Lent)*n.arena.SegmentSize())
	counter("ckptd_arena_size_bytes", "Bytes of the arena.", a.Size)
	counter("ckptd_trouble", "Things wrong now; `ckpt status` names them.", int64(len(n.troubles())))
	n.cacheMetrics(counter)
	n.targetMetrics(&b)
	c.Data(http.StatusOK, "text/plain; version=0.0.4", []byte(b.String()))
	return nil
}

func (n *Node) getWhy(ctx context.Context, c *app.RequestContext) error {
	rec, err := n.lookup(ctx, c.Query("ref"))
	if err != nil {
		return err
	}
	parts, err := n.cat.Parts(ctx, rec.SetID)
	if err != nil {
		return err
	}
	events, err := n.cat.Events(ctx, rec.SetID)
	if err != nil {
		return err
	}
	events = withVotes(events, parts)
	set := wire.SetOf(&rec)
	w := wire.Why{Set: &set, Events: events, Story: tellStory(rec, events), Missing: n.tellMissing(ctx, rec, parts)}
	if rec.State == catalog.Committed && len(w.Missing) > 0 {
		if older, ok := n.older(ctx, rec); ok {
			w.Older = older.SetID.String()
		}
	}
	return reply(c, w)
}

// withVotes adds to a set's story what the statements say by themselves: when
// each node's shards became durable.
func withVotes(events []catalog.Event, parts []catalog.PartRecord) []catalog.Event {
	for _, p := range parts {
		e := catalog.Event{Node: p.Node, What: "durable"}
		var ranks []string
		for _, s := range p.Shards {
			if s.Durable.After(e.Time) {
				e.Time = s.Durable
			}
			ranks = append(ranks, strconv.Itoa(s.Rank))
		}
		if len(ranks) > 8 {
			ranks = append(ranks[:8], fmt.Sprintf("… (%d in all)", len(p.Shards)))
		}
		if e.Detail = "ranks " + strings.Join(ranks, " "); len(ranks) == 1 {
			e.Detail = "rank " + ranks[0]
		}
		if !e.Time.IsZero() {
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b catalog.Event) int { return a.Time.Compare(b.Time) })
	return events
}

// tellStory turns records into sentences, in order of time.
func tellStory(rec catalog.SetRecord, events []catalog.Event) []string {
	const clock = "2006-01-02 15:04:05.000"
	story := []string{fmt.Sprintf("%s  begun by attempt %d with %d ranks", rec.Begun.Format(clock), rec.Attempt, rec.World)}
	for _, e := range events {
		line := fmt.Sprintf("%s  %s", e.Time.Format(clock), e.What)
		if e.Detail != "" {
			line += ": " + e.Detail
		}
		if e.Node != "" {
			line += " [" + e.Node + "]"
		}
		story = append(story, line)
	}
	if rec.Reason != "" {
		story = append(story, fmt.Sprintf("%s  %s: %s", rec.Pruned.Format(clock), rec.State, rec.Reason))
	}
	return story
}

// tellMissing names what keeps a set from being safer, or readable.
func (n *Node) tellMissing(ctx context.Context, rec catalog.SetRecord, parts []catalog.PartRecord) []string {
	missing := []string{}
	add := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	votes := catalog.Votes(rec.World, parts)
	for rank, v := range votes {
		if rec.State == catalog.Writing && v.Shard == nil {
			add("rank %d has no durable shard yet", rank)
		}
		if rec.State != catalog.Committed {
			continue
		}
		if v.Shard == nil {
			add("rank %d: no node says where its shard is", rank)
			continue
		}
		switch level := catalog.ShardLevel(rank, v.Shard.Root, parts); {
		case level == catalog.LevelNone:
			add("rank %d: no good copy is left", rank)
		case level < catalog.Remote:
			add("rank %d is not on the remote tier yet", rank)
		case level < catalog.Verified:
			add("rank %d: its remote copy has not been read back yet", rank)
		}
		for _, p := range parts {
			for _, s := range p.Shards {
				if s.Rank == rank && s.Bad != "" {
					add("rank %d: the copy on %s is out of service: %s", rank, p.Node, s.Bad)
				}
			}
		}
	}
	missing = append(missing, n.tellColumns(ctx, rec, parts)...)
	if rec.State == catalog.Committed {
		if _, _, err := n.manifest(ctx, rec); err != nil {
			add("the manifest cannot be read: %v", err)
		}
		if rec.Place == nil && n.remote != nil {
			add("the manifest is not on the remote tier yet")
		}
	}
	return missing
}

// DefaultSocket is where a daemon listens, and SDKs look first, when nobody
// says otherwise.
func DefaultSocket() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return path.Join(dir, "ckptd", "ckptd.sock")
	}
	return fmt.Sprintf("/tmp/ckptd-%d/ckptd.sock", os.Getuid())
}
