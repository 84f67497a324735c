package ckptd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// A vote carries the manifest's entries of its shards, so that the coordinator
// needs nothing but the votes to write the manifest: JSON, compressed with
// zstd, in the statement itself or, when large, in a bulk that it names.

// maxInline bounds an index inside a statement, in bytes.
const maxInline = 128 << 10

// voteIndex names its set so that no two sets share a bulk, however equal
// their shards are: it is dropped when its set is committed.
type voteIndex struct {
	Set    catalog.SetID   `json:"set"`
	Shards []catalog.Shard `json:"shards"`
}

// The names and shapes of tensors shrink to about a tenth. Both are safe for
// concurrent use, and bounded: one goroutine, and no more memory than a
// manifest may have.
var (
	indexEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	indexDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(catalog.MaxManifestSize))
)

// encodeIndex makes the index of a node's shards of one set.
func (n *Node) encodeIndex(id catalog.SetID, shards []held) ([]byte, error) {
	index := voteIndex{Set: id}
	for _, s := range shards {
		e, err := n.shardEntry(s)
		if err != nil {
			return nil, err
		}
		index.Shards = append(index.Shards, e)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("index of %v: %w", id, err)
	}
	return indexEncoder.EncodeAll(raw, nil), nil
}

// shardEntry reads a shard's header from the disk; a raw one's seal says it all.
func (n *Node) shardEntry(s held) (catalog.Shard, error) {
	b, err := n.local.Open(s.name)
	if err != nil {
		return catalog.Shard{}, err
	}
	defer b.Close()
	if s.info.Raw() {
		e := catalog.Shard{
			Rank: s.rank, Node: n.cfg.Name, Size: b.Size(), Root: b.Seal().Root(), File: s.info.File, Meta: s.info.Meta, Tensors: []catalog.Tensor{},
		}
		e.SetSums(b.Seal(), s.info.World)
		return e, nil
	}
	h, err := shardfile.ReadHeader(b, b.Size())
	if err != nil {
		return catalog.Shard{}, fmt.Errorf("header of %s: %w", s.name, err)
	}
	return shardfile.ShardOf(h, s.rank, n.cfg.Name, b.Seal()), nil
}

// indexEntry is one shard's entry as it goes into the manifest.
type indexEntry struct {
	size int64
	raw  []byte // JSON
}

// entryKey says which shard an entry is of: a vote counts only with its own.
type entryKey struct {
	rank int
	root catalog.Digest
}

// decodeIndex reads an index of a set.
func decodeIndex(id catalog.SetID, b []byte) (map[entryKey]indexEntry, error) {
	bad := func(why any) (map[entryKey]indexEntry, error) {
		return nil, fmt.Errorf("index of %v: %w: %v", id, catalog.ErrCorrupt, why)
	}
	raw, err := indexDecoder.DecodeAll(b, nil)
	if err != nil {
		return bad(err)
	}
	var index voteIndex
	if err := json.Unmarshal(raw, &index); err != nil {
		return bad(err)
	}
	if index.Set != id {
		return bad(fmt.Sprintf("it is of %v", index.Set))
	}
	entries := make(map[entryKey]indexEntry, len(index.Shards))
	for i := range index.Shards {
		s := &index.Shards[i]
		raw, err := json.Marshal(s)
		if err != nil {
			return bad(err)
		}
		entries[entryKey{s.Rank, s.Root}] = indexEntry{s.Size, raw}
	}
	return entries, nil
}

// readIndex gives the entries that a statement carries or names.
func (n *Node) readIndex(ctx context.Context, p *catalog.PartRecord) (map[entryKey]indexEntry, error) {
	b := p.Index
	if b == nil && !p.Bulk.IsZero() {
		var err error
		if b, err = n.cat.GetBulk(ctx, p.Bulk); err != nil {
			return nil, err
		}
	}
	if b == nil {
		return nil, nil
	}
	return decodeIndex(p.Set, b)
}

// planManifest is the same for every coordinator that sees the same votes, to
// the byte: two that race write one manifest. It is what Manifest.Marshal
// would give, put together from entries that were encoded as they arrived, so
// that the last vote has only its own to wait for.
func planManifest(rec catalog.SetRecord, parts []catalog.PartRecord, index map[string]map[entryKey]indexEntry) (manifest []byte, root catalog.Digest, size int64, err error) {
	m := &catalog.Manifest{Version: 1, Set: rec.SetID, World: rec.World, Metrics: rec.Metrics, Shards: []catalog.Shard{}}
	votes := catalog.Votes(rec.World, parts)
	var list bytes.Buffer
	for rank, v := range votes {
		e, ok := index[v.Node][entryKey{rank, v.Shard.Root}]
		if !ok {
			return nil, root, 0, fmt.Errorf("manifest of %v: %w: the index of rank %d does not fit its vote", rec.SetID, catalog.ErrCorrupt, rank)
		}
		if rank > 0 {
			list.WriteByte(',')
		}
		list.Write(e.raw)
		size += e.size
		if v.Shard.Durable.After(m.Created) {
			m.Created = v.Shard.Durable.UTC()
		}
	}
	head, _, err := m.Marshal()
	if err != nil {
		return nil, root, 0, err
	}
	// The list of shards is the last field, and empty: …"shards":[]}
	head, ok := bytes.CutSuffix(head, []byte("]}"))
	if !ok {
		panic("ckptd: a manifest does not end with its shards")
	}
	manifest = append(append(head, list.Bytes()...), "]}"...)
	return manifest, sha256.Sum256(manifest), size, nil
}
