package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	tellPatience = 10 * time.Second // for what a list says of one version, whose index may be elsewhere
	tellAtOnce   = 8                // versions
)

// getDatasets lists the datasets: those with a version, and those with packs
// only, of an import under way, one that was cut short, or versions removed.
func (n *Node) getDatasets(ctx context.Context, c *app.RequestContext) error {
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	rows := make(map[string]*wire.Dataset)
	var newest []catalog.SetRecord // of those that have one
	for _, run := range n.cat.KnownRuns() {
		name, versions := catalog.DatasetName(run)
		if !versions {
			var packs bool
			if name, packs = catalog.PackName(run); !packs {
				continue
			}
		}
		sets := n.cat.KnownWhere(run, func(s *catalog.SetRecord) bool { return s.State == catalog.Committed }) // newest first
		if len(sets) == 0 {
			continue
		}
		row := rows[name]
		if row == nil {
			row = &wire.Dataset{Name: name}
			rows[name] = row
		}
		for _, s := range sets {
			row.Stored += s.Size
		}
		if versions {
			row.Versions, newest = len(sets), append(newest, sets[0])
		} else {
			row.Packs = len(sets)
		}
	}
	told, err := n.tellVersions(ctx, newest)
	if err != nil {
		return err
	}
	for i := range told {
		rows[told[i].Name].Latest = &told[i]
	}
	list := make([]*wire.Dataset, 0, len(rows))
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		list = append(list, rows[name])
	}
	return reply(c, map[string]any{"datasets": list})
}

// getDatasetVersions lists the versions of a dataset.
func (n *Node) getDatasetVersions(ctx context.Context, c *app.RequestContext) error {
	run, err := catalog.DatasetRun(c.Query("name"))
	if err != nil {
		return err
	}
	sets, err := n.cat.Sets(ctx, run)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("dataset %s: %w", c.Query("name"), fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	all := c.Query("all") == "true"
	sets = slices.DeleteFunc(sets, func(s catalog.SetRecord) bool { return !all && s.State != catalog.Committed })
	rows, err := n.tellVersions(ctx, sets)
	if err != nil {
		return err
	}
	return reply(c, map[string]any{"versions": rows})
}

// lookupVersion resolves a version, in every state.
func (n *Node) lookupVersion(ctx context.Context, s string) (catalog.SetRecord, error) {
	ref, err := catalog.ParseDatasetRef(s)
	if err != nil {
		return catalog.SetRecord{}, err
	}
	rec, err := n.lookup(ctx, ref.String())
	if errors.Is(err, fs.ErrNotExist) {
		err = fs.ErrNotExist // the user need not know what the run is called
	}
	if err != nil {
		return rec, fmt.Errorf("dataset %s: %w", s, err)
	}
	return rec, nil
}

// getDataset tells everything about a version.
func (n *Node) getDataset(ctx context.Context, c *app.RequestContext) error {
	rec, err := n.lookupVersion(ctx, c.Query("ref"))
	if err != nil {
		return err
	}
	d := wire.DatasetDetail{DatasetVersion: n.tellVersion(ctx, rec), PackList: []wire.DatasetPack{}, Leases: []string{}, Events: []catalog.Event{}}
	if rec.State == catalog.Committed && d.Err == "" {
		if err := n.tellPacks(ctx, rec, &d); err != nil {
			d.Err = err.Error()
		}
	}
	holders, err := n.cat.Leases(ctx, rec.SetID, time.Now())
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	}
	d.Leases = append(d.Leases, holders...)
	events, err := n.cat.Events(ctx, rec.SetID)
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	}
	d.Events = append(d.Events, events...)
	return reply(c, d)
}

// tellVersions tells what lists say of versions, in their order.
func (n *Node) tellVersions(ctx context.Context, recs []catalog.SetRecord) ([]wire.DatasetVersion, error) {
	rows := make([]wire.DatasetVersion, len(recs))
	var g errgroup.Group
	g.SetLimit(tellAtOnce)
	for i, rec := range recs {
		g.Go(func() error {
			rows[i] = n.tellVersion(ctx, rec)
			return ctx.Err()
		})
	}
	return rows, g.Wait()
}

