package ckptd

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// packsOf lists what a version's readers need: its packs and its index.
func (v *Version) packsOf() ([]restore.ShardRef, int64, error) {
	refs := []restore.ShardRef{v.index.Ref()}
	total := v.index.Size()
	for i := range v.Index.Packs() {
		ref, err := v.PackRef(i)
		if err != nil {
			return nil, 0, err
		}
		refs, total = append(refs, ref), total+ref.Size
	}
	return refs, total, nil
}

// have asks a node how many bytes it has of each pack.
func (n *Node) have(ctx context.Context, node catalog.NodeRecord, refs []restore.ShardRef) ([]int64, error) {
	out := make([]int64, 0, len(refs))
	if node.Name == n.cfg.Name {
		for _, r := range refs {
			have, _ := n.packs.Have(r.Set)
			out = append(out, have)
		}
		return out, nil
	}
	for len(refs) > 0 {
		some := refs[:min(len(refs), maxPackAsking)]
		refs = refs[len(some):]
		q := wire.PacksRequest{}
		for _, r := range some {
			q.Sets = append(q.Sets, r.Set.String())
		}
		b, err := json.Marshal(q)
		if err != nil {
			return nil, err
		}
		body, err := n.peers.call(ctx, http.MethodPost, node.Addr, "/v1/peer/packs", nil, b)
		if err != nil {
			return nil, err
		}
		var a wire.PacksAnswer
		err = json.NewDecoder(http.MaxBytesReader(nil, body, 1<<20)).Decode(&a)
		if err = errors.Join(err, body.Close()); err != nil || len(a.Have) != len(some) {
			return nil, fmt.Errorf("node %s: %w: its answer: %v", node.Name, catalog.ErrUnavailable, err)
		}
		out = append(out, a.Have...)
	}
	return out, nil
}

// getDatasetPlaces says which nodes have how much of a version. The nodes are
// asked; the catalog keeps no record of copies.
func (n *Node) getDatasetPlaces(ctx context.Context, c *app.RequestContext) error {
	v, err := n.OpenVersion(ctx, c.Query("ref"))
	if err != nil {
		return err
	}
	defer v.Close()
	refs, total, err := v.packsOf()
	if err != nil {
		return err
	}
	nodes, err := n.liveNodes(ctx)
	if err != nil {
		return err
	}
	a := wire.DatasetPlaces{Set: v.Set.String(), Bytes: total, Packs: len(refs) - 1, Nodes: make([]wire.DatasetNode, len(nodes))}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(16)
	for i, node := range nodes {
		g.Go(func() error {
			row := wire.DatasetNode{Node: node.Name}
			have, err := n.have(ctx, node, refs)
			if err != nil {
				row.Err = err.Error()
			}
			for i, b := range have {
				row.Bytes += b
				if i > 0 && b == refs[i].Size {
					row.Packs++
				}
			}
			if row.Score = 1; total > 0 {
				row.Score = float64(row.Bytes) / float64(total)
			}
			a.Nodes[i] = row
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortStableFunc(a.Nodes, func(x, y wire.DatasetNode) int {
		return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.Node, y.Node))
	})
	return reply(c, a)
}

// liveNodes are those that can be asked, and this one.
func (n *Node) liveNodes(ctx context.Context) ([]catalog.NodeRecord, error) {
	all, err := n.cat.Nodes(ctx)
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return nil, err
	}
	out := []catalog.NodeRecord{{Name: n.cfg.Name, Addr: n.cfg.Listen}}
	for _, r := range all {
		if r.Name != n.cfg.Name && r.Addr != "" && n.alive(r) {
			out = append(out, r)
		}
	}
	return out, nil
}

// warmAtOnce is how many packs a node brings at a time when it is warmed.
const warmAtOnce = 3

