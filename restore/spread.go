package restore

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// SpreadBytes is how much is read in a row from one of several ranks that
// hold the same bytes, before the next one is considered. Whole blocks are
// fetched, so small parts from many shards would cost more than they spread.
const SpreadBytes = 256 << 20

// spread chooses a rank for each read that has a choice. Copies held by the
// same ranks are taken in the order in which they are stored, cut into parts
// of SpreadBytes, and each part goes to the rank that has the least to read.
func (b *builder) spread(near []int) {
	if len(b.choices) == 0 {
		return
	}
	load := make([]int64, len(b.x.m.Shards)) // bytes to read, by rank
	chosen := make([]bool, b.reads.n)
	for _, c := range b.choices {
		chosen[c.read] = true
	}
	for i := range b.reads.n {
		if r := b.reads.at(i); !chosen[i] {
			load[r.Rank] += r.Len
		}
	}
	isNear := make([]bool, len(load))
	for _, r := range near {
		if r >= 0 && r < len(isNear) {
			isNear[r] = true
		}
	}
	for _, group := range b.groups() {
		b.spreadGroup(group, load, isNear)
	}
}

// groups gathers the choices among the same ranks, in the order of storage.
func (b *builder) groups() [][]choice {
	ids := map[string]int{}
	var groups [][]choice
	var key []byte
	for _, c := range b.choices {
		key = key[:0]
		for _, e := range c.from {
			key = binary.AppendUvarint(key, uint64(e.rank))
		}
		id, ok := ids[string(key)]
		if !ok {
			id = len(groups)
			ids[string(key)] = id
			groups = append(groups, nil)
		}
		groups[id] = append(groups[id], c)
	}
	for _, g := range groups {
		slices.SortStableFunc(g, func(p, q choice) int {
			return cmp.Compare(b.x.tensor(p.from[0]).Offset, b.x.tensor(q.from[0]).Offset)
		})
	}
	return groups
}

func (b *builder) spreadGroup(group []choice, load []int64, isNear []bool) {
	pick, part := -1, int64(0)
	for i, c := range group {
		sameCell := i > 0 && c.from[0] == group[i-1].from[0] // never fetch one copy from two ranks
		if pick < 0 || part >= SpreadBytes && !sameCell {
			pick, part = leastLoaded(c.from, load, isNear), 0
		}
		r := b.reads.at(c.read)
		e := c.from[pick]
		r.Rank = int(e.rank)
		r.Off += b.x.tensor(e).Offset
		load[e.rank] += r.Len
		part += r.Len
	}
}

// leastLoaded is the index of the rank to read from: a near one if there is
// any, then the one with the least to read, then the lowest.
func leastLoaded(from []entry, load []int64, isNear []bool) int {
	pick := 0
	for i, e := range from[1:] {
		p := from[pick]
		if isNear[e.rank] != isNear[p.rank] {
			if isNear[e.rank] {
				pick = i + 1
			}
		} else if load[e.rank] < load[p.rank] {
			pick = i + 1
		}
	}
	return pick
}
