package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// The scrub duty looks at every column, where it lies, at a set rate and in
// both directions: what records name must be there and be right, what is there
// must be named. What is bad is mended at once, what nobody names is removed
// when it has been seen for long enough.

const (
	scrubEvery   = 5 * time.Second  // a look at what is due
	scrubSave    = 10 * time.Second // between two notes of how far it is
	scrubSilence = 2 * time.Minute  // who has not noted anything for so long is not at it any more
	scrubWorkers = 2                // columns of one target at one time
	maxExtras    = 65536            // columns remembered that no record names
)

// scrub is what the duty remembers. A restart makes it wait for longer before
// it removes anything, which is the safe side.
type scrub struct {
	mu struct {
		sync.Mutex
		extras map[extraColumn]time.Time // seen first
	}
}

// extraColumn is a column on a target that no record names there.
type extraColumn struct {
	target string
	key    remotetier.Key
	id     catalog.SetID
}

func (s *scrub) init() { s.mu.extras = make(map[extraColumn]time.Time) }

// scrubOnce is the duty.
func (n *Node) scrubOnce(ctx context.Context) error {
	if n.remote == nil || !n.tgt.dynamic() {
		return nil
	}
	errs := []error{n.removeExtras(ctx, time.Now())}
	v := n.mendView()
	for _, t := range n.tgt.snapshot() {
		r := t.TargetRecord
		if !v.mayScrub(&r) || !scrubbable(&r) {
			continue
		}
		rec, err := n.cat.Scrub(ctx, r.Name, r.Node)
		if errors.Is(err, catalog.ErrCorrupt) {
			err = n.cat.DropScrub(ctx, r.Name, r.Node) // it begins anew
		}
		if err != nil {
			return err
		}
		if !rec.Due(v.now, n.cfg.ScrubEvery) || scrubbedByOther(&rec, n.cfg.Name, v.now) {
			continue
		}
		_, err = n.scrubTarget(ctx, r, false, nil)
		if ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
			errs = append(errs, fmt.Errorf("target %s: %w", r.Name, err)) // one that is away is told elsewhere
		}
	}
	return errors.Join(errs...)
}

// scrubbable says whether a target is worth looking at.
func scrubbable(r *catalog.TargetRecord) bool {
	return r.State.OrUp() == catalog.TargetUp || r.State == catalog.TargetSuspect || r.State == catalog.TargetDraining
}

// scrubTarget looks at every column of one target: from where it was left, or
// anew. Of a target that cannot read its own columns only the ends are read,
// unless somebody ordered the pass.
func (n *Node) scrubTarget(ctx context.Context, t catalog.TargetRecord, anew bool, progress func(catalog.ScrubRecord, int, int)) (catalog.ScrubRecord, error) {
	if err := n.cat.Sync(ctx); err != nil {
		return catalog.ScrubRecord{}, err
	}
	now := time.Now()
	rec, err := n.cat.UpdateScrub(ctx, t.Name, t.Node, func(r *catalog.ScrubRecord) error {
		if scrubbedByOther(r, n.cfg.Name, now) {
			return fmt.Errorf("%w: %s is scrubbing it", catalog.ErrConflict, r.By)
		}
		if anew || !r.Running() || r.Asked.After(r.Started) {
			*r = catalog.ScrubRecord{Target: t.Name, Node: t.Node, Started: now, Asked: r.Asked, Finished: r.Finished, Deep: anew || r.Asked.After(r.Started)}
		}
		r.By, r.Seen = n.cfg.Name, now
		return nil
	})
	if err != nil {
		return rec, err
	}
	sets := n.cat.KnownWhere("", func(s *catalog.SetRecord) bool { return s.State == catalog.Committed })
	slices.SortFunc(sets, func(a, b catalog.SetRecord) int { return cmp.Compare(a.Dir(), b.Dir()) })
	deep := rec.Deep || n.remote.ChecksItself(t.Name)
	saved := time.Now()
	runs := map[catalog.Run]bool{}
	for i, set := range sets {
		first := !runs[set.Run]
		runs[set.Run] = true
		if set.Dir() <= rec.After {
			continue
		}
		if err := n.scrubSet(ctx, t.Name, set, first, deep, &rec); err != nil {
			return rec, errors.Join(err, n.saveScrub(context.WithoutCancel(ctx), &rec))
		}
		rec.After = set.Dir()
		if progress != nil {
			progress(rec, i+1, len(sets))
		}
		if time.Since(saved) >= scrubSave {
			saved = time.Now()
			if err := n.saveScrub(ctx, &rec); err != nil {
				return rec, err
			}
		}
	}
	rec.Finished, rec.After = time.Now(), ""
	n.log.Info("target scrubbed", "target", t.Name, "columns", rec.Columns, "bytes", rec.Bytes, "bad", rec.Bad, "mended", rec.Mended, "extra", rec.Extra)
	return rec, n.saveScrub(ctx, &rec)
}

// saveScrub notes how far it is, unless somebody began anew meanwhile.
func (n *Node) saveScrub(ctx context.Context, rec *catalog.ScrubRecord) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rec.Seen = time.Now()
	_, err := n.cat.UpdateScrub(ctx, rec.Target, rec.Node, func(r *catalog.ScrubRecord) error {
		if !r.Started.Equal(rec.Started) {
			return catalog.ErrSame
		}
		asked := r.Asked
		*r = *rec
		r.Asked = asked
		return nil
	})
	return err
}

