package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// location is where the copies of one shard are.
type location struct {
	ref   restore.ShardRef
	local bool                 // on this node
	peers []catalog.NodeRecord // that say they have it and can be reached
	place *catalog.Place       // on the remote tier
	bad   []string             // copies that failed a check, and why
}

// parts reads what the nodes state about a committed set. With the catalog
// away it answers from what this node knows: its own statement, and, for the
// other ranks, the node that the manifest says they were saved on.
func (n *Node) parts(ctx context.Context, rec catalog.SetRecord) ([]catalog.PartRecord, error) {
	parts, err := n.cat.Parts(ctx, rec.SetID)
	if !errors.Is(err, catalog.ErrUnavailable) {
		return parts, err
	}
	own := make(map[int]bool)
	parts = nil
	if w, ok := n.inv.get(rec.SetID); ok && w.part != nil {
		parts = append(parts, *w.part)
		for _, s := range w.part.Shards {
			own[s.Rank] = true
		}
	}
	m, _, merr := n.manifest(ctx, rec)
	if merr != nil && len(parts) == 0 {
		return nil, errors.Join(err, merr)
	} else if merr != nil {
		return parts, nil
	}
	for _, s := range m.Shards {
		if !own[s.Rank] {
			parts = append(parts, catalog.PartRecord{Set: rec.SetID, Node: s.Node, Shards: []catalog.PartShard{
				{Rank: s.Rank, Size: s.Size, Root: s.Root, Raw: s.Raw(), Durable: m.Created, Local: true},
			}})
		}
	}
	return parts, nil
}

// locate finds the copies of a shard.
func (n *Node) locate(ctx context.Context, rec catalog.SetRecord, rank int) (location, error) {
	parts, err := n.parts(ctx, rec)
	if err != nil {
		return location{}, err
	}
	votes := catalog.Votes(rec.World, parts)
	v := votes[rank]
	if v.Shard == nil {
		return location{}, fmt.Errorf("%v rank %d: %w: no node says where it is; `ckpt catalog fsck` may tell more", rec.SetID, rank, catalog.ErrUnavailable)
	}
	loc := location{ref: restore.ShardRef{Set: rec.SetID, Rank: rank, Size: v.Shard.Size, Root: v.Shard.Root, Raw: v.Shard.Raw}}
	nodes := map[string]catalog.NodeRecord{}
	if known, err := n.cat.Nodes(ctx); err == nil {
		for _, node := range known {
			nodes[node.Name] = node
		}
	}
	for _, p := range parts {
		for _, s := range p.Shards {
			if s.Rank != rank || s.Root != v.Shard.Root {
				continue
			}
			if s.Remote != nil && (loc.place == nil || !s.Verified.IsZero()) {
				loc.place = s.Remote
			}
			if s.Bad != "" {
				loc.bad = append(loc.bad, p.Node+": "+s.Bad)
			}
			if !s.Local || s.Bad != "" {
				continue
			}
			if p.Node == n.cfg.Name {
				loc.local = true
			} else if node := nodes[p.Node]; node.Addr != "" {
				loc.peers = append(loc.peers, node)
			}
		}
	}
	return loc, nil
}

// copies are the sources of one shard, the cheapest first. They stay open until
// close is called.
type copies struct {
	where   location
	sources []restore.Source
	close   func()

	mu struct {
		sync.Mutex
		told []string // targets missing, as last told
	}
}

// open finds the sources that a client may be served from.
func (n *Node) open(where location, from string) *copies {
	c := &copies{where: where, close: func() {}}
	if where.local && (from == "" || from == "local") {
		c.sources = append(c.sources, localSource{n})
	}
	if from == "" || from == "peer" {
		for _, p := range where.peers {
			src := &peerSource{n: n, node: p}
			c.sources = append(c.sources, n.flight.Share(src))
		}
	}
	if where.place != nil && n.remote != nil && (from == "" || from == "remote") {
		src := &remoteSource{n: n, place: *where.place}
		c.close = src.close
		c.sources = append(c.sources, n.flight.Share(src))
	}
	return c
}

// fetch reads ranges of a shard into w from the cheapest source that has them.
func (n *Node) fetch(ctx context.Context, where location, ranges [][2]int64, w io.WriterAt, from string) (restore.Result, error) {
	leave := n.enter(where.ref)
	defer leave()
	c := n.open(where, from)
	defer c.close()
	return n.fetchFrom(ctx, c, ranges, w)
}

