package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

// Found is one generation of a blob as the targets hold it.
type Found struct {
	Place    catalog.Place // as its columns say; where one is missing, the target it was written to
	Columns  []int         // that are there, in order
	Complete bool          // k or more are there
	Strays   []Stray       // columns that are on a second target too, by column and target
}

// Stray is a column on another target than the one its place names: what a
// target kept that failed a Put at its very end and came back, or what was
// copied elsewhere. It is as good as its twin until RemoveColumn removes it,
// which is the caller's to decide: only the catalog knows which is recorded.
type Stray struct {
	Column int
	Target string
}

// Scan lists what the targets hold at or under prefix, without the catalog,
// blob by blob and generation by generation, in the order of Key.Compare. An
// error beside a Found without a Blob is about a target, which is left out
// from then on; beside one with a Blob it is about that generation. Neither
// ends the iteration.
func (t *Tier) Scan(ctx context.Context, prefix string) iter.Seq2[Found, error] {
	return func(yield func(Found, error) bool) {
		targets := t.now.Load().all
		heads := make([]*listing, 0, len(targets))
		defer func() {
			for _, h := range heads {
				h.stop()
			}
		}()
		for i := range targets {
			h := &listing{target: &targets[i]}
			h.next, h.stop = iter.Pull2(targets[i].List(ctx, prefix))
			heads = append(heads, h)
			if err := h.advance(); err != nil && !yield(Found{}, err) {
				return
			}
		}
		for {
			var low *Key
			for _, h := range heads {
				if h.live && (low == nil || h.at.Key.Compare(*low) < 0) {
					low = &h.at.Key
				}
			}
			if low == nil {
				return
			}
			blob, gen := low.Blob, low.Generation
			cols := map[int][]*TargetInfo{}
			for _, h := range heads {
				for h.live && h.at.Key.Blob == blob && h.at.Key.Generation == gen {
					cols[h.at.Key.Column] = append(cols[h.at.Key.Column], h.target)
					if err := h.advance(); err != nil && !yield(Found{}, err) {
						return
					}
				}
			}
			found, err := t.identify(ctx, blob, gen, cols)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since it was listed, as when a newer generation replaced it
			}
			if !yield(found, err) {
				return
			}
		}
	}
}

// listing is one target's list, at its current entry.
type listing struct {
	target *TargetInfo
	next   func() (Entry, error, bool)
	stop   func()
	at     Entry
	live   bool
}

func (h *listing) advance() error {
	last := h.at.Key
	var err error
	first := !h.live
	if h.at, err, h.live = h.next(); err == nil && h.live && !first && h.at.Key.Compare(last) <= 0 {
		err = fmt.Errorf("%v comes after %v: %w", h.at.Key, last, catalog.ErrCorrupt) // a merge needs order
	}
	if err != nil {
		h.live = false
		return fmt.Errorf("list target %s: %w", h.target.Name(), err)
	}
	return nil
}

// identify reads one good column to learn what a generation is.
func (t *Tier) identify(ctx context.Context, blob string, gen uint64, cols map[int][]*TargetInfo) (Found, error) {
	f := Found{Place: catalog.Place{Blob: blob, Generation: gen}}
	for c := range cols {
		f.Columns = append(f.Columns, c)
	}
	slices.Sort(f.Columns)
	var errs []error
	var read atomic.Int64
	for _, c := range f.Columns {
		for _, ti := range cols[c] {
			col, err := openColumn(ctx, ti.Target, Key{Blob: blob, Generation: gen, Column: c}, &read)
			if err != nil {
				errs = append(errs, fmt.Errorf("column %d on %s: %w", c, ti.Name(), err))
				continue
			}
			_ = col.close()
			h := col.head
			f.Place.Layout, f.Place.Unit, f.Place.Size, f.Place.Content = h.Layout.String(), h.Layout.Unit, h.Size, col.content
			f.Place.Targets = slices.Clone(h.Targets)
			f.Columns = slices.DeleteFunc(f.Columns, func(c int) bool { return c >= h.Layout.Columns() })
			for _, c := range f.Columns {
				if !slices.ContainsFunc(cols[c], func(ti *TargetInfo) bool { return ti.Name() == h.Targets[c] }) {
					f.Place.Targets[c] = cols[c][0].Name() // it was moved
				}
				for _, ti := range cols[c] {
					if name := ti.Name(); name != f.Place.Targets[c] {
						f.Strays = append(f.Strays, Stray{c, name})
					}
				}
			}
			f.Complete = len(f.Columns) >= h.Layout.K
			return f, nil
		}
	}
	return f, fmt.Errorf("scan %s: %w", blob, errors.Join(errs...))
}

// Remove deletes the generations of a blob that keep (nil: none) does not keep
// from every target. Targets that failed are in the error; calling again is right.
func (t *Tier) Remove(ctx context.Context, blob string, keep func(generation uint64) bool) error {
	if err := CheckBlob(blob); err != nil {
		return err
	}
	_, err := t.sweep(ctx, blob, func(k Key) bool {
		return k.Blob != blob || keep != nil && keep(k.Generation)
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", blob, err)
	}
	return nil
}

// Swept counts what a Sweep removed.
type Swept struct {
	Columns int
	Bytes   int64
}

// Sweep removes the columns at or under prefix that keep does not keep: what
// crashed Puts and interrupted removals left. Generations this Tier is writing
// are left alone; those of other Tiers, and those whose place is not recorded
// yet, are keep's to know: let it keep generations younger than a grace.
func (t *Tier) Sweep(ctx context.Context, prefix string, keep func(blob string, generation uint64) bool) (Swept, error) {
	s, err := t.sweep(ctx, prefix, func(k Key) bool { return keep(k.Blob, k.Generation) })
	if err != nil {
		err = fmt.Errorf("sweep %q: %w", prefix, err)
	}
	return s, err
}

func (t *Tier) sweep(ctx context.Context, prefix string, keep func(k Key) bool) (Swept, error) {
	var mu sync.Mutex
	var total Swept
	var errs []error
	var g errgroup.Group
	targets := t.now.Load().all
	for i := range targets {
		ti := &targets[i]
		g.Go(func() error {
			s, err := t.sweepTarget(ctx, ti, prefix, keep)
			mu.Lock()
			defer mu.Unlock()
			total.Columns += s.Columns
			total.Bytes += s.Bytes
			if err != nil {
				errs = append(errs, fmt.Errorf("target %s: %w", ti.Name(), err))
			}
			return nil
		})
	}
	_ = g.Wait()
	return total, errors.Join(errs...)
}

func (t *Tier) sweepTarget(ctx context.Context, ti *TargetInfo, prefix string, keep func(k Key) bool) (s Swept, err error) {
	for e, err := range ti.List(ctx, prefix) {
		if err != nil {
			return s, err
		}
		if keep(e.Key) || t.writing(e.Key.Generation) {
			continue
		}
		if err := ti.Remove(ctx, e.Key); err != nil {
			return s, err
		}
		s.Columns++
		s.Bytes += e.Size
	}
	return s, nil
}
