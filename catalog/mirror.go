package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// mirror holds every record of the first driver in memory, following its
// watch: lists and latest then cost no round trip but the one that asks for
// the head. 100,000 sets take about 100 MB.
type mirror struct {
	mu struct {
		sync.Mutex
		synced  bool          // there is something to show, be it old
		whole   bool          // the running watch has given everything there was
		rev     uint64        // everything up to here is in the maps, as the running watch counts
		moved   chan struct{} // closed and replaced when rev grows or synced turns true
		runs    map[Run]*RunRecord
		sets    map[Run]map[SetID]*SetRecord
		nodes   map[string]*NodeRecord
		keys    map[string]func() // key -> what to do when it is deleted
		watches map[chan SetRecord]watch
		bad     map[string]bool // keys whose record could not be read; what it said before stays
		targets targetMirror
	}
}

func (m *mirror) init() {
	m.mu.moved = make(chan struct{})
	m.mu.watches = make(map[chan SetRecord]watch)
	m.mu.bad = make(map[string]bool)
	m.mu.runs = make(map[Run]*RunRecord)
	m.mu.sets = make(map[Run]map[SetID]*SetRecord)
	m.mu.nodes = make(map[string]*NodeRecord)
	m.mu.keys = make(map[string]func())
	m.mu.targets.init()
}

// Run keeps the mirror up to date until ctx ends. After the store was away it
// starts over; meanwhile lists show the last state that was seen.
func (c *Catalog) Run(ctx context.Context) error {
	for {
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *Catalog) follow(ctx context.Context) error {
	m := &c.mirror
	// The next watch may be of another store, whose revisions begin anew: what
	// this one reached says nothing then.
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.whole, m.mu.rev = false, 0
	}()
	var seen map[string]bool // keys of this watch's first state; nil once synced
	seen = make(map[string]bool)
	for ch, err := range c.records.Watch(ctx, "") {
		if err != nil {
			return fmt.Errorf("follow the catalog: %w", err)
		}
		m.mu.Lock()
		if ch.Synced {
			for key, drop := range m.mu.keys { // deleted while we were away
				if !seen[key] {
					drop()
					delete(m.mu.keys, key)
				}
			}
			for key := range m.mu.bad {
				if !seen[key] {
					delete(m.mu.bad, key)
				}
			}
			seen = nil
			if !m.mu.synced {
				m.mu.targets.tell() // that there is no map is news too
			}
			m.mu.synced, m.mu.whole = true, true
		} else {
			if seen != nil {
				seen[ch.Key] = true
			}
			m.apply(ch.Record)
		}
		m.mu.rev = max(m.mu.rev, ch.Rev)
		close(m.mu.moved)
		m.mu.moved = make(chan struct{})
		m.mu.Unlock()
	}
	return ctx.Err()
}

// apply is called with the lock held.
func (m *mirror) apply(rec Record) {
	if rec.Value == nil {
		if drop, ok := m.mu.keys[rec.Key]; ok {
			drop()
			delete(m.mu.keys, rec.Key)
		}
		delete(m.mu.bad, rec.Key)
		return
	}
	kind, _, _ := strings.Cut(rec.Key, ".")
	var err error
	switch kind {
	case "run":
		r := new(RunRecord)
		if err = decode(rec, r); err == nil {
			m.mu.runs[r.Run] = r
			m.mu.keys[rec.Key] = func() { delete(m.mu.runs, r.Run) }
		}
	case "set":
		s := new(SetRecord)
		if err = decode(rec, s); err == nil {
			m.putSet(rec.Key, s)
		}
	case "node":
		n := new(NodeRecord)
		if err = decode(rec, n); err == nil {
			m.mu.nodes[n.Name] = n
			m.mu.keys[rec.Key] = func() { delete(m.mu.nodes, n.Name) }
		}
	}
	if kind == targetMapKey || kind == targetStatusPrefix {
		var drop func()
		if drop, err = m.mu.targets.apply(rec); err == nil {
			m.mu.keys[rec.Key] = drop
		}
	}
	if err != nil {
		m.mu.bad[rec.Key] = true
	} else {
		delete(m.mu.bad, rec.Key)
	}
}

func (m *mirror) putSet(key string, s *SetRecord) {
	of := m.mu.sets[s.Run]
	if of == nil {
		of = make(map[SetID]*SetRecord)
		m.mu.sets[s.Run] = of
	}
	old := of[s.SetID]
	of[s.SetID] = s
	if old == nil {
		id := s.SetID
		m.mu.keys[key] = func() { m.dropSet(id) }
	} else if old.Version == s.Version && old.State == s.State && old.Level == s.Level && old.Manifest == s.Manifest {
		return // a new watch gives again what the watchers know
	}
	m.tell(*s)
}

func (m *mirror) dropSet(id SetID) {
	s := m.mu.sets[id.Run][id]
	delete(m.mu.sets[id.Run], id)
	if len(m.mu.sets[id.Run]) == 0 {
		delete(m.mu.sets, id.Run)
	}
	if s != nil {
		gone := *s
		gone.State, gone.Level = Pruned, LevelNone
		m.tell(gone)
	}
}

// Damaged lists the keys of records that this node could not read, for people.
// What they said before, if anything, is still shown.
func (c *Catalog) Damaged() []string {
	c.mirror.mu.Lock()
	defer c.mirror.mu.Unlock()
	return slices.Sorted(maps.Keys(c.mirror.mu.bad))
}

func (m *mirror) attempt(run Run) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.mu.runs[run]; r != nil {
		return r.Attempt
	}
	return 0
}

