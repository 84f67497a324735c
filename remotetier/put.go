package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// Source is what Put reads: a blob of the local tier, a file, bytes. Reads
// come from several goroutines, into page-aligned memory.
type Source interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Sealed is a Source that knows the checksums of its bytes. Put compares them
// with what it read, and returns ErrCorrupt when they differ.
type Sealed interface {
	Source
	Seal() *catalog.Seal // nil: not known
}

// Vector is a Source that fills several buffers from consecutive bytes in one
// call, each a multiple of a page: a batch of stripes is then one read of the
// disk, though its units go to different columns.
type Vector interface {
	Source
	ReadvAt(bufs [][]byte, off int64) (n int, err error)
}

// Bounds of a Put.
const (
	putRetries = 4 // times it begins again because another writer had taken its generation
	putPasses  = 5 // times it reads its source: once, and again for columns whose targets failed
	openTries  = 5 // targets it tries to begin a column on, each pass

	// A driver knows better when its target is gone; these are for one that
	// does not, and for a disk that answers no more.
	openTime    = time.Minute
	writeTime   = 2 * time.Minute  // of up to 16 MiB
	commitTime  = 10 * time.Minute // of a column of any size
	cleanupTime = 10 * time.Second // of removing what must not stay
)

// Put writes a blob in a new generation and returns where it is. It streams:
// any size fits into Options.Memory. When a target fails, the column it was to
// hold goes to another one, or as the last resort to one that has a column
// already; the source is read once more for it, the other columns stay. When
// too few targets are left the error is ErrUnavailable, or ErrNoSpace when
// they lack nothing but room. ErrCorrupt means the source's bytes do not match
// its seal, or are not the same when they are read again. On any error nothing
// readable remains. The targets are those of the default pool; see Pool.
func (t *Tier) Put(ctx context.Context, blob string, src Source, layout stripe.Layout) (catalog.Place, error) {
	return t.put(ctx, t.now.Load(), "", blob, src, layout, 0)
}

// put is Put to a pool, with a generation of atLeast or more.
func (t *Tier) put(ctx context.Context, targets *members, pool, blob string, src Source, layout stripe.Layout, atLeast uint64) (catalog.Place, error) {
	layout, ctx = layout.Norm(), traffic.Default(ctx, traffic.Drain)
	fail := func(err error) (catalog.Place, error) {
		return catalog.Place{}, fmt.Errorf("put %.80s: %w", blob, err)
	}
	if err := errors.Join(CheckBlob(blob), layout.Check()); err != nil {
		return fail(err)
	}
	size := src.Size()
	if size < 0 || size > MaxBlobSize {
		return fail(fmt.Errorf("size %d: %w: want at most %d", size, catalog.ErrInvalid, int64(MaxBlobSize)))
	}
	var seal *catalog.Seal
	if s, ok := src.(Sealed); ok {
		seal = s.Seal()
	}
	if seal != nil && (seal.Size != size || len(seal.CRCs) != catalog.Blocks(size)) {
		return fail(fmt.Errorf("%w: its seal is of %d bytes, the source of %d", catalog.ErrCorrupt, seal.Size, size))
	}
	without := map[string]error{}
	for taken := 1; ; taken++ {
		p := &put{tier: t, targets: targets, pool: pool, blob: blob, src: src, size: size, seal: seal, layout: layout, column: layout.ColumnSize(size), without: without}
		place, err := p.run(ctx, atLeast)
		if err == nil {
			return place, nil
		}
		if !errors.Is(err, errTaken) || taken == putRetries || ctx.Err() != nil {
			return fail(err)
		}
	}
}

// errTaken: another writer has the generation; a newer one will do.
var errTaken = errors.New("the generation is another writer's")

// put is one attempt, with a generation of its own.
type put struct {
	tier    *Tier
	targets *members
	pool    string
	blob    string
	src     Source
	size    int64
	seal    *catalog.Seal // may be nil
	layout  stripe.Layout
	column  int64 // data bytes of each column
	gen     uint64
	without map[string]error // targets that failed

	names   []string       // of targets, by column
	writers []ColumnWriter // by column
	lost    []error        // by column: why its target does not have it
	tried   []copyAt       // commits that were begun: what they left must be found again

	summed  bool       // a pass went through: sums and content are known
	sums    [][]uint32 // by column; for k = 1 only the first
	content catalog.Digest
}

func (p *put) run(ctx context.Context, atLeast uint64) (place catalog.Place, err error) {
	n := p.layout.Columns()
	gen, end := p.tier.begin(p.blob, atLeast)
	defer end()
	p.gen, p.names, p.writers, p.lost = gen, make([]string, n), make([]ColumnWriter, n), make([]error, n)
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	defer func() {
		p.close(all)
		p.tidy(ctx, err == nil)
	}()
	want := all // columns that must be written yet
	if err := p.assign(ctx, want); err != nil {
		return place, err
	}
	for pass := 1; ; pass++ {
		if err := p.open(ctx, want); err != nil {
			return place, err
		}
		if err := p.stream(ctx, want); err != nil {
			return place, err
		}
		if err := p.commit(ctx, want); err != nil {
			return place, err
		}
		if want = p.lostOf(want); len(want) == 0 {
			break
		}
		if pass == putPasses {
			return place, p.gaveUp(want, pass)
		}
		if err := p.move(ctx, want); err != nil {
			return place, err
		}
	}
	p.crowded()
	return catalog.Place{
		Blob: p.blob, Layout: p.layout.String(), Unit: p.layout.Unit, Size: p.size,
		Generation: gen, Targets: p.names, Content: p.content,
	}, nil
}

func (p *put) key(column int) Key { return Key{Blob: p.blob, Generation: p.gen, Column: column} }

func (p *put) target(column int) *TargetInfo { return p.targets.byName[p.names[column]] }
