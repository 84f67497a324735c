package ckptd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Beside the shards, each tier keeps a copy of the set's record (set.json) and
// of the run's (run.json), so that tags, pins, levels and policies come back
// when the catalog is lost. The copies follow the catalog; Version says which
// of two is newer.

// runRecordName is the blob of a run's record.
func runRecordName(run catalog.Run) string { return string(run) + "/run.json" }

// follow watches the sets and keeps the copies of the records up to date.
func (n *Node) follow(ctx context.Context) error {
	changes := n.cat.Watch(ctx, "", true)
	for {
		var recs []catalog.SetRecord
		select {
		case <-ctx.Done():
			return ctx.Err()
		case rec, ok := <-changes:
			if !ok { // fell behind: from the start
				changes = n.cat.Watch(ctx, "", true)
				continue
			}
			recs = append(recs, rec)
		case <-n.kickFollow: // this node has begun to lead
			recs, _ = n.cat.Known("")
		}
		for _, rec := range recs {
			n.changed(ctx, rec)
		}
	}
}

// changed reacts to a set's record.
func (n *Node) changed(ctx context.Context, rec catalog.SetRecord) {
	switch rec.State {
	case catalog.Committed:
		n.kickDrain.now()
	case catalog.Pruned, catalog.Aborted:
		n.kickCollect.now()
		if w, ok := n.inv.get(rec.SetID); ok && len(w.shards) == 0 {
			if _, known := n.cat.KnownSet(rec.SetID); !known {
				n.inv.forget(rec.SetID)
			}
		}
	}
	err := n.copyRecord(ctx, rec)
	n.setTrouble("records", err)
	if err != nil && ctx.Err() == nil {
		n.log.Warn("record not copied", "set", rec.SetID.String(), "err", err)
	}
}

// copyRecord writes set.json, as coordinator, onto the remote tier, and then
// beside the shards this node holds: a local copy of some version means that
// this node has nothing left to publish of it.
func (n *Node) copyRecord(ctx context.Context, rec catalog.SetRecord) error {
	if rec.State == catalog.Writing || rec.State == catalog.Aborted {
		return nil
	}
	holds := n.holds(rec)
	if holds && n.copiedVersion(rec.SetID) >= rec.Version {
		return nil
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record of %v: %w", rec.SetID, err)
	}
	if n.remote != nil && n.leader() == n.cfg.Name && rec.Place != nil {
		if err := n.publishRecord(ctx, rec, b); err != nil {
			return err
		}
	}
	if !holds {
		return n.dropLateCopy(ctx, rec)
	}
	if err := n.local.Put(ctx, rec.RecordName(), b); err != nil {
		return err
	}
	n.setCopied(rec.SetID, rec.Version)
	if err := n.dropLateCopy(ctx, rec); err != nil {
		return err
	}
	return n.copyRun(ctx, rec.Run, false)
}

// publishRecord puts set.json on the remote tier unless that version is there.
func (n *Node) publishRecord(ctx context.Context, rec catalog.SetRecord, b []byte) error {
	var was catalog.SetRecord
	if old, whole := n.getSmall(ctx, rec.RecordName()); !whole || json.Unmarshal(old, &was) != nil || was.Version < rec.Version {
		if _, err := n.putSmall(ctx, rec.Run, rec.RecordName(), b); err != nil {
			return fmt.Errorf("publish the record of %v: %w", rec.SetID, err)
		}
	}
	// Also when the set's record was there: a crash may have come between the two.
	return n.copyRun(ctx, rec.Run, true)
}

// dropLateCopy removes the copies of a tombstone that were made when the set was
// being collected, or had been: nobody would find them any more. What the catalog
// does not know is no reason to remove anything: the record itself must say so.
func (n *Node) dropLateCopy(ctx context.Context, rec catalog.SetRecord) error {
	if !planCollect(&rec, n.cfg.Grace, time.Now()) {
		return nil // its collection is still to come
	}
	now, err := n.cat.Set(ctx, rec.SetID)
	if err == nil && !planCollect(&now, n.cfg.Grace, time.Now()) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if holders, err := n.cat.Leases(ctx, rec.SetID, time.Now()); err != nil || len(holders) > 0 {
		return err
	}
	if n.leader() == n.cfg.Name {
		if err := n.collectRemote(ctx, rec.SetID); err != nil {
			return err
		}
	}
	return n.collectLocal(ctx, rec.SetID)
}