// scrubSet looks at one set's columns on a target.
func (n *Node) scrubSet(ctx context.Context, target string, set catalog.SetRecord, withRun, deep bool, rec *catalog.ScrubRecord) error {
	blobs, err := n.placesNow(ctx, set, withRun)
	if err != nil {
		return err
	}
	listed, err := n.remote.ListTarget(ctx, target, set.Dir())
	if err != nil {
		return err
	}
	if withRun {
		more, err := n.remote.ListTarget(ctx, target, runRecordName(set.Run))
		if err != nil {
			return err
		}
		listed = append(listed, more...)
	}
	plan := planScrub(target, blobs, listed)
	var mu sync.Mutex
	bad := slices.Clone(plan.missing)
	var g errgroup.Group
	g.SetLimit(scrubWorkers)
	for _, c := range plan.check {
		g.Go(func() error {
			found, err := n.remote.CheckOne(ctx, c.place, c.column, deep)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			rec.Columns++
			if deep {
				rec.Bytes += c.size
				n.stats.ScrubbedBytes.Add(c.size)
			}
			switch {
			case found.State.Bad():
				bad = append(bad, c)
				n.event(ctx, c.id, "scrub", "%s: column %d on %s is %s: %v", c.what(), c.column, target, found.State, found.Err)
			case found.State == remotetier.ColumnUnreachable:
				return fmt.Errorf("column %d of %s: %w", c.column, c.place.Blob, found.Err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, c := range plan.missing {
		n.event(ctx, c.id, "scrub", "%s: column %d on %s is missing", c.what(), c.column, target)
	}
	n.noteExtras(target, set.SetID, plan.extra)
	rec.Extra += int64(len(plan.extra))
	for _, c := range bad {
		rec.Bad++
		n.stats.ScrubBad.Add(1)
		m, err := n.mendWith(ctx, mendJob{placed: c.placed, deep: true}, remotetier.MendOptions{Deep: true})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, errLater):
			n.log.Warn("not mended", "blob", c.place.Blob, "err", err)
			n.suspect(c.id, c.rank)
		case err == nil && slices.ContainsFunc(m.Left, func(l remotetier.ColumnCheck) bool { return l.Column == c.column }):
			n.suspect(c.id, c.rank)
		default: // also what somebody else has mended meanwhile
			rec.Mended++
		}
	}
	return nil
}

// placesNow lists the blobs of a set and where they are, the records on the
// targets included.
func (n *Node) placesNow(ctx context.Context, set catalog.SetRecord, withRun bool) ([]placed, error) {
	parts, err := n.cat.Parts(ctx, set.SetID)
	if err != nil {
		return nil, err
	}
	blobs := placesOf(&set, parts)
	if set.Place == nil {
		return blobs, nil // its records are on their way
	}
	names := []string{set.RecordName()}
	if withRun {
		names = append(names, runRecordName(set.Run))
	}
	for _, name := range names {
		f, err := n.remote.FindSmall(ctx, name, nil)
		switch {
		case err == nil:
			blobs = append(blobs, placed{set.SetID, recordRank, catalog.Digest{}, f.Place})
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrUnavailable):
			n.log.Warn("record not looked at", "blob", name, "err", err)
		}
	}
	return blobs, nil
}

// noteExtras remembers columns that nobody names.
func (n *Node) noteExtras(target string, id catalog.SetID, extra []remotetier.Entry) {
	n.scrub.mu.Lock()
	defer n.scrub.mu.Unlock()
	for _, e := range extra {
		k := extraColumn{target, e.Key, id}
		if _, ok := n.scrub.mu.extras[k]; !ok && len(n.scrub.mu.extras) < maxExtras {
			n.scrub.mu.extras[k] = time.Now()
		}
	}
}

// removeExtras removes columns that no record has named for long: neither where
// they are, nor, while their generation is the set's, unless the column that is
// named is well.
func (n *Node) removeExtras(ctx context.Context, now time.Time) error {
	n.scrub.mu.Lock()
	var due []extraColumn
	for k, since := range n.scrub.mu.extras {
		if now.Sub(since) >= n.cfg.ScrubGrace {
			due = append(due, k)
		}
	}
	n.scrub.mu.Unlock()
	var errs []error
	for _, k := range due {
		err := n.removeExtra(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errLater) || errors.Is(err, catalog.ErrUnavailable) {
			continue // it is looked at again
		}
		n.scrub.mu.Lock()
		delete(n.scrub.mu.extras, k)
		n.scrub.mu.Unlock()
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n *Node) removeExtra(ctx context.Context, k extraColumn) error {
	set, err := n.cat.Set(ctx, k.id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && set.State != catalog.Committed {
		return nil // its end is another duty's
	} else if err != nil {
		return err
	}
	blobs, err := n.placesNow(ctx, set, true)
	if err != nil {
		return err
	}
	if namedHere(k.target, blobs, k.key) || !slices.ContainsFunc(blobs, func(b placed) bool { return b.place.Blob == k.key.Blob }) {
		return nil
	}
	if place, ok := namedElsewhere(blobs, k.key); ok {
		found, err := n.remote.CheckOne(ctx, place, k.key.Column, false)
		if err != nil {
			return err
		}
		if found.State != remotetier.ColumnOK {
			return errLater // it may be what the blob is mended from
		}
	}
	if err := n.remote.RemoveColumn(ctx, k.target, k.key); err != nil {
		return err
	}
	n.stats.ScrubRemoved.Add(1)
	n.event(ctx, k.id, "scrub", "%v on %s is named by no record: removed", k.key, k.target)
	return nil
}
