package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	leaseFor   = time.Hour
	leaseRenew = 20 * time.Minute
)

// Reader reads one committed set. While it is open nothing of the set is
// deleted. Its methods may be called from any goroutine. Close it after use.
type Reader struct {
	c        *Client
	manifest *catalog.Manifest
	raw      []byte
	opt      openOptions
	tensors  []Tensor
	byName   map[string][]int // of tensors

	life   context.Context // until Close; of reads that bring no context
	cancel context.CancelFunc
	leases sync.WaitGroup

	mu struct {
		sync.Mutex
		shards map[int]*ShardReader // those of ReadAt and ReadTensor
		closed bool
	}
}

// Tensor is a tensor, or a piece of one, and the rank whose shard has it.
type Tensor struct {
	Rank int
	catalog.Tensor
}

type openOptions struct {
	noCheck bool
	from    string
}

// OpenOption changes how a set is read.
type OpenOption func(*openOptions)

// NoCheck leaves the checksums of local files alone.
func NoCheck() OpenOption { return func(o *openOptions) { o.noCheck = true } }

// From reads from one tier only: "local", "peer" or "remote".
func From(tier string) OpenOption { return func(o *openOptions) { o.from = tier } }

// Open resolves a reference to a committed set and opens it.
func (c *Client) Open(ctx context.Context, ref string, opts ...OpenOption) (*Reader, error) {
	for try := 0; ; try++ {
		r, err := c.open(ctx, ref, opts)
		// A set may be pruned between being found and being leased; then
		// "latest" has become another one.
		if try < 3 && errors.Is(err, errPruned) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", ref, err)
		}
		return r, nil
	}
}

var errPruned = errors.New("pruned meanwhile")

func (c *Client) open(ctx context.Context, ref string, opts []OpenOption) (*Reader, error) {
	r := &Reader{c: c}
	for _, o := range opts {
		o(&r.opt)
	}
	switch r.opt.from {
	case "", "local", "peer", "remote":
	default:
		return nil, fmt.Errorf("tier %q: %w: want local, peer or remote", r.opt.from, catalog.ErrInvalid)
	}
	set, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	id, err := parseID(set.ID)
	if err != nil {
		return nil, err
	}
	if set.State != catalog.Committed {
		return nil, fmt.Errorf("%v is %s: %w", id, set.State, catalog.ErrIncomplete)
	}
	ses, err := c.lease(ctx, id, leaseFor)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errPruned, err)
	} else if err != nil {
		return nil, err
	}
	if r.raw, err = c.ManifestBytes(ctx, id.String()); err == nil {
		r.manifest, err = catalog.ParseManifest(r.raw, set.Manifest)
	}
	if err == nil && r.manifest.Set != id {
		err = fmt.Errorf("manifest of %v: %w: it is %v's", id, catalog.ErrCorrupt, r.manifest.Set)
	}
	if err != nil {
		ses.close()
		return nil, err
	}
	r.index()
	r.mu.shards = make(map[int]*ShardReader)
	r.life, r.cancel = context.WithCancel(context.Background())
	r.leases.Go(func() { r.keepLease(ses) })
	return r, nil
}

// keepLease renews the lease until the Reader closes, also when the daemon
// restarts.
func (r *Reader) keepLease(ses *session) {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-r.life.Done():
			if ses != nil {
				ses.close() // ends the lease
			}
			return
		case <-tick.C:
		}
		next, err := r.c.lease(r.life, r.manifest.Set, leaseFor)
		if ses != nil {
			ses.close()
		}
		if ses = next; err != nil {
			tick.Reset(time.Minute)
		} else {
			tick.Reset(leaseRenew)
		}
	}
}

func (r *Reader) index() {
	r.byName = make(map[string][]int)
	for i := range r.manifest.Shards {
		s := &r.manifest.Shards[i]
		for _, t := range s.Tensors {
			r.byName[t.Name] = append(r.byName[t.Name], len(r.tensors))
			r.tensors = append(r.tensors, Tensor{s.Rank, t})
		}
	}
}

// Close ends the lease and closes what was opened through the Reader, but for
// the ShardReaders that Shard returned.
func (r *Reader) Close() error {
	r.mu.Lock()
	shards := r.mu.shards
	r.mu.shards, r.mu.closed = nil, true
	r.mu.Unlock()
	r.cancel()
	for _, s := range shards {
		s.Close()
	}
	r.leases.Wait()
	return nil
}

// ID is the set that is open.
func (r *Reader) ID() catalog.SetID { return r.manifest.Set }

// Manifest is the set's list of shards and tensors. It must not be changed.
func (r *Reader) Manifest() *catalog.Manifest { return r.manifest }

// ManifestBytes is the manifest as it is stored.
func (r *Reader) ManifestBytes() []byte { return r.raw }

// Tensors lists every tensor, or piece, of every rank. It must not be changed.
func (r *Reader) Tensors() []Tensor { return r.tensors }

// load asks the daemon for ranges of a shard (nil: all of it). Without a file
// in the answer the ranges are in mem.
func (r *Reader) load(ctx context.Context, rank int, ranges [][2]int64, mem *os.File, m wire.Message) (*loaded, error) {
	m.T, m.Set, m.Rank, m.Ranges = "load", r.manifest.Set.String(), rank, ranges
	var fds []*os.File
	if mem != nil {
		fds = append(fds, mem)
	}
	ses, a, err := r.c.ask(ctx, &m, nil, fds, "loaded")
	if err != nil {
		return nil, fmt.Errorf("load %v rank %d: %w", r.manifest.Set, rank, err)
	}
	defer r.c.put(ses)
	bad := func(format string, args ...any) (*loaded, error) {
		closeFiles(a.fds)
		return nil, fmt.Errorf("load %v rank %d: %w: %s", r.manifest.Set, rank, catalog.ErrCorrupt, fmt.Sprintf(format, args...))
	}
	shard := &r.manifest.Shards[rank]
	l := &loaded{from: a.m.From, degraded: a.m.Degraded}
	if a.m.Size != shard.Size {
		return bad("it has %d bytes, not %d", a.m.Size, shard.Size)
	}
	if len(a.payload) > 0 {
		if l.seal, err = catalog.ParseSeal(a.payload); err != nil {
			return bad("%v", err)
		}
		if l.seal.Root() != shard.Root || l.seal.Size != shard.Size {
			return bad("its seal is of other bytes")
		}
	}
	switch {
	case len(a.fds) == 1:
		l.file = a.fds[0]
	case len(a.fds) > 1 || mem == nil:
		return bad("the daemon answered with %d descriptors", len(a.fds))
	}
	return l, nil
}

type loaded struct {
	from     string
	file     *os.File      // nil: the bytes are in the memory given
	seal     *catalog.Seal // when asked for
	degraded []string
}
