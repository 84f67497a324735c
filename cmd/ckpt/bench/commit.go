package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

const (
	simNodes   = 128
	simRanks   = 1024
	simTensors = 16                     // pieces in a rank's shard
	simSpread  = time.Second            // over which nodes finish their writes
	simWithin  = 100 * time.Millisecond // over which a node's ranks do
	simBeat    = 5 * time.Second        // between two announcements of a node
	commitRuns = 100
	smallArena = 128 << 20
)

// commits has 128 nodes vote for the shards of 1,024 ranks. The coordinator is
// a real daemon, and another takes the second copy of the manifest; the nodes
// are goroutines that write the records that daemons write, over connections of their own.
func (b *bench) commits(ctx context.Context) (err error) {
	addr, err := listener()
	if err != nil {
		return err
	}
	d, err := b.start(ctx, smallArena, "--nats-listen", addr, "--remote", "none")
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	peer, err := listener()
	if err != nil {
		return err
	}
	second, err := b.startNode(ctx, "second", smallArena, "--nats", "nats://"+addr, "--listen", peer, "--remote", "none")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, second.stop()) }()
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	var ends []func() // of connections, when nobody uses them any more
	defer func() {
		first := ctx.Err() != nil // one of the group failed, and err is what followed
		cancel()
		if gerr := g.Wait(); first {
			err = gerr
		}
		for _, end := range ends {
			end()
		}
	}()
	b.logf("commit: connecting %d nodes", simNodes)
	nodes := make([]*simNode, simNodes)
	for i := range nodes {
		n := &simNode{name: fmt.Sprintf("sim-%03d", i), rnd: rand.New(rand.NewPCG(uint64(i), 7))}
		var end func()
		if n.cat, end, err = connect(ctx, addr, n.name); err != nil {
			return err
		}
		ends = append(ends, end)
		for r := range simRanks / simNodes {
			n.ranks = append(n.ranks, i*simRanks/simNodes+r)
		}
		nodes[i] = n
		g.Go(func() error { return n.cat.Run(ctx) })
		g.Go(func() error { return n.beat(ctx) })
	}
	run := "bench/commit"
	attempt, err := d.client.Attach(ctx, run, "bench", simRanks)
	if err != nil {
		return err
	}
	listed := make(chan int64, 1024)
	g.Go(func() error {
		for set, err := range d.client.Watch(ctx, run) {
			if err != nil {
				return err
			}
			if set.State == catalog.Committed {
				listed <- set.Step
			}
		}
		if ctx.Err() == nil {
			return fmt.Errorf("watch %s: %w: the daemon ended it", run, catalog.ErrUnavailable)
		}
		return ctx.Err()
	})
	var lags []float64
	for i := range commitRuns + 3 { // the first warm up
		if i%10 == 0 {
			b.logf("commit: set %d of %d", i, commitRuns)
		}
		lag, err := commitOnce(ctx, nodes, catalog.SetID{Run: catalog.Run(run), Step: int64(i), Attempt: attempt}, listed)
		if err != nil {
			return err
		}
		if i >= 3 {
			lags = append(lags, lag.Seconds())
		}
	}
	m, err := d.client.ManifestBytes(ctx, run+"@latest")
	if err != nil {
		return err
	}
	if p, err := catalog.ParseManifest(m, catalog.Digest{}); err != nil || p.World != simRanks {
		return errors.Join(err, fmt.Errorf("manifest of %s: %w", run, catalog.ErrCorrupt))
	}
	b.limit("commit.p99", quantile(lags, 0.99), "from the last shard durable to its set in the daemon's list, %d commits (median %s, p90 %s, max %s), %d ranks on %d simulated nodes that finish over %v, %d tensors a rank, a manifest of %.1f MiB on two daemons, every node mirroring the catalog, all on this machine",
		len(lags), amount(median(lags), "s"), amount(quantile(lags, 0.9), "s"), amount(slices.Max(lags), "s"), simRanks, simNodes, simSpread, simTensors, float64(len(m))/(1<<20))
	return nil
}

