package packs

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Candidate is a copy that might be evicted.
type Candidate struct {
	Name string
	Size int64     // bytes
	Used time.Time // last
	// Next is when readers' orders need it, in bytes that are read before;
	// NotKnown when no order tells.
	Next int64
	Held bool // open or arriving: never evicted
	Lent bool // a client has its file, which it keeps: goes after all others
}

// NotKnown says that no reader's order reaches as far as a copy's next use.
const NotKnown = int64(-1)

// Policies of eviction.
const (
	ByNext = "next" // by next use where it is known, else by last use
	ByLRU  = "lru"  // by last use only
)

// PlanEvict chooses what goes to free need bytes. Copies no order asks for go
// first, the longest unused before the others; then those that are needed
// latest, but none that is needed before what it makes room for: before, in
// bytes read, or NotKnown for something that is wanted now.
func PlanEvict(all []Candidate, need int64, before int64, policy string) (names []string, freed int64) {
	var cands []Candidate
	for _, c := range all {
		if policy == ByLRU {
			c.Next = NotKnown
		}
		if c.Held || c.Next != NotKnown && before != NotKnown && c.Next <= before {
			continue
		}
		cands = append(cands, c)
	}
	slices.SortFunc(cands, func(a, b Candidate) int {
		if a.Lent != b.Lent {
			return boolInt(a.Lent) - boolInt(b.Lent)
		}
		if (a.Next == NotKnown) != (b.Next == NotKnown) {
			return boolInt(a.Next != NotKnown) - boolInt(b.Next != NotKnown)
		}
		return cmp.Or(cmp.Compare(b.Next, a.Next), a.Used.Compare(b.Used), strings.Compare(a.Name, b.Name))
	})
	for _, c := range cands {
		if freed >= need {
			break
		}
		names, freed = append(names, c.Name), freed+c.Size
	}
	return names, freed
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
