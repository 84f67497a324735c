package bench

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

const (
	manyRuns = 100
	manySets = 1000 // of each run
)

func benchCatalog(ctx context.Context, b *bench) error {
	if err := b.commits(ctx); err != nil {
		return err
	}
	return b.lists(ctx)
}

// listener finds a free port on loopback.
func listener() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// connect is the catalog as a node of its own sees it.
func connect(ctx context.Context, addr, node string) (cat *catalog.Catalog, end func(), err error) {
	nc, err := natscatalog.Connect("nats://"+addr, natscatalog.ConnectOptions{Node: node})
	if err != nil {
		return nil, nil, err
	}
	records, err := natscatalog.Open(ctx, nc, "ckptd", natscatalog.Options{})
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	parts, err := natscatalog.Open(ctx, nc, "ckptd-parts", natscatalog.Options{})
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return catalog.New(records, parts), nc.Close, nil
}

// lists asks a daemon whose catalog holds 100,000 committed sets.
func (b *bench) lists(ctx context.Context) (err error) {
	addr, err := listener()
	if err != nil {
		return err
	}
	d, err := b.start(ctx, smallArena, "--nats-listen", addr, "--remote", "none")
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	b.logf("catalog: filling it with %d sets", manyRuns*manySets)
	filled, err := took(func() error { return fill(ctx, addr) })
	if err != nil {
		return err
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	var latest, whole, list []float64
	for i := range 40 * b.opt.Pairs {
		run := manyRun(i % manyRuns)
		t, err := took(func() error {
			set, err := d.client.Resolve(ctx, run+"@latest")
			if err == nil && set.Step != manySets-1 {
				err = fmt.Errorf("%s@latest: %w: step %d", run, catalog.ErrCorrupt, set.Step)
			}
			return err
		})
		if err != nil {
			return err
		}
		latest = append(latest, t.Seconds())
		if i%4 != 0 {
			continue
		}
		if t, err = took(func() error { _, err := d.client.Set(ctx, run+"@latest", false); return err }); err != nil {
			return err
		}
		whole = append(whole, t.Seconds())
		t, err = took(func() error {
			sets, err := d.client.Sets(ctx, run, false)
			if err == nil && (len(sets) != manySets || sets[0].Step != manySets-1) {
				err = fmt.Errorf("list of %s: %w: %d sets", run, catalog.ErrCorrupt, len(sets))
			}
			return err
		})
		if err != nil {
			return err
		}
		list = append(list, t.Seconds())
	}
	memory, err := d.memory()
	if err != nil {
		return err
	}
	what := "median of %d requests over the socket (p99 %s), %d sets in %d runs; the daemon takes %s"
	b.limit("catalog.latest", median(latest), what+"; with its shards and story %s; filled at %.0f synced records/s", len(latest), amount(quantile(latest, 0.99), "s"), manyRuns*manySets, manyRuns, amount(float64(memory), "B"), amount(median(whole), "s"), manyRuns*manySets/filled.Seconds())
	b.limit("catalog.list", median(list), what, len(list), amount(quantile(list, 0.99), "s"), manyRuns*manySets, manyRuns, amount(float64(memory), "B"))
	return nil
}

func manyRun(i int) string { return fmt.Sprintf("bench/run-%03d", i) }

// fill writes records as those of committed sets.
func fill(ctx context.Context, addr string) error {
	cat, end, err := connect(ctx, addr, "filler")
	if err != nil {
		return err
	}
	defer end()
	now := time.Now().UTC()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for r := range manyRuns {
		run := catalog.Run(manyRun(r))
		g.Go(func() error {
			return cat.AdoptRun(ctx, catalog.RunRecord{Run: run, Attempt: 1, Launch: "bench", Created: now})
		})
		for step := range manySets {
			g.Go(func() error {
				at := now.Add(time.Duration(step-manySets) * time.Minute)
				return cat.AdoptSet(ctx, catalog.SetRecord{
					SetID: catalog.SetID{Run: run, Step: int64(step), Attempt: 1}, State: catalog.Committed, World: 64,
					Begun: at, Committed: at.Add(3 * time.Second), Level: catalog.Local, Manifest: catalog.Digest{byte(r), byte(step), 1},
					Size: 64 << 30, Nodes: []string{"n1", "n2"}, Metrics: map[string]float64{"loss": 1.9}, Version: 2,
				})
			})
		}
	}
	return g.Wait()
}

// settle waits until the daemon has caught up and is at rest: its processor
// time stands still.
func (d *daemon) settle(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for quiet := 0; quiet < 4; {
		before, err := d.cpu()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		after, err := d.cpu()
		if err != nil {
			return err
		}
		if quiet++; after-before > 50*time.Millisecond {
			quiet = 0
		}
	}
	return nil
}