// commitOnce has every rank become durable, and gives the time from the last
// of them to the set being listed.
func commitOnce(ctx context.Context, nodes []*simNode, id catalog.SetID, listed <-chan int64) (time.Duration, error) {
	if _, err := nodes[0].cat.Begin(ctx, id, simRanks, nil, time.Now()); err != nil {
		return 0, err
	}
	begin := time.Now()
	last := make([]time.Time, len(nodes))
	g, gctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		g.Go(func() (err error) {
			last[i], err = n.save(gctx, id, begin)
			return err
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	var seen time.Time
	var late <-chan time.Time // set when all have voted: what is left is the coordinator's
	for seen.IsZero() || late == nil {
		select {
		case step := <-listed:
			if step == id.Step {
				seen = time.Now()
			}
		case err := <-done:
			if err != nil {
				return 0, err
			}
			late = time.After(30 * time.Second)
		case <-late:
			return 0, fmt.Errorf("commit of %v: %w: it was not listed within 30 s of the last vote", id, catalog.ErrUnavailable)
		}
	}
	return seen.Sub(slices.MaxFunc(last, time.Time.Compare)), nil
}

// simNode does to the catalog what a daemon does whose ranks have saved.
type simNode struct {
	name  string
	cat   *catalog.Catalog
	ranks []int
	rnd   *rand.Rand
}

// beat announces the node, as daemons do.
func (n *simNode) beat(ctx context.Context) error {
	for wait := rand.N(simBeat); ; wait = simBeat {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if err := n.cat.PutNode(ctx, catalog.NodeRecord{Name: n.name, Started: time.Now(), Seen: time.Now()}); err != nil {
			return err
		}
	}
}

// save waits until the node's ranks are durable, votes for them, and tells when
// the last one was. A daemon waits for the ranks it is still saving, up to a
// second, so that one statement carries them all.
func (n *simNode) save(ctx context.Context, id catalog.SetID, begin time.Time) (last time.Time, err error) {
	first := begin.Add(rand.N(simSpread))
	due := make([]time.Time, len(n.ranks))
	for i := range due {
		due[i] = first.Add(time.Duration(n.rnd.Int64N(int64(simWithin))))
	}
	last = slices.MaxFunc(due, time.Time.Compare)
	select {
	case <-ctx.Done():
		return last, ctx.Err()
	case <-time.After(time.Until(last)):
	}
	return last, n.vote(ctx, id, n.ranks, due)
}

// indexEncoder is as the daemon's.
var indexEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)) // fails on bad options only

// vote is what a daemon does for shards that became durable: see voteSet in
// package ckptd.
func (n *simNode) vote(ctx context.Context, id catalog.SetID, ranks []int, durable []time.Time) error {
	if _, err := n.cat.Part(ctx, id, n.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := n.cat.Set(ctx, id); err != nil {
		return err
	}
	entries := make([]catalog.Shard, 0, len(ranks))
	for _, rank := range ranks {
		entries = append(entries, n.entry(id, rank))
	}
	raw, err := json.Marshal(map[string]any{"set": id, "shards": entries})
	if err != nil {
		return err
	}
	_, err = n.cat.UpdatePart(ctx, id, n.name, func(p *catalog.PartRecord) error {
		p.Index = indexEncoder.EncodeAll(raw, nil)
		for i, e := range entries {
			p.Shards = append(p.Shards, catalog.PartShard{
				Rank: e.Rank, Size: e.Size, Root: e.Root, Sealed: durable[i].Add(-time.Second), Durable: durable[i], Local: true,
			})
		}
		return nil
	})
	return err
}

// entry is the manifest's entry of a rank that holds pieces of sharded tensors.
func (n *simNode) entry(id catalog.SetID, rank int) catalog.Shard {
	const header, rows, cols = 8192, 16, 4096
	e := catalog.Shard{Rank: rank, Node: n.name, Header: header, Meta: map[string]string{"ckptd.version": "1"}}
	for i := range 32 {
		e.Root[i] = byte(n.rnd.Uint32())
	}
	for i := range simTensors {
		e.Tensors = append(e.Tensors, catalog.Tensor{
			Name: fmt.Sprintf("model.layers.%d.mlp.down_proj.weight", i), DType: "BF16", Shape: []int64{rows, cols},
			Offset: header + int64(i)*rows*cols*2, Size: rows * cols * 2,
			Global: []int64{rows * simRanks, cols}, Start: []int64{int64(rank) * rows, 0},
		})
	}
	e.Size = header + simTensors*rows*cols*2
	return e
}
