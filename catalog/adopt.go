package catalog

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// AdoptSet writes a set's record found on a tier into an empty or older
// catalog. Adopting the copies of all tiers in any order gives one result: the
// state that is further on wins (a tombstone over a committed set, because its
// bytes may be gone), then the higher Version. Two committed sets of one name
// and different manifests are ErrConflict: the one that is there stays.
func (c *Catalog) AdoptSet(ctx context.Context, found SetRecord) error {
	err := found.valid(setKey(found.SetID))
	switch {
	case err != nil:
	case found.State != Committed && found.State != Pruned:
		err = fmt.Errorf("a record of state %q is not kept on tiers", found.State)
	case found.Manifest.IsZero():
		err = errors.New("no manifest")
	}
	if err != nil {
		return fmt.Errorf("adopt %v: %w: %v", found.SetID, ErrCorrupt, err)
	}
	_, err = update(ctx, c.records, setKey(found.SetID), func(s *SetRecord, exists bool) error {
		if exists && (s.State == Committed || s.State == Pruned) {
			if s.Manifest != found.Manifest {
				return fmt.Errorf("%w: another set of this name has the manifest %v", ErrConflict, s.Manifest)
			}
			if compareAdopted(s, &found) >= 0 {
				return errSame
			}
		}
		*s = found
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopt %v: %w", found.SetID, err)
	}
	return nil
}

// compareAdopted orders copies of one record, in state Committed or Pruned.
func compareAdopted(a, b *SetRecord) int {
	rank := func(s *SetRecord) int {
		if s.State == Pruned {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Version, b.Version), compareJSON(a, b))
}

// compareJSON makes an order total: it means nothing, but is the same everywhere.
func compareJSON(a, b any) int {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	if err != nil || err2 != nil {
		panic("catalog: a record that was read cannot be written") // it came from JSON
	}
	return bytes.Compare(x, y)
}

// AdoptRun merges a run's record found on a tier into the catalog's, in any
// order: the higher attempt with its launch, and the policy that was set last.
func (c *Catalog) AdoptRun(ctx context.Context, found RunRecord) error {
	if err := found.valid(runKey(found.Run)); err != nil {
		return fmt.Errorf("adopt run: %w: %v", ErrCorrupt, err)
	}
	_, err := update(ctx, c.records, runKey(found.Run), func(r *RunRecord, exists bool) error {
		if !exists {
			*r = found
			return nil
		}
		merged := mergeRuns(*r, found)
		if compareJSON(merged, *r) == 0 {
			return errSame
		}
		*r = merged
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopt run %s: %w", found.Run, err)
	}
	return nil
}

// mergeRuns is commutative, associative and idempotent.
func mergeRuns(a, b RunRecord) RunRecord {
	if cmp.Or(a.PolicySet.Compare(b.PolicySet), compareJSON(a.Policy, b.Policy)) < 0 {
		a.Policy, a.PolicySet = b.Policy, b.PolicySet
	}
	if !b.Created.IsZero() && (a.Created.IsZero() || b.Created.Before(a.Created)) {
		a.Created = b.Created
	}
	if cmp.Or(cmp.Compare(a.Attempt, b.Attempt), cmp.Compare(a.Launch, b.Launch),
		cmp.Compare(len(a.Launches), len(b.Launches)), slices.Compare(a.Launches, b.Launches)) < 0 {
		a.Attempt, a.Launch, a.Launches = b.Attempt, b.Launch, b.Launches
	}
	return a
}