func (n *Node) fetchFrom(ctx context.Context, c *copies, ranges [][2]int64, w io.WriterAt) (restore.Result, error) {
	where := &c.where
	if len(c.sources) == 0 && len(where.bad) > 0 {
		return restore.Result{}, fmt.Errorf("%v: %w: no good copy is left: %s", where.ref, catalog.ErrCorrupt, strings.Join(where.bad, "; "))
	}
	if len(c.sources) == 0 {
		return restore.Result{}, fmt.Errorf("%v: %w: no copy is in reach", where.ref, catalog.ErrUnavailable)
	}
	res, err := restore.Fetch(ctx, where.ref, ranges, w, c.sources, restore.Trace{
		Bad: func(source string, err error) {
			n.log.Warn("bad copy", "shard", where.ref.String(), "source", source, "err", err)
			if source == "local" && errors.Is(err, catalog.ErrCorrupt) {
				if berr := n.localBad(ctx, where.ref.Set, where.ref.Rank, err); berr != nil {
					n.log.Debug("quarantine", "err", berr)
				}
			}
		},
	})
	c.mu.Lock()
	news := !slices.Equal(c.mu.told, res.Degraded)
	c.mu.told = res.Degraded
	c.mu.Unlock()
	if news && len(res.Degraded) > 0 {
		n.event(ctx, where.ref.Set, "degraded read", "rank %d without %v", where.ref.Rank, res.Degraded)
		n.suspect(where.ref.Set, where.ref.Rank)
	}
	return res, err
}

// offerOlder adds, to the error of a set that has no good copy left, which
// older one can be loaded instead.
func (n *Node) offerOlder(ctx context.Context, rec catalog.SetRecord, err error) error {
	if !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	}
	older, ok := n.older(ctx, rec)
	if !ok {
		return wire.WithHint(err, "`ckpt why %v` tells what happened; no older set of the run has a good copy in reach", rec.SetID)
	}
	return wire.WithHint(err, "the next older set with a copy of every shard in reach is %v; `ckpt why %v` tells what happened", older.SetID, rec.SetID)
}

func (n *Node) older(ctx context.Context, rec catalog.SetRecord) (catalog.SetRecord, bool) {
	sets, _ := n.cat.Known(rec.Run)
	return restore.Older(sets, rec.SetID, func(s catalog.SetRecord) bool {
		for rank := range s.World {
			loc, err := n.locate(ctx, s, rank)
			if err != nil || !loc.local && len(loc.peers) == 0 && loc.place == nil {
				return false
			}
		}
		return true
	})
}

// localSource reads from this node's disks.
type localSource struct{ n *Node }

func (localSource) Name() string { return "local" }

func (l localSource) ReadRanges(ctx context.Context, shard restore.ShardRef, ranges [][2]int64, w io.WriterAt) (restore.Report, error) {
	b, err := l.n.local.Open(shard.BlobName())
	if err != nil {
		return restore.Report{}, err
	}
	defer b.Close()
	if b.Seal().Root() != shard.Root {
		return restore.Report{}, fmt.Errorf("%v: %w: the local copy is another", shard, catalog.ErrCorrupt)
	}
	return copyBlocks(ctx, b.Seal(), b, ranges, w)
}

// remoteSource reads from the targets, over one reader for all the ranges of a
// fetch.
type remoteSource struct {
	n     *Node
	place catalog.Place

	mu struct {
		sync.Mutex
		in      *remotetier.Reader
		shard   shardReader          // what in keeps
		counted int64                // bytes read that the statistics have
		left    []*remotetier.Reader // of places that the shard has left
		closed  bool
	}
}

func (*remoteSource) Name() string { return "remote" }

func (r *remoteSource) open(ctx context.Context, shard restore.ShardRef) (*remotetier.Reader, shardReader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return nil, nil, fs.ErrClosed
	}
	if r.mu.in == nil {
		in, err := r.n.remote.Open(ctx, r.place)
		if err != nil {
			return nil, nil, err
		}
		if r.mu.shard, err = openPlace(ctx, in, r.place, shard.Size, shard.Root); err != nil {
			in.Close()
			return nil, nil, err
		}
		r.mu.in = in
	}
	return r.mu.in, r.mu.shard, nil
}

