// Package store keeps the packs and versions of one dataset through the daemon
// of this node: it is the datasets.Store of programs.
//
//  1. A pack is a committed set of the dataset's run of packs, under a random step;
//     all imports of a dataset share one launch there, so that none fences another.
//  2. A version's number is one more than that of any version that was made or is
//     being made. It is chosen after its launch has attached, so that an older
//     import can no longer take it.
//  3. A version never misses a pack: when its record is in the catalog, and before
//     its last byte is given, all packs that it names are looked up once more. What
//     collects packs condemns them first, and keeps them while a version is on its
//     way, so one of the two sees the other.
package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	mrand "math/rand/v2"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	packLaunch = "import" // of every import
	tries      = 8        // when a step is taken, or another import was faster
	maxPackRef = 1e12     // steps of packs are below
)

// Store is a dataset's packs and versions.
type Store struct {
	c               *ckpt.Client
	versions, packs catalog.Run
}

var _ datasets.Store = (*Store)(nil)

// New gives the store of the dataset called name.
func New(c *ckpt.Client, name string) (*Store, error) {
	versions, err := catalog.DatasetRun(name)
	if err != nil {
		return nil, err
	}
	packs, err := catalog.PackRun(name)
	if err != nil {
		return nil, err
	}
	return &Store{c, versions, packs}, nil
}

// sets lists a run's sets, newest first; a run that nobody knows has none.
func (s *Store) sets(ctx context.Context, run catalog.Run, all bool) ([]wire.Set, error) {
	list, err := s.c.Sets(ctx, string(run), all)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

// Base gives the newest version.
func (s *Store) Base(ctx context.Context) (*datasets.Base, error) {
	list, err := s.sets(ctx, s.versions, false)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(v wire.Set) bool { return v.State == catalog.Committed })
	if i < 0 {
		return nil, nil
	}
	return s.open(ctx, list[i].ID)
}

// Version opens the index of one version, whichever is the newest. The caller
// closes it.
func (s *Store) Version(ctx context.Context, set catalog.SetID) (*datasets.Base, error) {
	if set.Run != s.versions {
		return nil, fmt.Errorf("open %v: %w: not a version of this dataset", set, catalog.ErrInvalid)
	}
	return s.open(ctx, set.String())
}

func (s *Store) open(ctx context.Context, id string) (*datasets.Base, error) {
	r, err := s.c.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	shard, err := r.Shard(0)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	end := func() error { return errors.Join(shard.Close(), r.Close()) }
	b, err := shard.BytesContext(ctx)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return &datasets.Base{Set: r.ID(), Index: b, Close: end}, nil
}

// Packs lists the committed packs, newest first.
func (s *Store) Packs(ctx context.Context) ([]catalog.SetID, error) {
	list, err := s.sets(ctx, s.packs, false)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b wire.Set) int { return b.Begun.Compare(a.Begun) })
	var ids []catalog.SetID
	for _, v := range list {
		if v.State != catalog.Committed {
			continue
		}
		id, err := setID(v.ID)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func setID(s string) (catalog.SetID, error) {
	ref, err := catalog.ParseRef(s)
	return catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}, err
}

// blob is an opened pack.
type blob struct {
	*ckpt.ShardReader
	r *ckpt.Reader
}

func (b blob) Close() error { return errors.Join(b.ShardReader.Close(), b.r.Close()) }

// OpenPack opens a pack and holds a lease on it.
func (s *Store) OpenPack(ctx context.Context, set catalog.SetID) (datasets.Stored, datasets.Blob, error) {
	r, err := s.c.Open(ctx, set.String())
	if err != nil {
		return datasets.Stored{}, nil, err
	}
	shard, err := r.Shard(0)
	if err != nil {
		return datasets.Stored{}, nil, errors.Join(err, r.Close())
	}
	m := &r.Manifest().Shards[0]
	return datasets.Stored{Set: set, Size: m.Size, Root: m.Root, Meta: m.Meta}, blob{shard, r}, nil
}

// PutPack commits a pack, durable on this node's disk.
func (s *Store) PutPack(ctx context.Context, b datasets.Put) (datasets.Stored, error) {
	for try := 1; ; try++ {
		at := ckpt.At(string(s.packs), mrand.Int64N(maxPackRef))
		id, err := s.put(ctx, at, b, nil, ckpt.Launch(packLaunch))
		if err != nil {
			// A step that is taken is refused before a byte is read.
			if errors.Is(err, fs.ErrExist) && try < tries {
				continue
			}
			return datasets.Stored{}, err
		}
		m, err := s.c.Manifest(ctx, id.String())
		if err != nil {
			return datasets.Stored{}, err
		}
		return datasets.Stored{Set: id, Size: b.Size, Root: m.Shards[0].Root, Meta: m.Shards[0].Meta}, nil
	}
}

