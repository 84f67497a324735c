package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// A client that restores a shard asks for it piece by piece, over one session.
// So a session remembers the shard of its last load, where its copies are, and
// the client's memory, for a short while.
type remembered struct {
	sync.Mutex
	key    loadKey
	shard  *asked
	memory []*clientMemory // the last one was used last
	timer  *time.Timer     // forgets; nil when there is nothing to forget
	busy   bool            // a load is using it
}

// loadKey is what a client asks for.
type loadKey struct {
	set  string
	rank int
	from string
}

// asked is a shard that is being loaded.
type asked struct {
	rec catalog.SetRecord
	*copies
	leave func() // no longer among the shard's readers; nil: it is not
}

// rememberFor is how long a session remembers after a load.
const rememberFor = 2 * time.Second

// load answers one shard to a client: its own file where this node has it, or
// its bytes from a peer or the remote tier in memory the client gave.
func (s *session) load(ctx context.Context, m *wire.Message, fds []*os.File) error {
	switch m.From {
	case "", "local", "peer", "remote":
	default:
		return fmt.Errorf("load %v: %w: from %q; want local, peer or remote", m.Set, catalog.ErrInvalid, m.From)
	}
	if isPack(m.Set) && m.From == "" {
		return s.loadPack(ctx, m, fds)
	}
	s.last.hold()
	defer s.last.release()
	shard, known, err := s.find(ctx, m)
	if err != nil {
		return err
	}
	err = s.loadFrom(ctx, shard, m, fds)
	if err != nil && known && ctx.Err() == nil && !errors.Is(err, catalog.ErrInvalid) {
		// The copies may be elsewhere by now.
		s.last.drop()
		if shard, _, err = s.find(ctx, m); err == nil {
			err = s.loadFrom(ctx, shard, m, fds)
		}
	}
	if err != nil {
		s.last.drop()
	}
	return err
}

// find looks a shard up, unless it is the one of the last load.
func (s *session) find(ctx context.Context, m *wire.Message) (shard *asked, known bool, err error) {
	key := loadKey{m.Set, m.Rank, m.From}
	if s.last.shard != nil && s.last.key == key {
		return s.last.shard, true, nil
	}
	s.last.drop()
	ref, err := catalog.ParseRef(m.Set)
	if err != nil {
		return nil, false, err
	}
	rec, err := s.n.cat.Resolve(ctx, ref)
	if err != nil {
		return nil, false, err
	}
	if m.Rank < 0 || m.Rank >= rec.World {
		return nil, false, fmt.Errorf("load %v: %w: no rank %d, the set has %d", rec.SetID, fs.ErrNotExist, m.Rank, rec.World)
	}
	where, err := s.n.locate(ctx, rec, m.Rank)
	if err != nil {
		return nil, false, err
	}
	shard = &asked{rec: rec, copies: s.n.open(where, m.From)}
	s.last.key, s.last.shard = key, shard
	return shard, false, nil
}

// loadFrom answers a load of a shard that was found.
func (s *session) loadFrom(ctx context.Context, shard *asked, m *wire.Message, fds []*os.File) error {
	where := shard.where
	ranges, err := checkRanges(m.Ranges, m.Off, where.ref)
	if err != nil {
		return err
	}
	var localErr error
	from := shard.copies
	if m.From == "" || m.From == "local" {
		var done bool
		if done, localErr = s.loadLocal(ctx, m, where, ranges); done {
			return localErr
		}
		if m.From == "local" {
			return cmp.Or(localErr, fmt.Errorf("load %v: %w: not on this node", where.ref, fs.ErrNotExist))
		}
		if where.local { // it was, and is bad
			where.local = false
			from = s.n.open(where, m.From)
			defer from.close()
		}
	}
	if len(fds) != 1 {
		return wire.WithHint(fmt.Errorf("load %v: %w: it is not on this node", where.ref, fs.ErrNotExist), "send a memfd with the request, and the daemon fills it from where the bytes are")
	}
	size, fill := extent(ranges, m.Off)
	mem, done, err := s.last.open(fds[0], m.Off, size, fill, s.n.mapped)
	if err != nil {
		return fmt.Errorf("load %v: %w", where.ref, err)
	}
	defer done()
	if shard.leave == nil {
		shard.leave = s.n.enter(where.ref)
	}
	res, err := s.n.fetchFrom(ctx, from, ranges, mem)
	if m.Off+size == where.ref.Size { // nothing follows
		shard.left()
	}
	if err != nil {
		return s.n.offerOlder(ctx, shard.rec, errors.Join(localErr, err))
	}
	s.n.stats.Loads.Add(1)
	s.n.stats.LoadedBytes.Add(res.Bytes)
	kind, _, _ := strings.Cut(res.From, " ")
	return s.send(&wire.Message{T: "loaded", From: kind, Node: res.From, Size: where.ref.Size, Filled: res.Bytes, Degraded: res.Degraded}, nil)
}