// moved says whether the shard is elsewhere by now: a repair that moved its
// columns, and dropped the old ones, is no reason for a read to fail.
func (r *remoteSource) moved(ctx context.Context, shard restore.ShardRef) bool {
	parts, err := r.n.cat.Parts(ctx, shard.Set)
	if err != nil {
		return false
	}
	place, ok := statedRemote(shard.Rank, shard.Root, parts)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !ok || r.mu.closed || samePlace(&place, &r.place) {
		return false
	}
	if r.mu.in != nil {
		r.mu.left = append(r.mu.left, r.mu.in) // somebody may be reading from it
	}
	r.place, r.mu.in, r.mu.shard = place, nil, nil
	return true
}

func (r *remoteSource) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.closed = true
	for _, in := range r.mu.left {
		_ = in.Close()
	}
	if r.mu.in != nil {
		r.count(r.mu.in.Report().BytesRead)
		r.mu.in.Close()
	}
}

// count tells the statistics what was read so far; the lock is held.
func (r *remoteSource) count(bytes int64) {
	r.n.stats.RemoteBytes.Add(bytes - r.mu.counted)
	r.mu.counted = bytes
}

// remoteChunk is how much is read at a time where the bytes must be copied.
const remoteChunk = 8 << 20

func (r *remoteSource) ReadRanges(ctx context.Context, shard restore.ShardRef, ranges [][2]int64, w io.WriterAt) (restore.Report, error) {
	rep, err := r.readRanges(ctx, shard, ranges, w)
	if err != nil && ctx.Err() == nil && r.moved(ctx, shard) {
		rep, err = r.readRanges(ctx, shard, ranges, w)
	}
	return rep, err
}

func (r *remoteSource) readRanges(ctx context.Context, shard restore.ShardRef, ranges [][2]int64, w io.WriterAt) (restore.Report, error) {
	var rep restore.Report
	in, bytes, err := r.open(ctx, shard)
	if err != nil {
		return rep, err
	}
	mem, direct := w.(*memory)
	var buf []byte
	for _, rg := range ranges {
		for off := rg[0]; off < rg[0]+rg[1]; {
			n := min(remoteChunk, rg[0]+rg[1]-off)
			var p []byte
			if direct {
				p = mem.at(off, n)
			}
			if copied := p == nil; copied {
				if int64(len(buf)) < n {
					buf = make([]byte, n)
				}
				p = buf[:n]
				if _, err := bytes.ReadAtContext(ctx, p, off); err != nil {
					return rep, err
				}
				if _, err := w.WriteAt(p, off); err != nil {
					return rep, err
				}
			} else if _, err := bytes.ReadAtContext(ctx, p, off); err != nil {
				return rep, err
			}
			off += n
			rep.Bytes += n
		}
	}
	report := in.Report()
	r.mu.Lock()
	r.count(max(report.BytesRead, r.mu.counted))
	r.mu.Unlock()
	rep.Degraded = append(slices.Clone(report.Missing), report.Corrupt...)
	return rep, nil
}

// enter counts the fetches of a shard, so that those which are alone are not
// slowed down by sharing.
func (n *Node) enter(ref restore.ShardRef) (leave func()) {
	n.reading.Lock()
	defer n.reading.Unlock()
	n.reading.of[ref]++
	return func() {
		n.reading.Lock()
		defer n.reading.Unlock()
		if n.reading.of[ref]--; n.reading.of[ref] == 0 {
			delete(n.reading.of, ref)
		}
	}
}

func (n *Node) readers(ref restore.ShardRef) int {
	n.reading.Lock()
	defer n.reading.Unlock()
	return n.reading.of[ref]
}

// copyBlocks reads whole blocks, checks each against the seal, and gives on
// what of them the ranges ask for.
func copyBlocks(ctx context.Context, seal *catalog.Seal, r io.ReaderAt, ranges [][2]int64, w io.WriterAt) (restore.Report, error) {
	var rep restore.Report
	buf := make([]byte, catalog.BlockSize)
	for _, rg := range ranges {
		for off := rg[0]; off < rg[0]+rg[1]; {
			if err := ctx.Err(); err != nil {
				return rep, err
			}
			i := off / catalog.BlockSize
			start := i * catalog.BlockSize
			p := buf[:min(catalog.BlockSize, seal.Size-start)]
			if _, err := r.ReadAt(p, start); err != nil && !errors.Is(err, io.EOF) {
				return rep, err
			}
			if err := seal.CheckBlock(int(i), p); err != nil {
				return rep, err
			}
			want := p[off-start : min(int64(len(p)), rg[0]+rg[1]-start)]
			if _, err := w.WriteAt(want, off); err != nil {
				return rep, err
			}
			off += int64(len(want))
			rep.Bytes += int64(len(want))
		}
	}
	return rep, nil
}
