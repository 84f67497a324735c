package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// The repair duty brings redundancy back: it moves columns off targets that
// are drained, down for long or taken out, and rebuilds columns that somebody
// found bad. What there is to do follows from the catalog and the targets, so
// a node that dies in the middle is taken over by the others.

const (
	repairEvery   = 3 * time.Second // a look at the target map
	repairAgain   = time.Minute     // a look at all sets while something is left to others, at the latest
	repairMost    = 5 * time.Minute // between two tries of what cannot be done now
	repairAll     = time.Hour       // a look at all sets, all the same
	repairJobs    = 4096            // planned at once; the rest comes in the next round
	repairWorkers = 2               // blobs at one time
	maxSuspects   = 1024
)

// repair is what the duty remembers. Nothing of it is needed after a restart.
type repair struct {
	mu struct {
		sync.Mutex
		suspects map[suspect]bool     // blobs of which a bad column was met
		unknown  map[string]time.Time // targets in places that are no members, since when this node knows
		orders   map[catalog.Run]bool // somebody wants these looked at now; "": all
		on       map[string]int       // blobs with a column on a target that is to be left, by target
		doing    RepairState
	}
	// What follows belongs to the duty.
	clean  string        // what was to be left at the last look
	until  time.Time     // the next look at all sets
	pause  time.Duration // grows while nothing can be done
	spread time.Time     // when columns that share a target were last looked for
}

type suspect struct {
	id   catalog.SetID
	rank int
}

// RepairState is what is left to mend, for people.
type RepairState struct {
	Leaving string // targets whose columns are to be elsewhere
	Blobs   int    // that are to be mended, by any node
	Stuck   int    // columns of them that no target could take
	Why     string // the first reason
}

func (r *repair) init() {
	r.mu.suspects, r.mu.unknown = make(map[suspect]bool), make(map[string]time.Time)
	r.mu.orders, r.mu.on = make(map[catalog.Run]bool), make(map[string]int)
}

// suspects notes that a column of a blob is bad; who reads goes on without it.
func (n *Node) suspect(id catalog.SetID, rank int) {
	n.repair.mu.Lock()
	if len(n.repair.mu.suspects) < maxSuspects { // a scrub finds the others
		n.repair.mu.suspects[suspect{id, rank}] = true
	}
	n.repair.mu.Unlock()
	n.kickRepair.now()
}

func (n *Node) unsuspect(id catalog.SetID, rank int) {
	n.repair.mu.Lock()
	defer n.repair.mu.Unlock()
	delete(n.repair.mu.suspects, suspect{id, rank})
}

func (n *Node) suspected(p *placed) (yes, deep bool) {
	n.repair.mu.Lock()
	defer n.repair.mu.Unlock()
	yes = n.repair.mu.suspects[suspect{p.id, p.rank}]
	return yes, yes
}

func (n *Node) repairState() RepairState {
	n.repair.mu.Lock()
	defer n.repair.mu.Unlock()
	return n.repair.mu.doing
}

// mendView is the cluster as this node knows it.
func (n *Node) mendView() *mendView {
	m, known, _ := n.cat.KnownTargets()
	v := &mendView{node: n.cfg.Name, targets: m, known: known && n.tgt.dynamic() && m.Version > 0, now: time.Now(), after: n.cfg.RepairAfter}
	for _, o := range n.cat.KnownNodes() {
		if n.alive(o) {
			v.live = append(v.live, o.Name)
		}
	}
	if !slices.Contains(v.live, n.cfg.Name) {
		v.live = append(v.live, n.cfg.Name)
	}
	used := map[string]bool{}
	for _, t := range n.tgt.snapshot() {
		used[t.Name] = true
	}
	v.room = func(name string) bool {
		view, ok := n.view(name)
		return ok && used[name] && view.err == nil && view.misses == 0 && !view.full()
	}
	v.gone = func(name string) bool {
		if used[name] || slices.ContainsFunc(m.Targets, func(r catalog.TargetRecord) bool { return r.Name == name }) {
			return false
		}
		n.repair.mu.Lock()
		defer n.repair.mu.Unlock()
		since, ok := n.repair.mu.unknown[name]
		if !ok && len(n.repair.mu.unknown) < catalog.MaxTargets {
			n.repair.mu.unknown[name] = v.now
		}
		return ok && v.now.Sub(since) >= v.after
	}
	return v
}

