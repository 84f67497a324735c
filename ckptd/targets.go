package ckptd

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// OpenTarget is a target that somebody opened, and closes.
type OpenTarget interface {
	remotetier.Target
	io.Closer
}

// GivenTarget is a target that the node's flags name, opened. The caller
// closes it after Run has returned.
type GivenTarget struct {
	Record catalog.TargetRecord
	Target OpenTarget
}

// Targets says where the targets of Tiers.Remote come from. With the zero
// value they are those that it was made with, for ever.
type Targets struct {
	Given  []GivenTarget
	Follow bool // use the targets of the catalog's map too
	// Open opens a target of the map. One that is away is no error: it is used
	// when it is back. Whoever makes a daemon knows the networks and engines;
	// this package does not.
	Open func(context.Context, catalog.TargetRecord) (OpenTarget, error)
	// Make opens a target that an operator is adding, and makes what is missing
	// of it. Open makes nothing: a map that somebody tampered with, or a file
	// system that is not mounted, must not leave directories behind.
	Make func(context.Context, catalog.TargetRecord) (OpenTarget, error)
	News *TargetNews // what the remote tier tells of targets; nil: nothing
}

// dynamic says whether there is anything to follow.
func (t *Targets) dynamic() bool { return t.Follow || len(t.Given) > 0 }

// wantedTarget is a target that this node should use, as it should use it.
type wantedTarget struct {
	catalog.TargetRecord
	given bool // it was opened for the flags
}

// targetView is what planTargets decides from.
type targetView struct {
	node    string
	follow  bool
	given   []catalog.TargetRecord
	entered int64 // version of the map that has the given ones; 0: none yet
	now     catalog.TargetMap
	known   bool                   // now was seen
	failing func(name string) bool // this node cannot reach it
}

// planTargets says which targets a node uses. The map has the last word about
// state, pool, domain and weight, so that all nodes place alike; while it is
// not known, the flags have it. A given target that was taken out of the map
// is not used any more.
func planTargets(v targetView) []wantedTarget {
	var want []wantedTarget
	used := map[string]bool{}
	for _, g := range v.given {
		r := v.now.Find(g.Name, v.node)
		if r != nil && r.Node != g.Node { // another target of the same name: the flags' one is what this node has
			r = nil
		} else if r == nil && v.known && v.entered > 0 && v.now.Version >= v.entered {
			continue
		}
		if g.State = catalog.TargetUp; r != nil {
			g.State, g.Pool, g.Weight, g.Domain = r.State, r.Pool, r.Weight, cmp.Or(r.Domain, g.Domain)
		}
		used[g.Name] = true
		want = append(want, wantedTarget{g, true})
	}
	for _, r := range v.now.Targets {
		if v.follow && !used[r.Name] && (r.Node == "" || r.Node == v.node) {
			used[r.Name] = true
			want = append(want, wantedTarget{r, false})
		}
	}
	for i := range want {
		if want[i].State == catalog.TargetUp && v.failing(want[i].Name) {
			want[i].State = catalog.TargetSuspect
		}
	}
	slices.SortFunc(want, func(a, b wantedTarget) int { return cmp.Compare(a.Name, b.Name) })
	return want
}

// usedTarget is a target that the remote tier has now.
type usedTarget struct {
	wantedTarget
	open  OpenTarget
	where string // what it was opened as
}

// whereOf tells a target that moved from one that only changed.
func whereOf(r *catalog.TargetRecord) string { return r.Scheme + " " + strings.Join(r.Addrs, " ") }

// ownsUnentered says whether a target is one of the flags that was not entered
// into a map of that version.
func (t *targetUse) ownsUnentered(name string, version int64) bool {
	entered := t.entered.Load()
	return (entered == 0 || version < entered) && slices.ContainsFunc(t.Given, func(g GivenTarget) bool { return g.Record.Name == name })
}

// targetUse is what the node knows of its targets.
type targetUse struct {
	Targets
	kick kick

	// What follows belongs to the loop that follows the map.
	seen    int64        // version of the map
	entered atomic.Int64 // version that has the given ones; 0: none yet
	retired []retiredTarget

	mu struct {
		sync.Mutex
		used    map[string]*usedTarget
		refused map[string]error // members that could not be opened
		views   map[string]*probeView
		version int64 // of the map that used follows; 0: of none
		applied bool  // used follows a map that was seen, be it empty
	}
}

// retiredTarget was replaced or removed; operations may still use it.
type retiredTarget struct {
	open  OpenTarget
	since time.Time
}

// Limits of a retired target.
const (
	retiredIdle = 30 * time.Second // with nothing in flight it is closed
	retiredMost = 10 * time.Minute // one that cannot say whether it is idle is closed
	openTime    = 10 * time.Second // to open the targets of one change
	openAtOnce  = 16
)

func (u *targetUse) init(t Targets) {
	u.Targets, u.kick = t, newKick()
	u.mu.used = make(map[string]*usedTarget)
	u.mu.refused = make(map[string]error)
	u.mu.views = make(map[string]*probeView)
}

// snapshot gives the targets in use, by name.
func (u *targetUse) snapshot() []*usedTarget {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]*usedTarget, 0, len(u.mu.used))
	for _, t := range u.mu.used {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *usedTarget) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
