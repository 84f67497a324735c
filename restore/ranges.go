package restore

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/ckptd/ckptd/catalog"
)

// MergeGap is the widest gap between two ranges that is read rather than skipped, in bytes.
const MergeGap = 1 << 20

// ShardRef names a shard and says what it must be.
type ShardRef struct {
	Set  catalog.SetID
	Rank int
	Size int64          // bytes
	Root catalog.Digest // of its seal
	Raw  bool           // a file of any kind, not safetensors
}

// BlobName is the shard's name in every tier.
func (s ShardRef) BlobName() string { return s.Set.BlobName(s.Rank, s.Raw) }

func (s ShardRef) String() string { return fmt.Sprintf("%v rank %d", s.Set, s.Rank) }

// Whole is the one range that is all of the shard; none when it is empty.
func (s ShardRef) Whole() [][2]int64 {
	if s.Size == 0 {
		return nil
	}
	return [][2]int64{{0, s.Size}}
}

// Shard is the reference of a rank's shard.
func (p *Plan) Shard(rank int) ShardRef {
	s := &p.m.Shards[rank]
	return ShardRef{Set: p.Set, Rank: rank, Size: s.Size, Root: s.Root, Raw: s.Raw()}
}

// Ranks lists the ranks whose shards the plan reads.
func (p *Plan) Ranks() []int {
	var ranks []int
	for i := 0; i < len(p.Reads); {
		rank := p.Reads[i].Rank
		ranks = append(ranks, rank)
		i += sort.Search(len(p.Reads)-i, func(j int) bool { return p.Reads[i+j].Rank > rank })
	}
	return ranks
}

// Of is the part of Reads that is of one rank.
func (p *Plan) Of(rank int) []Read {
	from, _ := slices.BinarySearchFunc(p.Reads, rank, func(r Read, v int) int { return cmp.Compare(r.Rank, v) })
	to, _ := slices.BinarySearchFunc(p.Reads, rank+1, func(r Read, v int) int { return cmp.Compare(r.Rank, v) })
	return p.Reads[from:to]
}

// Bytes is how much the outputs hold.
func (p *Plan) Bytes() int64 {
	n := int64(0)
	for i := range p.Outputs {
		n += p.Outputs[i].Size
	}
	return n
}

// FetchBytes is how much must be read for them, in whole blocks.
func (p *Plan) FetchBytes() int64 {
	n := int64(0)
	for _, rank := range p.Ranks() {
		for _, r := range p.Ranges(rank) {
			n += r[1]
		}
	}
	return n
}

// Ranges is what to fetch of a rank's shard, as pairs of offset and length:
// whole blocks (the last may be short), in order, with gaps of up to MergeGap
// included.
func (p *Plan) Ranges(rank int) [][2]int64 {
	reads := p.Of(rank)
	if len(reads) == 0 {
		return nil
	}
	m := merger{size: p.m.Shards[rank].Size}
	for i := range reads {
		m.read(&reads[i])
	}
	if !m.sorted() {
		slices.SortFunc(m.out, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	}
	return m.merge()
}

// merger gathers ranges as [from, to), and turns them into pairs at the end.
type merger struct {
	size int64
	out  [][2]int64
}

func (m *merger) read(r *Read) { m.dims(r.Dims, r.Off, r.Run) }

// dims adds the blocks of a strided copy. Steps whose gaps would be read anyway
// are one range, so that the number of ranges is bounded by the blocks of the
// shard, not by the runs. In a row-major array the gaps of an inner level are
// never wider than those around it, so there is nothing to look for within.
func (m *merger) dims(dims []Dim, off, run int64) {
	if len(dims) == 0 || dims[0].Src-span(dims[1:], run) <= MergeGap {
		m.add(off, span(dims, run))
		return
	}
	for range dims[0].N {
		m.dims(dims[1:], off, run)
		off += dims[0].Src
	}
}

func (m *merger) add(off, n int64) {
	from := off / catalog.BlockSize * catalog.BlockSize
	to := min((off+n+catalog.BlockSize-1)/catalog.BlockSize*catalog.BlockSize, m.size)
	if last := len(m.out) - 1; last >= 0 && from >= m.out[last][0] && from-m.out[last][1] <= MergeGap {
		m.out[last][1] = max(m.out[last][1], to)
		return
	}
	m.out = append(m.out, [2]int64{from, to})
}

func (m *merger) sorted() bool {
	return slices.IsSortedFunc(m.out, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
}

// merge joins neighbours and gives offset and length.
func (m *merger) merge() [][2]int64 {
	n := 0
	for _, r := range m.out[1:] {
		if r[0]-m.out[n][1] <= MergeGap {
			m.out[n][1] = max(m.out[n][1], r[1])
		} else {
			n++
			m.out[n] = r
		}
	}
	m.out = m.out[:n+1]
	for i := range m.out {
		m.out[i][1] -= m.out[i][0]
	}
	return m.out
}
