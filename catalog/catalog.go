package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"
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

// casTries bounds how often an update starts over after losing a race.
const casTries = 64

// update reads key, lets change edit it, and swaps it in, starting over when
// somebody else was first. A missing record is given to change as the zero T
// with exists false. change returning errSame leaves the record as it is.
func update[T any](ctx context.Context, d Driver, key string, change func(v *T, exists bool) error) (T, error) {
	for try := range casTries {
		var v T
		rec, err := d.Get(ctx, key)
		exists := err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
		if exists {
			if err := json.Unmarshal(rec.Value, &v); err != nil {
				return v, fmt.Errorf("record %s: %w: %v", key, ErrCorrupt, err)
			}
		}
		if err := change(&v, exists); errors.Is(err, errSame) {
			return v, nil
		} else if err != nil {
			return v, err
		}
		b, err := json.Marshal(v)
		if err != nil {
			return v, fmt.Errorf("record %s: %w", key, err)
		}
		if _, err = d.Swap(ctx, key, rec.Rev, b); err == nil {
			return v, nil
		} else if !errors.Is(err, ErrConflict) {
			return v, err
		}
		if try > 2 { // many writers: spread them
			select {
			case <-ctx.Done():
				return v, ctx.Err()
			case <-time.After(time.Duration(rand.Int64N(int64(try) * int64(time.Millisecond)))):
			}
		}
	}
	var v T
	return v, fmt.Errorf("record %s: %w: lost the race %d times", key, ErrConflict, casTries)
}

// errSame tells update that nothing needs to change.
var errSame = errors.New("same")

func read[T any](ctx context.Context, d Driver, key string) (T, error) {
	var v T
	rec, err := d.Get(ctx, key)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(rec.Value, &v); err != nil {
		return v, fmt.Errorf("record %s: %w: %v", key, ErrCorrupt, err)
	}
	return v, nil
}

