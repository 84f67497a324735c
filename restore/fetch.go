package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

// Limits of one Fetch.
const (
	Parallel   = 4       // reads in flight
	BatchBytes = 8 << 20 // bytes of one ReadRanges, a multiple of catalog.BlockSize
	BatchParts = 256     // ranges of one ReadRanges
)

// Source is a place that may hold copies of shards: the node's own disks, a
// peer, the remote tier. Its methods are called by several goroutines at once.
type Source interface {
	// Name is what people read: "local", "peer n2", "remote".
	Name() string
	// ReadRanges writes the given ranges (offset, length; in order, apart) of
	// the shard to w at their own offsets: bytes that passed their check and
	// nothing outside the ranges. Errors wrap a class: ErrCorrupt when this
	// copy is bad, fs.ErrNotExist when there is none, ErrUnavailable when it
	// cannot be asked now. What it wrote before an error is overwritten by
	// the next source. It checks that the shard it finds has the root asked for.
	ReadRanges(ctx context.Context, shard ShardRef, ranges [][2]int64, w io.WriterAt) (Report, error)
}

// Report says how a source got what it gave.
type Report struct {
	Bytes    int64    // at least those of the ranges; fewer is an error of the source
	Degraded []string // targets that were missing or bad, and made up for
}

// Attempt is a source that could not give what was asked.
type Attempt struct {
	Source string
	Err    error
}

// Result is how a Fetch went; it is set beside an error too.
type Result struct {
	From     string // the source that gave most of the bytes; "" when there were none
	Bytes    int64  // of the ranges
	Degraded []string
	Tried    []Attempt // sources that failed, in the order in which they did
}

// Trace is told what happens. Fields may be nil, and are called by several
// goroutines at once.
type Trace struct {
	// Bad: the source failed and is not asked again by this Fetch. ErrCorrupt
	// means that its copy should be quarantined. Called once a source, and once
	// more if another of its reads finds that the copy is corrupt after all.
	Bad func(source string, err error)
	// Read: the source gave so many bytes.
	Read func(source string, bytes int64)
}

// Fetch reads ranges (offset, length) of a shard into w, at their own offsets,
// from the first of the sources that can, the cheapest first. A source that
// fails is left out from then on, and what it owed is read from the next.
// Overlapping or unordered ranges are fine; no ranges are nothing to do.
//
// When no source is left, the error is of one class: ErrCorrupt if any copy
// was corrupt, else ErrUnavailable if any source may come back, else what the
// sources said. The bytes in w count only when the error is nil. When ctx
// ends, its error is returned and no source is blamed for it.
func Fetch(ctx context.Context, shard ShardRef, ranges [][2]int64, w io.WriterAt, sources []Source, trace Trace) (Result, error) {
	batches, err := batch(shard, ranges)
	if err != nil {
		return Result{}, fmt.Errorf("fetch %v: %w", shard, err)
	}
	f := &fetch{shard: shard, sources: sources, w: w, trace: trace}
	f.mu.bad = make([]error, len(sources))
	f.mu.gave = make([]int64, len(sources))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(Parallel)
	stopped := false
	for _, b := range batches {
		if stopped = gctx.Err() != nil; stopped {
			break
		}
		g.Go(func() error { return f.batch(gctx, b) })
	}
	if err = g.Wait(); err == nil && stopped {
		err = ctx.Err() // the batches that were begun may all have ended well
	}
	if err != nil {
		err = fmt.Errorf("fetch %v: %w", shard, err)
	}
	return f.result(), err
}

// fetch is one Fetch under way.
type fetch struct {
	shard   ShardRef
	sources []Source
	w       io.WriterAt
	trace   Trace
	mu      struct {
		sync.Mutex
		bad      []error // by source: why it is not asked any more
		gave     []int64 // by source: bytes
		tried    []Attempt
		degraded []string
	}
}

// batch reads some ranges from the first source that is not known to be bad.
func (f *fetch) batch(ctx context.Context, ranges [][2]int64) error {
	want := total(ranges)
	for i, src := range f.sources {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.isBad(i) {
			continue
		}
		rep, err := src.ReadRanges(ctx, f.shard, ranges, f.w)
		if err == nil && rep.Bytes < want {
			err = fmt.Errorf("%w: it gave %d bytes of %d", catalog.ErrUnavailable, rep.Bytes, want)
		}
		if err == nil {
			f.good(i, want, rep.Degraded)
			return nil
		}
		if ctx.Err() != nil && !errors.Is(err, catalog.ErrCorrupt) {
			return ctx.Err() // not the source's fault
		}
		f.failed(i, err)
	}
	return f.exhausted()
}

