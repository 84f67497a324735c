package stripe

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
)

// Candidate is a target that may take a column.
type Candidate struct {
	Name   string
	Domain string  // what fails together: a rack, a node; empty: the target by itself
	Weight float64 // share of the columns, relative to the others; zero stands for 1, below zero takes none
	Rank   int     // one of a higher rank gets a column only when all of the lower ones have theirs
}

// Place chooses n targets for the columns of one generation of a blob, by
// weighted rendezvous hashing: each target's score depends on nothing but the
// blob, the generation and the target, so that a target that comes or goes
// moves only its own share. Within a rank no failure domain gets a second
// column while another has none, and so on. With fewer than n targets it
// returns them all.
func Place(blob string, generation uint64, targets []Candidate, n int) []string {
	type scored struct {
		Candidate
		score float64
	}
	all := make([]scored, 0, len(targets))
	for _, t := range targets {
		if t.Weight == 0 {
			t.Weight = 1
		}
		if !(t.Weight > 0) {
			continue
		}
		if t.Domain == "" {
			t.Domain = "\x00" + t.Name // no domain can be called so
		}
		all = append(all, scored{t, t.Weight / -math.Log(unit(blob, generation, t.Name))})
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(b.score, a.score), cmp.Compare(a.Name, b.Name))
	})
	names := make([]string, 0, n)
	inDomain := map[string]int{}
	for len(all) > 0 && len(names) < n {
		rank := all[:1]
		for len(rank) < len(all) && all[len(rank)].Rank == rank[0].Rank {
			rank = all[:len(rank)+1]
		}
		all = all[len(rank):]
		taken := make([]bool, len(rank))
		end := min(n, len(names)+len(rank))
		for round := 1; len(names) < end; round++ {
			for i, t := range rank {
				if len(names) < n && !taken[i] && inDomain[t.Domain] < round {
					taken[i] = true
					inDomain[t.Domain]++
					names = append(names, t.Name)
				}
			}
		}
	}
	return names
}

// unit maps (blob, generation, target) to a number strictly between 0 and 1:
// the first 53 bits of SHA-256 over the three, each with its length.
func unit(blob string, generation uint64, target string) float64 {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(blob)))
	b = append(b, blob...)
	b = binary.LittleEndian.AppendUint64(b, generation)
	b = append(b, target...)
	sum := sha256.Sum256(b)
	return (float64(binary.BigEndian.Uint64(sum[:8])>>11) + 0.5) / (1 << 53)
}