// remove deletes key whatever its revision; a missing key is fine.
func remove(ctx context.Context, d Driver, key string) error {
	for range casTries {
		rec, err := d.Get(ctx, key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if _, err = d.Swap(ctx, key, rec.Rev, nil); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("delete %s: %w", key, ErrConflict)
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
	if launch == "" || len(launch) > 256 {
		return RunRecord{}, fmt.Errorf("attach %s: %w: the launch's name must have 1 to 256 bytes", run, ErrInvalid)
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
	if err := id.Check(); err != nil {
		return SetRecord{}, err
	}
	if world < 1 || world > MaxWorld {
		return SetRecord{}, fmt.Errorf("begin %v: %w: world size %d is not in 1 to %d", id, ErrInvalid, world, MaxWorld)
	}
	if err := c.CheckAttempt(ctx, id.Run, id.Attempt); err != nil {
		return SetRecord{}, fmt.Errorf("begin %v: %w", id, err)
	}
	return c.BeginSealed(ctx, id, world, metrics, now)
}

// BeginSealed is Begin without the fence, for shards that were sealed while
// their attempt was known to be the newest.
func (c *Catalog) BeginSealed(ctx context.Context, id SetID, world int, metrics map[string]float64, now time.Time) (SetRecord, error) {
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
			if _, ok := s.Metrics[k]; !ok {
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

// UpdatePart changes one node's statement about a set: its votes and places.
func (c *Catalog) UpdatePart(ctx context.Context, id SetID, node string, change func(*PartRecord) error) (PartRecord, error) {
	p, err := update(ctx, c.parts, partKey(id, node), func(p *PartRecord, exists bool) error {
		if !exists {
			*p = PartRecord{Set: id, Node: node}
		}
		return change(p)
	})
	if err != nil {
		return p, fmt.Errorf("statement of %s about %v: %w", node, id, err)
	}
	return p, nil
}

// ErrSame, returned by a change, leaves the record as it is without error.
var ErrSame = errSame

// Parts reads what every node says about a set.
func (c *Catalog) Parts(ctx context.Context, id SetID) ([]PartRecord, error) {
	var parts []PartRecord
	for rec, err := range c.parts.List(ctx, partPrefix(id)) {
		if err != nil {
			return nil, fmt.Errorf("statements about %v: %w", id, err)
		}
		var p PartRecord
		if err := json.Unmarshal(rec.Value, &p); err != nil {
			return nil, fmt.Errorf("record %s: %w: %v", rec.Key, ErrCorrupt, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// Part reads what one node says about a set; no statement is fs.ErrNotExist.
func (c *Catalog) Part(ctx context.Context, id SetID, node string) (PartRecord, error) {
	p, err := read[PartRecord](ctx, c.parts, partKey(id, node))
	if err != nil {
		return p, fmt.Errorf("statement of %s about %v: %w", node, id, err)
	}
	return p, nil
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
// ErrIncomplete unless parts hold a durable shard of every rank, and is
// idempotent for the same manifest.
func (c *Catalog) Commit(ctx context.Context, id SetID, manifest Digest, size int64, nodes []string, parts []PartRecord, now time.Time) (SetRecord, error) {
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
		s.State, s.Committed, s.Manifest, s.Size, s.Nodes = Committed, now, manifest, size, nodes
		s.Level = LevelOf(s, parts)
		s.Version++
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("commit %v: %w", id, err)
	}
	return s, nil
}

// Update changes the record of a set that exists. The identity, the world
// size and, once committed, the manifest cannot be changed by it.
func (c *Catalog) Update(ctx context.Context, id SetID, change func(*SetRecord) error) (SetRecord, error) {
	s, err := update(ctx, c.records, setKey(id), func(s *SetRecord, exists bool) error {
		if !exists {
			return fs.ErrNotExist
		}
		before := *s
		if err := change(s); err != nil {
			return err
		}
		if s.SetID != before.SetID || s.World != before.World || before.State == Committed && s.Manifest != before.Manifest {
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
	_, err := update(ctx, c.records, runKey(run), func(r *RunRecord, exists bool) error {
		if !exists {
			*r = RunRecord{Run: run, Created: now}
		}
		r.Policy = p
		return nil
	})
	if err != nil {
		return fmt.Errorf("policy of %s: %w", run, err)
	}
	return nil
}

// PutNode announces a daemon.
func (c *Catalog) PutNode(ctx context.Context, n NodeRecord) error {
	_, err := update(ctx, c.records, nodeKey(n.Name), func(r *NodeRecord, _ bool) error { *r = n; return nil })
	return err
}

// maxEvents bounds a set's story; the oldest after the first few are dropped.
const maxEvents = 64

// Log adds lines to a set's story. It is for people: callers may ignore its error.
func (c *Catalog) Log(ctx context.Context, id SetID, events ...Event) error {
	_, err := update(ctx, c.parts, logKey(id), func(l *[]Event, _ bool) error {
		*l = append(*l, events...)
		if n := len(*l); n > maxEvents {
			*l = append((*l)[:4:4], (*l)[n-maxEvents+4:]...)
		}
		return nil
	})
	return err
}

// Events reads a set's story; none is not an error.
func (c *Catalog) Events(ctx context.Context, id SetID) ([]Event, error) {
	l, err := read[[]Event](ctx, c.parts, logKey(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return l, err
}

// bulkChunk is how much of a bulk goes into one record, in bytes.
const bulkChunk = 512 << 10

// MaxBulk bounds a bulk, in bytes.
const MaxBulk = 256 << 20

// PutBulk keeps bytes too large for a record until DropBulk, under their
// SHA-256. It is idempotent.
func (c *Catalog) PutBulk(ctx context.Context, b []byte) (Digest, error) {
	if len(b) > MaxBulk {
		return Digest{}, fmt.Errorf("bulk of %d bytes: %w: at most %d", len(b), ErrInvalid, MaxBulk)
	}
	d := Digest(sha256.Sum256(b))
	for i := 0; i == 0 || i*bulkChunk < len(b); i++ {
		chunk := b[i*bulkChunk : min(len(b), (i+1)*bulkChunk)]
		if chunk == nil {
			chunk = []byte{}
		}
		if _, err := c.parts.Swap(ctx, bulkKey(d, i), 0, chunk); err != nil && !errors.Is(err, ErrConflict) {
			return d, fmt.Errorf("bulk %s: %w", d, err)
		}
	}
	return d, nil
}

// GetBulk reads size bytes that PutBulk kept.
func (c *Catalog) GetBulk(ctx context.Context, d Digest) ([]byte, error) {
	var b []byte
	for i := 0; ; i++ {
		rec, err := c.parts.Get(ctx, bulkKey(d, i))
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			break
		} else if err != nil {
			return nil, fmt.Errorf("bulk %s: %w", d, err)
		}
		if b = append(b, rec.Value...); len(rec.Value) < bulkChunk {
			break
		}
		if len(b) > MaxBulk {
			return nil, fmt.Errorf("bulk %s: %w: too large", d, ErrCorrupt)
		}
	}
	if sha256.Sum256(b) != d {
		return nil, fmt.Errorf("bulk %s: %w: SHA-256 differs", d, ErrCorrupt)
	}
	return b, nil
}

// DropBulk forgets a bulk.
func (c *Catalog) DropBulk(ctx context.Context, d Digest) error {
	for rec, err := range c.parts.List(ctx, bulkPrefix(d)) {
		if err == nil {
			err = remove(ctx, c.parts, rec.Key)
		}
		if err != nil {
			return fmt.Errorf("drop bulk %s: %w", d, err)
		}
	}
	return nil
}

// WatchParts follows the statements of all nodes: those that exist, then
// synced, then each change, until ctx ends or see returns an error.
func (c *Catalog) WatchParts(ctx context.Context, see func(p *PartRecord, synced bool) error) error {
	for ch, err := range c.parts.Watch(ctx, "part") {
		if err != nil {
			return fmt.Errorf("watch statements: %w", err)
		}
		var p *PartRecord
		if !ch.Synced && ch.Value != nil {
			p = new(PartRecord)
			if err := json.Unmarshal(ch.Value, p); err != nil {
				return fmt.Errorf("record %s: %w: %v", ch.Key, ErrCorrupt, err)
			}
		}
		if err := see(p, ch.Synced); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// AdoptSet and AdoptRun write records found on the tiers into an empty or
// older catalog: the higher Version (attempt) wins, so adopting the copies of
// all tiers in any order gives one result.
func (c *Catalog) AdoptSet(ctx context.Context, found SetRecord) error {
	if err := found.Check(); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	_, err := update(ctx, c.records, setKey(found.SetID), func(s *SetRecord, exists bool) error {
		if exists && s.Version >= found.Version {
			return errSame
		}
		*s = found
		return nil
	})
	return err
}

func (c *Catalog) AdoptRun(ctx context.Context, found RunRecord) error {
	if _, err := ParseRun(string(found.Run)); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	_, err := update(ctx, c.records, runKey(found.Run), func(r *RunRecord, exists bool) error {
		if exists && r.Attempt >= found.Attempt {
			return errSame
		}
		policy := r.Policy
		*r = found
		if exists && policy != (Policy{}) {
			r.Policy = policy
		}
		return nil
	})
	return err
}
