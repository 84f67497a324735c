package ckpt

import (
	"context"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Dataset is one version of a dataset, open for reading: its index, mapped, and
// the packs in use, mapped from this node's cache. While it is open nothing of
// the version is deleted. Its methods may be called from any goroutine. Close
// it after use.
type Dataset struct {
	c    *Client
	set  catalog.SetID
	mem  []byte // the index
	x    *index.Index
	maps *packMaps

	turn chan struct{} // holds one token: taken to talk to the daemon
	ses  *session      // nil: the connection broke
}

// DatasetOption changes how a dataset is read.
type DatasetOption func(*datasetOptions)

type datasetOptions struct {
	maps int
}

// MaxMappedPacks bounds the packs that are mapped at a time; 64 unless told.
// Those in use by a Batch are not counted.
func MaxMappedPacks(n int) DatasetOption { return func(o *datasetOptions) { o.maps = n } }

// maxMappedPacks is how many packs a daemon holds for one connection.
const maxMappedPacks = 64

// OpenDataset opens a version: NAME@3, NAME@latest, or NAME for the latest.
func (c *Client) OpenDataset(ctx context.Context, ref string, opts ...DatasetOption) (*Dataset, error) {
	o := datasetOptions{maps: maxMappedPacks}
	for _, opt := range opts {
		opt(&o)
	}
	if o.maps < 1 {
		return nil, fmt.Errorf("open dataset %s: %w: %d mapped packs; want at least 1", ref, catalog.ErrInvalid, o.maps)
	}
	d := &Dataset{c: c, turn: make(chan struct{}, 1)}
	ses, a, err := c.ask(ctx, &wire.Message{T: "dataset", Ref: ref}, nil, nil, "dataset")
	if err != nil {
		return nil, fmt.Errorf("open dataset %s: %w", ref, err)
	}
	d.ses = ses
	if err := d.open(a); err != nil {
		d.ses.close()
		return nil, fmt.Errorf("open dataset %s: %w", ref, err)
	}
	d.maps = newPackMaps(o.maps, d.fetchPack)
	return d, nil
}

// open maps the index that the daemon answered with.
func (d *Dataset) open(a answer) (err error) {
	defer closeFiles(a.fds)
	if d.set, err = parseID(a.m.Set); err != nil {
		return err
	}
	if len(a.fds) != 1 || a.m.Size < 1 || a.m.Size > index.MaxSize {
		return fmt.Errorf("%w: an index of %d bytes in %d descriptors", catalog.ErrUnavailable, a.m.Size, len(a.fds))
	}
	if d.mem, err = mapWhole(a.fds[0], a.m.Size); err != nil {
		return err
	}
	if d.x, err = index.Open(d.mem); err != nil {
		_ = unix.Munmap(d.mem)
	}
	return err
}

// Set is the version's set, Name how it is called: NAME@3.
func (d *Dataset) Set() catalog.SetID { return d.set }
func (d *Dataset) Name() string       { return catalog.DatasetRef(d.set) }

// Index is the version's index. What it gives is gone with Close.
func (d *Dataset) Index() *index.Index { return d.x }

// Len is the number of samples.
func (d *Dataset) Len() int64 { return d.x.Samples() }

// Close lets go of the version. It waits for the Batches that run.
func (d *Dataset) Close() error {
	if !d.maps.close() {
		return nil
	}
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	if d.ses != nil {
		d.ses.close() // ends the lease
		d.ses = nil
	}
	return unix.Munmap(d.mem)
}

// Sample is one sample: its fields and their bytes.
type Sample struct {
	Number int64
	Fields []index.Field
	Data   [][]byte // by field
}

// Sample reads one sample into memory of its own.
func (d *Dataset) Sample(ctx context.Context, i int64) (Sample, error) {
	var out Sample
	err := d.Batch(ctx, []int64{i}, func(_ int, s Sample) error {
		out = Sample{Number: s.Number, Fields: slices.Clone(s.Fields), Data: make([][]byte, len(s.Data))}
		for k, p := range s.Data {
			out.Data[k] = append(make([]byte, 0, len(p)), p...)
		}
		return nil
	})
	return out, err
}

// Batch gives fn the samples with the numbers in indices, in that order; k is
// the place in indices. The sample's slices are for reading, and only until fn
// returns: the bytes of packs in this node's cache are mapped, not copied.
// Those of packs that are still arriving are waited for.
func (d *Dataset) Batch(ctx context.Context, indices []int64, fn func(k int, s Sample) error) error {
	if !d.maps.enter() {
		return fmt.Errorf("batch of %s: %w", d.Name(), fs.ErrClosed)
	}
	defer d.maps.leave()
	var s Sample
	var held *packMap // the one of the sample before: neighbours share it
	defer func() { d.maps.release(held) }()
	for k, i := range indices {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		var err error
		if s.Fields, err = d.x.Sample(i, s.Fields[:0]); err != nil {
			return fmt.Errorf("batch of %s: %w", d.Name(), err)
		}
		s.Number, s.Data = i, s.Data[:0]
		if held, err = d.sample(ctx, &s, held, func() error { return fn(k, s) }); err != nil {
			return err
		}
	}
	return nil
}

// sample finds the bytes of s.Fields and calls fn. It gives the pack of the
// last field back, held.
func (d *Dataset) sample(ctx context.Context, s *Sample, held *packMap, fn func() error) (*packMap, error) {
	var others []*packMap // beside held
	defer func() {
		for _, m := range others {
			d.maps.release(m)
		}
	}()
	for _, f := range s.Fields {
		if f.Size == 0 {
			s.Data = append(s.Data, nil)
			continue
		}
		if held == nil || held.pack != f.Pack {
			m, err := d.maps.acquire(ctx, f.Pack)
			if err != nil {
				return held, fmt.Errorf("sample %d of %s: %w", s.Number, d.Name(), err)
			}
			if m != nil && held != nil {
				others = append(others, held)
			}
			if m != nil {
				held = m
			}
		}
		var p []byte
		if held != nil && held.pack == f.Pack {
			p = held.bytes(f.PackOffset, f.Size)
		}
		if p == nil { // it is arriving, or its file cannot be read
			var err error
			if p, err = d.load(ctx, f); err != nil {
				return held, fmt.Errorf("sample %d of %s: %w", s.Number, d.Name(), err)
			}
		}
		s.Data = append(s.Data, p)
	}
	return held, fn()
}
