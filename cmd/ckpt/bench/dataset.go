package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

const (
	epochSample = 100_000   // bytes of a sample
	epochBatch  = 64        // samples
	packBytes   = 128 << 20 // of each pack of a bench
)

// fillSample gives the bytes of sample i: incompressible, and of i alone.
func fillSample(p []byte, i int) {
	var key [32]byte
	for k := range 8 {
		key[k] = byte(i >> (8 * k))
	}
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
}

// putDataset keeps n samples of size bytes as version 1 of a dataset, and gives
// the file of each pack. each, if not nil, is given every sample too.
func (d *daemon) putDataset(ctx context.Context, name string, n int, size int64, each func(i int, p []byte) error) (files []string, err error) {
	mem, err := mapMemory(packBytes)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(mem)
	w, err := pack.NewBuffer(mem)
	if err != nil {
		return nil, err
	}
	packs, err := catalog.PackRun(name)
	if err != nil {
		return nil, err
	}
	versions, err := catalog.DatasetRun(name)
	if err != nil {
		return nil, err
	}
	ix, p := index.NewBuilder(), make([]byte, size)
	flush := func() error {
		total, _, err := w.Finish()
		if err != nil {
			return err
		}
		set, root, path, err := d.putRaw(ctx, packs, int64(len(files)+1), "pack", mem[:total], pack.AggregateMeta())
		if err != nil {
			return err
		}
		files = append(files, path)
		if _, err := ix.AddPack(index.Pack{Set: set, Size: total, Root: root}); err != nil {
			return err
		}
		return w.Reset()
	}
	for i := range n {
		fillSample(p, i)
		if each != nil {
			if err := each(i, p); err != nil {
				return nil, err
			}
		}
		if !w.Fits(size) {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		rec, err := w.Append(bytes.NewReader(p), size, 0)
		if err != nil {
			return nil, err
		}
		id, err := ix.Add(index.Add{
			Path: fmt.Sprintf("%04d/%08d.bin", i/1000, i), Kind: index.File, Mode: 0o644,
			Size: rec.Size, Pack: len(files), Offset: rec.Offset, CRC: rec.CRC, Hash: rec.Hash,
		})
		if err == nil {
			err = ix.Whole(id)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := ix.WriteTo(&out); err != nil {
		return nil, err
	}
	_, _, _, err = d.putRaw(ctx, versions, 1, "index", out.Bytes(), nil)
	return files, err
}

// putRaw commits one raw shard, and waits until it is on the disk.
func (d *daemon) putRaw(ctx context.Context, run catalog.Run, step int64, file string, data []byte, meta map[string]string) (id catalog.SetID, root catalog.Digest, path string, err error) {
	s, err := d.client.Save(ctx, ckpt.At(string(run), step))
	if err != nil {
		return id, root, "", err
	}
	defer s.Close()
	if err := s.Raw(file, int64(len(data)), bytes.NewReader(data)); err != nil {
		return id, root, "", err
	}
	for key, value := range meta {
		s.SealMeta(key, value)
	}
	set, err := s.Commit(ctx)
	if err != nil {
		return id, root, "", err
	}
	if err := set.Wait(ctx, ckpt.Local); err != nil {
		return id, root, "", err
	}
	at, err := lookUp(ctx, d.client, set.ID.String(), 0)
	if err != nil {
		return id, root, "", err
	}
	m, err := d.client.Manifest(ctx, set.ID.String())
	if err != nil {
		return id, root, "", err
	}
	return m.Set, m.Shards[0].Root, at.path, nil
}

// benchDataset reads shuffled epochs: by the SDK, and by pread of the same
// ranges in the same order.
func benchDataset(ctx context.Context, b *bench) (err error) {
	d, err := b.start(ctx, 256<<20)
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	n := int(b.opt.Size / epochSample)
	b.opt.Log(fmt.Sprintf("dataset: %d samples of %d bytes", n, epochSample))
	files, err := d.putDataset(ctx, "bench", n, epochSample, nil)
	if err != nil {
		return err
	}
	ds, err := d.client.OpenDataset(ctx, "bench@1")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ds.Close()) }()
	plain, err := openPacks(files)
	if err != nil {
		return err
	}
	defer plain.close()
	if err := checkSamples(ctx, ds, plain, n); err != nil {
		return err
	}
	var product, yardstick []float64
	for pair := range b.opt.Pairs {
		var sums [2]uint64
		var spent [2]time.Duration
		ranges, err := rangesOf(ctx, ds, uint64(pair))
		if err != nil {
			return err
		}
		for turn := range 2 {
			which := (turn + pair) % 2 // who begins takes turns too
			if spent[which], err = took(func() (err error) {
				if which == 0 {
					sums[which], err = sdkEpoch(ctx, ds, uint64(pair))
				} else {
					sums[which], err = plainEpoch(ctx, plain, ranges)
				}
				return err
			}); err != nil {
				return err
			}
		}
		if sums[0] != sums[1] {
			return fmt.Errorf("epoch %d: %w: the SDK gave other bytes than pread", pair, catalog.ErrCorrupt)
		}
		product = append(product, perSecond(n*epochSample, spent[0]))
		yardstick = append(yardstick, perSecond(n*epochSample, spent[1]))
	}
	b.versus("dataset.epoch", product, yardstick,
		"%d samples of 100 KB in %d packs on this node, in the page cache, shuffled: Take and Batch of %d; pread into one buffer, the ranges known; every byte is touched once, and was compared before",
		n, len(files), epochBatch)
	return nil
}

// sdkEpoch reads an epoch as a training program does.
func sdkEpoch(ctx context.Context, ds *ckpt.Dataset, seed uint64) (sum uint64, err error) {
	e, err := ds.Epoch(ctx, ckpt.EpochOptions{Seed: seed})
	if err != nil {
		return 0, err
	}
	for {
		batch, err := e.Take(ctx, epochBatch)
		if err != nil || len(batch) == 0 {
			return sum, err
		}
		if err := ds.Batch(ctx, batch, func(_ int, s ckpt.Sample) error {
			sum ^= touch(s.Data[0])
			return nil
		}); err != nil {
			return 0, err
		}
	}
}

// plainPacks are the packs' files, open.
type plainPacks []*os.File

func openPacks(files []string) (p plainPacks, err error) {
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			p.close()
			return nil, err
		}
		p = append(p, f)
	}
	return p, nil
}

