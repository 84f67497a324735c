package ckptd

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/sdk/wire"
)

func (n *Node) postRebuild(ctx context.Context, c *app.RequestContext) error {
	return long(c, func(progress func(wire.Progress)) (wire.RebuildResult, error) { return n.rebuild(ctx, progress) })
}

// rebuild writes the catalog's records anew from the tiers alone: this node's
// disks, the targets, and the disks of the other nodes that are up. Records
// that exist and are newer stay, so it is safe at any time.
func (n *Node) rebuild(ctx context.Context, progress func(wire.Progress)) (wire.RebuildResult, error) {
	// Versions may come back much later than the packs they name.
	if err := n.cat.NoteRebuild(ctx, time.Now()); err != nil {
		return wire.RebuildResult{Problems: []string{}}, err
	}
	res, err := n.rebuildLocal(ctx, progress)
	if err != nil {
		return res, err
	}
	if n.remote != nil {
		if err := n.rebuildRemote(ctx, &res, progress); err != nil {
			return res, err
		}
	}
	nodes, err := n.cat.Nodes(ctx)
	if err != nil {
		return res, err
	}
	for _, node := range nodes {
		if node.Name == n.cfg.Name || node.Addr == "" || !n.alive(node) {
			continue
		}
		body, err := n.peers.call(ctx, http.MethodPost, node.Addr, "/v1/peer/rebuild", nil, []byte("{}"))
		if err != nil {
			res.Problems = append(res.Problems, fmt.Sprintf("node %s: %v", node.Name, err))
			continue
		}
		var far wire.RebuildResult
		err = json.NewDecoder(body).Decode(&far)
		body.Close()
		if err != nil {
			res.Problems = append(res.Problems, fmt.Sprintf("node %s: %v", node.Name, err))
		}
		res.Problems = append(res.Problems, far.Problems...)
		res.Shards += far.Shards
	}
	if err := n.cat.Sync(ctx); err != nil {
		return res, err
	}
	sets, _ := n.cat.Known("")
	runs := make(map[catalog.Run]int)
	res.Sets = 0
	for _, s := range sets {
		if s.State != catalog.Committed {
			continue
		}
		res.Sets++
		runs[s.Run] = max(runs[s.Run], s.Attempt)
		if err := n.raiseLevel(ctx, s.SetID); err != nil {
			res.Problems = append(res.Problems, err.Error())
		}
	}
	// An attempt's number is never given twice, whatever was lost.
	for run, attempt := range runs {
		if err := n.cat.AdoptRun(ctx, catalog.RunRecord{Run: run, Attempt: attempt, Created: time.Now()}); err != nil {
			return res, err
		}
	}
	res.Runs = len(runs)
	n.kickDrain.now()
	for _, s := range sets {
		if err := n.wholeVersion(ctx, s); err != nil {
			res.Problems = append(res.Problems, err.Error())
		}
	}
	return res, ctx.Err()
}

// rebuildLocal adopts the records on this node's disks and states its shards.
func (n *Node) rebuildLocal(ctx context.Context, progress func(wire.Progress)) (wire.RebuildResult, error) {
	res := wire.RebuildResult{Problems: []string{}}
	for info := range n.local.List("") {
		var err error
		switch path.Base(info.Name) {
		case "run.json", "set.json":
			var b []byte
			if b, err = n.local.Get(ctx, info.Name); err == nil {
				err = n.adopt(ctx, info.Name, b)
			}
		default:
			continue
		}
		if errors.Is(err, catalog.ErrUnavailable) || ctx.Err() != nil {
			return res, err
		} else if err != nil {
			res.Problems = append(res.Problems, err.Error())
		}
	}
	for _, w := range n.inv.all() {
		n.inv.setOrphan(w.id, false)
		res.Shards += len(w.shards)
		progress(wire.Progress{What: "local shards", Done: int64(res.Shards), Unit: "shards"})
	}
	return res, n.voteOnce(ctx)
}

// adopt takes one record found on a tier.
func (n *Node) adopt(ctx context.Context, name string, b []byte) error {
	if path.Base(name) == "run.json" {
		var r catalog.RunRecord
		if err := json.Unmarshal(b, &r); err != nil || runRecordName(r.Run) != name {
			return fmt.Errorf("%s: %w: not a run's record", name, catalog.ErrCorrupt)
		}
		return n.cat.AdoptRun(ctx, r)
	}
	var s catalog.SetRecord
	if err := json.Unmarshal(b, &s); err != nil || s.RecordName() != name {
		return fmt.Errorf("%s: %w: not a set's record", name, catalog.ErrCorrupt)
	}
	return n.cat.AdoptSet(ctx, s)
}

