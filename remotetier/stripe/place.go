package stripe

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// Candidate is a target that may take a column.
type Candidate struct {
	Name   string
	Domain string  // what fails together: a rack, a node; empty: the target by itself
	Weight float64 // share of the columns, relative to the others; zero stands for 1, below zero takes none
	Rank   int     // one of a higher rank gets a column only when all of the lower ones have theirs
	Room   int     // columns that fit on it, beside those it holds; zero: any number
}

// Place chooses n targets for the columns of one generation of a blob, by
// weighted rendezvous hashing: each target's score depends on nothing but the
// blob, the generation and the target, so that a target that comes or goes
// moves only its own share. Within a rank no failure domain gets a second
// column while another has none, and so on. With fewer than n targets it
// returns them all.
func Place(blob string, generation uint64, targets []Candidate, n int) []string {
	return PlaceMore(blob, generation, targets, nil, n, 0)
}

// PlaceMore chooses targets, as Place does, for n more columns of a generation
// that has columns on held already: none of these gets another. When there is
// no target for each and most is above zero, targets get further columns, but
// none more than most, and no domain either where the domains of targets and
// held can hold all columns so. Where they cannot, the loss of a domain could
// not be borne however the columns lay, and only targets count. It returns
// fewer than n names when not all can be placed.
func PlaceMore(blob string, generation uint64, targets, held []Candidate, n, most int) []string {
	all := rank(blob, generation, targets)
	names := all.fill(held, n, 1, math.MaxInt)
	if len(names) < n && most > 0 {
		inDomain := most
		if all.domains(held)*most < n+len(held) {
			inDomain = math.MaxInt
		}
		names = all.fill(held, n, most, inDomain)
	}
	return names
}

// ranked is candidates in the order of preference, each with its domain.
type ranked []Candidate

func rank(blob string, generation uint64, targets []Candidate) ranked {
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
		t.Domain = t.domain()
		all = append(all, scored{t, t.Weight / -math.Log(unit(blob, generation, t.Name))})
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(b.score, a.score), cmp.Compare(a.Name, b.Name))
	})
	r := make(ranked, len(all))
	for i, s := range all {
		r[i] = s.Candidate
	}
	return r
}

func (c Candidate) domain() string {
	if c.Domain == "" {
		return "\x00" + c.Name // no domain can be called so
	}
	return c.Domain
}

// domains is how many there are of candidates and of held.
func (r ranked) domains(held []Candidate) int {
	seen := map[string]bool{}
	for _, c := range r {
		seen[c.Domain] = true
	}
	for _, h := range held {
		seen[h.domain()] = true
	}
	return len(seen)
}

// fill places n columns one by one: on the target that has the fewest, of
// these on the lowest rank, of these in the domain that has the fewest, of
// these on the first. No column makes a target hold more than onTarget, or a
// domain more than inDomain.
func (r ranked) fill(held []Candidate, n, onTarget, inDomain int) []string {
	targets, domains, more := map[string]int{}, map[string]int{}, map[string]int{}
	for _, h := range held {
		targets[h.Name]++
		domains[h.domain()]++
	}
	names := make([]string, 0, n)
	for len(names) < n {
		best := -1
		for i, c := range r {
			if targets[c.Name] >= onTarget || domains[c.Domain] >= inDomain || c.Room > 0 && more[c.Name] >= c.Room {
				continue
			}
			if best < 0 || cmp.Or(cmp.Compare(targets[c.Name], targets[r[best].Name]),
				cmp.Compare(c.Rank, r[best].Rank), cmp.Compare(domains[c.Domain], domains[r[best].Domain])) < 0 {
				best = i
			}
		}
		if best < 0 {
			break
		}
		targets[r[best].Name]++
		more[r[best].Name]++
		domains[r[best].Domain]++
		names = append(names, r[best].Name)
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

// freeSteps is how finely free space counts: coarse, so that the places of
// blobs change when a target fills up and not with every column on it.
const freeSteps = 16

// ByFree is the weight in placement of a target of total bytes: the one it was
// given, zero standing for 1, times the part of it that is free in sixteenths,
// rounded up. A total of zero or less stands for a target without bounds.
func ByFree(weight float64, free, total int64) float64 {
	if weight == 0 {
		weight = 1
	}
	steps := uint64(freeSteps)
	switch {
	case free <= 0 && total > 0:
		steps = 1
	case free < total:
		hi, lo := bits.Mul64(uint64(free), freeSteps)
		var rest uint64
		if steps, rest = bits.Div64(hi, lo, uint64(total)); rest > 0 {
			steps++
		}
	}
	return weight * float64(steps) / freeSteps
}
