package ckptd

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// sight is what the coordinator knows of one target in one round.
type sight struct {
	probed  bool   // this node asked it
	err     string // "" when it answered
	beats   bool   // its process writes a status
	silence time.Duration
	every   time.Duration // between its heartbeats
	stopped bool          // its process said that it ends
	sick    string        // it answers, and fails what it is asked to do
	reached int           // other nodes that reach it
	missed  int           // other nodes that do not
}

// judged is what the coordinator remembers of one target between rounds. It
// loses nothing by being lost.
type judged struct {
	bad, good int       // rounds in a row with something wrong, and without
	unreached time.Time // since when nobody reaches it; zero: somebody does
	flaps     int       // times that it left up
	lastBad   time.Time // when it was not up
}

// Limits of judging.
const (
	badRounds   = 2                // until an up target is suspect
	goodRounds  = 2                // until it is up again; doubled with each flap
	flapMemory  = 10 * time.Minute // of being up forgives them
	maxDoubling = 5                // so a target that flaps all the time changes the map a few times an hour
	beatsMissed = 3
)

// judge says which state a target should have, and why: up becomes suspect
// when something is wrong two rounds in a row, suspect becomes down when
// nobody has reached it for as long as downAfter, and both become up after two
// rounds without anything wrong, or more if the target comes and goes. A state
// that somebody ordered is not judged.
func judge(state catalog.TargetState, was judged, s sight, downAfter time.Duration, now time.Time) (next catalog.TargetState, why string, is judged) {
	is = was
	if state.Kept() {
		return state, "", judged{}
	}
	reached := s.reached
	if s.probed && s.err == "" {
		reached++
	}
	missed := s.missed
	if s.probed && s.err != "" {
		missed++
	}
	silent := s.beats && s.silence > beatsMissed*s.every
	switch { // the first is what is told
	case reached+missed == 0 && !s.beats:
		return state, "", is // nobody knows
	case s.beats && s.stopped && reached == 0:
		why = "it was stopped"
	case missed > 0 && reached == 0 && s.err != "":
		why = "nobody reaches it: " + s.err
	case missed > 0 && reached == 0:
		why = "no node reaches it"
	case silent:
		why = fmt.Sprintf("no heartbeat for %v", s.silence.Round(time.Second))
	case s.sick != "":
		why = s.sick
	case s.err != "":
		why = "the coordinator does not reach it: " + s.err
	case missed > reached:
		why = fmt.Sprintf("%d of %d nodes do not reach it", missed, missed+reached)
	}
	if reached > 0 {
		is.unreached = time.Time{}
	} else if is.unreached.IsZero() {
		is.unreached = now
	}
	if why == "" {
		is.bad, is.good = 0, is.good+1
	} else {
		is.bad, is.good = is.bad+1, 0
	}
	if state.OrUp() != catalog.TargetUp {
		is.lastBad = now
	} else if now.Sub(is.lastBad) > flapMemory {
		is.flaps = 0
	}
	need := goodRounds << min(max(is.flaps-1, 0), maxDoubling)
	switch state = state.OrUp(); {
	case state == catalog.TargetUp && is.bad >= badRounds:
		is.flaps, is.lastBad = is.flaps+1, now
		return catalog.TargetSuspect, why, is
	case state == catalog.TargetSuspect && !is.unreached.IsZero() && now.Sub(is.unreached) >= downAfter:
		return catalog.TargetDown, why, is
	case state != catalog.TargetUp && is.good >= need:
		return catalog.TargetUp, "", is
	}
	return state, why, is
}

// targetJudge is the coordinator's memory of the targets.
type targetJudge struct {
	of    map[[2]string]judged
	beats map[[2]string]beatSeen
}

// beatSeen is when a heartbeat came, by this node's clock: those of two nodes
// may differ; and the errors of the disk that it told of.
type beatSeen struct {
	beat   int64
	at     time.Time
	errors int64 // at since
	since  time.Time
}

// hear takes a status in and says how many errors came within sickWithin.
func (b *beatSeen) hear(st *catalog.TargetStatus, now time.Time) (errors int64) {
	if st.Beat != b.beat {
		b.beat, b.at = st.Beat, now
	}
	if now.Sub(b.since) > sickWithin || st.Errors < b.errors { // it was started again
		b.errors, b.since = st.Errors, now
	}
	return st.Errors - b.errors
}

