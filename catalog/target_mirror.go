package catalog

import (
	"cmp"
	"slices"
)

// targetMirror is the part of the mirror that is about targets. The mirror's
// lock guards it.
type targetMirror struct {
	now      TargetMap
	statuses map[string]*TargetStatus // by key
	changed  chan struct{}            // closed and replaced when now is another
}

func (t *targetMirror) init() {
	t.statuses = make(map[string]*TargetStatus)
	t.changed = make(chan struct{})
}

// apply takes a record in, and gives what undoes it.
func (t *targetMirror) apply(rec Record) (drop func(), err error) {
	if rec.Key == targetMapKey {
		m := new(TargetMap)
		if err := decode(rec, m); err != nil {
			return nil, err
		}
		t.now = *m
		t.tell()
		return func() { t.now = TargetMap{}; t.tell() }, nil
	}
	s := new(TargetStatus)
	if err := decode(rec, s); err != nil {
		return nil, err
	}
	t.statuses[rec.Key] = s
	return func() { delete(t.statuses, rec.Key) }, nil
}

func (t *targetMirror) tell() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// KnownTargets gives the target map as the mirror has it, and a channel that is
// closed when it has another. known is false before the mirror has seen the
// store. Decisions about the map are made in UpdateTargets.
func (c *Catalog) KnownTargets() (m TargetMap, known bool, changed <-chan struct{}) {
	c.mirror.mu.Lock()
	defer c.mirror.mu.Unlock()
	t := &c.mirror.mu.targets
	return t.now.clone(), c.mirror.mu.synced, t.changed
}

// KnownTargetStatuses gives what every target said last, as the mirror has it.
func (c *Catalog) KnownTargetStatuses() []TargetStatus {
	c.mirror.mu.Lock()
	all := make([]TargetStatus, 0, len(c.mirror.mu.targets.statuses))
	for _, s := range c.mirror.mu.targets.statuses {
		all = append(all, *s)
	}
	c.mirror.mu.Unlock()
	slices.SortFunc(all, func(a, b TargetStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node)) })
	return all
}

// KnownNodes gives the daemons that announced themselves, as the mirror has them.
func (c *Catalog) KnownNodes() []NodeRecord {
	c.mirror.mu.Lock()
	nodes := make([]NodeRecord, 0, len(c.mirror.mu.nodes))
	for _, n := range c.mirror.mu.nodes {
		nodes = append(nodes, *n)
	}
	c.mirror.mu.Unlock()
	slices.SortFunc(nodes, func(a, b NodeRecord) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}