// rebuildRemote adopts what a bare set of targets says.
func (n *Node) rebuildRemote(ctx context.Context, res *wire.RebuildResult, progress func(wire.Progress)) error {
	if err := n.wholeRemote(); err != nil {
		return err
	}
	if len(n.remote.Pools()) == 0 {
		return fmt.Errorf("remote tier: %w: it has no targets; those that register come by themselves, add the others (`ckpt target add`), then rebuild again", catalog.ErrUnavailable)
	}
	shards := make(map[catalog.SetID]map[string]remotetier.Found)
	manifests := make(map[catalog.SetID]bool)
	records := make(map[string]bool)
	blobs := int64(0)
	for f, err := range n.remote.Scan(ctx, "") {
		if err != nil {
			return err
		}
		blobs++
		progress(wire.Progress{What: "remote blobs", Done: blobs, Unit: "blobs"})
		dir, file, ok := cutLast(f.Place.Blob)
		if !ok || !f.Complete {
			continue
		}
		id, perr := catalog.ParseDir(dir)
		switch {
		case file == "run.json" || file == "set.json" && perr == nil:
			records[f.Place.Blob] = true
		case perr != nil:
			res.Problems = append(res.Problems, fmt.Sprintf("%s on the targets is no blob of ckptd's", f.Place.Blob))
		case file == "manifest.json":
			manifests[id] = true
		default:
			if shards[id] == nil {
				shards[id] = make(map[string]remotetier.Found)
			}
			if old, ok := shards[id][f.Place.Blob]; !ok || old.Place.Generation < f.Place.Generation {
				shards[id][f.Place.Blob] = f
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(records)) {
		b, _, err := n.remote.GetSmall(ctx, name)
		if err == nil {
			err = n.adopt(ctx, name, b)
		}
		if err != nil {
			res.Problems = append(res.Problems, err.Error())
		}
	}
	for id := range manifests {
		found, err := n.adoptRemote(ctx, id, shards[id])
		res.Shards += found
		if errors.Is(err, catalog.ErrUnavailable) || ctx.Err() != nil {
			return err
		} else if err != nil {
			res.Problems = append(res.Problems, err.Error())
		}
	}
	return nil
}

// adoptRemote states the remote places of a set, whose record is made from the
// manifest when none was found.
func (n *Node) adoptRemote(ctx context.Context, id catalog.SetID, found map[string]remotetier.Found) (int, error) {
	b, place, err := n.remote.GetSmall(ctx, id.ManifestName())
	if err != nil {
		return 0, err
	}
	m, err := catalog.ParseManifest(b, catalog.Digest{})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", id.ManifestName(), err)
	}
	if m.Set != id {
		return 0, fmt.Errorf("%s: %w: it is of %v", id.ManifestName(), catalog.ErrCorrupt, m.Set)
	}
	published := &place
	if _, whole := n.getSmall(ctx, id.ManifestName()); !whole {
		published = nil // the coordinator publishes it once more
	}
	var size int64
	for _, s := range m.Shards {
		if _, ok := found[s.BlobName(id)]; !ok {
			return 0, fmt.Errorf("%v: %w: rank %d is not whole on the targets", id, catalog.ErrIncomplete, s.Rank)
		}
		size += s.Size
	}
	if err := n.cat.AdoptSet(ctx, catalog.SetRecord{
		SetID: id, State: catalog.Committed, World: m.World, Begun: m.Created, Committed: m.Created, Level: catalog.Remote,
		Manifest: sha256.Sum256(b), Size: size, Place: published, Metrics: m.Metrics, Version: 1,
	}); err != nil {
		return 0, err
	}
	rec, err := n.cat.Set(ctx, id)
	if err != nil || rec.State != catalog.Committed {
		return 0, err
	}
	parts, err := n.cat.Parts(ctx, id)
	if err != nil {
		return 0, err
	}
	encodings := make(map[int]string)
	for _, s := range m.Shards {
		if catalog.ShardLevel(s.Rank, s.Root, parts) < catalog.Remote {
			if encodings[s.Rank], err = n.encodingOf(ctx, found[s.BlobName(id)].Place); err != nil {
				return 0, fmt.Errorf("%v rank %d: %w", id, s.Rank, err)
			}
		}
	}
	_, err = n.cat.UpdatePart(ctx, id, n.cfg.Name, func(p *catalog.PartRecord) error {
		changed := false
		for _, s := range m.Shards {
			if catalog.ShardLevel(s.Rank, s.Root, parts) >= catalog.Remote {
				continue // somebody says so already
			}
			f := found[s.BlobName(id)].Place
			f.Encoding = encodings[s.Rank]
			t := catalog.PartShard{Rank: s.Rank, Size: s.Size, Root: s.Root, Raw: s.Raw(), Durable: m.Created}
			for _, old := range p.Shards {
				if old.Rank == s.Rank && old.Root == s.Root {
					t = old
				}
			}
			t.Remote, t.Drained, t.Verified = &f, rec.Committed, time.Time{}
			if rec.Level >= catalog.Verified {
				t.Verified = rec.Committed
			}
			putShard(p, t)
			changed = true
		}
		if !changed {
			return catalog.ErrSame
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	part, err := n.cat.Part(ctx, id, n.cfg.Name)
	if err == nil {
		n.inv.setPart(id, part)
	}
	return len(m.Shards), nil
}

// putShard replaces a rank's entry in a statement, as it is.
func putShard(p *catalog.PartRecord, s catalog.PartShard) {
	for i := range p.Shards {
		if p.Shards[i].Rank == s.Rank {
			p.Shards[i] = s
			return
		}
	}
	p.Shards = append(p.Shards, s)
}
