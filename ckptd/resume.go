package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/shardwriter"
)

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
	shard := sealed.Info.BlobName()
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
	n.inv.enter(id)
	n.finish(ctx, w, segs)
	return nil
}
