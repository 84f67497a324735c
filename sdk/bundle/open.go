package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// Set is an exported set whose manifest and record were read and checked.
type Set struct {
	from     Store
	manifest *catalog.Manifest
	record   catalog.SetRecord
}

// Open reads the manifest and the record of an exported set. No set is
// fs.ErrNotExist; files that contradict each other are ErrCorrupt.
func Open(ctx context.Context, from Store) (*Set, error) {
	s, err := open(ctx, from)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, wire.WithHint(fmt.Errorf("%s: %w", from, err), "an exported set has %s; one whose export was interrupted has not: run `ckpt export` again", ManifestFile)
	case err != nil:
		return nil, damaged(from, err)
	}
	return s, nil
}

// damaged adds what to do.
func damaged(from Store, err error) error {
	err = fmt.Errorf("%s: %w", from, err)
	if errors.Is(err, catalog.ErrCorrupt) {
		return wire.WithHint(err, "the exported files are damaged or were changed; export the set again, or import another copy of it")
	}
	return err
}

func open(ctx context.Context, from Store) (*Set, error) {
	raw, err := readFile(ctx, from, ManifestFile, catalog.MaxManifestSize)
	if err != nil {
		return nil, err
	}
	b, err := readFile(ctx, from, RecordFile, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is missing", catalog.ErrCorrupt, RecordFile)
	} else if err != nil {
		return nil, err
	}
	s := &Set{from: from}
	if err := json.Unmarshal(b, &s.record); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", RecordFile, catalog.ErrCorrupt, err)
	}
	if s.record.Manifest != sha256.Sum256(raw) {
		return nil, fmt.Errorf("%s: %w: it does not have the digest that %s says", ManifestFile, catalog.ErrCorrupt, RecordFile)
	}
	if s.manifest, err = catalog.ParseManifest(raw, s.record.Manifest); err != nil {
		return nil, err
	}
	if s.record.SetID != s.manifest.Set || s.record.World != s.manifest.World {
		return nil, fmt.Errorf("%s: %w: it is of %v with %d ranks, the manifest of %v with %d", RecordFile, catalog.ErrCorrupt,
			s.record.SetID, s.record.World, s.manifest.Set, s.manifest.World)
	}
	return s, nil
}

// ID is the set as it was exported.
func (s *Set) ID() catalog.SetID { return s.manifest.Set }

// Manifest lists its shards and tensors. It must not be changed.
func (s *Set) Manifest() *catalog.Manifest { return s.manifest }

// Tags are those it had when it was exported.
func (s *Set) Tags() map[string]string { return s.record.Tags }

// Size is the bytes of all shards.
func (s *Set) Size() (n int64) {
	for i := range s.manifest.Shards {
		n += s.manifest.Shards[i].Size
	}
	return n
}

// readFile reads a small file of at most most bytes, in growing parts: a size
// that is only claimed costs no memory.
func readFile(ctx context.Context, from Store, name string, most int64) ([]byte, error) {
	f, err := from.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > most {
		return nil, fmt.Errorf("%s: %w: it has %d bytes, at most %d are possible", name, catalog.ErrCorrupt, f.Size(), most)
	}
	var b []byte
	for have := int64(0); have < f.Size(); have = int64(len(b)) {
		grown := make([]byte, min(f.Size(), max(1<<20, 2*have)))
		copy(grown, b)
		if err := f.ReadAt(ctx, grown[have:], have); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		b = grown
	}
	return b, nil
}

// readSeal reads the seal of a shard and holds it against the manifest.
func readSeal(ctx context.Context, from Store, s *catalog.Shard) (*catalog.Seal, error) {
	b, err := readFile(ctx, from, sealFileOf(s), maxSeal(s.Size))
	if err != nil {
		return nil, err
	}
	seal, err := catalog.ParseSeal(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sealFileOf(s), err)
	}
	if seal.Size != s.Size || seal.Root() != s.Root {
		return nil, fmt.Errorf("%s: %w: it is the seal of another shard", sealFileOf(s), catalog.ErrCorrupt)
	}
	return seal, nil
}

// Shard reads one exported shard, every byte checked against its seal.
type Shard struct {
	ctx    context.Context // of the reads: ReadAt has none
	obj    Object
	seal   *catalog.Seal
	header *shardfile.Header // nil: a raw shard
}

// Shard opens a shard; the context is that of its reads, too. A shard whose
// header is not what the manifest says is ErrCorrupt.
func (s *Set) Shard(ctx context.Context, rank int) (*Shard, error) {
	sh, err := s.shard(ctx, &s.manifest.Shards[rank])
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", catalog.ErrCorrupt, err) // the manifest says that it is there
	}
	if err != nil {
		return nil, damaged(s.from, err)
	}
	return sh, nil
}

func (s *Set) shard(ctx context.Context, want *catalog.Shard) (_ *Shard, err error) {
	seal, err := readSeal(ctx, s.from, want)
	if err != nil {
		return nil, err
	}
	name := fileOf(want)
	obj, err := s.from.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			obj.Close()
		}
	}()
	if obj.Size() != want.Size {
		return nil, fmt.Errorf("%s: %w: it has %d bytes, not %d", name, catalog.ErrCorrupt, obj.Size(), want.Size)
	}
	sh := &Shard{ctx: ctx, obj: obj, seal: seal}
	if want.Raw() {
		return sh, nil // the manifest's digest vouches for its name and meta, the root for its bytes
	}
	if sh.header, err = shardfile.ReadHeader(sh, want.Size); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	has := shardfile.ShardOf(sh.header, want.Rank, want.Node, seal)
	if same, err := alike(&has, want); err != nil {
		return nil, err
	} else if !same {
		return nil, fmt.Errorf("%s: %w: its header is not what the manifest says", name, catalog.ErrCorrupt)
	}
	return sh, nil
}

// alike compares what two entries of a manifest say, as they are written down.
func alike(a, b *catalog.Shard) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return bytes.Equal(x, y), err
}

// Size is the length of the file in bytes.
func (s *Shard) Size() int64 { return s.seal.Size }

// Header is the first bytes of the file, checked; nil for a raw shard.
func (s *Shard) Header() *shardfile.Header { return s.header }

func (s *Shard) Close() error { return s.obj.Close() }

// ReadAt reads whole blocks, checks them, and gives what of them was asked.
func (s *Shard) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.seal.Size-int64(len(p)) {
		return 0, fmt.Errorf("read %s at %d: %w: outside its %d bytes", s.seal.Name, off, catalog.ErrInvalid, s.seal.Size)
	}
	if len(p) == 0 {
		return 0, nil
	}
	first := off / catalog.BlockSize * catalog.BlockSize
	end := min((off+int64(len(p))+catalog.BlockSize-1)/catalog.BlockSize*catalog.BlockSize, s.seal.Size)
	whole := p
	if first != off || end != off+int64(len(p)) {
		whole = make([]byte, end-first)
	}
	if err := s.obj.ReadAt(s.ctx, whole, first); err != nil {
		return 0, err
	}
	for at := int64(0); at < int64(len(whole)); at += catalog.BlockSize {
		if err := s.seal.CheckBlock(int((first+at)/catalog.BlockSize), whole[at:min(at+catalog.BlockSize, int64(len(whole)))]); err != nil {
			return 0, err
		}
	}
	if first != off || end != off+int64(len(p)) {
		copy(p, whole[off-first:])
	}
	return len(p), nil
}
