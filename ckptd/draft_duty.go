package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const draftDuty = 2 * time.Second

// draftsOnce goes on with what is to become a set, thaws what nobody commits
// any more, and removes what nobody has touched for long.
func (n *Node) draftsOnce(ctx context.Context) error {
	var errs []error
	for _, d := range n.allDrafts() {
		if err := d.next(ctx, time.Now()); err != nil {
			errs = append(errs, fmt.Errorf("draft %s: %w", d.area.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func (d *draft) next(ctx context.Context, now time.Time) error {
	d.mu.Lock()
	set, order, asked, adopts := d.mu.note.Set, d.mu.order, d.mu.asked, d.mu.adopts
	d.mu.Unlock()
	switch {
	case adopts:
		return nil
	case set == nil && order != "":
		if now.Sub(asked) < freezePatience {
			return nil
		}
		return nearDraft{d}.thaw(ctx, order)
	case set == nil:
		return d.expire(now)
	}
	over := d.n.orderOver(ctx, set.Order) // before the look at the catalog
	if died := order == "" && leaderOf(set.Order) == d.n.cfg.Name; !died {
		over = over && now.Sub(set.Prepared) > decideDelay
	}
	rec, err := d.n.cat.Set(ctx, set.ID)
	found := &rec
	if errors.Is(err, fs.ErrNotExist) {
		found, err = nil, nil
	}
	if err != nil {
		return err // undecided until the catalog is back
	}
	switch planNext(set, found, over, len(d.area.Files()) == len(set.Ranks), now) {
	case makeSet:
		return d.makeSet(ctx)
	case thaw:
		d.n.log.Warn("a draft's set was never begun, or given up: it is a draft again", "draft", d.area.Name(), "set", set.ID.String())
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.thawNow()
	case discard:
		d.n.event(ctx, set.ID, "dropped", "the rest of its draft: the set was %s: %s", rec.State, rec.Reason)
		return d.area.Discard()
	}
	return nil
}

// expire removes a draft that has not changed for long, and that nobody writes.
func (d *draft) expire(now time.Time) error {
	keep := d.n.cfg.DraftKeep
	i := d.area.Info()
	if i.Writers > 0 || now.Sub(i.Changed) < keep {
		return nil
	}
	if err := d.area.Freeze(); err != nil {
		if errors.Is(err, catalog.ErrConflict) {
			return nil // somebody has it open for writing after all
		}
		return err
	}
	d.n.log.Warn("draft removed: nobody has touched it for long", "draft", d.area.Name(), "files", i.Files, "bytes", i.Bytes, "changed", i.Changed)
	d.n.stats.DraftsExpired.Add(1)
	return d.area.Discard()
}

// maxDraftRows bounds what status says of drafts.
const maxDraftRows = 100

// tellDrafts tells of this node's drafts.
func (n *Node) tellDrafts() []wire.Draft {
	rows := []wire.Draft{}
	for _, d := range n.allDrafts() {
		if len(rows) == maxDraftRows {
			break
		}
		i := d.area.Info()
		row := wire.Draft{Name: d.area.Name(), Files: i.Files, Bytes: i.Bytes, Writers: i.Writers, Changed: i.Changed, Until: i.Changed.Add(n.cfg.DraftKeep), Committing: i.Frozen || d.becoming()}
		rows = append(rows, row)
	}
	return rows
}
