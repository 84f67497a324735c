package packs

import (
	"cmp"
	"slices"
	"strings"
)

// Score is the weight of a node for a key, by our own frozen hash: all nodes
// must come to the same order, whatever version they run. FNV-1a over
// node, 0, key, then the finalizer of SplitMix64.
func Score(node, key string) uint64 {
	h := uint64(14695981039346656037)
	add := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	add(node)
	h *= 1099511628211 // of a zero byte: nothing to mix in but the multiplication
	add(key)
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// Rank orders nodes by how much a key is theirs: the first one fetches it, the
// next takes over when that one is away. A node that comes or goes moves only
// the keys that were its own.
func Rank(key string, nodes []string) []string {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(cmp.Compare(Score(b, key), Score(a, key)), strings.Compare(a, b))
	})
	return slices.Compact(out)
}