// repairOnce is the duty.
func (n *Node) repairOnce(ctx context.Context) error {
	if n.remote == nil {
		return nil
	}
	if err := n.obey(ctx); err != nil {
		return err
	}
	v := n.mendView()
	leaving := v.leaving()
	n.repair.mu.Lock()
	asked := len(n.repair.mu.suspects) > 0
	n.repair.mu.doing.Leaving = leaving
	n.repair.mu.Unlock()
	key := fmt.Sprint(leaving, "/", v.targets.Version)
	var crowded map[suspect]bool
	if now := time.Now(); now.Sub(n.repair.spread) >= repairAgain {
		if crowded = n.couldSpread(v); len(crowded) > 0 {
			asked, n.repair.spread = true, now
		}
	}
	if !asked && key == n.repair.clean && v.now.Before(n.repair.until) {
		return nil
	}
	n.repair.clean = ""
	res, err := n.mendAll(ctx, v, "", func(p *placed) (yes, deep bool) {
		yes, deep = n.suspected(p)
		return yes || crowded[suspect{p.id, p.rank}] && v.canSpread(&p.place), deep
	}, nil)
	if err != nil {
		return err
	}
	wait := repairAll
	switch {
	case res.more:
		wait = 0
	case len(res.left)+res.later+res.unseen > 0:
		if wait = repairEvery; res.mended == 0 {
			wait = min(2*max(n.repair.pause, repairEvery/2), repairMost)
		}
		n.repair.pause = wait
	case res.all > res.mended || n.awaitsUnknown():
		wait = min(max(20*res.look, repairEvery), repairAgain) // looking is a twentieth of the time at most
	}
	n.repair.clean, n.repair.until = key, time.Now().Add(wait)
	return n.finishDrains(ctx, v, res)
}

// obey does what was ordered since.
func (n *Node) obey(ctx context.Context) error {
	n.repair.mu.Lock()
	orders := n.repair.mu.orders
	n.repair.mu.orders = make(map[catalog.Run]bool)
	n.repair.mu.Unlock()
	for run := range orders {
		if _, err := n.mendNow(ctx, run, nil); err != nil {
			n.repair.mu.Lock()
			n.repair.mu.orders[run] = true
			n.repair.mu.Unlock()
			return err
		}
	}
	return nil
}

// awaitsUnknown says whether a target that is no member has not been gone for
// long enough.
func (n *Node) awaitsUnknown() bool {
	n.repair.mu.Lock()
	defer n.repair.mu.Unlock()
	for _, since := range n.repair.mu.unknown {
		if time.Since(since) < n.cfg.RepairAfter+repairAgain {
			return true
		}
	}
	return false
}

// mended sums up a look at all sets.
type mendedAll struct {
	all     int // blobs that were to be mended, by any node
	mended  int // by this one, to the end
	columns int
	bytes   int64 // written
	left    []string
	later   int            // that somebody else was at
	unseen  int            // records that could not be looked for
	on      map[string]int // blobs of which a column is on a target that is to be left, by target
	more    bool           // there are more than were planned
	look    time.Duration  // that it took to read all records
}

