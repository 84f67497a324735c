package packs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
)

// Pauses before all sources are asked again.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = 5 * time.Second
)

// feed reads blocks of one shard from the first of its sources that can.
type feed struct {
	c         *Cache
	ref       restore.ShardRef
	firstHand bool
	budget    atomic.Int64 // see Handle.Retry

	mu struct {
		sync.Mutex
		round   int // how often sources were asked for
		sources []Source
		done    func()
		bad     map[string]error // by name: not asked any more this round
		corrupt map[string]error // not asked any more at all
		seal    *catalog.Seal    // nil: nobody has one
		sealed  map[string]bool  // who was asked for it: sources by name, "" is the set
		last    Kind             // of the source that gave something last
		whole   bool             // whether that one has the whole shard
	}
}

func newFeed(c *Cache, ref restore.ShardRef, firstHand bool) *feed {
	f := &feed{c: c, ref: ref, firstHand: firstHand}
	f.mu.corrupt, f.mu.sealed, f.mu.last = map[string]error{}, map[string]bool{}, Peer
	return f
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.done != nil {
		f.mu.done()
		f.mu.done = nil
	}
}

// gather asks for sources, unless another read of the feed did since round.
func (f *feed) gather(ctx context.Context, round int) (int, []Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.round == round {
		sources, done, err := f.c.opt.Sources(ctx, f.ref, f.firstHand)
		if err != nil {
			return round, nil, err
		}
		if f.mu.done != nil {
			f.mu.done()
		}
		f.mu.sources, f.mu.done, f.mu.bad = sources, done, map[string]error{}
		f.mu.round++
	}
	return f.mu.round, f.mu.sources, nil
}

// read fills p, whole blocks at off.
func (f *feed) read(ctx context.Context, p []byte, off int64) error {
	round := 0
	pause := firstPause
	for try := 0; ; try++ {
		var sources []Source
		var err error
		if round, sources, err = f.gather(ctx, round); err == nil {
			for _, s := range sources {
				if f.isBad(s) {
					continue
				}
				if err = f.from(ctx, s, p, off); err == nil {
					return nil
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				f.blame(s, err)
			}
			err = f.exhausted()
		}
		if errors.Is(err, catalog.ErrCorrupt) || try >= f.retries() {
			return err
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, maxPause)
	}
}

// retries is how often all sources are asked again.
func (f *feed) retries() int {
	if n := int(f.budget.Load()); n > 0 {
		return n
	}
	return f.c.Settings().Retries
}

// from reads from one source and holds the bytes against the seal, if there
// is one.
func (f *feed) from(ctx context.Context, s Source, p []byte, off int64) error {
	seal, err := f.seal(ctx, s)
	if err != nil {
		return err
	}
	if err := s.ReadBlocks(ctx, p, off); err != nil {
		return err
	}
	if seal != nil {
		for at := 0; at < len(p); at += catalog.BlockSize {
			if err := seal.CheckBlock(int(off/catalog.BlockSize)+at/catalog.BlockSize, p[at:min(len(p), at+catalog.BlockSize)]); err != nil {
				return err
			}
		}
	}
	f.mu.Lock()
	f.mu.last, f.mu.whole = s.Kind(), s.Whole()
	f.mu.Unlock()
	f.c.stats.fetched[s.Kind()].Add(int64(len(p)))
	return nil
}

// seal is the shard's: what its set says, else that of this or an earlier
// source; nil while nobody has one.
func (f *feed) seal(ctx context.Context, s Source) (*catalog.Seal, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c.opt.Seal != nil {
		if err := f.askSeal("", "its set", func() (*catalog.Seal, error) { return f.c.opt.Seal(ctx, f.ref) }); err != nil {
			return nil, err
		}
	}
	err := f.askSeal(s.Name(), s.Name(), func() (*catalog.Seal, error) { return s.Seal(ctx) })
	return f.mu.seal, err
}

// askSeal asks somebody for the seal once, while none is known; the lock is held.
func (f *feed) askSeal(key, who string, ask func() (*catalog.Seal, error)) error {
	if f.mu.seal != nil || f.mu.sealed[key] {
		return nil
	}
	seal, err := ask()
	if err != nil {
		return err
	}
	f.mu.sealed[key] = true
	if seal != nil && (seal.Root() != f.ref.Root || seal.Size != f.ref.Size) {
		return fmt.Errorf("%v: %w: the seal of %s is of another shard", f.ref, catalog.ErrCorrupt, who)
	}
	f.mu.seal = seal
	return nil
}

// waits says whether the next read may have to wait for what another node
// fetches in turn.
func (f *feed) waits() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.mu.sources {
		if f.mu.bad[s.Name()] == nil && f.mu.corrupt[s.Name()] == nil {
			return !s.Whole()
		}
	}
	return !f.firstHand && f.mu.round == 0 // nobody was asked for yet
}

func (f *feed) isBad(s Source) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.bad[s.Name()] != nil || f.mu.corrupt[s.Name()] != nil
}

func (f *feed) blame(s Source, err error) {
	f.mu.Lock()
	known := f.mu.bad[s.Name()] != nil
	f.mu.bad[s.Name()] = err
	if errors.Is(err, catalog.ErrCorrupt) {
		f.mu.corrupt[s.Name()] = err
	}
	f.mu.Unlock()
	if !known && !errors.Is(err, fs.ErrNotExist) {
		f.c.log.Info("source of a pack left", "shard", f.ref.String(), "source", s.Name(), "err", err)
	}
}

// blameAll leaves every source that gave something: together they gave bytes
// that are not the shard.
func (f *feed) blameAll(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.mu.sources {
		if s.Kind() == Peer {
			f.mu.corrupt[s.Name()] = err
		}
	}
}

// direct says whether the bytes come from one who has the whole shard.
func (f *feed) direct() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.firstHand || f.mu.whole
}

// exhausted is the error when no source is left: that of the worst class.
func (f *feed) exhausted() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var story []string
	class := catalog.ErrUnavailable
	for _, s := range f.mu.sources {
		err := f.mu.corrupt[s.Name()]
		if err != nil {
			class = catalog.ErrCorrupt
		} else if err = f.mu.bad[s.Name()]; err == nil {
			continue
		}
		story = append(story, s.Name()+": "+err.Error())
	}
	for _, s := range f.mu.sources { // one that may come back is worth waiting for
		if err := f.mu.bad[s.Name()]; err != nil && f.mu.corrupt[s.Name()] == nil && !errors.Is(err, fs.ErrNotExist) {
			class = catalog.ErrUnavailable
		}
	}
	if len(story) == 0 {
		return fmt.Errorf("%v: %w: no copy is in reach", f.ref, catalog.ErrUnavailable)
	}
	return fmt.Errorf("%v: %w: %s", f.ref, class, strings.Join(story, "; "))
}