// judgeTargets moves the states of targets in the map until ctx ends. Several
// nodes that do it at once do no harm: they only differ in what they saw.
func (n *Node) judgeTargets(ctx context.Context) error {
	j := &targetJudge{of: map[[2]string]judged{}, beats: map[[2]string]beatSeen{}}
	for {
		if err := n.judgeOnce(ctx, j); err != nil && ctx.Err() == nil {
			n.log.Debug("targets are not judged", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(n.cfg.Probe):
		}
	}
}

func (n *Node) judgeOnce(ctx context.Context, j *targetJudge) error {
	if err := n.cat.Sync(ctx); err != nil {
		clear(j.beats) // nobody was heard while the store was away, and that says nothing
		return err
	}
	m, _, _ := n.cat.KnownTargets()
	if err := n.dropStrayStatuses(ctx, m); err != nil || len(m.Targets) == 0 {
		return err
	}
	now := time.Now()
	sights := n.sights(j, m, now)
	type change struct {
		catalog.TargetRecord
		next catalog.TargetState
		why  string
	}
	var changes []change
	memory := make(map[[2]string]judged, len(m.Targets))
	for i, r := range m.Targets {
		key := [2]string{r.Name, r.Node}
		next, why, is := judge(r.State, j.of[key], sights[i], n.cfg.TargetDown, now)
		memory[key] = is
		if next.OrUp() != r.State.OrUp() {
			changes = append(changes, change{r, next, why})
		}
	}
	j.of = memory
	if len(changes) == 0 {
		return nil
	}
	_, err := n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error {
		for _, c := range changes {
			r := m.Find(c.Name, c.Node)
			if r == nil || !r.Same(&c.TargetRecord) || r.State != c.State || r.Claim != c.Claim {
				continue // somebody else was first: judged anew in the next round
			}
			if err := r.SetState(c.next, catalog.ByHealth, c.why, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range changes {
		n.log.Warn("target changed its state", "target", c.Name, "node", c.Node, "from", string(c.State), "to", string(c.next), "why", c.why)
	}
	return nil
}

// dropStrayStatuses forgets what targets said that are no members any more. A
// member's first status comes after its record, so the mirror has that too.
func (n *Node) dropStrayStatuses(ctx context.Context, m catalog.TargetMap) error {
	for _, s := range n.cat.KnownTargetStatuses() {
		if r := m.Find(s.Name, s.Node); r != nil && r.Node == s.Node {
			continue
		}
		if err := n.cat.DropTargetStatus(ctx, s.Name, s.Node); err != nil {
			return err
		}
	}
	return nil
}

// sights puts together what is known of each target of the map.
func (n *Node) sights(j *targetJudge, m catalog.TargetMap, now time.Time) []sight {
	statuses := map[[2]string]catalog.TargetStatus{}
	for _, s := range n.cat.KnownTargetStatuses() {
		statuses[[2]string{s.Name, s.Node}] = s
	}
	nodes := n.cat.KnownNodes()
	owner := map[string]bool{} // nodes that are known, and whether they live
	for _, o := range nodes {
		owner[o.Name] = n.alive(o)
	}
	beats := make(map[[2]string]beatSeen, len(m.Targets))
	all := make([]sight, len(m.Targets))
	for i := range m.Targets {
		r, s := &m.Targets[i], &all[i]
		if v, ok := n.view(r.Name); ok && n.uses(r) {
			if s.probed = true; v.err != nil {
				s.err = fmt.Sprintf("%.150s", v.err)
			} else if v.sick {
				s.sick = fmt.Sprintf("%d operations on it failed within %v", sickFailures, sickWithin)
			}
		}
		if r.Beats() {
			key := [2]string{r.Name, r.Node}
			st := statuses[key]
			seen, known := j.beats[key]
			if !known {
				seen = beatSeen{beat: st.Beat, at: now, errors: st.Errors, since: now}
			}
			if st.Claim == r.Claim {
				if failed := seen.hear(&st, now); failed >= sickFailures {
					s.sick = fmt.Sprintf("its disk failed %d operations within %v", failed, sickWithin)
				}
			}
			beats[key] = seen
			s.beats, s.silence, s.every, s.stopped = true, now.Sub(seen.at), max(st.Every, time.Second), st.Stopped && st.Claim == r.Claim
		}
		if r.Node != "" && r.Node != n.cfg.Name && !owner[r.Node] {
			s.missed++ // who alone reaches it is gone
		}
		for _, o := range nodes {
			if o.Name != n.cfg.Name && owner[o.Name] && (r.Node == "" || r.Node == o.Name) {
				s.hear(&o, r, m.Version)
			}
		}
	}
	j.beats = beats
	return all
}

// uses says whether a member of the map is one that this node uses.
func (n *Node) uses(r *catalog.TargetRecord) bool {
	n.tgt.mu.Lock()
	defer n.tgt.mu.Unlock()
	t := n.tgt.mu.used[r.Name]
	return t != nil && t.Node == r.Node
}

// hear counts what a living node says of a target.
func (s *sight) hear(o *catalog.NodeRecord, r *catalog.TargetRecord, version int64) {
	given := slices.ContainsFunc(o.Targets, func(t catalog.TargetStatus) bool { return t.Name == r.Name })
	switch {
	case slices.Contains(o.Unreached, r.Name):
		s.missed++
	case o.UnreachedMore > 0: // it may be one of those without room in the list
	case given, o.Follows >= version: // an older map may not have it
		s.reached++
	}
}
