package remotetier

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// Options of a Tier; the zero value works.
type Options struct {
	Rate       int64           // bytes/s that all Puts write and Verifies read together, parity included; 0: no limit
	Traffic    traffic.Options // between what this Tier does for several classes; Rate, where given, is that of traffic.Drain
	Parallel   int             // reads that one call has in flight; default 8
	Memory     int64           // bytes of column data in buffers, over all calls; default 144 MiB, at least 8 MiB
	Generation func() uint64   // default: the clock, in nanoseconds
	// Mapped is told of the large pieces of that memory when they are mapped, and
	// what it gives when they are unmapped again: a fabric with remote memory
	// access registers them. Both may be nil.
	Mapped func(mem []byte) (unmap func())
	Trace  Trace
}

// Trace is told what the Tier met and dealt with; nil fields are off. The
// functions are called from several goroutines and must not block.
type Trace struct {
	// TargetFailed: a Put gave this target up and goes on without it.
	TargetFailed func(target, blob string, err error)
	// Replanned: a Put moved a column to another target, because of err.
	Replanned func(blob string, column int, from, to string, err error)
	// Crowded: a target got more than one column of a blob, for want of others.
	Crowded func(target, blob string)
	// Degraded: a read found this column missing or corrupt and used others. Once a column and Reader.
	Degraded func(blob string, column int, target string, err error)
	// Hedged: a column's bytes had not come after that time, and were rebuilt from others sooner.
	Hedged func(blob string, column int, target string, after time.Duration)
	// Leftover: columns that should be gone could not be removed; Sweep will find them.
	Leftover func(target, blob string, err error)
}

const (
	// Half of it is a Put's ring: three batches of 4+2 columns with 4 MiB each.
	// What an exchange with a target costs does not depend on its bytes, and
	// with 1 MiB at a time the targets spent a quarter of their time on it.
	defaultMemory   = 144 << 20
	minMemory       = 8 << 20
	defaultParallel = 8
)

// Tier keeps blobs on targets. Its methods may be called concurrently. It
// holds nothing open between calls; who opened the targets closes them.
type Tier struct {
	opt  Options
	now  atomic.Pointer[members]
	bufs *buffers
	gate *traffic.Gate

	hedges *hedges

	mu struct {
		sync.Mutex
		last     uint64            // newest generation given out
		inFlight map[uint64]string // generations being written, and their blobs
	}
}

// New makes a Tier of targets. It panics on what SetTargets refuses: that is a
// mistake of the configuration's reader, who checks with CheckTargetName.
func New(targets []TargetInfo, opt Options) *Tier {
	if opt.Parallel <= 0 {
		opt.Parallel = defaultParallel
	}
	if opt.Memory <= 0 {
		opt.Memory = defaultMemory
	}
	opt.Memory = max(opt.Memory, minMemory)
	if opt.Generation == nil {
		opt.Generation = func() uint64 { return uint64(time.Now().UnixNano()) }
	}
	t := &Tier{opt: opt, bufs: newBuffers(opt.Memory, opt.Mapped), hedges: newHedges()}
	t.mu.inFlight = map[uint64]string{}
	if opt.Rate > 0 {
		opt.Traffic.Rates = maps.Clone(opt.Traffic.Rates)
		if opt.Traffic.Rates == nil {
			opt.Traffic.Rates = map[traffic.Class]int64{}
		}
		opt.Traffic.Rates[traffic.Drain] = opt.Rate
	}
	t.gate = traffic.New(opt.Traffic)
	if err := t.SetTargets(targets); err != nil {
		panic("remotetier: " + err.Error())
	}
	return t
}

// begin gives out a generation for blob, newer than atLeast and than any
// before it, and keeps Sweep away from it until the caller ends it.
func (t *Tier) begin(blob string, atLeast uint64) (gen uint64, end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	gen = max(t.opt.Generation(), t.mu.last+1, atLeast)
	t.mu.last = gen
	t.mu.inFlight[gen] = blob
	return gen, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.mu.inFlight, gen)
	}
}

func (t *Tier) writing(gen uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.mu.inFlight[gen]
	return ok
}

// pace waits until the context's class may move n bytes.
func (t *Tier) pace(ctx context.Context, n int64) error {
	return t.gate.Pass(ctx, traffic.ClassOf(ctx).Or(traffic.Drain), n)
}

// layoutOf reads a place's layout and checks the place against it.
func layoutOf(p catalog.Place) (stripe.Layout, error) {
	bad := func(why string) (stripe.Layout, error) {
		return stripe.Layout{}, fmt.Errorf("place of %.80q: %w: %s", p.Blob, catalog.ErrInvalid, why)
	}
	l, err := stripe.Parse(p.Layout)
	if err != nil {
		return bad(err.Error())
	}
	if p.Unit != 0 {
		l.Unit = p.Unit
	}
	if err := l.Check(); err != nil {
		return bad(err.Error())
	}
	if err := CheckBlob(p.Blob); err != nil {
		return bad(err.Error())
	}
	if p.Size < 0 || p.Size > MaxBlobSize || len(p.Targets) != l.Columns() {
		return bad("size or number of targets out of range")
	}
	return l, nil
}

// Map tells Options.Mapped of memory that the caller is going to read into
// again and again. The caller calls unmap before it unmaps the memory, and when
// no read uses it any more.
func (t *Tier) Map(mem []byte) (unmap func()) {
	if t.opt.Mapped != nil && len(mem) > 0 {
		if unmap = t.opt.Mapped(mem); unmap != nil {
			return unmap
		}
	}
	return func() {}
}
