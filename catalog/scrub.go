package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// ScrubRecord is how far the look at every column of a target is, so that
// whoever goes on with it begins where it was left.
type ScrubRecord struct {
	Target   string    `json:"target"`
	Node     string    `json:"node,omitempty"` // as in the target's record
	By       string    `json:"by,omitempty"`   // node that looks
	Seen     time.Time `json:"seen,omitzero"`  // when it said so last
	Asked    time.Time `json:"asked,omitzero"` // somebody wants a pass that begins after this
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Deep     bool      `json:"deep,omitempty"`  // every byte is read, though the target cannot do that by itself
	After    string    `json:"after,omitempty"` // folder of the last set that is done; "" at the beginning
	Columns  int64     `json:"columns"`         // looked at in this pass
	Bytes    int64     `json:"bytes"`           // of them
	Bad      int64     `json:"bad"`             // found missing, or not what they should be
	Mended   int64     `json:"mended"`          // of the bad
	Extra    int64     `json:"extra"`           // that no record names, found in this pass
}

// Running says whether a pass has begun and not ended.
func (r *ScrubRecord) Running() bool { return r.Started.After(r.Finished) }

// Due says whether there is something to do: to go on, or to begin anew every
// so often (0: only when asked).
func (r *ScrubRecord) Due(now time.Time, every time.Duration) bool {
	return r.Running() || r.Asked.After(r.Started) || every > 0 && now.Sub(r.Started) >= every
}

// valid says whether the record may stand under key.
func (r *ScrubRecord) valid(key string) error {
	if err := CheckTargetName(r.Target); err != nil {
		return err
	}
	if len(r.After) > maxDetail {
		return errors.New("its folder is too long")
	}
	return ofKey(key, scrubKey(r.Target, r.Node))
}

// Scrub reads how far the scrub of a target is; the zero record if it was
// never begun.
func (c *Catalog) Scrub(ctx context.Context, target, node string) (ScrubRecord, error) {
	r, err := read[ScrubRecord](ctx, c.parts, scrubKey(target, node))
	if errors.Is(err, fs.ErrNotExist) {
		return ScrubRecord{Target: target, Node: node}, nil
	} else if err != nil {
		return r, fmt.Errorf("scrub of target %s: %w", target, err)
	}
	return r, nil
}

// UpdateScrub changes it by compare-and-swap.
func (c *Catalog) UpdateScrub(ctx context.Context, target, node string, change func(*ScrubRecord) error) (ScrubRecord, error) {
	if err := CheckTargetName(target); err != nil {
		return ScrubRecord{}, err
	}
	r, err := update(ctx, c.parts, scrubKey(target, node), func(r *ScrubRecord, exists bool) error {
		if !exists {
			*r = ScrubRecord{Target: target, Node: node}
		}
		if err := change(r); err != nil {
			return err
		}
		if r.Target != target || r.Node != node {
			panic("catalog: UpdateScrub changed whose record it is")
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("scrub of target %s: %w", target, err)
	}
	return r, nil
}

// Scrubs reads the scrubs of all targets, by name and node. A damaged record is
// left out: the scrub begins anew.
func (c *Catalog) Scrubs(ctx context.Context) ([]ScrubRecord, error) {
	var all []ScrubRecord
	for rec, err := range c.parts.List(ctx, scrubPrefix) {
		if err != nil {
			return nil, fmt.Errorf("scrubs: %w", err)
		}
		var r ScrubRecord
		if decode(rec, &r) == nil {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b ScrubRecord) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Node, b.Node))
	})
	return all, nil
}

// DropScrub forgets the scrub of a target that is no member any more.
func (c *Catalog) DropScrub(ctx context.Context, target, node string) error {
	if err := remove(ctx, c.parts, scrubKey(target, node)); err != nil {
		return fmt.Errorf("scrub of target %s: %w", target, err)
	}
	return nil
}
