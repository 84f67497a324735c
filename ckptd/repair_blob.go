package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// errLater says that somebody else is at the blob, or was.
var errLater = errors.New("somebody else is at it")

// mendBlob mends one blob: the columns first, then the record of where they
// are, then the end of those that moved. In this order no crash leaves less
// than there was.
func (n *Node) mendBlob(ctx context.Context, v *mendView, j mendJob) (remotetier.Mended, error) {
	return n.mendWith(ctx, j, remotetier.MendOptions{Leave: v.leaves, Deep: j.deep, Spread: j.spread})
}

func (n *Node) mendWith(ctx context.Context, j mendJob, opt remotetier.MendOptions) (remotetier.Mended, error) {
	place, err := n.placeNow(ctx, &j.placed)
	if err != nil {
		return remotetier.Mended{}, err
	}
	begin := time.Now()
	m, err := n.remote.Mend(ctx, place, opt)
	if err != nil {
		if errors.Is(err, catalog.ErrCorrupt) && ctx.Err() == nil {
			n.unsuspect(j.id, j.rank) // looking again would find the same
			n.event(ctx, j.id, "repair failed", "%s: %v", j.what(), err)
		}
		return m, err
	}
	if m.Moved() {
		now, err := n.recordPlace(ctx, &j.placed, m)
		switch {
		case err != nil:
			return m, err // the old place holds; what was written is found by the next try
		case !samePlace(&now, &m.Place):
			if err := n.remote.DropUnused(ctx, m, now); err != nil {
				n.log.Debug("column left behind", "blob", place.Blob, "err", err)
			}
			return m, errLater
		}
		if err := n.holdTargets(ctx, &m.Place); err != nil {
			return m, err // what was replaced stays; the next look finds what is gone
		}
		if err := n.remote.DropReplaced(ctx, m); err != nil {
			n.log.Debug("columns left behind", "blob", place.Blob, "err", err) // a target that is down; a scrub removes them
		}
	}
	n.unsuspect(j.id, j.rank)
	for _, c := range m.Columns {
		if c.Found { // who wrote it might have taken it back
			if rep, err := n.remote.Check(ctx, m.Place, false); err == nil && rep.Columns[c.Column].State.Bad() {
				n.suspect(j.id, j.rank)
			}
			break
		}
	}
	if len(m.Columns) > 0 {
		n.stats.MendedColumns.Add(int64(len(m.Columns)))
		n.stats.MendedBytes.Add(m.BytesWritten)
		n.event(ctx, j.id, "mended", "%s: %s in %v", j.what(), tellColumns(m.Columns), time.Since(begin).Round(time.Millisecond))
	}
	return m, nil
}

// tellColumns says what became of columns.
func tellColumns(cols []remotetier.MendedColumn) string {
	var said []string
	for _, c := range cols {
		switch {
		case c.From == c.To:
			said = append(said, fmt.Sprintf("column %d on %s was %s", c.Column, c.To, c.Was))
		case c.Was == remotetier.ColumnOK:
			said = append(said, fmt.Sprintf("column %d moved from %s to %s", c.Column, c.From, c.To))
		default:
			said = append(said, fmt.Sprintf("column %d was %s on %s, now on %s", c.Column, c.Was, c.From, c.To))
		}
	}
	return strings.Join(said, ", ")
}

// placeNow reads where a blob is by now; errLater if it is no more.
func (n *Node) placeNow(ctx context.Context, p *placed) (catalog.Place, error) {
	if p.rank == recordRank {
		return p.place, nil // it was found just now
	}
	set, err := n.cat.Set(ctx, p.id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && set.State != catalog.Committed {
		return catalog.Place{}, errLater
	} else if err != nil {
		return catalog.Place{}, err
	}
	parts, err := n.cat.Parts(ctx, p.id)
	if err != nil {
		return catalog.Place{}, err
	}
	now := catalog.Place{}
	for _, o := range placesOf(&set, parts) {
		if o.rank == p.rank && o.root == p.root && o.place.Blob == p.place.Blob && o.place.Generation == p.place.Generation && (now.Blob == "" || samePlace(&o.place, &p.place)) {
			now = o.place
		}
	}
	if now.Blob == "" {
		return now, errLater
	}
	return now, nil
}

// recordPlace records where a blob's columns are now, in every statement that
// says where they were, and gives what is recorded in the end.
func (n *Node) recordPlace(ctx context.Context, p *placed, m remotetier.Mended) (catalog.Place, error) {
	switch p.rank {
	case recordRank:
		return m.Place, nil // its columns are the record
	case manifestRank:
		set, err := n.cat.Update(ctx, p.id, func(s *catalog.SetRecord) error {
			if s.State != catalog.Committed || s.Place == nil || !samePlace(s.Place, &m.Was) {
				return catalog.ErrSame
			}
			place := m.Place
			s.Place = &place
			return nil
		})
		if err != nil || set.Place == nil {
			return catalog.Place{}, err
		}
		return *set.Place, nil
	}
	parts, err := n.cat.Parts(ctx, p.id)
	if err != nil {
		return catalog.Place{}, err
	}
	var now catalog.Place
	for _, part := range parts {
		if !slices.ContainsFunc(part.Shards, func(s catalog.PartShard) bool {
			return s.Rank == p.rank && s.Remote != nil && s.Remote.Generation == m.Was.Generation
		}) {
			continue
		}
		after, err := n.cat.UpdatePart(ctx, p.id, part.Node, func(r *catalog.PartRecord) error {
			for i := range r.Shards {
				if s := &r.Shards[i]; s.Rank == p.rank && s.Root == p.root && s.Remote != nil && samePlace(s.Remote, &m.Was) {
					place := m.Place
					s.Remote = &place
					return nil
				}
			}
			return catalog.ErrSame
		})
		if err != nil {
			return catalog.Place{}, err
		}
		if part.Node == n.cfg.Name {
			n.inv.setPart(p.id, after)
		}
		for _, s := range after.Shards {
			if s.Rank == p.rank && s.Remote != nil && (now.Blob == "" || samePlace(s.Remote, &m.Place)) {
				now = *s.Remote
			}
		}
	}
	return now, nil
}
