package ckptd

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// crowded counts the columns that a place has on a target, where it has more
// than one: fewer targets could take one than its layout has columns.
func crowded(p *catalog.Place) map[string]int {
	on := map[string]int{}
	for _, name := range p.Targets {
		on[name]++
	}
	maps.DeleteFunc(on, func(_ string, n int) bool { return n < 2 })
	return on
}

// tellCrowded names the targets of a place that have several of its columns;
// "" when each has one.
func tellCrowded(p *catalog.Place) string {
	on := crowded(p)
	var said []string
	for _, name := range slices.Sorted(maps.Keys(on)) {
		said = append(said, fmt.Sprintf("%d of its columns are on target %s", on[name], name))
	}
	return strings.Join(said, ", ")
}

// crowdedHere lists the shards this node has drained, or knows of, whose place
// has several columns on a target.
func (n *Node) crowdedHere() []placed {
	var all []placed
	for _, w := range n.inv.all() {
		if w.part == nil {
			continue
		}
		for _, s := range w.part.Shards {
			if s.Remote != nil && len(crowded(s.Remote)) > 0 {
				all = append(all, placed{w.id, s.Rank, s.Root, *s.Remote})
			}
		}
	}
	return all
}

// couldSpread names those of them that could be spread now: whoever drained
// them sees to it, because nobody else knows before he looks at all sets.
func (n *Node) couldSpread(v *mendView) map[suspect]bool {
	could := map[suspect]bool{}
	for _, p := range n.crowdedHere() {
		if v.canSpread(&p.place) {
			could[suspect{p.id, p.rank}] = true
		}
	}
	return could
}

// spreadTrouble says in a sentence which shards of this node are less spread
// than their layout asks; "" when none is.
func (n *Node) spreadTrouble() string {
	all, targets := n.crowdedHere(), map[string]int{}
	if len(all) == 0 {
		return ""
	}
	for _, p := range all {
		maps.Copy(targets, crowded(&p.place))
	}
	const most = 8
	names := slices.Sorted(maps.Keys(targets))
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("and %d more", len(names)-most))
	}
	return fmt.Sprintf("%d shards are less spread than their layout asks: placed several columns of one on target %s, because too few targets could take one; they bear the loss of fewer targets, until others can: add targets, or room",
		len(all), strings.Join(names, ", "))
}
