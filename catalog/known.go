package catalog

import "slices"

// KnownRuns are the names of the runs that the mirror has seen, in order: those
// with a record, and those with sets only.
func (c *Catalog) KnownRuns() []Run {
	m := &c.mirror
	m.mu.Lock()
	runs := make([]Run, 0, len(m.mu.runs))
	for run := range m.mu.runs {
		runs = append(runs, run)
	}
	for run := range m.mu.sets {
		if m.mu.runs[run] == nil {
			runs = append(runs, run)
		}
	}
	m.mu.Unlock()
	slices.Sort(runs)
	return runs
}
