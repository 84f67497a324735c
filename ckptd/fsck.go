package ckptd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/sdk/wire"
)

func (n *Node) postFsck(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.FsckRequest](c)
	if err != nil {
		return err
	}
	return long(c, func(progress func(wire.Progress)) (wire.FsckResult, error) { return n.fsck(ctx, q.Mend, progress) })
}

// fsck compares the catalog with this node's disks and the targets. Mending
// corrects statements and removes columns that no statement of a known set
// names; it never removes bytes of a set the catalog does not know.
func (n *Node) fsck(ctx context.Context, mend bool, progress func(wire.Progress)) (wire.FsckResult, error) {
	f := &fsckRun{n: n, mend: mend, remote: make(map[string][]remotetier.Found)}
	f.res.Problems = []wire.FsckProblem{}
	if err := n.cat.Sync(ctx); err != nil {
		return f.res, err
	}
	if err := n.wholeRemote(); err != nil {
		return f.res, err
	}
	if n.remote != nil {
		for found, err := range n.remote.Scan(ctx, "") {
			if err != nil {
				return f.res, err
			}
			f.remote[found.Place.Blob] = append(f.remote[found.Place.Blob], found)
		}
	}
	known, _ := n.cat.Known("")
	for i, rec := range known {
		progress(wire.Progress{What: "sets", Done: int64(i), Total: int64(len(known)), Unit: "sets"})
		f.res.Sets++
		var err error
		if rec.State == catalog.Committed {
			err = f.set(ctx, rec)
		}
		if errors.Is(err, catalog.ErrUnavailable) || ctx.Err() != nil {
			return f.res, err
		} else if err != nil {
			f.problem(rec.SetID, false, "%v", err)
		}
	}
	f.strangers()
	if mend {
		return f.res, n.voteOnce(ctx)
	}
	return f.res, nil
}

type fsckRun struct {
	n      *Node
	mend   bool
	res    wire.FsckResult
	remote map[string][]remotetier.Found
}

func (f *fsckRun) problem(id catalog.SetID, mended bool, format string, args ...any) {
	p := wire.FsckProblem{What: fmt.Sprintf(format, args...), Mended: mended}
	if id.Run != "" {
		p.ID = id.String()
	}
	f.res.Problems = append(f.res.Problems, p)
}

func (f *fsckRun) set(ctx context.Context, rec catalog.SetRecord) error {
	n, id := f.n, rec.SetID
	parts, err := n.cat.Parts(ctx, id)
	if err != nil {
		return err
	}
	w, _ := n.inv.get(id)
	for _, p := range parts {
		for _, s := range p.Shards {
			if p.Node == n.cfg.Name {
				if err := f.local(ctx, rec, w, s); err != nil {
					return err
				}
			}
			if s.Remote != nil && n.remote != nil {
				if err := f.columns(ctx, rec, p.Node, s); err != nil {
					return err
				}
			}
		}
	}
	for rank, v := range catalog.Votes(rec.World, parts) {
		if v.Shard == nil || catalog.ShardLevel(rank, v.Shard.Root, parts) == catalog.LevelNone {
			f.problem(id, false, "rank %d has no good copy", rank)
		}
	}
	if _, _, err := n.manifest(ctx, rec); err != nil {
		f.problem(id, false, "the manifest cannot be read: %v", err)
	}
	if err := n.wholeVersion(ctx, rec); err != nil {
		f.problem(id, false, "%v", err)
	}
	if err := f.record(ctx, rec); err != nil {
		return err
	}
	if parts, err = n.cat.Parts(ctx, id); err != nil {
		return err
	}
	if is := catalog.LevelOf(&rec, parts); is != rec.Level {
		f.problem(id, f.mend, "its level is %v, the record says %v", is, rec.Level)
		if f.mend {
			return n.raiseLevel(ctx, id)
		}
	}
	return nil
}

