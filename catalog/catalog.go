package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Catalog codes the rules over two drivers: records that every node mirrors
// (runs, sets, nodes, leases), and parts that only few read (votes and places,
// stories, bulk).
type Catalog struct {
	records, parts Driver
	mirror         mirror
}

// New returns a catalog over two drivers, which may be two buckets of one
// store. Run must be running for lists and Resolve to answer.
func New(records, parts Driver) *Catalog {
	c := &Catalog{records: records, parts: parts}
	c.mirror.init()
	return c
}

// maxLaunches bounds how many earlier launches a run remembers to fence them
// by name; older ones are fenced by their attempt number alone.
const maxLaunches = 64

// Attach gives a launch of a run its attempt number: the same to every rank
// that names the same launch, and a larger one than any launch before. A
// launch that a newer one has replaced gets ErrFenced.
func (c *Catalog) Attach(ctx context.Context, run Run, launch string, now time.Time) (RunRecord, error) {
	if _, err := ParseRun(string(run)); err != nil {
		return RunRecord{}, err
	}
	if err := checkText("the launch's name", launch); err != nil {
		return RunRecord{}, fmt.Errorf("attach %s: %w", run, err)
	}
	r, err := update(ctx, c.records, runKey(run), func(r *RunRecord, exists bool) error {
		if !exists {
			*r = RunRecord{Run: run, Created: now}
		}
		if r.Launch == launch {
			return errSame
		}
		for _, old := range r.Launches {
			if old == launch {
				return fmt.Errorf("launch %q: %w: attempt %d (%q) has attached since", launch, ErrFenced, r.Attempt, r.Launch)
			}
		}
		if r.Launch != "" {
			r.Launches = append([]string{r.Launch}, r.Launches...)
			r.Launches = r.Launches[:min(len(r.Launches), maxLaunches)]
		}
		r.Launch = launch
		if r.Attempt++; r.Attempt > MaxAttempt {
			return fmt.Errorf("%w: the run has used up its %d attempts; start a run of another name", ErrInvalid, MaxAttempt)
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("attach %s: %w", run, err)
	}
	return r, nil
}

// maxText bounds names that users are free to choose, in bytes.
const maxText = 256

// checkText refuses what would not come back from a record as it went in: the
// ranks of a launch with such a name would each get an attempt of their own.
func checkText(what, s string) error {
	if s == "" || len(s) > maxText || !utf8.ValidString(s) {
		return fmt.Errorf("%w: %s must have 1 to %d bytes of UTF-8", ErrInvalid, what, maxText)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: %s must be printable, without %q", ErrInvalid, what, r)
		}
	}
	return nil
}

// CheckAttempt asks the store whether attempt is still the run's newest.
// ErrFenced says no; ErrUnavailable says the store could not be asked.
func (c *Catalog) CheckAttempt(ctx context.Context, run Run, attempt int) error {
	r, err := read[RunRecord](ctx, c.records, runKey(run))
	if err != nil {
		if errors.Is(err, ErrUnavailable) && c.mirror.attempt(run) > attempt {
			return fenced(run, attempt, c.mirror.attempt(run))
		}
		return fmt.Errorf("check attempt of %s: %w", run, err)
	}
	if attempt < r.Attempt {
		return fenced(run, attempt, r.Attempt)
	}
	if attempt > r.Attempt {
		return fmt.Errorf("%s attempt %d: %w: it was never attached", run, attempt, ErrInvalid)
	}
	return nil
}

func fenced(run Run, attempt, newest int) error {
	return fmt.Errorf("%s attempt %d: %w: attempt %d is running", run, attempt, ErrFenced, newest)
}

// Begin makes the record of a set that ranks are about to write. It is
// idempotent: any rank may call it. A set that exists in another state is
// fs.ErrExist (committed) or ErrConflict.
func (c *Catalog) Begin(ctx context.Context, id SetID, world int, metrics map[string]float64, now time.Time) (SetRecord, error) {
	if err := checkBegin(id, world, metrics); err != nil {
		return SetRecord{}, fmt.Errorf("begin %v: %w", id, err)
	}
	if err := c.CheckAttempt(ctx, id.Run, id.Attempt); err != nil {
		return SetRecord{}, fmt.Errorf("begin %v: %w", id, err)
	}
	return c.BeginSealed(ctx, id, world, metrics, now)
}

// maxMetrics bounds the metrics of one set.
const maxMetrics = 256

func checkBegin(id SetID, world int, metrics map[string]float64) error {
	if err := id.Check(); err != nil {
		return err
	}
	if world < 1 || world > MaxWorld {
		return fmt.Errorf("%w: world size %d is not in 1 to %d", ErrInvalid, world, MaxWorld)
	}
	if len(metrics) > maxMetrics {
		return fmt.Errorf("%w: %d metrics, at most %d", ErrInvalid, len(metrics), maxMetrics)
	}
	for k, v := range metrics {
		if err := checkText("a metric's name", k); err != nil {
			return err
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%w: metric %q is %v; leave it out", ErrInvalid, k, v)
		}
	}
	return nil
}

// BeginSealed is Begin without the fence, for shards that were sealed while
// their attempt was known to be the newest.
func (c *Catalog) BeginSealed(ctx context.Context, id SetID, world int, metrics map[string]float64, now time.Time) (SetRecord, error) {
	if err := checkBegin(id, world, metrics); err != nil {
		return SetRecord{}, fmt.Errorf("begin %v: %w", id, err)
	}
	s, err := update(ctx, c.records, setKey(id), func(s *SetRecord, exists bool) error {
		if !exists {
			*s = SetRecord{SetID: id, State: Writing, World: world, Begun: now, Level: Staged, Metrics: metrics, Version: 1}
			return nil
		}
		switch {
		case s.World != world:
			return fmt.Errorf("%w: it was begun with world size %d, not %d", ErrInvalid, s.World, world)
		case s.State == Committed:
			return fmt.Errorf("%w: it is committed, and committed sets never change; save another step", fs.ErrExist)
		case s.State != Writing:
			return fmt.Errorf("%w: it was %s (%s); save another step or start the job anew", ErrConflict, s.State, s.Reason)
		}
		missing := false
		for k, v := range metrics {
			if _, ok := s.Metrics[k]; !ok && len(s.Metrics) < maxMetrics {
				if s.Metrics == nil {
					s.Metrics = map[string]float64{}
				}
				s.Metrics[k], missing = v, true
			}
		}
		if !missing {
			return errSame
		}
		s.Version++
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("begin %v: %w", id, err)
	}
	return s, nil
}

// Set reads one set's record in any state, straight from the store.
func (c *Catalog) Set(ctx context.Context, id SetID) (SetRecord, error) {
	s, err := read[SetRecord](ctx, c.records, setKey(id))
	if err != nil {
		return s, fmt.Errorf("%v: %w", id, err)
	}
	return s, nil
}

// Commit makes a set visible: the one compare-and-swap. It refuses with
// ErrIncomplete unless parts hold a durable shard of every rank, none of which
// has gone bad since, and is idempotent for the same manifest.
func (c *Catalog) Commit(ctx context.Context, id SetID, manifest Digest, size int64, nodes []string, parts []PartRecord, now time.Time) (SetRecord, error) {
	if manifest.IsZero() || size < 0 {
		return SetRecord{}, fmt.Errorf("commit %v: %w: no manifest, or a size of %d", id, ErrInvalid, size)
	}
	for i := range parts {
		if parts[i].Set != id {
			return SetRecord{}, fmt.Errorf("commit %v: %w: a statement is about %v", id, ErrInvalid, parts[i].Set)
		}
	}
	s, err := update(ctx, c.records, setKey(id), func(s *SetRecord, exists bool) error {
		switch {
		case !exists:
			return fs.ErrNotExist
		case s.State == Committed && s.Manifest == manifest:
			return errSame
		case s.State != Writing:
			return fmt.Errorf("%w: it is %s", ErrConflict, s.State)
		}
		if missing := MissingRanks(s.World, parts); len(missing) > 0 {
			return fmt.Errorf("%w: no durable shard of %d ranks, the first is %d", ErrIncomplete, len(missing), missing[0])
		}
		done := *s
		done.State, done.Committed, done.Manifest, done.Size, done.Nodes = Committed, now, manifest, size, nodes
		if done.Level = LevelOf(&done, parts); done.Level < Local {
			return fmt.Errorf("%w: a shard that was durable is bad or gone", ErrIncomplete)
		}
		done.Version++
		*s = done
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("commit %v: %w", id, err)
	}
	return s, nil
}

// Update changes the record of a set that exists. The identity, the world
// size and, once committed, the manifest cannot be changed by it, and the state
// only goes forward.
func (c *Catalog) Update(ctx context.Context, id SetID, change func(*SetRecord) error) (SetRecord, error) {
	s, err := update(ctx, c.records, setKey(id), func(s *SetRecord, exists bool) error {
		if !exists {
			return fs.ErrNotExist
		}
		before := *s
		if err := change(s); err != nil {
			return err
		}
		if s.SetID != before.SetID || s.World != before.World || s.Manifest != before.Manifest || !before.State.mayBecome(s.State) || before.State == Writing && s.State == Committed {
			panic("catalog: Update changed what never changes")
		}
		s.Version = before.Version + 1
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("update %v: %w", id, err)
	}
	return s, nil
}

// Abort ends a set that will not commit.
func (c *Catalog) Abort(ctx context.Context, id SetID, reason string, now time.Time) (SetRecord, error) {
	return c.Update(ctx, id, func(s *SetRecord) error {
		switch s.State {
		case Aborted:
			return errSame
		case Writing:
			s.State, s.Pruned, s.Reason, s.Level = Aborted, now, reason, LevelNone
			return nil
		}
		return fmt.Errorf("abort: %w: it is %s", ErrConflict, s.State)
	})
}

// Tombstone is the first phase of a prune: the set is no longer visible, its
// bytes are still there. Pinned and leased sets are ErrConflict.
func (c *Catalog) Tombstone(ctx context.Context, id SetID, reason string, now time.Time) (SetRecord, error) {
	return c.tombstone(ctx, id, reason, now, func(*SetRecord) error { return nil })
}

// tombstone prunes a committed set that check lets go.
func (c *Catalog) tombstone(ctx context.Context, id SetID, reason string, now time.Time, check func(*SetRecord) error) (SetRecord, error) {
	if holders, err := c.Leases(ctx, id, now); err != nil {
		return SetRecord{}, err
	} else if len(holders) > 0 {
		return SetRecord{}, fmt.Errorf("prune %v: %w: %s is reading it; try again when it is done", id, ErrConflict, holders[0])
	}
	return c.Update(ctx, id, func(s *SetRecord) error {
		switch {
		case s.State == Pruned:
			return errSame
		case s.State != Committed:
			return fmt.Errorf("prune: %w: it is %s", ErrConflict, s.State)
		case s.Pinned:
			return fmt.Errorf("prune: %w: it is pinned; unpin it first", ErrConflict)
		}
		if err := check(s); err != nil {
			return err
		}
		s.State, s.Pruned, s.Reason = Pruned, now, reason
		return nil
	})
}

// Forget is the last phase: it drops every record of a pruned or aborted set.
// The caller has removed the bytes.
func (c *Catalog) Forget(ctx context.Context, id SetID) error {
	s, err := read[SetRecord](ctx, c.records, setKey(id))
	if err == nil && (s.State == Committed || s.State == Writing) {
		return fmt.Errorf("forget %v: %w: it is %s", id, ErrConflict, s.State)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %v: %w", id, err)
	}
	for _, list := range []struct {
		d      Driver
		prefix string
	}{{c.parts, partPrefix(id)}, {c.parts, logKey(id)}, {c.records, leasePrefix(id)}, {c.records, setKey(id)}} {
		for rec, err := range list.d.List(ctx, list.prefix) {
			if err == nil {
				err = remove(ctx, list.d, rec.Key)
			}
			if err != nil {
				return fmt.Errorf("forget %v: %w", id, err)
			}
		}
	}
	return nil
}

// Policy reads a run's policy, straight from the store.
func (c *Catalog) Policy(ctx context.Context, run Run) (Policy, error) {
	r, err := read[RunRecord](ctx, c.records, runKey(run))
	if err != nil {
		return Policy{}, fmt.Errorf("policy of %s: %w", run, err)
	}
	return r.Policy, nil
}

// SetPolicy replaces a run's policy; the run need not have been attached yet.
func (c *Catalog) SetPolicy(ctx context.Context, run Run, p Policy, now time.Time) error {
	if _, err := ParseRun(string(run)); err != nil {
		return err
	}
	if err := p.Check(); err != nil {
		return fmt.Errorf("policy of %s: %w", run, err)
	}
	_, err := update(ctx, c.records, runKey(run), func(r *RunRecord, exists bool) error {
		if !exists {
			*r = RunRecord{Run: run, Created: now}
		}
		if exists && r.Policy == p {
			return errSame
		}
		if r.Policy = p; r.PolicySet.Before(now) {
			r.PolicySet = now
		} else { // a clock went back; the copies' order must not
			r.PolicySet = r.PolicySet.Add(1)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("policy of %s: %w", run, err)
	}
	return nil
}

// PutNode announces a daemon.
func (c *Catalog) PutNode(ctx context.Context, n NodeRecord) error {
	if err := CheckNode(n.Name); err != nil {
		return err
	}
	_, err := update(ctx, c.records, nodeKey(n.Name), func(r *NodeRecord, _ bool) error { *r = n; return nil })
	if err != nil {
		return fmt.Errorf("announce %s: %w", n.Name, err)
	}
	return nil
}

// maxEvents bounds what one node tells of a set; the oldest after the first
// few are dropped.
const maxEvents = 64

// maxDetail bounds the text of one line, in bytes; the rest is cut off.
const maxDetail = 2048

// Log adds lines to a set's story, each to its node's part of it: nodes that
// all vote for one set do not wait for each other. It is for people: callers
// may ignore its error.
func (c *Catalog) Log(ctx context.Context, id SetID, events ...Event) error {
	var errs []error
	for len(events) > 0 {
		node := events[0].Node
		n := slices.IndexFunc(events, func(e Event) bool { return e.Node != node })
		if n < 0 {
			n = len(events)
		}
		_, err := update(ctx, c.parts, nodeLogKey(id, node), func(l *[]Event, _ bool) error {
			for _, e := range events[:n] {
				e.Detail = strings.ToValidUTF8(e.Detail[:min(len(e.Detail), maxDetail)], "")
				*l = append(*l, e)
			}
			if n := len(*l); n > maxEvents {
				*l = append((*l)[:4:4], (*l)[n-maxEvents+4:]...)
			}
			return nil
		})
		errs, events = append(errs, err), events[n:]
	}
	return errors.Join(errs...)
}

// Events reads a set's story, in order of time; none is not an error.
func (c *Catalog) Events(ctx context.Context, id SetID) ([]Event, error) {
	var events []Event
	for rec, err := range c.parts.List(ctx, logKey(id)) {
		if err != nil {
			return nil, fmt.Errorf("story of %v: %w", id, err)
		}
		var l []Event
		if err := json.Unmarshal(rec.Value, &l); err != nil {
			return nil, fmt.Errorf("record %s: %w: %v", rec.Key, ErrCorrupt, err)
		}
		events = append(events, l...)
	}
	slices.SortStableFunc(events, func(a, b Event) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Node, b.Node)) })
	return events, nil
}
