package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/sync/errgroup"

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

// putRetries bounds how often a Put begins again because another writer had
// taken its generation; cleanupTime bounds the removal of what a failed Put left.
const (
	putRetries  = 4
	cleanupTime = 10 * time.Second
)

// targetError is an error that another target may not have.
type targetError struct {
	target string
	err    error
}

func (e *targetError) Error() string { return e.target + ": " + e.err.Error() }
func (e *targetError) Unwrap() error { return e.err }

// Put writes a blob in a new generation and returns where it is. It streams:
// any size fits into Options.Memory. When a target fails, Put begins again
// with the targets left; when too few are left the error is ErrUnavailable, or
// ErrNoSpace when they lack nothing but room. ErrCorrupt means the source's
// bytes do not match its seal. On any error nothing readable remains. The
// targets are those of the default pool; see Pool.
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
	for taken := 0; ; {
		p := &put{tier: t, targets: targets, pool: pool, blob: blob, src: src, size: size, seal: seal, layout: layout, column: layout.ColumnSize(size)}
		place, err := p.run(ctx, atLeast, without)
		if err == nil {
			return place, nil
		}
		bad := new(targetError)
		if ctx.Err() != nil || !errors.As(err, &bad) || without[bad.target] != nil {
			return fail(err)
		}
		if errors.Is(err, fs.ErrExist) {
			if taken++; taken < putRetries {
				continue
			}
			return fail(err)
		}
		without[bad.target] = bad.err
		if f := t.opt.Trace.TargetFailed; f != nil {
			f(bad.target, blob, bad.err)
		}
	}
}

// put is one attempt, with a generation and targets of its own.
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

	names   []string // of targets, by column
	writers []ColumnWriter
	sums    [][]uint32 // by column; for k = 1 only the first
	content catalog.Digest
}

func (p *put) run(ctx context.Context, atLeast uint64, without map[string]error) (catalog.Place, error) {
	t, n := p.tier, p.layout.Columns()
	gen, end := t.begin(p.blob, atLeast)
	defer end()
	p.gen = gen
	var err error
	if p.names, err = p.targets.choose(ctx, p.pool, p.blob, gen, p.layout, fileSize(p.column), without); err != nil {
		return catalog.Place{}, err
	}
	p.writers = make([]ColumnWriter, n)
	defer func() {
		for _, w := range p.writers {
			if w != nil {
				_ = w.Close() // after Commit it does nothing; before, what it cannot remove is swept
			}
		}
	}()
	if err := p.each(ctx, func(ctx context.Context, i int) (err error) {
		p.writers[i], err = p.targets.byName[p.names[i]].Create(ctx, p.key(i), fileSize(p.column), CreateNew)
		return err
	}); err != nil {
		return catalog.Place{}, err
	}
	if err := p.stream(ctx); err != nil {
		return catalog.Place{}, err
	}
	if err := p.each(ctx, func(ctx context.Context, i int) error { return p.writers[i].Commit(ctx) }); err != nil {
		p.undo(ctx)
		return catalog.Place{}, err
	}
	return catalog.Place{
		Blob: p.blob, Layout: p.layout.String(), Unit: p.layout.Unit, Size: p.size,
		Generation: gen, Targets: p.names, Content: p.content,
	}, nil
}

func (p *put) key(column int) Key { return Key{Blob: p.blob, Generation: p.gen, Column: column} }

// each calls f for every column at once; the first error names its target.
func (p *put) each(ctx context.Context, f func(ctx context.Context, column int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, name := range p.names {
		g.Go(func() error {
			if err := f(ctx, i); err != nil {
				return &targetError{name, err}
			}
			return nil
		})
	}
	return g.Wait()
}

// undo removes columns that were committed before a sister failed to.
func (p *put) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for i, name := range p.names {
		_ = p.writers[i].Close()
		if err := p.targets.byName[name].Remove(ctx, p.key(i)); err != nil && p.tier.opt.Trace.Leftover != nil {
			p.tier.opt.Trace.Leftover(name, p.blob, err)
		}
	}
}
