package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Readers say where they are in an order; so it is known which packs are
// needed next. The first of those that are missing are fetched ahead, and what
// is needed last is evicted first.

const (
	prefetchEvery    = 2 * time.Second
	defaultAhead     = 4       // packs
	maxAhead         = 64      // packs
	defaultLookahead = 1 << 16 // positions of the order
	maxLookahead     = 1 << 22
	farSteps         = 1 << 14 // positions looked at beyond, evenly over the rest of this epoch and the next
)

type prefetch struct {
	kick kick
	wg   sync.WaitGroup // fetches under way

	mu struct {
		sync.Mutex
		readers   map[string]*reader
		ahead     int
		lookahead int64
		coming    map[catalog.SetID]bool
		wanted    map[catalog.SetID]restore.ShardRef // by mounts, and not begun yet
	}
}

// reader is one local reader's place in its order.
type reader struct {
	version   *Version
	firsts    []int64 // first sample of each pack that has samples, ascending
	packs     []int   // of firsts
	order     wire.Order
	mode      order.Mode
	rank      int64
	world     int64
	at        int64 // samples of the epoch that all ranks together have taken
	ahead     int   // 0: the node's
	lookahead int64
	retries   int
	seen      time.Time
}

func (p *prefetch) init() {
	p.kick = newKick()
	p.mu.readers, p.mu.coming = make(map[string]*reader), make(map[catalog.SetID]bool)
	p.mu.wanted = make(map[catalog.SetID]restore.ShardRef)
	p.mu.ahead, p.mu.lookahead = defaultAhead, defaultLookahead
}

func (p *prefetch) put(key string, r *reader) {
	p.mu.Lock()
	p.mu.readers[key] = r
	p.mu.Unlock()
	p.kick.now()
}

func (p *prefetch) leave(key string) {
	p.mu.Lock()
	delete(p.mu.readers, key)
	p.mu.Unlock()
}

func (p *prefetch) effective(r *reader) (ahead int, lookahead int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(r.ahead, p.mu.ahead), cmp.Or(r.lookahead, p.mu.lookahead)
}

// maxTold bounds the readers that are told of one by one.
const maxTold = 100

// tellReaders gives the readers there are, by id.
func (n *Node) tellReaders() []wire.Reader {
	node := n.settings()
	p := &n.prefetch
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := slices.Sorted(maps.Keys(p.mu.readers))
	out := make([]wire.Reader, 0, min(len(ids), maxTold))
	for _, id := range ids[:min(len(ids), maxTold)] {
		r := p.mu.readers[id]
		out = append(out, wire.Reader{ID: id, Set: r.version.Set.String(), Rank: int(r.rank), World: int(r.world), At: r.at,
			Ahead: cmp.Or(r.ahead, node.Ahead), Lookahead: cmp.Or(r.lookahead, node.Lookahead), Retries: cmp.Or(r.retries, node.Retries)})
	}
	return out
}

