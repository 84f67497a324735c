package ckpt

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/sdk/wire"
)

// EpochOptions says in which order an epoch is read, and which part of it is
// read here. The zero value is the global order of seed 0, all of it.
type EpochOptions struct {
	Seed, Epoch uint64
	Mode        order.Mode
	Rank, World int   // of this reader; World 0 is 1
	At          int64 // samples that all ranks together have taken
	Ahead       int   // packs that the daemon may fetch early; 0: the node's setting
	Retries     int   // times that all sources of a pack are asked again; 0: the node's setting
	Lookahead   int64 // samples of the order that it looks at; 0: the node's setting
}

// Epoch reads one rank's samples of an epoch in their order. It is for one
// goroutine; Dataset.Batch is for many.
type Epoch struct {
	d     *Dataset
	o     *order.Order
	opt   EpochOptions
	id    string
	next  int64 // position in the epoch of this rank's next sample
	taken int64 // samples of this rank
	ended bool  // a Take had too few
	told  int64 // next when the daemon was told last
}

// tellEvery is how many samples of this rank may pass before the daemon hears
// where its reader is.
const tellEvery = 256

var epochs atomic.Int64 // for ids

// Epoch begins, or goes on with, an epoch. The daemon is told, so that it
// fetches what is needed next.
func (d *Dataset) Epoch(ctx context.Context, opt EpochOptions) (*Epoch, error) {
	if opt.World == 0 {
		opt.World = 1
	}
	if opt.Rank < 0 || opt.Rank >= opt.World || opt.World > catalog.MaxWorld || opt.At < 0 || opt.At > d.Len() {
		return nil, fmt.Errorf("epoch of %s: %w: rank %d of %d, from %d of %d samples", d.Name(), catalog.ErrInvalid, opt.Rank, opt.World, opt.At, d.Len())
	}
	o, err := order.New(d.Len(), order.NewKey(d.x.Digest(), opt.Seed, opt.Epoch), opt.Mode)
	if err != nil {
		return nil, fmt.Errorf("epoch of %s: %w", d.Name(), err)
	}
	opt.Mode = o.Mode()
	w := int64(opt.World)
	e := &Epoch{d: d, o: o, opt: opt, id: "go-" + strconv.FormatInt(epochs.Add(1), 10), told: -1}
	e.next = opt.At + (int64(opt.Rank)-opt.At%w+w)%w
	return e, e.tell(ctx)
}

// Resume goes on where a cursor says, with any number of ranks.
func (d *Dataset) Resume(ctx context.Context, c order.Cursor, rank, world int) (*Epoch, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Dataset != d.Name() || c.Digest != d.x.Digest() {
		return nil, fmt.Errorf("resume %s: %w: the cursor is of %s (%v), this is %v", d.Name(), catalog.ErrInvalid, c.Dataset, c.Digest, d.x.Digest())
	}
	return d.Epoch(ctx, EpochOptions{Seed: c.Seed, Epoch: c.Epoch, Mode: c.Mode, Rank: rank, World: world, At: c.At})
}

// Take gives the numbers of this rank's next samples, n of them or what is
// left; none at the end of the epoch.
func (e *Epoch) Take(ctx context.Context, n int) ([]int64, error) {
	if e.next-e.told >= tellEvery*int64(e.opt.World) {
		if err := e.tell(ctx); err != nil {
			return nil, err
		}
	}
	var out []int64
	for ; n > 0 && e.next < e.o.Len(); n-- {
		out = append(out, e.o.At(e.next))
		e.next += int64(e.opt.World)
		e.taken++
	}
	e.ended = e.ended || n > 0
	return out, nil
}

// Cursor is where the epoch is when every rank has taken as many samples as
// this one, or the epoch has ended: what a checkpoint keeps.
func (e *Epoch) Cursor() order.Cursor {
	at := min(e.opt.At+e.taken*int64(e.opt.World), e.o.Len())
	if e.ended {
		at = e.o.Len()
	}
	return order.Cursor{
		Dataset: e.d.Name(), Digest: e.d.x.Digest(), Seed: e.opt.Seed, Epoch: e.opt.Epoch,
		At: at, Mode: e.opt.Mode,
	}
}

// tell says to the daemon where this reader is.
func (e *Epoch) tell(ctx context.Context) error {
	m := &wire.Message{
		T: "reader", Set: e.d.set.String(), ID: e.id, Rank: e.opt.Rank, World: e.opt.World,
		At: e.Cursor().At, Ahead: e.opt.Ahead, Lookahead: e.opt.Lookahead, Retries: e.opt.Retries,
		Order: &wire.Order{Mode: "global", Seed: e.opt.Seed, Epoch: e.opt.Epoch},
	}
	if e.opt.Mode != order.Global {
		m.Order.Mode, m.Order.Slice, m.Order.Group = "window", e.opt.Mode.Slice, e.opt.Mode.Group
	}
	a, err := e.d.call(ctx, m, nil, "reader")
	closeFiles(a.fds)
	e.told = e.next
	return err
}
