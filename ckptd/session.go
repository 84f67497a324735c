package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// session serves one connection of an SDK: saves and loads, one at a time.
type session struct {
	n    *Node
	uid  uint32
	conn wire.Conn

	write sync.Mutex // frames go out from writers' goroutines too

	saving *saving
	mapped map[int]uint64 // segments the client has been given: id -> generation
	leases []catalog.SetID
	holder string // of this connection's leases
}

// saving is the save in progress.
type saving struct {
	w        *shardwriter.Session
	segments map[int]*localtier.Segment
	size     int64
	lent     []*localtier.Segment
}

// saveIdle is how long a save may stand still before its memory and its room
// on disk are taken back.
const saveIdle = 10 * time.Minute

var sessionSeq struct {
	sync.Mutex
	n int
}

func (n *Node) session(ctx context.Context, c *net.UnixConn, uid uint32) error {
	sessionSeq.Lock()
	sessionSeq.n++
	seq := sessionSeq.n
	sessionSeq.Unlock()
	s := &session{n: n, uid: uid, conn: wire.Conn{U: c}, mapped: make(map[int]uint64),
		holder: fmt.Sprintf("%s-%d-%d", n.cfg.Name, os.Getpid(), seq)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The daemon's end cuts the connection, which ends the read below.
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer s.giveUp()
	defer s.unlease()
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	for first := true; ; first = false {
		if !first {
			// A rank that hangs between two slots must not hold memory for ever.
			var until time.Time
			if s.saving != nil {
				until = time.Now().Add(saveIdle)
			}
			if err := c.SetReadDeadline(until); err != nil {
				return err
			}
		}
		m, payload, fds, err := s.conn.Read()
		if err != nil {
			if errors.Is(err, catalog.ErrInvalid) {
				s.send(wire.ErrorMessage(err), nil)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		if first {
			if m.T != "hello" || m.Version != wire.Version {
				s.send(wire.ErrorMessage(fmt.Errorf("%w: want hello of version %d, got %s of version %d; update the SDK or the daemon", catalog.ErrInvalid, wire.Version, m.T, m.Version)), nil)
				return nil
			}
		}
		err = s.handle(ctx, m, payload, fds)
		for _, f := range fds {
			f.Close()
		}
		if err != nil {
			if err := s.send(wire.ErrorMessage(err), nil); err != nil {
				return err
			}
		}
	}
}

func (s *session) send(m *wire.Message, payload []byte, fds ...*os.File) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.conn.Write(m, payload, fds...)
}

func (s *session) handle(ctx context.Context, m *wire.Message, payload []byte, fds []*os.File) error {
	switch m.T {
	case "hello":
		return s.send(&wire.Message{T: "welcome", Version: wire.Version, Node: s.n.cfg.Name, Daemon: s.n.cfg.Version,
			SlotSize: s.n.arena.SlotSize(), SegmentSize: s.n.arena.SegmentSize(), MaxHeader: shardfile.MaxHeader}, nil)
	case "save":
		return s.save(ctx, m, payload)
	case "slot":
		if err := s.slot(m); err != nil {
			s.giveUp()
			return err
		}
		return nil
	case "seal":
		return s.seal(ctx)
	case "abort":
		s.giveUp()
		return s.send(&wire.Message{T: "aborted"}, nil)
	case "load":
		return s.load(ctx, m, fds)
	case "lease":
		return s.lease(ctx, m)
	}
	return fmt.Errorf("message %q: %w: unknown type", m.T, catalog.ErrInvalid)
}

// giveUp ends an unsealed save and leaves nothing of it.
func (s *session) giveUp() {
	sv := s.saving
	if sv == nil {
		return
	}
	s.saving = nil
	if err := sv.w.Close(); err != nil {
		s.n.log.Warn("given-up save", "set", sv.w.ID().String(), "err", err)
	}
	s.n.arena.Return(sv.lent...)
}

// save admits a shard: everything that can be wrong is said now, before a byte
// is copied.
func (s *session) save(ctx context.Context, m *wire.Message, header []byte) error {
	if s.saving != nil {
		return fmt.Errorf("save: %w: this connection is saving already", catalog.ErrConflict)
	}
	run, err := catalog.ParseRun(m.Run)
	if err != nil {
		return err
	}
	id := catalog.SetID{Run: run, Step: m.Step, Attempt: m.Attempt}
	if err := id.Check(); err != nil {
		return err
	}
	if m.Rank < 0 || m.Rank >= m.World {
		return fmt.Errorf("save %v: %w: rank %d is not below the world size %d", id, catalog.ErrInvalid, m.Rank, m.World)
	}
	h, err := shardfile.ParseHeader(header, m.Size)
	if err != nil {
		return fmt.Errorf("save %v rank %d: %w: the header: %v", id, m.Rank, catalog.ErrInvalid, err)
	}
	if h.FileSize != m.Size || int64(len(header)) != h.DataStart || len(header)%4096 != 0 {
		return fmt.Errorf("save %v rank %d: %w: the header is of %d bytes for a file of %d, not %d for %d, or not padded to 4 KiB", id, m.Rank, catalog.ErrInvalid, h.DataStart, h.FileSize, len(header), m.Size)
	}
	if err := s.n.begin(ctx, id, m.World, m.Metrics); err != nil {
		return err
	}
	in, err := s.n.reserve(ctx, id.ShardName(m.Rank), m.Size)
	if err != nil {
		return fmt.Errorf("save %v rank %d: %w", id, m.Rank, err)
	}
	info := catalog.ShardInfo{Set: id, Rank: m.Rank, World: m.World, Metrics: m.Metrics}
	sv := &saving{segments: make(map[int]*localtier.Segment), size: m.Size}
	sv.w = shardwriter.New(shardwriter.Spec{Info: info, Size: m.Size, Header: header}, in, shardwriter.Options{
		Journal: s.n.arena,
		Free: func(slot shardwriter.Slot) {
			// A client that left reads no more; its connection's own goroutine notices.
			_ = s.send(&wire.Message{T: "free", Seg: slot.Seg, Slot: slot.Index}, nil)
		},
	})
	s.saving = sv
	if err := s.send(&wire.Message{T: "admitted", Set: id.String()}, nil); err != nil {
		return err
	}
	if err := s.lend(ctx, sv); err != nil {
		s.giveUp()
		return err
	}
	return nil
}

// lend gives the client memory: as much as the shard needs, or as there is.
func (s *session) lend(ctx context.Context, sv *saving) error {
	want := int((sv.size + s.n.arena.SegmentSize() - 1) / s.n.arena.SegmentSize())
	prefer := make(map[int]bool, len(s.mapped))
	for id := range s.mapped {
		prefer[id] = true
	}
	segs, err := s.n.arena.LendTo(ctx, s.holder, s.uid, want, prefer)
	if err != nil {
		return fmt.Errorf("arena: %w", err)
	}
	sv.lent = segs
	for len(segs) > 0 {
		batch := segs[:min(len(segs), wire.MaxFDs)]
		segs = segs[len(batch):]
		m := &wire.Message{T: "lend"}
		var fds []*os.File
		defer func() {
			for _, f := range fds {
				f.Close()
			}
		}()
		for _, g := range batch {
			sv.segments[g.ID()] = g
			held := s.mapped[g.ID()] == g.Gen()
			m.Segments = append(m.Segments, wire.Segment{ID: g.ID(), Gen: g.Gen(), Size: int64(len(g.Bytes())), Held: held})
			if !held {
				f, err := g.File()
				if err != nil {
					return err
				}
				s.mapped[g.ID()] = g.Gen()
				fds = append(fds, f)
			}
		}
		if err := s.send(m, nil, fds...); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) slot(m *wire.Message) error {
	if s.saving == nil {
		return fmt.Errorf("slot: %w: nothing is being saved", catalog.ErrConflict)
	}
	g := s.saving.segments[m.Seg]
	if g == nil || m.Slot < 0 || m.Slot >= g.Slots() {
		return fmt.Errorf("slot %d of segment %d: %w: it was not lent", m.Slot, m.Seg, catalog.ErrInvalid)
	}
	return s.saving.w.Submit(shardwriter.Slot{Seg: m.Seg, Index: m.Slot, Data: g.Slot(m.Slot)}, m.Off, m.Len)
}

// seal ends the stall. From here on the node alone carries the shard to the
// disk and to its vote.
func (s *session) seal(ctx context.Context) error {
	sv := s.saving
	if sv == nil {
		return fmt.Errorf("seal: %w: nothing is being saved", catalog.ErrConflict)
	}
	id := sv.w.ID()
	err := s.n.cat.CheckAttempt(ctx, id.Run, id.Attempt)
	checked := err == nil
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		s.giveUp()
		return err
	}
	if err := sv.w.Seal(time.Now(), checked); err != nil {
		s.giveUp()
		return err
	}
	s.saving = nil
	s.n.stats.Saves.Add(1)
	s.n.stats.SavedBytes.Add(sv.size)
	s.n.finish(ctx, sv.w, sv.lent)
	return s.send(&wire.Message{T: "sealed", Set: id.String(), Level: catalog.Staged.String()}, nil)
}

// finish makes a sealed shard durable in the background and has it voted for.
func (n *Node) finish(ctx context.Context, w *shardwriter.Session, segs []*localtier.Segment) {
	n.finishing.Go(func() {
		seal, err := w.Finish(context.WithoutCancel(ctx))
		n.arena.Return(segs...)
		id := w.ID()
		n.setTrouble("disk", err)
		if err != nil {
			n.log.Error("sealed shard lost", "set", id.String(), "err", err)
			n.event(ctx, id, "lost", "%v", err)
			return
		}
		s, err := n.stockOf(id, seal.Name)
		if err != nil {
			n.log.Error("sealed shard unreadable", "set", id.String(), "err", err)
			return
		}
		n.inv.add(id, s)
		n.kickVote.now()
		if n.local.Usage().High {
			n.kickEvict.now()
		}
	})
}

// begin makes the set's record, unless the catalog is away and the attempt is
// known to be the newest: then the vote makes it later.
func (n *Node) begin(ctx context.Context, id catalog.SetID, world int, metrics map[string]float64) error {
	_, err := n.cat.Begin(ctx, id, world, metrics, time.Now())
	if errors.Is(err, catalog.ErrUnavailable) {
		if r, ok := n.cat.KnownRun(id.Run); ok && r.Attempt == id.Attempt {
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = wire.WithHint(fmt.Errorf("begin %v: %w: the run was never attached", id, catalog.ErrInvalid), "attach first: POST /v1/attach gives the attempt's number")
	}
	return err
}

// reserve makes room for a shard, evicting what is safe when it is short.
func (n *Node) reserve(ctx context.Context, name string, size int64) (*localtier.Ingest, error) {
	in, err := n.local.Reserve(ctx, name, size)
	var short *localtier.Shortage
	if errors.As(err, &short) {
		if _, eerr := n.evict(ctx, short.Short); eerr != nil {
			n.log.Warn("no room, and eviction failed", "err", eerr)
		}
		if in, err = n.local.Reserve(ctx, name, size); errors.As(err, &short) {
			shards, bytes := n.inv.backlog()
			return nil, wire.WithHint(err, "%d shards (%d bytes) wait for the drain and can go once they are verified remotely; `ckpt prune RUN --keep-last N` frees older sets, `ckpt status` shows the disks", shards, bytes)
		}
	}
	return in, err
}

func (s *session) lease(ctx context.Context, m *wire.Message) error {
	ref, err := catalog.ParseRef(m.Set)
	if err != nil {
		return err
	}
	rec, err := s.n.cat.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	const most = 24 * 60 * 60
	if m.Seconds < 1 || m.Seconds > most {
		return fmt.Errorf("lease of %d s: %w: want 1 to %d", m.Seconds, catalog.ErrInvalid, most)
	}
	err = s.n.cat.Lease(ctx, rec.SetID, s.holder, time.Now().Add(time.Duration(m.Seconds)*time.Second))
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	} // with the catalog away nothing can be pruned either
	s.leases = append(s.leases, rec.SetID)
	return s.send(&wire.Message{T: "leased", Set: rec.SetID.String()}, nil)
}

func (s *session) unlease() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, id := range s.leases {
		if err := s.n.cat.Unlease(ctx, id, s.holder); err != nil {
			s.n.log.Debug("lease left to run out", "set", id.String(), "err", err)
		}
	}
}

// Unfinished lists the staging files that shards sealed by an earlier process
// still need: the local tier keeps them when it opens.
func Unfinished(arena *localtier.Arena) []string {
	var staging []string
	for _, b := range arena.Records() {
		if sealed, err := shardwriter.ParseRecord(b); err == nil {
			staging = append(staging, sealed.Staging)
		}
	}
	return staging
}

// resume finishes what an earlier process of this node sealed.
func (n *Node) resume(ctx context.Context) error {
	for name, b := range n.arena.Records() {
		if err := n.resumeShard(ctx, name, b); err != nil {
			n.log.Error("sealed shard could not be resumed", "record", name, "err", err)
			n.setTrouble("resume", fmt.Errorf("%s: %w", name, err))
		}
	}
	return nil
}

func (n *Node) resumeShard(ctx context.Context, name string, b []byte) error {
	sealed, err := shardwriter.ParseRecord(b)
	if err != nil {
		return errors.Join(err, n.arena.DropRecord(name))
	}
	id := sealed.Info.Set
	shard := id.ShardName(sealed.Info.Rank)
	if _, err := n.local.Stat(shard); err == nil { // it was finished but for the record
		return n.arena.DropRecord(name)
	}
	var segs []*localtier.Segment
	byID := make(map[int]*localtier.Segment)
	// What can never be finished is dropped; anything else is left for the
	// next start, with its segments.
	fail := func(err error) error {
		if !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		n.arena.Return(segs...)
		return errors.Join(err, n.arena.DropRecord(name))
	}
	for _, seg := range sealed.Segments {
		g, err := n.arena.Claim(seg)
		if err != nil {
			return fail(err)
		}
		segs = append(segs, g)
		byID[seg] = g
	}
	in, err := n.local.Resume(ctx, shard, sealed.Staging, sealed.Size, sealed.Written)
	if err != nil {
		return fail(err)
	}
	w, err := shardwriter.Resume(sealed, in, func(seg int, at, size int64) ([]byte, error) {
		g := byID[seg]
		if g == nil || at > int64(len(g.Bytes()))-size {
			return nil, fmt.Errorf("%d bytes at %d of segment %d: %w", size, at, seg, catalog.ErrCorrupt)
		}
		return g.Bytes()[at : at+size], nil
	}, shardwriter.Options{Journal: n.arena})
	if err != nil {
		return fail(err)
	}
	n.log.Info("finishing a shard sealed before the restart", "set", id.String(), "rank", sealed.Info.Rank)
	n.finish(ctx, w, segs)
	return nil
}
