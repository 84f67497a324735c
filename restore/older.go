package restore

import "github.com/ckptd/ckptd/catalog"

// Older offers the set to use in place of one that has no good copy left: the
// newest committed set of the run that is older than bad and readable. Sets
// are given newest first; readable is asked about as few as possible.
func Older(sets []catalog.SetRecord, bad catalog.SetID, readable func(catalog.SetRecord) bool) (catalog.SetRecord, bool) {
	for _, s := range sets {
		if s.Run == bad.Run && s.State == catalog.Committed && s.SetID.Compare(bad) < 0 && readable(s) {
			return s, true
		}
	}
	return catalog.SetRecord{}, false
}