// newReader checks what a client says of itself.
func newReader(v *Version, m *wire.Message) (*reader, error) {
	bad := func(format string, args ...any) (*reader, error) {
		return nil, fmt.Errorf("reader of %v: %w: %s", v.Set, catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if m.Order == nil {
		return bad("it names no order")
	}
	r := &reader{version: v, order: *m.Order, rank: int64(m.Rank), world: int64(max(1, m.World)), at: m.At, ahead: m.Ahead, lookahead: m.Lookahead, retries: m.Retries}
	switch m.Order.Mode {
	case "", "global":
	case "window":
		r.mode = order.Window(m.Order.Slice, m.Order.Group)
	default:
		return bad("mode %.40q; want global or window", m.Order.Mode)
	}
	if err := r.mode.Check(); err != nil {
		return nil, err
	}
	switch {
	case r.rank < 0 || r.rank >= r.world || r.world > catalog.MaxWorld:
		return bad("rank %d of %d", m.Rank, m.World)
	case r.at < 0 || r.at > v.Index.Samples():
		return bad("position %d of %d", r.at, v.Index.Samples())
	case r.ahead < 0 || r.ahead > maxAhead:
		return bad("ahead %d; want at most %d packs", r.ahead, maxAhead)
	case r.lookahead < 0 || r.lookahead > maxLookahead:
		return bad("lookahead %d; want at most %d samples", r.lookahead, maxLookahead)
	case r.retries < 0 || r.retries > packs.MaxRetries:
		return bad("retries %d; want at most %d", r.retries, packs.MaxRetries)
	case len(m.ID) > 200:
		return bad("an id of %d bytes; want at most 200", len(m.ID))
	}
	for i := range v.Index.Packs() {
		p, err := v.Index.Pack(i)
		if err != nil {
			return nil, err
		}
		if p.Samples > 0 {
			r.firsts, r.packs = append(r.firsts, p.FirstSample), append(r.packs, i)
		}
	}
	if !slices.IsSorted(r.firsts) {
		return nil, fmt.Errorf("index of %v: %w: its packs are not in the order of their samples", v.Set, catalog.ErrCorrupt)
	}
	return r, nil
}

// packOf is the pack of a sample, as a position in r.packs.
func (r *reader) packOf(sample int64) int {
	return sort.Search(len(r.firsts), func(i int) bool { return r.firsts[i] > sample }) - 1
}

// next gives, for each pack the reader's order needs, after how many samples
// of all ranks it does: exactly within lookahead, and by samples taken evenly
// over the rest of the epoch and the next one.
func (r *reader) next(digest catalog.Digest, n, lookahead int64) (map[int]int64, error) {
	out := map[int]int64{}
	if n == 0 || len(r.packs) == 0 {
		return out, nil
	}
	var orders [2]*order.Order
	for i := range orders {
		o, err := order.New(n, order.NewKey(digest, r.order.Seed, r.order.Epoch+uint64(i)), r.mode)
		if err != nil {
			return nil, err
		}
		orders[i] = o
	}
	look := func(pos int64) { // counted over both epochs
		if i := r.packOf(orders[pos/n].At(pos % n)); i >= 0 {
			pack := r.packs[i]
			if old, ok := out[pack]; !ok || pos-r.at < old {
				out[pack] = pos - r.at
			}
		}
	}
	pos := r.at + (r.rank-r.at%r.world+r.world)%r.world
	end := min(2*n, r.at+lookahead)
	for ; pos < end && len(out) < len(r.packs); pos += r.world {
		look(pos)
	}
	if len(out) < len(r.packs) {
		step := max(1, (2*n-pos)/farSteps)
		for ; pos < 2*n; pos += step {
			look(pos)
		}
	}
	return out, nil
}

// need is a pack that some reader needs, and when: in samples before it.
type need struct {
	ref  restore.ShardRef
	at   int64
	near bool // within a reader's lookahead
}

// planNeeds is the union of what readers need, the soonest first.
func planNeeds(all [][]need) []need {
	first := map[catalog.SetID]need{}
	for _, some := range all {
		for _, w := range some {
			if old, ok := first[w.ref.Set]; !ok || w.at < old.at {
				w.near = w.near || old.near
				first[w.ref.Set] = w
			}
		}
	}
	out := make([]need, 0, len(first))
	for _, w := range first {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b need) int { return cmp.Or(cmp.Compare(a.at, b.at), a.ref.Set.Compare(b.ref.Set)) })
	return out
}

// prefetchOnce looks at the readers' orders, tells the cache what is needed
// when, and begins to fetch what is missing.
func (n *Node) prefetchOnce(ctx context.Context) error {
	n.fetchWanted(ctx)
	p := &n.prefetch
	p.mu.Lock()
	readers := make([]*reader, 0, len(p.mu.readers))
	for _, r := range p.mu.readers {
		readers = append(readers, r)
	}
	p.mu.Unlock()
	var all [][]need
	ahead := 0
	for _, r := range readers {
		mine, lookahead := p.effective(r)
		ahead = max(ahead, mine)
		some, err := n.needs(r, lookahead)
		if err != nil {
			return err
		}
		all = append(all, some)
	}
	plan := planNeeds(all)
	next := make(map[catalog.SetID]int64, len(plan))
	for _, w := range plan {
		next[w.ref.Set] = w.at
	}
	n.packs.SetNext(next)
	for _, ref := range planAhead(plan, ahead, func(id catalog.SetID) bool {
		_, whole := n.packs.Have(id)
		return whole
	}) {
		if ctx.Err() != nil {
			break
		}
		n.fetchAhead(ctx, ref)
	}
	return nil
}

// planAhead chooses what is to come now: of what is needed and not whole here,
// the soonest, at most ahead packs, and none beyond the readers' lookahead.
func planAhead(plan []need, ahead int, whole func(catalog.SetID) bool) (out []restore.ShardRef) {
	for _, w := range plan {
		if len(out) == ahead {
			break
		}
		if w.near && !whole(w.ref.Set) {
			out = append(out, w.ref)
		}
	}
	return out
}

func (n *Node) needs(r *reader, lookahead int64) ([]need, error) {
	// The session that owns the reader may be closing the version.
	v, err := n.holdVersion(r.version)
	if err != nil {
		return nil, nil
	}
	defer v.Close()
	when, err := r.next(v.Index.Digest(), v.Index.Samples(), lookahead)
	if err != nil {
		return nil, err
	}
	out := make([]need, 0, len(when))
	for pack, at := range when {
		ref, err := v.PackRef(pack)
		if err != nil {
			return nil, err
		}
		out = append(out, need{ref: ref, at: at, near: at < lookahead})
	}
	return out, nil
}

// fetchAhead begins to fetch a pack, unless it is coming.
func (n *Node) fetchAhead(ctx context.Context, ref restore.ShardRef) {
	p := &n.prefetch
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.coming[ref.Set] || len(p.mu.coming) >= maxAhead {
		return
	}
	p.mu.coming[ref.Set] = true
	p.wg.Go(func() {
		err := n.packs.Fetch(ctx, ref)
		p.mu.Lock()
		delete(p.mu.coming, ref.Set)
		p.mu.Unlock()
		switch {
		case err == nil:
			p.kick.now()
		case !errors.Is(err, catalog.ErrNoSpace) && ctx.Err() == nil:
			n.log.Info("pack not fetched ahead", "pack", ref.Set.String(), "err", err)
		}
	})
}
