package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	shardsAtOnce = 2 // on their way
	partsAtOnce  = 2 // of each
)

// Options of Export and Import.
type Options struct {
	// Progress is told of bytes as they are done, from several goroutines; nil is off.
	Progress func(n int64)
}

func (o Options) add(n int64) {
	if o.Progress != nil {
		o.Progress(n)
	}
}

// Exported tells what Export did.
type Exported struct {
	Files []string // of the set, in the order of their names but for the manifest, which is last
	Bytes int64    // of them all
	Sent  int64    // bytes that were written
	Kept  int64    // bytes that were there, and right
}

// Source is an open set.
type Source interface {
	ManifestBytes() []byte
	Manifest() *catalog.Manifest
	Shard(rank int) (*ckpt.ShardReader, error)
}

// Export copies an open set to a store. info is what the catalog says of it.
// When it fails, or ctx ends, no manifest is there, and the files that are
// whole stay: the same call goes on from them.
func Export(ctx context.Context, r Source, info *wire.Set, to Store, opt Options) (_ *Exported, err error) {
	m := r.Manifest()
	release, err := to.Ready(ctx)
	if err != nil {
		return nil, fmt.Errorf("export %v: %w", m.Set, err)
	}
	defer func() { err = errors.Join(err, release()) }()
	e := &export{from: r, to: to, opt: opt}
	if err := e.run(ctx, info); err != nil {
		return nil, fmt.Errorf("export %v to %s: %w", m.Set, to, err)
	}
	return &e.done, nil
}

type export struct {
	from Source
	to   Store
	opt  Options

	mu   sync.Mutex // of done
	done Exported
}

func (e *export) run(ctx context.Context, info *wire.Set) error {
	m, raw := e.from.Manifest(), e.from.ManifestBytes()
	manifest := sealOf(ManifestFile, raw)
	if err := e.free(ctx, manifest); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(shardsAtOnce)
	for i := range m.Shards {
		g.Go(func() error {
			if err := e.shard(gctx, &m.Shards[i]); err != nil {
				return fmt.Errorf("rank %d: %w", i, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range m.Shards {
		e.done.Files = append(e.done.Files, fileOf(&m.Shards[i]), sealFileOf(&m.Shards[i]))
	}
	record, err := json.Marshal(recordOf(m, info))
	if err != nil {
		return err
	}
	if err := e.small(ctx, RecordFile, record); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	e.done.Files = append(e.done.Files, RecordFile, ManifestFile)
	return e.small(ctx, ManifestFile, raw)
}

// recordOf is what goes into RecordFile: what is true of the set wherever it is.
func recordOf(m *catalog.Manifest, info *wire.Set) *catalog.SetRecord {
	return &catalog.SetRecord{
		SetID: m.Set, State: catalog.Committed, World: m.World, Begun: info.Begun, Committed: info.Committed,
		Manifest: info.Manifest, Size: info.Size, Metrics: info.Metrics, Tags: info.Tags,
	}
}

// free refuses a store that holds another set.
func (e *export) free(ctx context.Context, manifest *catalog.Seal) error {
	there, err := e.to.Open(ctx, ManifestFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer there.Close()
	same, err := e.to.Has(ctx, ManifestFile, manifest.Size, manifest.Root())
	if err == nil && !same {
		err = wire.WithHint(fmt.Errorf("%w: another set is there already", catalog.ErrConflict), "what exists is never overwritten: name another place, or remove that one first")
	}
	return err
}

// shard copies one shard and its seal, unless both are there.
func (e *export) shard(ctx context.Context, s *catalog.Shard) error {
	name := fileOf(s)
	has, err := e.to.Has(ctx, name, s.Size, s.Root)
	if err != nil {
		return err
	}
	if has {
		if seal, err := readSeal(ctx, e.to, s); err == nil {
			e.keep(s.Size + int64(len(seal.Marshal())))
			e.opt.add(s.Size)
			return nil
		} else if !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	seal, err := e.send(ctx, s)
	if err != nil {
		return err
	}
	e.wrote(s.Size)
	return e.small(ctx, sealFileOf(s), seal.Marshal())
}

// send copies a shard, sums its blocks on the way, and lets it have its name
// only if they are the ones the catalog knows.
func (e *export) send(ctx context.Context, s *catalog.Shard) (*catalog.Seal, error) {
	in, err := e.from.Shard(s.Rank)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	m := e.from.Manifest()
	about := catalog.ShardInfo{Set: m.Set, Rank: s.Rank, World: m.World, Sealed: m.Created, Metrics: m.Metrics}
	if s.Raw() {
		about.File, about.Meta = s.File, s.Meta // a shard with a header says it there
	}
	info, err := json.Marshal(about)
	if err != nil {
		return nil, err
	}
	seal := &catalog.Seal{Name: s.BlobName(m.Set), Size: s.Size, CRCs: make([]uint32, catalog.Blocks(s.Size)), Info: info}
	out, err := e.to.Create(ctx, fileOf(s), s.Size, s.Root)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	part := out.Part()
	g, gctx := errgroup.WithContext(ctx)
	next := make(chan int64)
	g.Go(func() error {
		defer close(next)
		for off := int64(0); off < s.Size; off += part {
			select {
			case next <- off:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	for range min(partsAtOnce, (s.Size+part-1)/part) {
		g.Go(func() error {
			buf := make([]byte, min(part, s.Size))
			for off := range next {
				p := buf[:min(part, s.Size-off)]
				if _, err := in.ReadAtContext(gctx, p, off); err != nil {
					return err
				}
				first := int(off / catalog.BlockSize)
				sumBlocks(seal.CRCs[first:first+catalog.Blocks(int64(len(p)))], p)
				if err := out.WriteAt(gctx, p, off); err != nil {
					return err
				}
				e.opt.add(int64(len(p)))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if seal.Root() != s.Root {
		return nil, fmt.Errorf("%w: what was read is not what the catalog knows", catalog.ErrCorrupt)
	}
	return seal, out.Commit(ctx)
}

// small writes a file of a few bytes, unless it is there.
func (e *export) small(ctx context.Context, name string, b []byte) error {
	seal := sealOf(name, b)
	has, err := e.to.Has(ctx, name, seal.Size, seal.Root())
	if err != nil {
		return err
	}
	if has {
		e.keep(seal.Size)
		return nil
	}
	out, err := e.to.Create(ctx, name, seal.Size, seal.Root())
	if err != nil {
		return err
	}
	defer out.Close()
	for off := int64(0); off < seal.Size; off += out.Part() {
		if err := out.WriteAt(ctx, b[off:min(off+out.Part(), seal.Size)], off); err != nil {
			return err
		}
	}
	if err := out.Commit(ctx); err != nil {
		return err
	}
	e.wrote(seal.Size)
	return nil
}

func (e *export) keep(n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done.Kept, e.done.Bytes = e.done.Kept+n, e.done.Bytes+n
}

func (e *export) wrote(n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done.Sent, e.done.Bytes = e.done.Sent+n, e.done.Bytes+n
}
