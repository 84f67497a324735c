package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Targets reads the target map, straight from the store. Before anybody
// entered a target it is the zero map.
func (c *Catalog) Targets(ctx context.Context) (TargetMap, error) {
	m, err := read[TargetMap](ctx, c.records, targetMapKey)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("target map: %w", err)
	}
	return m, nil
}

// UpdateTargets changes the map by compare-and-swap: change edits the newest
// one, and is called again when somebody else was first. It need not keep the
// order. A change that leaves all as it was, or returns ErrSame, makes no
// version.
func (c *Catalog) UpdateTargets(ctx context.Context, change func(*TargetMap) error) (TargetMap, error) {
	m, err := update(ctx, c.records, targetMapKey, func(m *TargetMap, _ bool) error {
		next := m.clone()
		if err := change(&next); err != nil {
			return err
		}
		slices.SortStableFunc(next.Targets, compareTargets)
		next.Version = m.Version
		if reflect.DeepEqual(next.Targets, m.Targets) {
			return errSame
		}
		if err := next.check(); err != nil {
			return err
		}
		next.Version++
		*m = next
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("target map: %w", err)
	}
	return m, nil
}

// Register enters a target that a process serves, or says where a known one is
// now. alive says whether another process has shown that it serves the name:
// it keeps it. State, pool and weight of a known target stay: they are the
// operator's, except that a pool or weight that r names wins.
//
//   - A directory of another id is another target: it is refused whether the
//     other one lives or not, because the columns are on that one.
//   - A name does not move away from under a process that lives.
func (m *TargetMap) Register(r TargetRecord, alive bool, now time.Time) error {
	if r.Claim == "" || r.ID == "" {
		return fmt.Errorf("target %s: %w: it registers without a claim or an id", r.Name, ErrInvalid)
	}
	r.By = BySelf
	for i := range m.Targets {
		old := &m.Targets[i]
		if old.Name != r.Name {
			continue
		}
		switch {
		case old.Node != r.Node:
			return fmt.Errorf("target %s: %w: node %s has a target of this name to itself; give another --name", r.Name, ErrConflict, old.Node)
		case old.ID != "" && old.ID != r.ID:
			return fmt.Errorf("target %s: %w: the cluster knows another directory by this name, at %s; give another --name, or `ckpt target rm %s --force` if that one will never come back",
				r.Name, ErrConflict, strings.Join(old.Addrs, " "), r.Name)
		case old.Claim != "" && old.Claim != r.Claim && alive:
			return fmt.Errorf("target %s: %w: another process serves it at %s; stop that one first", r.Name, ErrConflict, strings.Join(old.Addrs, " "))
		}
		r.State, r.Since, r.Reason, r.Added = old.State, old.Since, old.Reason, old.Added
		r.Pool, r.Weight, r.Domain = cmp.Or(r.Pool, old.Pool), cmp.Or(r.Weight, old.Weight), cmp.Or(r.Domain, old.Domain)
		*old = r
		return r.Check()
	}
	return m.add(r, now)
}

// Enter adds a target that a node's flags name. What is known of it from
// elsewhere stays as it is; what the same node said before is corrected.
func (m *TargetMap) Enter(r TargetRecord, now time.Time) error {
	r.ID, r.Claim, r.State = "", "", TargetUp
	if old := m.Find(r.Name, r.Node); old != nil && old.Same(&r) {
		if old.By == r.By {
			r.State, r.Since, r.Reason, r.Added = old.State, old.Since, old.Reason, old.Added
			*old = r
		}
		return r.Check()
	}
	return m.add(r, now)
}

// Add is Enter for an operator: a name that is taken is fs.ErrExist.
func (m *TargetMap) Add(r TargetRecord, now time.Time) error {
	r.By, r.ID, r.Claim = ByPerson, "", ""
	if old := m.Find(r.Name, r.Node); old != nil {
		return fmt.Errorf("target %s: %w: it is a member already, at %s", r.Name, fs.ErrExist, strings.Join(old.Addrs, " "))
	}
	return m.add(r, now)
}

func (m *TargetMap) add(r TargetRecord, now time.Time) error {
	r.State, r.Since, r.Added, r.Reason = TargetUp, now, now, ""
	if err := r.Check(); err != nil {
		return err
	}
	if len(m.Targets) >= MaxTargets {
		return fmt.Errorf("target %s: %w: the map has %d targets, the most it holds; remove those that are gone", r.Name, ErrInvalid, MaxTargets)
	}
	if i := slices.IndexFunc(m.Targets, func(o TargetRecord) bool { return o.Name == r.Name && (o.Node == "" || r.Node == "") }); i >= 0 {
		return fmt.Errorf("target %s: %w: one of this name is a member already; give another name", r.Name, ErrConflict)
	}
	m.Targets = append(m.Targets, r)
	return nil
}

// Remove takes a target out. One that may still hold columns goes only by
// force: what is on it then counts as lost.
func (m *TargetMap) Remove(name, node string, force bool) error {
	r := m.Find(name, node)
	if r == nil {
		return fmt.Errorf("target %s: %w: it is no member", name, fs.ErrNotExist)
	}
	if r.State != TargetDrained && !force {
		return fmt.Errorf("target %s: %w: it is %s and may hold columns; drain it first, or force it out and count what it holds as lost", name, ErrConflict, r.State)
	}
	m.Targets = slices.DeleteFunc(m.Targets, func(o TargetRecord) bool { return o.Same(r) })
	return nil
}

// PutTargetStatus says how a target is. fs.ErrNotExist: the target is no
// member (any more). ErrConflict: its name belongs to another process.
func (c *Catalog) PutTargetStatus(ctx context.Context, s TargetStatus) error {
	key := targetStatusKey(s.Name, s.Node)
	if err := s.valid(key); err != nil {
		return fmt.Errorf("status of target %.80q: %w: %v", s.Name, ErrInvalid, err)
	}
	m, err := c.Targets(ctx)
	if err != nil {
		return fmt.Errorf("status of target %s: %w", s.Name, err)
	}
	r := m.Find(s.Name, s.Node)
	switch {
	case r == nil || r.Node != s.Node:
		return fmt.Errorf("status of target %s: %w: it is no member", s.Name, fs.ErrNotExist)
	case r.Claim != s.Claim:
		return fmt.Errorf("status of target %s: %w: its name belongs to another process, at %s", s.Name, ErrConflict, strings.Join(r.Addrs, " "))
	}
	if _, err = update(ctx, c.records, key, func(was *TargetStatus, _ bool) error {
		s.Beat = was.Beat + 1
		*was = s
		return nil
	}); err != nil {
		return fmt.Errorf("status of target %s: %w", s.Name, err)
	}
	return nil
}

// TargetStatus reads one status, straight from the store.
func (c *Catalog) TargetStatus(ctx context.Context, name, node string) (TargetStatus, error) {
	s, err := read[TargetStatus](ctx, c.records, targetStatusKey(name, node))
	if err != nil {
		return s, fmt.Errorf("status of target %s: %w", name, err)
	}
	return s, nil
}

// TargetStatuses reads what every target said last, straight from the store,
// by name and node. A damaged one is left out: the next heartbeat mends it.
func (c *Catalog) TargetStatuses(ctx context.Context) ([]TargetStatus, error) {
	var all []TargetStatus
	for rec, err := range c.records.List(ctx, targetStatusPrefix) {
		if err != nil {
			return nil, fmt.Errorf("statuses of targets: %w", err)
		}
		var s TargetStatus
		if decode(rec, &s) == nil {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b TargetStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node))
	})
	return all, nil
}

// DropTargetStatus forgets what a target that is no member said.
func (c *Catalog) DropTargetStatus(ctx context.Context, name, node string) error {
	if err := remove(ctx, c.records, targetStatusKey(name, node)); err != nil {
		return fmt.Errorf("status of target %s: %w", name, err)
	}
	return nil
}
