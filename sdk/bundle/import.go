package bundle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	undoTimeout = 10 * time.Second
	// statedTimeout bounds the wait for the vote of a shard that an earlier, killed
	// import has sealed; statedEvery is between two looks.
	statedTimeout = 30 * time.Second
	statedEvery   = 200 * time.Millisecond
)

// importLaunch begins the name of every launch that an import makes.
const importLaunch = "ckpt import"

// ImportOptions of Import; the zero value works.
type ImportOptions struct {
	Options
	To         ckpt.Point    // default the set's own run and step
	NewAttempt bool          // begin a new attempt of the run, whoever saves to it
	Until      catalog.Level // return when the set is at this level; at least Local
}

// Imported tells what Import did.
type Imported struct {
	Set     *wire.Set
	Already bool // the set was there, with these very bytes
}

// Import saves an exported set, with its metadata, metrics and tags. Until its
// last shard is sealed it can be given up, and is when anything fails. After a
// crash the same call goes on: shards that are there are not sent again.
func Import(ctx context.Context, c *ckpt.Client, s *Set, opt ImportOptions) (*Imported, error) {
	if opt.To == (ckpt.Point{}) {
		opt.To = ckpt.At(string(s.manifest.Set.Run), s.manifest.Set.Step)
	}
	i := &importer{c: c, s: s, opt: opt}
	done, err := i.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("import %v: %w", opt.To, err)
	}
	return done, nil
}

type importer struct {
	c   *ckpt.Client
	s   *Set
	opt ImportOptions

	mu     sync.Mutex
	id     catalog.SetID
	sealed int // shards of ours
}

func (i *importer) run(ctx context.Context) (*Imported, error) {
	p, err := i.plan(ctx)
	if err != nil {
		return nil, err
	}
	if p.done != "" {
		i.opt.add(i.s.Size())
		set, err := i.finish(ctx, p.done)
		return &Imported{Set: set, Already: true}, err
	}
	m := i.s.manifest
	attempt, err := i.c.Attach(ctx, i.opt.To.Run, p.launch, m.World)
	if err != nil {
		return nil, err
	}
	i.id = catalog.SetID{Run: catalog.Run(i.opt.To.Run), Step: i.opt.To.Step, Attempt: attempt}
	err = i.shards(ctx)
	if err == nil {
		var set *wire.Set
		if set, err = i.finish(ctx, i.id.String()); err == nil {
			return &Imported{Set: set}, nil
		}
		if !errors.Is(err, context.Canceled) {
			return nil, err // it is whole, and will commit
		}
	}
	i.giveUp(ctx)
	return nil, err
}

// finish waits for the set, holds its shards against the exported ones, and
// gives it its tags.
func (i *importer) finish(ctx context.Context, id string) (*wire.Set, error) {
	if _, err := i.c.Wait(ctx, id, max(i.opt.Until, catalog.Local)); err != nil {
		return nil, err
	}
	now, err := i.c.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	for rank := range now.Shards {
		if len(now.Shards) != len(i.s.manifest.Shards) || now.Shards[rank].Root != i.s.manifest.Shards[rank].Root {
			return nil, fmt.Errorf("%s: %w: it holds other bytes than were imported", id, catalog.ErrConflict)
		}
	}
	if len(i.s.record.Tags) == 0 {
		return i.c.Resolve(ctx, id)
	}
	tags := make(map[string]*string, len(i.s.record.Tags))
	for k, v := range i.s.record.Tags {
		tags[k] = &v
	}
	return i.c.Tag(ctx, id, tags)
}

// giveUp removes a set of which some shards are with the daemon already.
func (i *importer) giveUp(ctx context.Context) {
	i.mu.Lock()
	sealed := i.sealed
	i.mu.Unlock()
	if sealed == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	_, _ = i.c.Remove(ctx, i.id.String()) // the daemon aborts it by itself if it cannot be told
}

// plan asks what there is and decides.
func (i *importer) plan(ctx context.Context) (plan, error) {
	runs, err := i.c.Runs(ctx)
	if err != nil {
		return plan{}, err
	}
	var run *wire.Run
	for k := range runs {
		if runs[k].Name == i.opt.To.Run {
			run = &runs[k]
		}
	}
	if run == nil {
		return decide(i.opt.To, nil, nil, nil, i.opt.NewAttempt)
	}
	all, err := i.c.Sets(ctx, run.Name, true)
	if err != nil {
		return plan{}, err
	}
	var sets []wire.Set
	same := map[string]bool{}
	for _, s := range all {
		if s.Step != i.opt.To.Step {
			continue
		}
		sets = append(sets, s)
		if s.State == catalog.Committed {
			if same[s.ID], err = i.same(ctx, s.ID); err != nil {
				return plan{}, err
			}
		}
	}
	return decide(i.opt.To, run, sets, same, i.opt.NewAttempt)
}

// same reports whether a set's shards are the exported ones: their bytes, and of
// raw ones what is said of them, which is not in their bytes.
func (i *importer) same(ctx context.Context, id string) (bool, error) {
	m, err := i.c.Manifest(ctx, id)
	if err != nil {
		return false, err
	}
	if len(m.Shards) != len(i.s.manifest.Shards) {
		return false, nil
	}
	for rank := range m.Shards {
		a, b := &m.Shards[rank], &i.s.manifest.Shards[rank]
		if a.Root != b.Root || a.File != b.File || a.Raw() && !maps.Equal(a.Meta, b.Meta) {
			return false, nil
		}
	}
	return true, nil
}

