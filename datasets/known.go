package datasets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/datasets/source"
)

// maxTakenUp bounds the packs of imports before that are looked at: the newest.
const maxTakenUp = 1024

// found is content that is stored: a record of a pack.
type found struct {
	pack index.Pack
	rec  pack.Record
}

// known is the content that there was before the import: the base version's,
// and that of packs which it does not name. It does not change after open.
type known struct {
	base  *index.Index // nil: there is none
	packs []index.Pack // that base does not name
	hash  map[catalog.Digest]inPack
	stamp map[uint64]catalog.Digest
	sizes map[int64]bool // of raw packs
	held  []Blob         // kept until the end
}

type inPack struct {
	pack int
	rec  pack.Record
}

// openKnown reads the tables of the packs that base does not name.
func openKnown(ctx context.Context, store Store, base *index.Index) (*known, error) {
	k := &known{base: base, hash: make(map[catalog.Digest]inPack), stamp: make(map[uint64]catalog.Digest), sizes: make(map[int64]bool)}
	named := make(map[catalog.SetID]bool)
	if base != nil {
		for i := range base.Packs() {
			p, err := base.Pack(i)
			if err != nil {
				return nil, err
			}
			named[p.Set] = true
			if p.Raw {
				k.sizes[p.Size] = true
			}
		}
	}
	list, err := store.Packs(ctx)
	if err != nil {
		return nil, err
	}
	taken := 0
	for _, set := range list {
		if named[set] {
			continue
		}
		if taken++; taken > maxTakenUp {
			break
		}
		err := k.take(ctx, store, set)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) || errors.Is(err, catalog.ErrIncomplete) {
			continue // it is being collected, or no pack: what it held is stored again
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("take up pack %v: %w", set, err), k.Close())
		}
	}
	return k, nil
}

func (k *known) take(ctx context.Context, store Store, set catalog.SetID) error {
	s, blob, err := store.OpenPack(ctx, set)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			blob.Close()
		}
	}()
	raw, rec, err := pack.ParseMeta(s.Meta)
	if err != nil {
		return err
	}
	n := len(k.packs)
	add := func(r pack.Record) {
		if _, ok := k.hash[r.Hash]; !ok {
			k.hash[r.Hash] = inPack{n, r}
		}
		if r.Stamp != 0 {
			k.stamp[r.Stamp] = r.Hash
		}
	}
	if raw {
		if rec.Size != s.Size {
			return fmt.Errorf("pack %v: %w: its size differs", s.Set, catalog.ErrCorrupt)
		}
		add(rec)
		k.sizes[s.Size] = true
	} else {
		r, err := pack.Open(blob, s.Size)
		if err != nil {
			return err
		}
		for rec, err := range r.Records() {
			if err != nil {
				return err
			}
			add(rec)
		}
	}
	keep = true
	k.packs, k.held = append(k.packs, s.pack(raw)), append(k.held, blob)
	return nil
}

// Close lets the packs go.
func (k *known) Close() error {
	var errs []error
	for _, b := range k.held {
		errs = append(errs, b.Close())
	}
	k.held = nil
	return errors.Join(errs...)
}

// unchanged finds a file by its path, size and time. It may be called from any
// goroutine.
func (k *known) unchanged(it *source.Item, stamp uint64) (*found, error) {
	if k.base != nil {
		i, err := k.base.Find(it.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			e, err := k.base.Entry(i)
			if err != nil {
				return nil, err
			}
			if e.Kind == index.File && e.Size == it.Size && e.Mtime.Equal(it.Mtime) {
				return k.inBase(&e)
			}
		}
	}
	if hash, ok := k.stamp[stamp]; ok {
		at := k.hash[hash]
		if at.rec.Size == it.Size {
			return &found{k.packs[at.pack], at.rec}, nil
		}
	}
	return nil, nil
}

func (k *known) inBase(e *index.Entry) (*found, error) {
	p, err := k.base.Pack(e.Pack)
	return &found{p, pack.Record{Offset: e.Offset, Size: e.Size, CRC: e.CRC, Hash: e.Hash}}, err
}

// content finds stored bytes by their hash.
func (k *known) content(rec pack.Record) (*found, error) {
	if k.base != nil {
		i, ok, err := k.base.FindHash(rec.Hash)
		if err != nil {
			return nil, err
		}
		if ok {
			e, err := k.base.Entry(i)
			if err != nil {
				return nil, err
			}
			if e.Size == rec.Size {
				return k.inBase(&e)
			}
		}
	}
	if at, ok := k.hash[rec.Hash]; ok && at.rec.Size == rec.Size {
		return &found{k.packs[at.pack], at.rec}, nil
	}
	return nil, nil
}