// record compares the set's record with the copy on the targets, which a
// coordinator that died may have left behind.
func (f *fsckRun) record(ctx context.Context, rec catalog.SetRecord) error {
	if f.n.remote == nil || rec.Place == nil {
		return nil
	}
	var far catalog.SetRecord
	b, _, err := f.n.remote.GetSmall(ctx, rec.RecordName())
	if err == nil {
		err = json.Unmarshal(b, &far)
	}
	if err == nil && far.Version >= rec.Version {
		return nil
	}
	f.problem(rec.SetID, f.mend, "the copy of its record on the targets is missing or old")
	if !f.mend {
		return nil
	}
	if b, err = json.Marshal(rec); err != nil {
		return err
	}
	return f.n.publishRecord(ctx, rec, b)
}

// local compares what this node states of a shard with its disks.
func (f *fsckRun) local(ctx context.Context, rec catalog.SetRecord, w view, s catalog.PartShard) error {
	i := slices.IndexFunc(w.shards, func(h held) bool { return h.rank == s.Rank })
	if !s.Local {
		return nil
	}
	if i >= 0 && w.shards[i].root == s.Root {
		if _, err := f.n.local.Stat(w.shards[i].name); err == nil {
			return nil
		}
	}
	f.problem(rec.SetID, f.mend, "rank %d should be on this node's disks and is not", s.Rank)
	if !f.mend {
		return nil
	}
	return f.n.state(ctx, rec.SetID, s.Rank, s.Root, func(t *catalog.PartShard) { t.Local, t.Bad = false, "the file is gone" })
}

// columns compares a remote place with what the targets hold.
func (f *fsckRun) columns(ctx context.Context, rec catalog.SetRecord, node string, s catalog.PartShard) error {
	l, err := stripe.Parse(s.Remote.Layout)
	if err != nil {
		return err
	}
	have := 0
	for _, found := range f.remote[s.Remote.Blob] {
		if found.Place.Generation == s.Remote.Generation {
			have = len(found.Columns)
			continue
		}
		f.problem(rec.SetID, f.mend, "rank %d: columns of generation %d are nobody's", s.Rank, found.Place.Generation)
		if f.mend {
			gen := s.Remote.Generation
			if err := f.n.remote.Remove(ctx, s.Remote.Blob, func(g uint64) bool { return g == gen }); err != nil {
				return err
			}
		}
	}
	switch all := l.K + l.M; {
	case have == all:
	case have >= l.K:
		f.problem(rec.SetID, false, "rank %d: %d of %d columns are missing; reads go on", s.Rank, all-have, all)
	default:
		mends := f.mend && node == f.n.cfg.Name
		f.problem(rec.SetID, mends, "rank %d: %d of %d columns are missing: the remote copy is lost", s.Rank, all-have, all)
		if mends {
			f.n.kickDrain.now()
			return f.n.state(ctx, rec.SetID, s.Rank, s.Root, func(t *catalog.PartShard) { t.Remote, t.Drained, t.Verified = nil, time.Time{}, time.Time{} })
		}
	}
	return nil
}

// strangers reports sets on the tiers that the catalog does not know.
func (f *fsckRun) strangers() {
	told := make(map[catalog.SetID]bool)
	tell := func(id catalog.SetID, where string) {
		if _, ok := f.n.cat.KnownSet(id); !ok && !told[id] {
			told[id] = true
			f.problem(id, false, "%s, and the catalog does not know it; `ckpt catalog rebuild` brings it back", where)
		}
	}
	for _, w := range f.n.inv.all() {
		if len(w.shards) > 0 {
			tell(w.id, "it is on this node's disks")
		}
	}
	for blob := range f.remote {
		dir, file, _ := cutLast(blob)
		if file == "run.json" {
			continue
		}
		if id, err := catalog.ParseDir(dir); err == nil {
			tell(id, "it is on the targets")
		}
	}
}

