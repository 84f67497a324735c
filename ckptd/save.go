package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// saving is the save in progress.
type saving struct {
	w        *shardwriter.Session
	segments map[int]*localtier.Segment
	size     int64
	lent     []*localtier.Segment
	sealed   atomic.Bool
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
	s.n.inv.leave(sv.w.ID())
	s.n.kickVote.now() // the other ranks' votes may have waited for this one
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
	info := catalog.ShardInfo{Set: id, Rank: m.Rank, World: m.World, Metrics: m.Metrics, File: m.File, Meta: m.Meta}
	if m.Raw {
		err = checkRaw(&info, m.Size, header)
	} else {
		err = checkHeader(&info, m.Size, header)
	}
	if err != nil {
		return fmt.Errorf("save %v rank %d: %w", id, m.Rank, err)
	}
	if err := s.n.begin(ctx, id, m.World, m.Metrics); err != nil {
		return err
	}
	in, err := s.n.reserve(ctx, info.BlobName(), m.Size)
	if err != nil {
		return fmt.Errorf("save %v rank %d: %w", id, m.Rank, err)
	}
	sv := &saving{segments: make(map[int]*localtier.Segment), size: m.Size}
	sv.w = shardwriter.New(shardwriter.Spec{Info: info, Size: m.Size, Header: header}, in, shardwriter.Options{
		Journal: s.n.arena,
		Free: func(slot shardwriter.Slot) {
			if sv.sealed.Load() {
				return // the client is told no more: it may not be reading
			}
			// A client that left reads no more; its connection's own goroutine notices.
			_ = s.send(&wire.Message{T: "free", Seg: slot.Seg, Slot: slot.Index}, nil)
		},
	})
	s.saving = sv
	s.n.inv.enter(id)
	if err := s.send(&wire.Message{T: "admitted", Set: id.String()}, nil); err != nil {
		return err
	}
	if err := s.lend(ctx, sv); err != nil {
		s.giveUp()
		return err
	}
	return nil
}

// checkHeader refuses a shard of tensors whose header does not fit it.
func checkHeader(info *catalog.ShardInfo, size int64, header []byte) error {
	if info.Raw() || len(info.Meta) > 0 {
		return fmt.Errorf("%w: a file's name or meta without raw", catalog.ErrInvalid)
	}
	if err := info.Set.CheckSaved(info.World, false); err != nil {
		return err
	}
	h, err := shardfile.ParseHeader(header, size)
	if err != nil {
		return fmt.Errorf("%w: the header: %v", catalog.ErrInvalid, err)
	}
	if h.FileSize != size || int64(len(header)) != h.DataStart || len(header)%4096 != 0 {
		return fmt.Errorf("%w: the header is of %d bytes for a file of %d, not %d for %d, or not padded to 4 KiB", catalog.ErrInvalid, h.DataStart, h.FileSize, len(header), size)
	}
	return nil
}

// checkRaw refuses a raw shard that could not be kept.
func checkRaw(info *catalog.ShardInfo, size int64, header []byte) error {
	switch {
	case info.File == "":
		return fmt.Errorf("%w: a raw shard needs the name of its file", catalog.ErrInvalid)
	case len(header) > 0:
		return fmt.Errorf("%w: a raw shard has no header, %d bytes came", catalog.ErrInvalid, len(header))
	case size < 1 || size > catalog.MaxShardSize:
		return fmt.Errorf("%w: a raw shard has 1 to %d bytes, not %d; an empty file has nothing to keep", catalog.ErrInvalid, int64(catalog.MaxShardSize), size)
	}
	if err := info.Check(); err != nil {
		return err
	}
	return info.Set.CheckSaved(info.World, true)
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
func (s *session) seal(ctx context.Context, m *wire.Message) error {
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
	if err := sv.w.AddMeta(m.Meta); err != nil {
		s.giveUp()
		return err
	}
	sv.sealed.Store(true)
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
		defer n.kickVote.now()
		defer n.inv.leave(id)
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

// abandonWait is how long a save waits for an earlier one of the same shard
// whose client has just left: clearing that away takes a moment, and a rank
// that tries again at once must not be told that its shard exists.
const abandonWait = 2 * time.Second

// reserve makes room for a shard, evicting what is safe when it is short.
func (n *Node) reserve(ctx context.Context, name string, size int64) (*localtier.Ingest, error) {
	in, err := n.local.Reserve(ctx, name, size)
	for end := time.Now().Add(abandonWait); errors.Is(err, fs.ErrExist) && time.Now().Before(end); {
		if _, serr := n.local.Stat(name); serr == nil {
			return nil, err // sealed and whole
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		in, err = n.local.Reserve(ctx, name, size)
	}
	var short *localtier.Shortage
	if errors.As(err, &short) {
		if _, eerr := n.makeRoom(ctx, short.Short); eerr != nil {
			n.log.Warn("no room, and eviction failed", "err", eerr)
		}
		if in, err = n.local.Reserve(ctx, name, size); errors.As(err, &short) {
			shards, bytes := n.inv.backlog()
			return nil, wire.WithHint(err, "%d shards (%d bytes) wait for the drain and can go once they are verified remotely; `ckpt prune RUN --keep-last N` frees older sets, `ckpt status` shows the disks", shards, bytes)
		}
	}
	return in, err
}