// headTimeout bounds how long a list waits for the store before it answers
// from what the mirror has.
const headTimeout = 2 * time.Second

// Sync brings the mirror up to the store's head. ErrUnavailable says that the
// store could not be asked, and that lists are as old as its last answer.
func (c *Catalog) Sync(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	head, err := c.records.Head(short, "")
	if err == nil {
		err = c.await(short, head)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("catalog: %w: %v", ErrUnavailable, err)
	}
	return err
}

func (c *Catalog) await(ctx context.Context, rev uint64) error {
	m := &c.mirror
	for {
		m.mu.Lock()
		ok, moved := m.mu.whole && m.mu.rev >= rev, m.mu.moved
		m.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// fresh is Sync for lists: a store that is away is not an error once there is
// something to show.
func (c *Catalog) fresh(ctx context.Context) error {
	err := c.Sync(ctx)
	if errors.Is(err, ErrUnavailable) {
		c.mirror.mu.Lock()
		defer c.mirror.mu.Unlock()
		if c.mirror.mu.synced {
			return nil
		}
	}
	return err
}

// Runs lists every run by name.
func (c *Catalog) Runs(ctx context.Context) ([]RunRecord, error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	m := &c.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	runs := make([]RunRecord, 0, len(m.mu.runs))
	for _, r := range m.mu.runs {
		runs = append(runs, *r)
	}
	slices.SortFunc(runs, func(a, b RunRecord) int { return cmp.Compare(a.Run, b.Run) })
	return runs, nil
}

// Sets lists a run's sets in every state, newest first; the empty run means
// all runs. It is fs.ErrNotExist only for a run that never was.
func (c *Catalog) Sets(ctx context.Context, run Run) ([]SetRecord, error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	sets, known := c.Known(run)
	if !known {
		return nil, fmt.Errorf("run %s: %w", run, fs.ErrNotExist)
	}
	return sets, nil
}

// Known is Sets without asking the store: what the mirror has seen so far.
func (c *Catalog) Known(run Run) (sets []SetRecord, known bool) {
	sets = c.KnownWhere(run, func(*SetRecord) bool { return true })
	_, known = c.KnownRun(run)
	return sets, known || run == "" || len(sets) > 0
}

// KnownWhere lists, newest first, the sets of a run (of all runs for "") that
// the mirror has and keep wants. keep must not change the record, nor call the
// catalog.
func (c *Catalog) KnownWhere(run Run, keep func(*SetRecord) bool) (sets []SetRecord) {
	m := &c.mirror
	m.mu.Lock()
	take := func(of map[SetID]*SetRecord) {
		for _, s := range of {
			if keep(s) {
				sets = append(sets, *s)
			}
		}
	}
	if run != "" {
		take(m.mu.sets[run])
	} else {
		for _, of := range m.mu.sets {
			take(of)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(sets, func(a, b SetRecord) int { return cmp.Or(cmp.Compare(a.Run, b.Run), b.SetID.Compare(a.SetID)) })
	return sets
}

// KnownSet gives a set as the mirror has it.
func (c *Catalog) KnownSet(id SetID) (SetRecord, bool) {
	c.mirror.mu.Lock()
	defer c.mirror.mu.Unlock()
	if s := c.mirror.mu.sets[id.Run][id]; s != nil {
		return *s, true
	}
	return SetRecord{}, false
}

// KnownRun gives a run as the mirror has it.
func (c *Catalog) KnownRun(run Run) (RunRecord, bool) {
	c.mirror.mu.Lock()
	defer c.mirror.mu.Unlock()
	if r := c.mirror.mu.runs[run]; r != nil {
		return *r, true
	}
	return RunRecord{}, false
}

// Nodes lists the daemons that have announced themselves, by name.
func (c *Catalog) Nodes(ctx context.Context) ([]NodeRecord, error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	m := &c.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	nodes := make([]NodeRecord, 0, len(m.mu.nodes))
	for _, n := range m.mu.nodes {
		nodes = append(nodes, *n)
	}
	slices.SortFunc(nodes, func(a, b NodeRecord) int { return cmp.Compare(a.Name, b.Name) })
	return nodes, nil
}

// Resolve finds the committed set that ref names. A set that exists below the
// level asked for is ErrIncomplete; none at all is fs.ErrNotExist.
func (c *Catalog) Resolve(ctx context.Context, ref Ref) (SetRecord, error) {
	if err := c.fresh(ctx); err != nil {
		return SetRecord{}, fmt.Errorf("%v: %w", ref, err)
	}
	return c.ResolveKnown(ref)
}

// ResolveKnown is Resolve without asking the store.
func (c *Catalog) ResolveKnown(ref Ref) (SetRecord, error) {
	m := &c.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	var best, below *SetRecord
	writing := false
	for id, s := range m.mu.sets[ref.Run] {
		if ref.Step != Latest && id.Step != ref.Step || ref.Attempt != 0 && id.Attempt != ref.Attempt {
			continue
		}
		switch {
		case s.State == Writing:
			writing = true
		case s.State != Committed:
		case s.Level < ref.Level:
			if below == nil || s.SetID.Compare(below.SetID) > 0 {
				below = s
			}
		case best == nil || s.SetID.Compare(best.SetID) > 0:
			best = s
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case below != nil:
		return *below, fmt.Errorf("%v: %w: %v is at level %v", ref, ErrIncomplete, below.SetID, below.Level)
	case writing:
		return SetRecord{}, fmt.Errorf("%v: %w: it is still being written", ref, ErrIncomplete)
	}
	return SetRecord{}, fmt.Errorf("%v: %w", ref, fs.ErrNotExist)
}
