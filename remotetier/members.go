package remotetier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

// TargetInfo is a target and what placement needs to know of it.
type TargetInfo struct {
	Target
	Domain string              // what fails together with it; empty: nothing
	Weight float64             // its share of columns relative to the others, times how much of it is free; zero stands for 1, below zero takes no new ones
	Pool   string              // a blob's columns go to targets of one pool; "" is the default one
	State  catalog.TargetState // up: everything; suspect: written only when there is no better one; otherwise no new columns

	watch *watched // set by the Tier
}

// members is the targets of a Tier at one time; it never changes.
type members struct {
	all    []TargetInfo // by name
	byName map[string]*TargetInfo
}

// SetTargets replaces the targets, while the Tier is in use: what runs goes on
// with those it began with, except that a Reader opens a column on the target
// that bears the name by then. What was met of a target is remembered as long
// as the same Target is among them. ErrInvalid, and nothing changes, if two have
// one name, or one a name, pool or state that records cannot hold.
func (t *Tier) SetTargets(targets []TargetInfo) error {
	m, before := &members{all: slices.Clone(targets), byName: map[string]*TargetInfo{}}, t.now.Load()
	slices.SortFunc(m.all, func(a, b TargetInfo) int { return strings.Compare(a.Name(), b.Name()) })
	for i := range m.all {
		ti := &m.all[i]
		name := ti.Name()
		if err := CheckTargetName(name); err != nil {
			return err
		}
		if ti.Pool != "" && CheckTargetName(ti.Pool) != nil {
			return fmt.Errorf("target %s: %w: pool %.80q; want letters, digits and any of -_.:@/", name, catalog.ErrInvalid, ti.Pool)
		}
		switch ti.State {
		case "", catalog.TargetUp, catalog.TargetSuspect, catalog.TargetDown, catalog.TargetDraining, catalog.TargetDrained:
		default:
			return fmt.Errorf("target %s: %w: state %.20q is unknown", name, catalog.ErrInvalid, ti.State)
		}
		if m.byName[name] != nil {
			return fmt.Errorf("target %s: %w: the name is used twice", name, catalog.ErrInvalid)
		}
		m.byName[name] = ti
		ti.Target, ti.watch = watch(ti.Target, before)
	}
	t.now.Store(m)
	return nil
}

// TargetStatus is how a target looks now.
type TargetStatus struct {
	Name    string
	Domain  string
	Pool    string
	Given   catalog.TargetState // the state that SetTargets was told
	State   catalog.TargetState // the same, or what this Tier has met if that is worse
	Space   Space
	Full    bool          // the last column that was to go there had no room
	Errors  int64         // operations of this Tier that it failed
	Failed  error         // the last of these, until it does what it failed at
	Latency time.Duration // of its answers to small requests, the mean of the last few; 0: none yet
	Err     error         // why it cannot be used, if so
}

// Limits of asking targets how they are. One that does not answer in time is
// as good as away, and must not hold up those who want to write to others.
const (
	askTime     = 5 * time.Second
	askParallel = 64
)

// Targets asks every target how it is, by name.
func (t *Tier) Targets(ctx context.Context) []TargetStatus { return t.now.Load().ask(ctx, nil) }

// ask asks the targets that which (nil: all) names, by name.
func (m *members) ask(ctx context.Context, which func(*TargetInfo) bool) []TargetStatus {
	all := make([]TargetStatus, 0, len(m.all))
	var g errgroup.Group
	g.SetLimit(askParallel)
	for i := range m.all {
		ti := &m.all[i]
		if which != nil && !which(ti) {
			continue
		}
		all = append(all, TargetStatus{})
		s := &all[len(all)-1] // never moves: all has the capacity
		g.Go(func() error {
			ctx, cancel := context.WithTimeoutCause(ctx, askTime, errSilent)
			defer cancel()
			space, err := ti.Space(ctx)
			if err != nil && context.Cause(ctx) == errSilent {
				err = errSilent
			}
			*s = ti.status(space, err)
			return nil
		})
	}
	_ = g.Wait()
	return all
}

// status is how a target is that said so, or failed to.
func (ti *TargetInfo) status(space Space, err error) TargetStatus {
	h := ti.watch.met()
	return TargetStatus{
		Name: ti.Name(), Domain: ti.Domain, Pool: ti.Pool, Given: ti.State.OrUp(), State: worse(ti.State, h.state()),
		Space: space, Full: h.short > 0, Errors: h.errors, Failed: h.err, Latency: h.latency, Err: err,
	}
}

// doubt orders targets for readers: the higher, the later they are asked.
func (t *Tier) doubt(name string) int {
	ti := t.now.Load().byName[name]
	if ti == nil {
		return doubtMissing
	}
	met, h := catalog.TargetUp, ti.watch.met()
	if h.owed&(answers|reads) != 0 { // what is written may fail, and what is read be fine
		met = h.state()
	}
	return doubt(worse(ti.State, met))
}

var errSilent = fmt.Errorf("%w: no answer within %v", catalog.ErrUnavailable, askTime)

// takesNew says whether new columns may go to a target in that state.
func takesNew(s catalog.TargetState) bool {
	return s.OrUp() == catalog.TargetUp || s == catalog.TargetSuspect
}

var errState = errors.New("takes no new columns")
