package ckptd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// indexPatience bounds how long the index of one version may take to come to
// this node.
const indexPatience = 10 * time.Minute

// maxNamedPacks bounds the packs of all versions that are kept in mind, about
// 32 bytes each; beyond that they are read from the indexes once more.
const maxNamedPacks = 1 << 20

// namedPacks remembers which packs versions name: that never changes.
type namedPacks struct {
	sync.Mutex
	of map[namedBy][]catalog.SetID
	n  int
}

// namedBy is a version, with the root of its manifest: after the catalog was
// lost another set may have its name.
type namedBy struct {
	set      catalog.SetID
	manifest catalog.Digest
}

func (p *namedPacks) get(k namedBy) ([]catalog.SetID, bool) {
	p.Lock()
	defer p.Unlock()
	ids, ok := p.of[k]
	return ids, ok
}

func (p *namedPacks) put(k namedBy, ids []catalog.SetID) {
	p.Lock()
	defer p.Unlock()
	if p.of == nil || p.n+len(ids)+1 > maxNamedPacks {
		p.of, p.n = make(map[namedBy][]catalog.SetID), 0
	}
	if _, ok := p.of[k]; !ok {
		p.n += len(ids) + 1
	}
	p.of[k] = ids
}

// packsNamed gives the packs that a version names, from its index, which comes
// to this node first. The version is not held: it may be committed, or pruned
// and not yet collected.
func (n *Node) packsNamed(ctx context.Context, rec catalog.SetRecord) ([]catalog.SetID, error) {
	key := namedBy{rec.SetID, rec.Manifest}
	if ids, ok := n.named.get(key); ok {
		return ids, nil
	}
	ids, err := n.readPacksNamed(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("packs of %s: %w", catalog.DatasetRef(rec.SetID), err)
	}
	n.named.put(key, ids)
	return ids, nil
}

func (n *Node) readPacksNamed(ctx context.Context, rec catalog.SetRecord) (ids []catalog.SetID, err error) {
	name, ok := catalog.DatasetName(rec.Run)
	if !ok || rec.World != 1 {
		return nil, fmt.Errorf("%v: %w: it is no version of a dataset", rec.SetID, catalog.ErrInvalid)
	}
	run, err := catalog.PackRun(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, indexPatience)
	defer cancel()
	where, err := n.locate(ctx, rec, 0)
	if err != nil {
		return nil, err
	}
	m, err := n.mapIndex(ctx, where.ref)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.unmap()) }()
	if err := m.Index.CheckPacks(); err != nil { // packs are removed for not being in it
		return nil, err
	}
	ids = make([]catalog.SetID, 0, m.Index.Packs())
	for i := range m.Index.Packs() {
		p, err := m.Index.Pack(i)
		if err != nil {
			return nil, err
		}
		if p.Set.Run != run {
			return nil, fmt.Errorf("%w: pack %d, %v, is not the dataset's", catalog.ErrCorrupt, i, p.Set)
		}
		p.Set.Run = run // one string for all of them
		ids = append(ids, p.Set)
	}
	return ids, nil
}

// packRecords gives the records of a version's packs, and those packs that the
// catalog has no committed set of.
func (n *Node) packRecords(ctx context.Context, rec catalog.SetRecord) (recs []catalog.SetRecord, missing []catalog.SetID, err error) {
	ids, err := n.packsNamed(ctx, rec)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		if pack, ok := n.cat.KnownSet(id); ok && pack.State == catalog.Committed {
			recs = append(recs, pack)
		} else {
			missing = append(missing, id)
		}
	}
	return recs, missing, nil
}

// wholeVersion says what is wrong with a committed version as a whole: packs
// that it names and the catalog does not have. Other sets are whole.
func (n *Node) wholeVersion(ctx context.Context, rec catalog.SetRecord) error {
	if _, ok := catalog.DatasetName(rec.Run); !ok || rec.State != catalog.Committed {
		return nil
	}
	recs, missing, err := n.packRecords(ctx, rec)
	if err != nil {
		return err
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w: %d of its %d packs are not in the catalog, the first is %v: their files cannot be read",
		catalog.DatasetRef(rec.SetID), catalog.ErrCorrupt, len(missing), len(recs)+len(missing), missing[0])
}