// tellVersion says what is known of a version; what is not is no error.
func (n *Node) tellVersion(ctx context.Context, rec catalog.SetRecord) wire.DatasetVersion {
	name, _ := catalog.DatasetName(rec.Run)
	v := wire.DatasetVersion{
		Ref: catalog.DatasetRef(rec.SetID), ID: rec.SetID.String(), Name: name, Version: rec.Step, State: rec.State, Level: rec.Level,
		Begun: rec.Begun, Committed: rec.Committed, Stored: rec.Size, Pinned: rec.Pinned, Tags: rec.Tags, Reason: rec.Reason,
	}
	if rec.State != catalog.Committed {
		return v
	}
	ctx, cancel := context.WithTimeout(ctx, tellPatience)
	defer cancel()
	m, _, err := n.manifest(ctx, rec)
	if err == nil {
		err = tellFacts(&v, m)
	}
	packs, missing, perr := n.packRecords(ctx, rec)
	if errors.Is(perr, context.DeadlineExceeded) {
		perr = fmt.Errorf("%s: %w: its index did not come to this node within %v; `ckpt dataset warm %s` brings it", v.Ref, catalog.ErrUnavailable, tellPatience, v.Ref)
	}
	if err = errors.Join(err, perr); err != nil {
		v.Level, v.Err = catalog.LevelNone, err.Error()
		return v
	}
	v.Packs = len(packs) + len(missing)
	for _, p := range packs {
		v.Level, v.Stored = min(v.Level, p.Level), v.Stored+p.Size
	}
	for _, id := range missing {
		v.Level, v.Missing = catalog.LevelNone, append(v.Missing, id.String())
	}
	return v
}

// tellFacts reads what the shard of an index says of the version.
func tellFacts(v *wire.DatasetVersion, m *catalog.Manifest) error {
	if len(m.Shards) != 1 {
		return fmt.Errorf("%s: %w: its set has %d shards, an index is one", v.Ref, catalog.ErrCorrupt, len(m.Shards))
	}
	meta := m.Shards[0].Meta
	var packs int64
	for key, into := range map[string]*int64{catalog.MetaFiles: &v.Files, catalog.MetaBytes: &v.Bytes, catalog.MetaSamples: &v.Samples, catalog.MetaPacks: &packs} {
		k, err := strconv.ParseInt(meta[key], 10, 64)
		if err != nil || k < 0 {
			return fmt.Errorf("%s: %w: its number of %s is %.40q", v.Ref, catalog.ErrCorrupt, key, meta[key])
		}
		*into = k
	}
	v.Packs = int(packs)
	if err := v.Digest.UnmarshalText([]byte(meta[catalog.MetaDigest])); err != nil {
		return fmt.Errorf("%s: its digest: %w", v.Ref, err)
	}
	return nil
}

// tellPacks lists a committed version's packs.
func (n *Node) tellPacks(ctx context.Context, rec catalog.SetRecord, d *wire.DatasetDetail) (err error) {
	shared, err := n.namedByOthers(ctx, rec)
	if err != nil {
		return err
	}
	where, err := n.locate(ctx, rec, 0)
	if err != nil {
		return err
	}
	m, err := n.mapIndex(ctx, where.ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmap()) }()
	d.Schema = m.Index.Schema()
	for i := range m.Index.Packs() {
		p, err := m.Index.Pack(i)
		if err != nil {
			return err
		}
		row := wire.DatasetPack{Pack: i, ID: p.Set.String(), Size: p.Size, Raw: p.Raw, Samples: p.Samples, Shared: shared[p.Set]}
		if s, ok := n.cat.KnownSet(p.Set); ok && s.State == catalog.Committed {
			row.Level = s.Level
		}
		d.PackList = append(d.PackList, row)
	}
	return nil
}

// namedByOthers gives the packs that other committed versions of the dataset
// name.
func (n *Node) namedByOthers(ctx context.Context, rec catalog.SetRecord) (map[catalog.SetID]bool, error) {
	named := make(map[catalog.SetID]bool)
	for _, other := range n.cat.KnownWhere(rec.Run, func(s *catalog.SetRecord) bool { return s.State == catalog.Committed }) {
		if other.SetID == rec.SetID {
			continue
		}
		ids, err := n.packsNamed(ctx, other)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			named[id] = true
		}
	}
	return named, nil
}

// setsOfVersion gives the records of a committed version and its packs, and the
// packs that are missing.
func (n *Node) setsOfVersion(ctx context.Context, s string) (sets []catalog.SetRecord, missing []catalog.SetID, err error) {
	rec, err := n.lookupVersion(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	if rec.State != catalog.Committed {
		return nil, nil, fmt.Errorf("dataset %s: %w: it is %s", s, catalog.ErrConflict, rec.State)
	}
	packs, missing, err := n.packRecords(ctx, rec)
	if err != nil {
		return nil, nil, err
	}
	return append([]catalog.SetRecord{rec}, packs...), missing, nil
}
