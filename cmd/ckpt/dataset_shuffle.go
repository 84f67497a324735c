package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// maxShuffled bounds what is laid out in memory to compare with: 8 bytes each.
const maxShuffled = 1 << 26

// shuffled is a row of what check-shuffle found.
type shuffled struct {
	Order string `json:"order"`
	order.Quality
}

func newDatasetShuffleCmd(a *app) *cobra.Command {
	var o shuffleOptions
	cmd := &cobra.Command{
		Use: "check-shuffle [NAME@V]", Short: "How well the order of an epoch is shuffled, beside a full random permutation and loaders' buffers",
		Long: `Measures the order that this seed, epoch and mode give N samples, beside a full random
permutation and the shuffle by a buffer that loaders do when they read files from
beginning to end. With NAME@V it is the order that readers of this version get; with --samples
N it is that of N samples and needs no daemon. Every figure is of all N samples up to 67
million, and beyond that of a smaller set in the same proportions.

  moved      mean distance of a sample from its place in the files, as a share of N (random: 0.333)
  adjacent   share of neighbours that are neighbours in the files too (random: 2/N)
  slices     slices of the files (--slice samples) that a batch has samples of, on average
  mixing     that, beside a random batch (random: 1)`,
		Args: args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if cmd.Flags().Changed("samples") {
					return usage("%s has as many samples as it has; leave out --samples", args[0])
				}
				if err := o.of(cmd.Context(), a, args[0]); err != nil {
					return err
				}
			}
			rows, err := o.measure(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]any{"dataset": o.name, "digest": o.digest, "samples": o.samples, "slice": o.slice, "batch": o.batch, "orders": rows}, func(w io.Writer) { printShuffled(w, rows) })
		},
	}
	f := cmd.Flags()
	f.Int64Var(&o.samples, "samples", 0, "number of samples, without NAME@V")
	f.Int64Var(&o.slice, "slice", 0, "samples of a slice (default: what a pack of NAME@V has on average; without it, a hundredth of all)")
	f.Int64Var(&o.group, "group", order.DefaultGroup, "slices that the window mixes at a time")
	f.Int64Var(&o.batch, "batch", 256, "samples of a batch")
	f.Uint64Var(&o.seed, "seed", 0, "seed")
	f.Uint64Var(&o.epoch, "epoch", 0, "epoch")
	return cmd
}

type shuffleOptions struct {
	samples, slice, group, batch int64
	seed, epoch                  uint64
	name                         string         // of the version, "" for none
	digest                       catalog.Digest // of the version
}

// of takes samples, digest and slice from a version.
func (o *shuffleOptions) of(ctx context.Context, a *app, ref string) error {
	return a.with(ctx, func(c *ckpt.Client) error {
		d, err := c.OpenDataset(ctx, ref)
		if err != nil {
			return err
		}
		x := d.Index()
		o.name, o.samples, o.digest = d.Name(), x.Samples(), x.Digest()
		if packs := max(1, int64(x.Packs())); o.slice == 0 {
			o.slice = max(1, (o.samples+packs-1)/packs)
		}
		err = d.Close()
		if err == nil && o.samples == 0 {
			err = fmt.Errorf("check the shuffle of %s: %w: it has no samples", o.name, catalog.ErrInvalid)
		}
		return err
	})
}

func (o *shuffleOptions) check() error {
	if o.samples < 1 || o.samples > order.MaxSamples {
		return usage("--samples %d: want 1 to 2^48, or name a version: NAME@V", o.samples)
	}
	if o.slice == 0 {
		o.slice = max(1, o.samples/100)
	}
	if o.batch < 1 || o.batch > maxShuffled {
		return usage("--batch %d: want 1 to %d", o.batch, maxShuffled)
	}
	return order.Window(o.slice, o.group).Check()
}

// measure looks at each order in turn.
func (o *shuffleOptions) measure(ctx context.Context) ([]shuffled, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	n, slice := o.samples, o.slice
	if n > maxShuffled { // the same picture, smaller
		slice = max(1, int64(float64(slice)*maxShuffled/float64(n)))
		n = maxShuffled
	}
	mix := order.Mix{Batch: o.batch, Slice: slice}
	var rows []shuffled
	add := func(name string, at func(int64) int64) {
		rows = append(rows, shuffled{name, order.Measure(n, at, mix)})
	}
	key := order.NewKey(o.digest, o.seed, o.epoch)
	for _, m := range []order.Mode{order.Global, order.Window(slice, o.group)} {
		ord, err := order.New(n, key, m)
		if err != nil {
			return nil, err
		}
		add(m.String(), ord.At)
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	r := rand.New(rand.NewPCG(o.seed, o.epoch))
	for _, c := range []struct {
		name string
		make func() []int64
	}{
		{"random", func() []int64 { return order.Random(n, r) }},
		{"buffer of 1,000", func() []int64 { return order.Buffered(n, 1000, r) }},
		{"buffer of 10,000", func() []int64 { return order.Buffered(n, 10_000, r) }},
		{"not shuffled", nil},
	} {
		if c.make == nil {
			add(c.name, func(p int64) int64 { return p })
			continue
		}
		list := c.make()
		add(c.name, func(p int64) int64 { return list[p] })
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func printShuffled(w io.Writer, rows []shuffled) {
	table(w, func(row func(...any)) {
		row("ORDER", "MOVED", "ADJACENT", "SLICES", "MIXING")
		for _, r := range rows {
			row(r.Order, fmt.Sprintf("%.4f", r.Displacement), fmt.Sprintf("%.6f", r.Adjacent), fmt.Sprintf("%.1f", r.Slices), fmt.Sprintf("%.3f", r.Mixing))
		}
	})
}