// warm brings every pack of a version to this node. One that cannot be had
// does not keep the others.
func (n *Node) warm(ctx context.Context, id catalog.SetID) error {
	v, err := n.openVersion(ctx, id)
	if err != nil {
		return err
	}
	defer v.Close()
	refs, _, err := v.packsOf()
	if err != nil {
		return err
	}
	// Nodes begin at different packs, so that each fetches for the others.
	slices.SortFunc(refs, func(a, b restore.ShardRef) int {
		mine := func(r restore.ShardRef) uint64 { return packs.Score(n.cfg.Name, r.Set.String()) }
		return cmp.Compare(mine(b), mine(a))
	})
	var mu sync.Mutex
	var errs []error
	var g errgroup.Group
	g.SetLimit(warmAtOnce)
	for _, ref := range refs {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := n.packs.Fetch(ctx, ref); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if len(errs) < 8 {
					errs = append(errs, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// postPeerWarm warms this node for another, which asks how far it is by itself.
func (n *Node) postPeerWarm(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.WarmRequest](c)
	if err != nil {
		return err
	}
	id, err := setOf(q.Ref)
	if err != nil {
		return err
	}
	return long(c, func(progress func(wire.Progress)) (wire.WarmNode, error) {
		ctx, cancel := n.untilStop(ctx)
		defer cancel()
		progress(wire.Progress{What: "warm", Unit: "bytes"}) // so that who asks has an answer at once
		return wire.WarmNode{Node: n.cfg.Name}, n.warm(ctx, id)
	})
}

// warmPeer has another node warmed, and waits.
func (n *Node) warmPeer(ctx context.Context, node catalog.NodeRecord, id catalog.SetID) error {
	b, err := json.Marshal(wire.WarmRequest{Ref: id.String()})
	if err != nil {
		return err
	}
	out, err := n.peers.call(ctx, http.MethodPost, node.Addr, "/v1/peer/warm", nil, b)
	if err != nil {
		return err
	}
	defer out.Close()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var l wire.Line
		if err := json.NewDecoder(bytes.NewReader(lines.Bytes())).Decode(&l); err != nil {
			return fmt.Errorf("node %s: %w: %v", node.Name, catalog.ErrUnavailable, err)
		}
		if l.Error != nil {
			return fmt.Errorf("node %s: %w", node.Name, l.Error)
		}
		if l.Result != nil {
			return nil
		}
	}
	return fmt.Errorf("node %s: %w: it left: %v", node.Name, catalog.ErrUnavailable, lines.Err())
}

// warmed chooses the nodes that a request names.
func (n *Node) warmed(ctx context.Context, names []string) ([]catalog.NodeRecord, error) {
	live, err := n.liveNodes(ctx)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return live[:1], nil // this one
	}
	if slices.Contains(names, "all") {
		return live, nil
	}
	var out []catalog.NodeRecord
	for _, name := range names {
		i := slices.IndexFunc(live, func(r catalog.NodeRecord) bool { return r.Name == name })
		if i < 0 {
			return nil, wire.WithHint(fmt.Errorf("node %.80q: %w: it is not among those that live and can be reached", name, catalog.ErrInvalid), "`ckpt nodes` lists them")
		}
		out = append(out, live[i])
	}
	return out, nil
}

// postWarm brings a version to nodes, and tells how many bytes each has.
func (n *Node) postWarm(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.WarmRequest](c)
	if err != nil {
		return err
	}
	return long(c, func(progress func(wire.Progress)) (wire.WarmResult, error) {
		ctx, cancel := n.untilStop(ctx)
		defer cancel()
		v, err := n.OpenVersion(ctx, q.Ref)
		if err != nil {
			return wire.WarmResult{}, err
		}
		defer v.Close()
		refs, total, err := v.packsOf()
		if err != nil {
			return wire.WarmResult{}, err
		}
		nodes, err := n.warmed(ctx, q.Nodes)
		if err != nil {
			return wire.WarmResult{}, err
		}
		res := wire.WarmResult{Set: v.Set.String(), Nodes: make([]wire.WarmNode, len(nodes))}
		fails := make([]error, len(nodes))
		over := make(chan struct{})
		var wg sync.WaitGroup
		for i, node := range nodes {
			wg.Go(func() {
				if node.Name == n.cfg.Name {
					fails[i] = n.warm(ctx, v.Set)
				} else {
					fails[i] = n.warmPeer(ctx, node, v.Set)
				}
			})
		}
		go func() { wg.Wait(); close(over) }()
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for going := true; going; {
			select {
			case <-over:
				going = false
			case <-tick.C:
				sum := int64(0)
				for _, row := range n.verified(ctx, nodes, refs, total) {
					sum += row.Verified
				}
				progress(wire.Progress{What: "verified", Done: sum, Total: total * int64(len(nodes)), Unit: "bytes"})
			}
		}
		if ctx.Err() != nil {
			return res, ctx.Err()
		}
		res.Nodes = n.verified(ctx, nodes, refs, total)
		for i, err := range fails {
			if err != nil {
				res.Nodes[i].Err = err.Error()
			}
		}
		return res, nil
	})
}