func (n *Node) postVerify(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.VerifyRequest](c)
	if err != nil {
		return err
	}
	var sets []catalog.SetRecord
	var missing []catalog.SetID // packs
	switch {
	case q.All:
		if err := n.cat.Sync(ctx); err != nil {
			return err
		}
		known, _ := n.cat.Known("")
		for _, s := range known {
			if s.State == catalog.Committed {
				sets = append(sets, s)
			}
		}
	case q.Dataset:
		if sets, missing, err = n.setsOfVersion(ctx, q.Ref); err != nil {
			return err
		}
	default:
		ref, err := catalog.ParseRef(q.Ref)
		if err != nil {
			return err
		}
		rec, err := n.cat.Resolve(ctx, ref)
		if err != nil {
			return err
		}
		sets = append(sets, rec)
	}
	return long(c, func(progress func(wire.Progress)) (wire.VerifyResult, error) {
		res, err := n.verify(ctx, sets, q.Deep, progress)
		for _, id := range missing {
			res.Bad = append(res.Bad, wire.BadCopy{ID: id.String(), Rank: -1, Tier: "any", Err: "the catalog has no such pack: the files in it cannot be read"})
		}
		return res, err
	})
}

// verify reads copies and checks them: those on this node's disks, cached ones of
// packs too, and, when deep or when there is no other, those on the targets.
func (n *Node) verify(ctx context.Context, sets []catalog.SetRecord, deep bool, progress func(wire.Progress)) (wire.VerifyResult, error) {
	res := wire.VerifyResult{Bad: []wire.BadCopy{}}
	var done, total int64
	for _, s := range sets {
		total += s.Size
	}
	for _, rec := range sets {
		res.Sets++
		if _, _, err := n.manifest(ctx, rec); err != nil {
			res.Bad = append(res.Bad, wire.BadCopy{ID: rec.SetID.String(), Rank: -1, Tier: "any", Err: err.Error()})
			continue
		}
		for rank := range rec.World {
			loc, err := n.locate(ctx, rec, rank)
			if err != nil {
				return res, err
			}
			bad := func(tier string, err error) {
				res.Bad = append(res.Bad, wire.BadCopy{ID: rec.SetID.String(), Rank: rank, Tier: tier, Node: n.cfg.Name, Err: err.Error()})
			}
			if !loc.local && len(loc.peers) == 0 && loc.place == nil {
				bad("any", fmt.Errorf("%w: no good copy is left: %s", catalog.ErrCorrupt, strings.Join(loc.bad, "; ")))
			}
			if loc.local {
				before := done
				err := n.local.Verify(ctx, loc.ref.BlobName(), func(k int64) {
					progress(wire.Progress{What: rec.SetID.String(), Done: before + k, Total: total, Unit: "bytes"})
				})
				res.Copies++
				res.Bytes += loc.ref.Size
				if errors.Is(err, catalog.ErrCorrupt) {
					err = n.localBad(ctx, rec.SetID, rank, err)
				}
				if ctx.Err() != nil {
					return res, ctx.Err()
				} else if err != nil {
					bad("local", err)
				}
			}
			if cached, err := n.verifyCached(ctx, rec.SetID); cached {
				res.Copies++
				res.Bytes += loc.ref.Size
				if ctx.Err() != nil {
					return res, ctx.Err()
				} else if err != nil {
					bad("cache", err)
				}
			}
			if loc.place != nil && n.remote != nil && (deep || !loc.local) {
				err := n.verifyPlace(ctx, *loc.place, loc.ref.Size, loc.ref.Root)
				res.Copies++
				res.Bytes += loc.ref.Size
				if ctx.Err() != nil {
					return res, ctx.Err()
				} else if err != nil {
					bad("remote", err)
				}
			}
			done += loc.ref.Size
			progress(wire.Progress{What: rec.SetID.String(), Done: done, Total: total, Unit: "bytes"})
		}
	}
	return res, nil
}