func (f *fetch) isBad(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.bad[i] != nil
}

func (f *fetch) good(i int, bytes int64, degraded []string) {
	f.mu.Lock()
	f.mu.gave[i] += bytes
	for _, d := range degraded {
		if !slices.Contains(f.mu.degraded, d) {
			f.mu.degraded = append(f.mu.degraded, d)
		}
	}
	f.mu.Unlock()
	if f.trace.Read != nil {
		f.trace.Read(f.sources[i].Name(), bytes)
	}
}

// failed leaves a source out. Several batches may find it bad at once; the
// first is told, unless only a later one knows that the copy is corrupt.
func (f *fetch) failed(i int, err error) {
	name := f.sources[i].Name()
	f.mu.Lock()
	known := f.mu.bad[i]
	worse := known != nil && !errors.Is(known, catalog.ErrCorrupt) && errors.Is(err, catalog.ErrCorrupt)
	if known == nil || worse {
		f.mu.bad[i] = err
		f.mu.tried = append(f.mu.tried, Attempt{name, err})
	}
	f.mu.Unlock()
	if (known == nil || worse) && f.trace.Bad != nil {
		f.trace.Bad(name, err)
	}
}

func (f *fetch) result() Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Result{Degraded: slices.Sorted(slices.Values(f.mu.degraded)), Tried: f.mu.tried}
	most := int64(0)
	for i, n := range f.mu.gave {
		if r.Bytes += n; n > most {
			r.From, most = f.sources[i].Name(), n
		}
	}
	return r
}

// exhausted is the error when no source is left.
func (f *fetch) exhausted() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sources) == 0 {
		return fmt.Errorf("%w: there is no source to ask", fs.ErrNotExist)
	}
	var story []string
	for _, a := range f.mu.tried {
		story = append(story, a.Source+": "+a.Err.Error())
	}
	return fmt.Errorf("%w: %s", classOf(f.mu.bad), strings.Join(story, "; "))
}

// classOf is the one class of the failure of all sources: a caller must not
// take "one has no copy" for "there is none" while another may come back.
// What has no class (a disk's EIO, a timeout of the source's own) may pass.
func classOf(errs []error) error {
	for _, class := range append([]error{catalog.ErrCorrupt, catalog.ErrUnavailable, nil, fs.ErrNotExist}, catalog.Classes...) {
		for _, err := range errs {
			if class == nil && catalog.ClassOf(err) == nil {
				return catalog.ErrUnavailable
			}
			if class != nil && errors.Is(err, class) {
				return class
			}
		}
	}
	return catalog.ErrUnavailable
}

func total(ranges [][2]int64) int64 {
	n := int64(0)
	for _, r := range ranges {
		n += r[1]
	}
	return n
}

// batch checks and sorts the ranges, joins those that touch, cuts the long
// ones at multiples of BatchBytes, and groups the short ones.
func batch(shard ShardRef, ranges [][2]int64) ([][][2]int64, error) {
	var list [][2]int64
	for _, r := range ranges {
		if r[0] < 0 || r[1] < 0 || r[0] > shard.Size-r[1] {
			return nil, fmt.Errorf("range of %d bytes at %d: %w: the shard has %d", r[1], r[0], catalog.ErrInvalid, shard.Size)
		}
		if r[1] > 0 {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	var joined [][2]int64
	for _, r := range list {
		if last := len(joined) - 1; last >= 0 && r[0] <= joined[last][0]+joined[last][1] {
			joined[last][1] = max(joined[last][1], r[0]+r[1]-joined[last][0])
		} else {
			joined = append(joined, r)
		}
	}
	var batches [][][2]int64
	var cur [][2]int64
	room := int64(BatchBytes)
	flush := func() {
		if len(cur) > 0 {
			batches, cur, room = append(batches, cur), nil, BatchBytes
		}
	}
	for _, r := range joined {
		for r[1] > 0 {
			n := min(r[1], BatchBytes-r[0]%BatchBytes)
			if n > room || len(cur) == BatchParts {
				flush()
			}
			cur = append(cur, [2]int64{r[0], n})
			room -= n
			r[0], r[1] = r[0]+n, r[1]-n
		}
	}
	flush()
	return batches, nil
}