// copyRun writes run.json on the local tier or the remote one.
func (n *Node) copyRun(ctx context.Context, run catalog.Run, remote bool) error {
	r, ok := n.cat.KnownRun(run)
	if !ok {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record of run %s: %w", run, err)
	}
	name := runRecordName(run)
	if !remote {
		if old, err := n.local.Get(ctx, name); err == nil && bytes.Equal(old, b) {
			return nil
		}
		return n.local.Put(ctx, name, b)
	}
	if old, whole := n.getSmall(ctx, name); whole && bytes.Equal(old, b) {
		return nil
	}
	_, err = n.putSmall(ctx, run, name, b)
	return err
}

// putSmall keeps a small blob on as many targets as the run's layout may lose,
// and one more.
func (n *Node) putSmall(ctx context.Context, run catalog.Run, name string, b []byte) (catalog.Place, error) {
	layout, pool, err := n.layout(run)
	if err != nil {
		return catalog.Place{}, err
	}
	place, err := n.remote.Pool(pool).PutSmall(ctx, name, b, layout.M+1)
	if err != nil {
		return place, err
	}
	return place, n.holdTargets(ctx, &place) // its columns are the record
}

// getSmall reads a small blob. whole says that all its copies are there and no
// older ones: a crash in the middle of putSmall may leave fewer, or both.
func (n *Node) getSmall(ctx context.Context, name string) (b []byte, whole bool) {
	b, _, err := n.remote.GetSmall(ctx, name)
	if err != nil {
		return nil, false
	}
	generations := 0
	for f, err := range n.remote.Scan(ctx, name) {
		if err != nil || len(f.Columns) < len(f.Place.Targets) {
			return b, false
		}
		generations++
	}
	return b, generations == 1
}

// holds says whether this node keeps anything of the set.
func (n *Node) holds(rec catalog.SetRecord) bool {
	if w, ok := n.inv.get(rec.SetID); ok && (len(w.shards) > 0 || w.part != nil) {
		return true
	}
	_, err := n.local.Stat(rec.ManifestName())
	return err == nil
}

func (n *Node) copiedVersion(id catalog.SetID) (v int64) {
	n.inv.mu.Lock()
	if h := n.inv.mu.sets[id]; h != nil {
		v = h.copied
	}
	n.inv.mu.Unlock()
	if v != 0 {
		return v
	}
	var old catalog.SetRecord
	if b, err := n.local.Get(context.Background(), id.RecordName()); err == nil && json.Unmarshal(b, &old) == nil {
		v = old.Version
	}
	return v
}

func (n *Node) setCopied(id catalog.SetID, version int64) {
	n.inv.mu.Lock()
	defer n.inv.mu.Unlock()
	n.inv.of(id).copied = version
}

// manifest finds a committed set's manifest: here, on a node that has it, or
// on the remote tier. What was found elsewhere is not kept.
func (n *Node) manifest(ctx context.Context, rec catalog.SetRecord) (*catalog.Manifest, []byte, error) {
	var errs []error
	try := func(b []byte, err error) (*catalog.Manifest, []byte) {
		if err == nil {
			var m *catalog.Manifest
			if m, err = catalog.ParseManifest(b, rec.Manifest); err == nil {
				return m, b
			}
		}
		errs = append(errs, err)
		return nil, nil
	}
	if m, b := try(n.local.Get(ctx, rec.ManifestName())); m != nil {
		return m, b, nil
	}
	if nodes, err := n.cat.Nodes(ctx); err == nil {
		for _, node := range nodes {
			if node.Name == n.cfg.Name || node.Addr == "" || !slices.Contains(rec.Nodes, node.Name) {
				continue
			}
			short, cancel := context.WithTimeout(ctx, 5*time.Second)
			m, b := try(n.peers.getManifest(short, node.Addr, rec.SetID))
			cancel()
			if m != nil {
				return m, b, nil
			}
		}
	}
	if n.remote != nil { // also without a place: a rebuilt record may have none yet
		b, _, err := n.remote.GetSmall(ctx, rec.ManifestName())
		if m, b := try(b, err); m != nil {
			return m, b, nil
		}
	}
	return nil, nil, fmt.Errorf("manifest of %v: %w", rec.SetID, errors.Join(errs...))
}
