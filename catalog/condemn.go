package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// A pack that no version names is pruned in three steps, so that a version that
// is being committed and the collector of packs never miss each other. The
// collector condemns the pack, then looks once more for versions that name it or
// are being written, and only then tombstones it. Who makes a version has its
// record in the catalog before it looks whether all its packs are committed and
// not condemned. One of the two sees the other, whatever the clocks say; and a
// condemned set gets no new lease.

// Condemn is the first step. A set that is condemned already, pinned or not
// committed stays as it is.
func (c *Catalog) Condemn(ctx context.Context, id SetID, now time.Time) (SetRecord, error) {
	return c.Update(ctx, id, func(s *SetRecord) error {
		if s.State != Committed || s.Pinned || !s.Condemned.IsZero() {
			return errSame
		}
		s.Condemned = now
		return nil
	})
}

// Reprieve takes it back.
func (c *Catalog) Reprieve(ctx context.Context, id SetID) (SetRecord, error) {
	return c.Update(ctx, id, func(s *SetRecord) error {
		if s.Condemned.IsZero() || s.State != Committed {
			return errSame
		}
		s.Condemned = time.Time{}
		return nil
	})
}

// TombstoneCondemned is Tombstone of a set that is still condemned since then;
// one that was reprieved meanwhile is ErrConflict.
func (c *Catalog) TombstoneCondemned(ctx context.Context, id SetID, since time.Time, reason string, now time.Time) (SetRecord, error) {
	return c.tombstone(ctx, id, reason, now, func(s *SetRecord) error {
		if since.IsZero() || !s.Condemned.Equal(since) {
			return fmt.Errorf("prune: %w: it was reprieved meanwhile", ErrConflict)
		}
		return nil
	})
}

type rebuiltRecord struct {
	At time.Time `json:"at"`
}

// NoteRebuild says that the catalog is being built anew from the tiers, where
// what one set names may come back much later than the set.
func (c *Catalog) NoteRebuild(ctx context.Context, now time.Time) error {
	_, err := update(ctx, c.records, rebuiltKey, func(r *rebuiltRecord, _ bool) error {
		if !r.At.Before(now) {
			return errSame
		}
		r.At = now
		return nil
	})
	if err != nil {
		return fmt.Errorf("note the rebuild: %w", err)
	}
	return nil
}

// Rebuilt is when the catalog was last built anew; zero if it never was.
func (c *Catalog) Rebuilt(ctx context.Context) (time.Time, error) {
	r, err := read[rebuiltRecord](ctx, c.records, rebuiltKey)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, fmt.Errorf("last rebuild: %w", err)
	}
	return r.At, nil
}
