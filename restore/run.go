package restore

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// RunOptions say how Run works. The zero value does.
type RunOptions struct {
	Shards int                        // shards read at once; default 4
	Trace  func(shard ShardRef) Trace // what to tell of a shard; nil: nothing
}

// Run carries out a plan: it fills dst, one slice of Output.Size bytes for
// each output, from the sources of each shard, the cheapest first. The results
// are by rank, those of failed ranks included. The bytes of dst count only
// when the error is nil.
func Run(ctx context.Context, p *Plan, dst [][]byte, sources func(ShardRef) []Source, opt RunOptions) (map[int]Result, error) {
	if opt.Shards <= 0 {
		opt.Shards = 4
	}
	if err := p.checkBuffers(dst); err != nil {
		return nil, fmt.Errorf("restore %v: %w", p.Set, err)
	}
	var mu sync.Mutex
	results := map[int]Result{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(opt.Shards)
	for _, rank := range p.Ranks() {
		g.Go(func() error {
			w, err := p.Scatter(rank, dst)
			if err != nil {
				return err
			}
			shard := p.Shard(rank)
			var trace Trace
			if opt.Trace != nil {
				trace = opt.Trace(shard)
			}
			r, err := Fetch(gctx, shard, p.Ranges(rank), w, sources(shard), trace)
			mu.Lock()
			defer mu.Unlock()
			results[rank] = r
			return err
		})
	}
	err := g.Wait()
	return results, err
}
