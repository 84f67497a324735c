package catalog

import (
	"context"
	"slices"
)

// watch is one reader of Catalog.Watch.
type watch struct {
	run  Run         // "": all
	stop func() bool // forgets to close it when its context ends
}

// Watch gives every change of a run's sets (all runs for "") until ctx ends,
// beginning with what exists when initial is set. The channel closes when the
// reader falls more than a thousand changes behind or ctx ends.
func (c *Catalog) Watch(ctx context.Context, run Run, initial bool) <-chan SetRecord {
	m := &c.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	var now []SetRecord
	if initial {
		for r, of := range m.mu.sets {
			if run == "" || r == run {
				for _, s := range of {
					now = append(now, *s)
				}
			}
		}
	}
	slices.SortFunc(now, func(a, b SetRecord) int { return a.SetID.Compare(b.SetID) })
	ch := make(chan SetRecord, len(now)+1024)
	for _, s := range now {
		ch <- s
	}
	stop := context.AfterFunc(ctx, func() { // waits for the lock, and so for the map below
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, ok := m.mu.watches[ch]; ok {
			delete(m.mu.watches, ch)
			close(ch)
		}
	})
	m.mu.watches[ch] = watch{run, stop}
	return ch
}

// tell gives a change to the watchers; a slow one loses it and is told so by
// its channel being closed.
func (m *mirror) tell(s SetRecord) {
	for ch, w := range m.mu.watches {
		if w.run != "" && w.run != s.Run {
			continue
		}
		select {
		case ch <- s:
		default:
			w.stop()
			delete(m.mu.watches, ch)
			close(ch)
		}
	}
}
