package datasets

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/datasets/source"
)

// importer is one import under way.
type importer struct {
	src   source.Source
	store Store
	opt   Options
	facts source.Facts
	known *known
	ahead *semaphore.Weighted
	line  chan *batch // to be packed, in the order of the source
	jobs  chan *batch // to be read
}

// Import makes src the next version of the store's dataset.
func Import(ctx context.Context, src source.Source, store Store, opt Options) (Version, error) {
	if err := opt.settle(); err != nil {
		return Version{}, err
	}
	im := &importer{
		src: src, store: store, opt: opt, facts: src.Facts(), ahead: semaphore.NewWeighted(aheadBytes),
		line: make(chan *batch, aheadBatch), jobs: make(chan *batch, aheadBatch),
	}
	base, err := again(ctx, im, func() (*Base, error) { return store.Base(ctx) })
	if err != nil {
		return Version{}, fmt.Errorf("find the newest version: %w", err)
	}
	var x *index.Index
	if base != nil {
		defer func() { _ = base.Close() }() // a lease that ends
		if x, err = index.Open(base.Index); err != nil {
			return Version{}, fmt.Errorf("index of version %d: %w", base.Set.Step, err)
		}
	}
	if im.known, err = again(ctx, im, func() (*known, error) { return openKnown(ctx, store, x) }); err != nil {
		return Version{}, fmt.Errorf("find what is stored: %w", err)
	}
	defer im.known.Close()
	f, err := newFiller(im)
	if err != nil {
		return Version{}, err
	}
	defer f.release()
	if err := im.run(ctx, f); err != nil {
		return Version{}, err
	}
	return im.finish(ctx, f, base, x)
}

// run reads and packs everything.
func (im *importer) run(ctx context.Context, f *filler) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(im.line)
		defer close(im.jobs)
		return im.collect(ctx)
	})
	for range im.opt.Workers {
		group.Go(func() error { return im.read(ctx) })
	}
	group.Go(func() error { return f.run(ctx) })
	group.Go(func() error { return f.upload(ctx) })
	return group.Wait()
}

// finish writes the index, and commits it if it says something new.
func (im *importer) finish(ctx context.Context, f *filler, base *Base, x *index.Index) (Version, error) {
	v, b := f.version, f.builder
	named := make([]catalog.SetID, 0, len(f.slots))
	for i, s := range f.slots {
		if made, ok := f.made.packs[i]; ok {
			s = made // upload is over
		}
		named = append(named, s.Set)
		if _, err := b.AddPack(s); err != nil {
			return Version{}, err
		}
	}
	facts := im.src.Facts() // the schema is known now
	if err := b.SetSchema(facts.Schema.String()); err != nil {
		return Version{}, err
	}
	told, err := b.Finish()
	if err != nil {
		return Version{}, err
	}
	v.Format, v.Skipped, v.Digest = facts.Format, facts.Skipped, told.Digest
	v.Files, v.Bytes, v.Samples = told.Files, told.Bytes, told.Samples
	if x != nil && !im.opt.Force && x.Digest() == told.Digest && x.Schema() == facts.Schema.String() {
		v.Set, v.Unchanged = base.Set, true
		return v, nil
	}
	tmp, err := os.CreateTemp("", "ckpt-index-*")
	if err != nil {
		return Version{}, fmt.Errorf("write the index: %w", err)
	}
	defer tmp.Close()
	if err := os.Remove(tmp.Name()); err != nil {
		return Version{}, fmt.Errorf("write the index: %w", err)
	}
	size, err := b.WriteTo(tmp)
	if err != nil {
		return Version{}, fmt.Errorf("write the index: %w", err)
	}
	v.Set, err = again(ctx, im, func() (catalog.SetID, error) {
		return im.store.PutVersion(ctx, Put{
			File: "index", Size: size, Data: tmp, Packs: named, Meta: func() map[string]string { return versionMeta(told) },
		})
	})
	if err != nil {
		return Version{}, fmt.Errorf("commit the version: %w", err)
	}
	return v, nil
}

// versionMeta is what the shard of an index says of it.
func versionMeta(f index.Facts) map[string]string {
	return map[string]string{
		catalog.MetaDigest:  f.Digest.String(),
		catalog.MetaFiles:   fmt.Sprint(f.Files),
		catalog.MetaBytes:   fmt.Sprint(f.Bytes),
		catalog.MetaSamples: fmt.Sprint(f.Samples),
		catalog.MetaPacks:   fmt.Sprint(f.Packs),
	}
}

// aggregateFile is what the shard of an aggregate pack is called.
const aggregateFile = "pack"

var aggregateMeta = pack.AggregateMeta