// PutVersion commits an index under the next number.
func (s *Store) PutVersion(ctx context.Context, b datasets.Put) (catalog.SetID, error) {
	for try := 1; ; try++ {
		attempt, err := s.c.Attach(ctx, string(s.versions), "import-"+rand.Text(), 1)
		if err != nil {
			return catalog.SetID{}, err
		}
		list, err := s.sets(ctx, s.versions, true)
		if err != nil {
			return catalog.SetID{}, err
		}
		next := int64(1)
		for _, v := range list {
			id, err := setID(v.ID)
			if err != nil {
				return catalog.SetID{}, err
			}
			if v.State != catalog.Aborted {
				next = max(next, id.Step+1)
			}
		}
		version := catalog.SetID{Run: s.versions, Step: next, Attempt: attempt}
		refused := false // before it was sealed, so it cannot be committed any more
		whole := func() error {
			err := s.whole(ctx, version, b.Packs)
			refused = err != nil
			return err
		}
		id, err := s.put(ctx, ckpt.At(string(s.versions), next), b, whole, ckpt.Attempt(attempt))
		if refused {
			s.abandon(version)
		}
		if errors.Is(err, catalog.ErrFenced) {
			if try < tries {
				continue
			}
			return catalog.SetID{}, fmt.Errorf("%w: other imports of this dataset are being committed; run this one again, its packs are kept", catalog.ErrConflict)
		}
		return id, err
	}
}

// abandon ends a version that will not be, at once: while one is on its way no
// pack is collected. Left alone it ends by itself.
func (s *Store) abandon(version catalog.SetID) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if v, err := s.c.Set(ctx, version.String(), false); err == nil && v.State == catalog.Writing {
		_, _ = s.c.Remove(ctx, version.String())
	}
}

// reprievePatience bounds the wait for a coordinator that may have died between
// condemning a pack and looking for versions once more.
const reprievePatience = 90 * time.Second

// whole says that every pack is committed and stays, asked when the version that
// names them is in the catalog.
func (s *Store) whole(ctx context.Context, version catalog.SetID, packs []catalog.SetID) error {
	if len(packs) == 0 {
		return nil
	}
	v, err := s.c.Set(ctx, version.String(), false)
	if err == nil && v.State != catalog.Writing {
		err = fmt.Errorf("%v: %w: it is %s", version, catalog.ErrConflict, v.State)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%v: %w: its record is not in the catalog yet", version, catalog.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	for end := time.Now().Add(reprievePatience); ; {
		list, err := s.sets(ctx, s.packs, false)
		if err != nil {
			return err
		}
		missing, condemned := lacking(packs, list)
		switch {
		case missing > 0:
			return fmt.Errorf("%w: %d of the %d packs it names were collected meanwhile; import again, what is stored still is taken up", catalog.ErrConflict, missing, len(packs))
		case condemned == 0:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%w: %d of the packs it names are being collected, and no coordinator goes on with it", catalog.ErrUnavailable, condemned)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// lacking counts the packs that are not in a list of sets, or about to go.
func lacking(packs []catalog.SetID, list []wire.Set) (missing, condemned int) {
	there := make(map[string]bool, len(list)) // and stays
	for _, v := range list {
		if v.State == catalog.Committed {
			there[v.ID] = v.Condemned.IsZero()
		}
	}
	for _, p := range packs {
		if stays, ok := there[p.String()]; !ok {
			missing++
		} else if !stays {
			condemned++
		}
	}
	return missing, condemned
}

// Leaving asks this node what it has to bring to the remote tier yet.
func (s *Store) Leaving(ctx context.Context) (datasets.Leaving, error) {
	st, err := s.c.Status(ctx)
	if err != nil {
		return datasets.Leaving{}, err
	}
	if len(st.Remote.Targets) == 0 {
		return datasets.Leaving{}, nil // nothing goes anywhere
	}
	return datasets.Leaving{Bytes: st.Backlog.DrainBytes, Shards: st.Backlog.Drain + st.Backlog.Verify}, nil
}

// put saves a raw shard as a set of its own, and waits until it is committed.
// last, if any, is asked when all bytes but the last were given: its error ends
// the save.
func (s *Store) put(ctx context.Context, at ckpt.Point, b datasets.Put, last func() error, opts ...ckpt.SaveOption) (catalog.SetID, error) {
	save, err := s.c.Save(ctx, at, append(opts, ckpt.Rank(0, 1))...)
	if err != nil {
		return catalog.SetID{}, err
	}
	defer save.Close()
	if err := save.Raw(b.File, b.Size, &told{Put: b, save: save, last: last}); err != nil {
		return catalog.SetID{}, err
	}
	set, err := save.Commit(ctx)
	if err != nil {
		return catalog.SetID{}, err
	}
	return set.ID, set.Wait(ctx, catalog.Local)
}

// told says the metadata when the last bytes are given.
type told struct {
	datasets.Put
	save *ckpt.Save
	last func() error
}

func (t *told) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.Data.ReadAt(p, off)
	if n == len(p) && off+int64(n) == t.Size {
		if t.last != nil {
			if err := t.last(); err != nil {
				return 0, err
			}
		}
		for k, v := range maps.All(t.Meta()) {
			t.save.SealMeta(k, v)
		}
	}
	return n, err
}