// checkRanges orders and checks the ranges of a request, for memory that
// begins at byte base of the shard; none are the whole.
func checkRanges(asked [][2]int64, base int64, ref restore.ShardRef) ([][2]int64, error) {
	if base < 0 || base > ref.Size {
		return nil, fmt.Errorf("load %v: %w: memory for its byte %d of %d", ref, catalog.ErrInvalid, base, ref.Size)
	}
	if asked == nil {
		asked = ref.Whole()
	}
	if len(asked) > wire.MaxRanges {
		return nil, fmt.Errorf("load %v: %w: %d ranges, at most %d", ref, catalog.ErrInvalid, len(asked), wire.MaxRanges)
	}
	for _, r := range asked {
		if r[0] < base || r[1] < 0 || r[0] > ref.Size-r[1] {
			return nil, fmt.Errorf("load %v: %w: the range %d+%d is outside its %d bytes, or before the memory's first, %d", ref, catalog.ErrInvalid, r[0], r[1], ref.Size, base)
		}
	}
	ranges := slices.Clone(asked)
	slices.SortFunc(ranges, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	return ranges, nil
}

// extent is how much memory the ranges need, from base on, and how much of it
// they fill.
func extent(ranges [][2]int64, base int64) (size, fill int64) {
	for _, r := range ranges {
		size, fill = max(size, r[0]+r[1]-base), fill+r[1]
	}
	return size, fill
}

// loadLocal passes the shard's own file. done is false when the next source
// has to be tried; err then says what was wrong here.
func (s *session) loadLocal(ctx context.Context, m *wire.Message, where location, ranges [][2]int64) (done bool, err error) {
	n, id := s.n, where.ref.Set
	name := where.ref.BlobName()
	b, err := n.local.Open(name)
	if errors.Is(err, fs.ErrNotExist) && !where.local {
		return false, nil
	} else if err != nil { // also when a file that should be here is gone
		return false, n.localBad(ctx, id, where.ref.Rank, err)
	}
	defer b.Close()
	if b.Seal().Root() != where.ref.Root {
		return false, fmt.Errorf("%s: %w: it is not the copy that was voted for", name, catalog.ErrCorrupt)
	}
	f, err := b.OpenFile(false)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if !m.NoCheck {
		if err := b.VerifyCached(ctx, f, ranges); errors.Is(err, catalog.ErrCorrupt) {
			return false, n.localBad(ctx, id, where.ref.Rank, err)
		} else if err != nil {
			return false, err
		}
	}
	var seal []byte
	if m.Seal {
		seal = b.Seal().Marshal()
	}
	n.stats.Loads.Add(1)
	n.stats.LoadedBytes.Add(where.ref.Size)
	return true, s.send(&wire.Message{T: "loaded", From: "local", Size: where.ref.Size}, seal, f)
}

// hold keeps what is remembered while a load uses it.
func (r *remembered) hold() {
	r.Lock()
	defer r.Unlock()
	r.busy = true
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// release lets it be forgotten, somewhat later.
func (r *remembered) release() {
	r.Lock()
	defer r.Unlock()
	r.busy = false
	r.timer = time.AfterFunc(rememberFor, r.expire)
}

func (r *remembered) expire() {
	r.Lock()
	defer r.Unlock()
	if !r.busy {
		r.drop()
		r.unmap()
	}
}

// forget ends it all, with the session.
func (r *remembered) forget() {
	r.hold()
	r.drop()
	r.unmap()
}

// left takes the session off the shard's readers.
func (a *asked) left() {
	if a.leave != nil {
		a.leave()
		a.leave = nil
	}
}

// drop forgets the shard. Its caller holds what is remembered.
func (r *remembered) drop() {
	if r.shard != nil {
		r.shard.left()
		r.shard.close()
		r.shard = nil
	}
}