// verified asks nodes how much they have.
func (n *Node) verified(ctx context.Context, nodes []catalog.NodeRecord, refs []restore.ShardRef, total int64) []wire.WarmNode {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out := make([]wire.WarmNode, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		wg.Go(func() {
			out[i] = wire.WarmNode{Node: node.Name, Total: total}
			have, err := n.have(ctx, node, refs)
			if err != nil {
				out[i].Err = err.Error()
			}
			for _, b := range have {
				out[i].Verified += b
			}
		})
	}
	wg.Wait()
	return out
}

func (n *Node) settings() wire.DatasetSettings {
	s := n.packs.Settings()
	n.prefetch.mu.Lock()
	defer n.prefetch.mu.Unlock()
	return wire.DatasetSettings{Cache: s.Quota, Policy: s.Policy, Retries: s.Retries, Ahead: n.prefetch.mu.ahead, Lookahead: n.prefetch.mu.lookahead}
}

func (n *Node) getDatasetSettings(_ context.Context, c *app.RequestContext) error {
	return reply(c, n.settings())
}

func (n *Node) postDatasetSettings(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.DatasetSettings](c)
	if err != nil {
		return err
	}
	if q.Ahead < 0 || q.Ahead > maxAhead || q.Lookahead < 0 || q.Lookahead > maxLookahead {
		return fmt.Errorf("settings: %w: want ahead at most %d packs and lookahead at most %d samples", catalog.ErrInvalid, maxAhead, maxLookahead)
	}
	if err := n.packs.Configure(ctx, packs.Settings{Quota: q.Cache, Policy: q.Policy, Retries: q.Retries}); err != nil {
		return err
	}
	n.prefetch.mu.Lock()
	n.prefetch.mu.ahead, n.prefetch.mu.lookahead = cmp.Or(q.Ahead, n.prefetch.mu.ahead), cmp.Or(q.Lookahead, n.prefetch.mu.lookahead)
	n.prefetch.mu.Unlock()
	n.prefetch.kick.now()
	return reply(c, n.settings())
}

func (n *Node) tellCache() wire.Cache {
	s := n.packs.Stats()
	n.prefetch.mu.Lock()
	readers := len(n.prefetch.mu.readers)
	n.prefetch.mu.Unlock()
	return wire.Cache{Settings: n.settings(), Used: s.Used, Arriving: s.Arriving, Copies: s.Copies, Open: s.Open, Readers: readers,
		Hits: s.Hits, Misses: s.Misses, Joins: s.Joins, Evicted: s.Evicted, Prefetched: s.Prefetched, Wasted: s.Wasted, Bad: s.Bad,
		Waits: s.Waits, Waited: s.Waited.Seconds(), Local: s.Local, Peer: s.Peer, Remote: s.Remote}
}

func (n *Node) cacheMetrics(counter func(name, help string, v int64)) {
	s := n.packs.Stats()
	counter("ckptd_cache_quota_bytes", "Bytes that copies of packs may take.", s.Quota)
	counter("ckptd_cache_used_bytes", "Bytes they take, with those that are arriving.", s.Used)
	counter("ckptd_cache_hits_total", "Openings of packs that were whole on this node.", s.Hits)
	counter("ckptd_cache_misses_total", "Openings of packs that began a fetch.", s.Misses)
	counter("ckptd_cache_joins_total", "Openings of packs that were arriving.", s.Joins)
	counter("ckptd_cache_evicted_total", "Copies given up for room.", s.Evicted)
	counter("ckptd_cache_prefetched_total", "Copies that came before they were asked for.", s.Prefetched)
	counter("ckptd_cache_wasted_total", "Of those, evicted unused.", s.Wasted)
	counter("ckptd_cache_bad_total", "Copies that failed a check.", s.Bad)
	counter("ckptd_cache_waits_total", "Reads that waited for bytes.", s.Waits)
	counter("ckptd_cache_waited_ms_total", "How long they waited, milliseconds.", s.Waited.Milliseconds())
	counter("ckptd_cache_local_bytes_total", "Bytes of packs read through the daemon that were on this node.", s.Local)
	counter("ckptd_cache_peer_bytes_total", "Bytes of packs fetched from other nodes.", s.Peer)
	counter("ckptd_cache_remote_bytes_total", "Bytes of packs fetched from the remote tier.", s.Remote)
}