// mendAll mends what this node is to mend, of one run or ("") of all, and tells
// what there is.
func (n *Node) mendAll(ctx context.Context, v *mendView, run catalog.Run, asked func(*placed) (yes, deep bool), progress func(done, total int)) (mendedAll, error) {
	res := mendedAll{on: map[string]int{}}
	begin := time.Now()
	jobs, err := n.mendJobs(ctx, v, run, asked, &res)
	if err != nil {
		return res, err
	}
	res.look = time.Since(begin)
	n.tellRepair(func(s *RepairState) { s.Blobs, s.Stuck, s.Why = res.all, 0, "" })
	if run == "" {
		n.repair.mu.Lock()
		n.repair.mu.on = maps.Clone(res.on)
		n.repair.mu.Unlock()
	}
	var mu sync.Mutex
	var errs []error
	done := 0
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(repairWorkers)
	for _, j := range jobs {
		g.Go(func() error {
			m, err := n.mendBlob(gctx, v, j)
			if gctx.Err() != nil {
				return gctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			done++
			res.columns += len(m.Columns)
			res.bytes += m.BytesWritten
			switch why := stuck(&m, v); {
			case errors.Is(err, errLater):
				res.later++
			case err != nil:
				errs = append(errs, err)
			case why != "":
				res.left = append(res.left, fmt.Sprintf("%v %s: %s", j.id, j.what(), why))
				n.tellRepair(func(s *RepairState) {
					if s.Stuck++; s.Why == "" {
						s.Why = why
					}
				})
			default:
				res.mended++
				n.tellRepair(func(s *RepairState) { s.Blobs-- })
				n.repair.mu.Lock()
				for _, name := range j.place.Targets {
					if v.leaves(name) {
						res.on[name]--
						n.repair.mu.on[name] = max(0, n.repair.mu.on[name]-1)
					}
				}
				n.repair.mu.Unlock()
			}
			if progress != nil {
				progress(done, len(jobs))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return res, err
	}
	var trouble error
	if len(res.left) > 0 {
		trouble = fmt.Errorf("%d blobs lack columns that no target can take, the first is %s; add a target, or make room", len(res.left), res.left[0])
	}
	n.setTrouble("redundancy", trouble)
	return res, errors.Join(errs...)
}

// stuck says why a blob is not what it should be after it was mended. Columns
// on targets that may come back are left alone.
func stuck(m *remotetier.Mended, v *mendView) string {
	for _, c := range m.Left {
		if c.State.Bad() || v.leaves(c.Target) { // a good one that does not move is not missing
			return fmt.Sprintf("column %d on %s (%s): %v", c.Column, c.Target, c.State, c.Err)
		}
	}
	return ""
}

func (n *Node) tellRepair(f func(*RepairState)) {
	n.repair.mu.Lock()
	defer n.repair.mu.Unlock()
	f(&n.repair.mu.doing)
}

// mendJobs reads the records of all committed sets for what is to be mended.
func (n *Node) mendJobs(ctx context.Context, v *mendView, run catalog.Run, asked func(*placed) (yes, deep bool), res *mendedAll) ([]mendJob, error) {
	if err := n.cat.Sync(ctx); err != nil {
		return nil, err
	}
	var jobs []mendJob
	see := func(blobs []placed) {
		mine, all := planMend(v, blobs, asked)
		res.all += all
		for i := range blobs {
			for _, name := range blobs[i].place.Targets {
				if v.leaves(name) {
					res.on[name]++
				}
			}
		}
		if jobs = append(jobs, mine...); len(jobs) > 2*repairJobs {
			sortMend(jobs)
			jobs, res.more = jobs[:repairJobs], true
		}
	}
	records := v.leaving() != "" // their places are only found by asking the targets
	runs := map[catalog.Run]bool{}
	for _, set := range n.cat.KnownWhere(run, func(s *catalog.SetRecord) bool { return s.State == catalog.Committed }) {
		parts, err := n.cat.Parts(ctx, set.SetID)
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			if p.Node == n.cfg.Name {
				n.inv.follow(set.SetID, p)
			}
		}
		blobs := placesOf(&set, parts)
		if records && set.Place != nil {
			names := []string{set.RecordName()}
			if !runs[set.Run] {
				runs[set.Run] = true
				names = append(names, runRecordName(set.Run))
			}
			for _, name := range names {
				f, err := n.remote.FindSmall(ctx, name, v.leaves)
				if err == nil {
					blobs = append(blobs, placed{set.SetID, recordRank, catalog.Digest{}, f.Place})
				} else if ctx.Err() != nil {
					return nil, ctx.Err()
				} else if !errors.Is(err, fs.ErrNotExist) {
					res.unseen++
				}
			}
		}
		see(blobs)
	}
	sortMend(jobs)
	if len(jobs) > repairJobs {
		jobs, res.more = jobs[:repairJobs], true
	}
	return jobs, nil
}