func (p plainPacks) close() {
	for _, f := range p {
		f.Close()
	}
}

func (p plainPacks) read(f index.Field, into []byte) error {
	_, err := p[f.Pack].ReadAt(into[:f.Size], f.PackOffset)
	return err
}

// plainEpoch is pread of what sdkEpoch reads: of ranges that are known before
// the clock starts, so the yardstick pays for no index and no order.
func plainEpoch(ctx context.Context, p plainPacks, fields []index.Field) (sum uint64, err error) {
	buf := make([]byte, epochSample)
	for k, f := range fields {
		if k%epochBatch == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if err := p.read(f, buf); err != nil {
			return 0, err
		}
		sum ^= touch(buf[:f.Size])
	}
	return sum, nil
}

// rangesOf are the ranges of an epoch in its order.
func rangesOf(ctx context.Context, ds *ckpt.Dataset, seed uint64) (fields []index.Field, err error) {
	e, err := ds.Epoch(ctx, ckpt.EpochOptions{Seed: seed})
	if err != nil {
		return nil, err
	}
	all, err := e.Take(ctx, int(ds.Len()))
	for _, i := range all {
		if fields, err = ds.Index().Sample(i, fields); err != nil {
			return nil, err
		}
	}
	return fields, err
}

// checkSamples compares every sample, read in both ways, with what was made.
func checkSamples(ctx context.Context, ds *ckpt.Dataset, plain plainPacks, n int) error {
	want, got := make([]byte, epochSample), make([]byte, epochSample)
	for i := range n {
		fillSample(want, i)
		if err := ds.Batch(ctx, []int64{int64(i)}, func(_ int, s ckpt.Sample) error {
			if err := plain.read(s.Fields[0], got); err != nil {
				return err
			}
			return errors.Join(same(s.Data[0], want, 0), same(got, want, 0))
		}); err != nil {
			return fmt.Errorf("sample %d: %w", i, err)
		}
	}
	return nil
}
