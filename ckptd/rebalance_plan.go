package ckptd

import (
	"cmp"
	"slices"

	"github.com/ckptd/ckptd/remotetier/stripe"
)

// fullness is a target as a rebalance sees it.
type fullness struct {
	name, domain, pool string
	total, used        int64 // bytes
}

func (f *fullness) part() float64 {
	if f.total <= 0 {
		return 0
	}
	return float64(f.used) / float64(f.total)
}

// move takes one column of a blob from one target to another.
type move struct {
	blob     int // in the list that was planned for
	column   int
	from, to string
	bytes    int64
}

const (
	balanced = 0.05  // of the room: targets whose fullness differs by less are left alone
	maxMoves = 20000 // in one rebalance
)

// planRebalance moves columns from the fullest targets of a pool to the
// emptiest until none differs by more than threshold. No target gets a second
// column of a blob, no domain more than it had, and no move makes the fullness
// differ the other way. The targets given are those that take new columns;
// columns on others stay.
func planRebalance(targets []fullness, blobs []placed, threshold float64) []move {
	now := slices.Clone(targets)
	at := map[string]*fullness{}
	for i := range now {
		at[now[i].name] = &now[i]
	}
	places := make([][]string, len(blobs)) // where the columns are, as the plan goes on
	on := map[string][]int{}               // blobs with a column there, the largest last
	size := make([]int64, len(blobs))
	for i := range blobs {
		places[i] = slices.Clone(blobs[i].place.Targets)
		size[i] = columnBytes(&blobs[i])
		for _, name := range places[i] {
			if at[name] != nil && size[i] > 0 {
				on[name] = append(on[name], i)
			}
		}
	}
	for _, list := range on {
		slices.SortStableFunc(list, func(a, b int) int { return cmp.Compare(size[a], size[b]) })
	}
	var moves []move
	done := map[string]bool{} // targets that nothing can leave any more
	for len(moves) < maxMoves {
		slices.SortStableFunc(now, func(a, b fullness) int { return cmp.Or(cmp.Compare(b.part(), a.part()), cmp.Compare(a.name, b.name)) })
		for i := range now {
			at[now[i].name] = &now[i]
		}
		m, ok := nextMove(now, at, done, places, size, on, threshold)
		if !ok {
			return moves
		}
		moves = append(moves, m)
		places[m.blob][m.column] = m.to
		at[m.from].used -= m.bytes
		at[m.to].used += m.bytes
		on[m.from] = slices.DeleteFunc(on[m.from], func(b int) bool { return b == m.blob })
		// A blob that came does not go on: what moves, moves once.
	}
	return moves
}

// nextMove finds the best one: from the fullest target that something can
// leave, to the emptiest that may have it, the largest that does not overshoot.
func nextMove(now []fullness, at map[string]*fullness, done map[string]bool, places [][]string, size []int64, on map[string][]int, threshold float64) (move, bool) {
	for i := range now {
		from := &now[i]
		if done[from.name] {
			continue
		}
		for j := len(now) - 1; j > i; j-- {
			to := &now[j]
			if to.pool != from.pool {
				continue
			}
			if from.part()-to.part() <= threshold {
				break // nor is any other emptier
			}
			for k := len(on[from.name]) - 1; k >= 0; k-- {
				b := on[from.name][k]
				after := float64(from.used-size[b]) / float64(from.total)
				if to.total <= 0 || float64(to.used+size[b])/float64(to.total) > after || slices.Contains(places[b], to.name) || !keepsDomains(at, places[b], from, to) {
					continue
				}
				return move{b, slices.Index(places[b], from.name), from.name, to.name, size[b]}, true
			}
		}
		done[from.name] = true
	}
	return move{}, false
}

// keepsDomains says whether a column of a blob may go from one target to
// another without a domain that holds more of it than the one it left did.
func keepsDomains(at map[string]*fullness, place []string, from, to *fullness) bool {
	domain := func(f *fullness) string { return cmp.Or(f.domain, "\x00"+f.name) }
	left, come := 0, 1
	for _, name := range place {
		f := at[name]
		if f == nil {
			continue
		}
		if domain(f) == domain(from) {
			left++
		}
		if domain(f) == domain(to) && name != from.name {
			come++
		}
	}
	return come <= left || come == 1
}

// columnBytes is about what one column of a blob takes on its target.
func columnBytes(p *placed) int64 {
	l, err := stripe.Parse(p.place.Layout)
	if err != nil {
		return 0
	}
	if p.place.Unit != 0 {
		l.Unit = p.place.Unit
	}
	if l.Check() != nil || p.place.Size < 0 {
		return 0
	}
	return l.ColumnSize(p.place.Size) + 3*4096
}
