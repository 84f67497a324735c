package ckptd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// commitOrder says what is to be committed.
type commitOrder struct {
	Run     catalog.Run
	Step    int64
	Alone   bool   // this node's draft, and there is no other
	World   int    // how many files there must be; 0: as many as there are
	Nodes   int    // how many nodes must have a draft; 0: as many as have one
	Launch  string // "": a new one
	Metrics map[string]float64
}

// draftPart is what one node has for a commit.
type draftPart struct {
	Node  string          `json:"node"`
	Files []draftPartFile `json:"files"`
}

type draftPartFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// planDraft gives each file of all nodes its rank, by name in the order of
// bytes: the result by node. It refuses what could not be one set.
func planDraft(o commitOrder, parts []draftPart) (world int, ranks map[string]map[string]int, err error) {
	type file struct{ name, node string }
	var files []file
	ranks = make(map[string]map[string]int)
	for _, p := range parts {
		ranks[p.Node] = make(map[string]int)
		for _, f := range p.Files {
			if err := catalog.CheckFile(f.Name); err != nil {
				return 0, nil, err
			}
			if f.Size < 1 {
				return 0, nil, fmt.Errorf("%w: %s on %s is empty, and an empty file cannot be kept; remove it", catalog.ErrInvalid, f.Name, p.Node)
			}
			files = append(files, file{f.Name, p.Node})
		}
	}
	name := draftName(o.Run, o.Step)
	switch {
	case len(files) == 0:
		return 0, nil, fmt.Errorf("draft %s: %w: it has no files", name, catalog.ErrInvalid)
	case o.Alone && len(parts) > 1:
		return 0, nil, fmt.Errorf("draft %s: %w: nodes %s have one too; `ckpt commit %s` makes all of them one set", name, catalog.ErrConflict, nodesOf(parts), name)
	case o.Nodes > 0 && len(parts) != o.Nodes:
		return 0, nil, fmt.Errorf("draft %s: %w: %d nodes have one (%s), not %d", name, catalog.ErrIncomplete, len(parts), nodesOf(parts), o.Nodes)
	case o.World > 0 && len(files) != o.World:
		return 0, nil, fmt.Errorf("draft %s: %w: it has %d files on %s, not %d", name, catalog.ErrIncomplete, len(files), nodesOf(parts), o.World)
	case len(files) > catalog.MaxWorld:
		return 0, nil, fmt.Errorf("draft %s: %w: %d files, a set has at most %d", name, catalog.ErrInvalid, len(files), catalog.MaxWorld)
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	for rank, f := range files {
		if rank > 0 && files[rank-1].name == f.name {
			return 0, nil, fmt.Errorf("draft %s: %w: %s and %s both have a file %s; every file of a set needs a name of its own", name, catalog.ErrConflict, files[rank-1].node, f.node, f.name)
		}
		ranks[f.node][f.name] = rank
	}
	return len(files), ranks, nil
}

func nodesOf(parts []draftPart) string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.Node
	}
	return strings.Join(names, ", ")
}

// Times of a commit.
const (
	freezePatience = 30 * time.Second // a frozen draft that nobody asks for any more thaws
	decideTime     = time.Minute      // within which the one who commits must have begun the set
	decideDelay    = 5 * time.Second  // how late that may still arrive after he has given up
	decidePatience = 3 * time.Minute  // a promised draft whose set nobody has begun thaws, whoever cannot be asked
)

// whatNext says what becomes of a draft that is to be a set.
type whatNext int

const (
	waitOn whatNext = iota
	makeSet
	thaw    // it is a draft again
	discard // its set is given up, and some of it was made already
)

// planNext decides by what the catalog has of the set; rec is nil when it has
// none. over says that nobody will begin it any more; whole, that no file has
// left the draft yet.
func planNext(set *draftSet, rec *catalog.SetRecord, over, whole bool, now time.Time) whatNext {
	late := now.Sub(set.Prepared) > decidePatience
	switch {
	case rec == nil && whole && (over || late):
		return thaw
	case rec == nil && !whole && late:
		return makeSet // it was begun once: the catalog was lost, and the vote begins it anew
	case rec == nil:
		return waitOn
	case rec.State == catalog.Writing || rec.State == catalog.Committed:
		return makeSet
	case whole:
		return thaw
	}
	return discard
}