// plan is what an import does: nothing, as a set has these very bytes, or save
// with the attempt of a launch.
type plan struct {
	done   string // ID of that set
	launch string
}

// decide chooses the launch. sets are those of the step, newest first; same
// says, by ID, which hold the exported bytes. A job that saves to the run is not
// fenced without being asked for.
func decide(at ckpt.Point, run *wire.Run, sets []wire.Set, same map[string]bool, newAttempt bool) (plan, error) {
	fresh := plan{launch: importLaunch + " " + rand.Text()[:8]}
	for _, s := range sets {
		if same[s.ID] {
			return plan{done: s.ID}, nil
		}
	}
	switch {
	case newAttempt:
		return fresh, nil
	case run == nil:
		return plan{launch: importLaunch}, nil
	}
	for _, s := range sets {
		if s.State == catalog.Committed {
			err := fmt.Errorf("%s: %w: it holds other bytes, and a committed set is never overwritten", s.ID, catalog.ErrConflict)
			return plan{}, wire.WithHint(err, "import it under another name (`ckpt import SRC RUN@STEP`), remove that set first (`ckpt rm %s`), or keep both with --new-attempt", s.ID)
		}
	}
	if !strings.HasPrefix(run.Launch, importLaunch) {
		err := fmt.Errorf("run %s: %w: launch %q saves to it (attempt %d), and an import would fence it", at.Run, catalog.ErrConflict, run.Launch, run.Attempt)
		return plan{}, wire.WithHint(err, "import into a run of another name, or with --new-attempt if that job is over")
	}
	for _, s := range sets {
		if s.Attempt == run.Attempt && s.State != catalog.Writing {
			return fresh, nil // an import that was given up
		}
	}
	return plan{launch: run.Launch}, nil
}

// shards saves those that are not there yet. When an earlier import left some,
// they go one by one, so that the set cannot commit before all of them are known
// to be right.
func (i *importer) shards(ctx context.Context) error {
	there, err := i.stated(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(shardsAtOnce * 2)
	if there != nil {
		g.SetLimit(1)
	}
	for rank := range i.s.manifest.Shards {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			if err := i.shard(gctx, rank, there); err != nil {
				return fmt.Errorf("rank %d: %w", rank, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// stated is what the daemons say they have of the set, by rank; nil when it was
// not begun.
func (i *importer) stated(ctx context.Context) (map[int]catalog.Digest, error) {
	d, err := i.c.Set(ctx, i.id.String(), false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	roots := make(map[int]catalog.Digest, len(d.Shards))
	for _, s := range d.Shards {
		roots[s.Rank] = s.Root
	}
	return roots, nil
}

func (i *importer) shard(ctx context.Context, rank int, there map[int]catalog.Digest) error {
	want := &i.s.manifest.Shards[rank]
	if root, ok := there[rank]; ok {
		return i.skip(root, want)
	}
	sh, err := i.s.Shard(ctx, rank)
	if err != nil {
		return err
	}
	defer sh.Close()
	save, err := i.c.Save(ctx, i.opt.To, ckpt.Rank(rank, i.s.manifest.World), ckpt.Attempt(i.id.Attempt), ckpt.Metrics(i.s.manifest.Metrics))
	if err != nil {
		return err
	}
	defer save.Close()
	header := int64(0) // bytes that are not read below
	if want.Raw() {
		for k, v := range want.Meta {
			save.Meta(k, v)
		}
		err = save.Raw(want.File, sh.Size(), told{sh, i.opt.add})
	} else {
		header = sh.Header().DataStart
		err = save.Shard(sh.Header().Bytes(), sh.Size(), told{sh, i.opt.add})
	}
	if err != nil {
		return err
	}
	_, err = save.Commit(ctx)
	if errors.Is(err, fs.ErrExist) {
		return i.await(ctx, want)
	} else if err != nil {
		return damaged(i.s.from, err)
	}
	i.opt.add(header)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sealed++
	return nil
}

// skip accepts a shard that is there.
func (i *importer) skip(root catalog.Digest, want *catalog.Shard) error {
	if root != want.Root {
		return wire.WithHint(fmt.Errorf("%w: an import of other bytes was cut short there", catalog.ErrConflict), "begin anew with --new-attempt")
	}
	i.opt.add(want.Size)
	return nil
}

// await waits for the vote of a shard that an earlier import has sealed.
func (i *importer) await(ctx context.Context, want *catalog.Shard) error {
	ctx, cancel := context.WithTimeout(ctx, statedTimeout)
	defer cancel()
	tick := time.NewTicker(statedEvery)
	defer tick.Stop()
	for {
		there, err := i.stated(ctx)
		if err != nil {
			return err
		}
		if root, ok := there[want.Rank]; ok {
			return i.skip(root, want)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: it is sealed, and no node says that it is durable: %w", catalog.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// told says how much was read.
type told struct {
	io.ReaderAt
	add func(int64)
}

func (t told) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.ReaderAt.ReadAt(p, off)
	t.add(int64(n))
	return n, err
}
