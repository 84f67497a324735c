package datasets

import (
	"context"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
)

// Store keeps the packs and versions of one dataset.
type Store interface {
	// Base gives the newest version, nil when there is none. It is kept from being
	// removed until Close.
	Base(ctx context.Context) (*Base, error)
	// Packs lists the committed packs of the dataset, newest first.
	Packs(ctx context.Context) ([]catalog.SetID, error)
	// OpenPack opens a committed pack, which is kept until Close.
	OpenPack(ctx context.Context, set catalog.SetID) (Stored, Blob, error)
	// PutPack commits a pack, and returns when it is durable.
	PutPack(ctx context.Context, b Put) (Stored, error)
	// PutVersion commits an index as the next version, and returns when it is
	// durable. ErrConflict when another import was faster, or when a pack that it
	// names is no more: then there is no version.
	PutVersion(ctx context.Context, b Put) (catalog.SetID, error)
	// Leaving says what is on its way to the remote tier: a Put that failed with
	// ErrNoSpace may find room when it is there.
	Leaving(ctx context.Context) (Leaving, error)
}

// Base is the newest version of a dataset.
type Base struct {
	Set   catalog.SetID // its step is the version's number
	Index []byte        // mapped until Close
	Close func() error
}

// Blob is a committed blob, opened. Its bytes are checked as they are read.
type Blob interface {
	io.ReaderAt
	io.Closer
}

// Stored is a committed pack.
type Stored struct {
	Set  catalog.SetID
	Size int64
	Root catalog.Digest
	Meta map[string]string // as PutPack got it
}

func (s Stored) pack(raw bool) index.Pack {
	return index.Pack{Set: s.Set, Size: s.Size, Root: s.Root, Raw: raw}
}

// Put is a blob to be committed.
type Put struct {
	File string // what it is called
	Size int64
	// Data gives the bytes; several goroutines may ask for parts, each once, and
	// the parts are asked for in the order of their offsets.
	Data io.ReaderAt
	// Meta is asked for when all bytes were read.
	Meta func() map[string]string
	// Packs are those that a version names.
	Packs []catalog.SetID
}

// PacksOf lists the packs of a version.
func PacksOf(b *Base) ([]catalog.SetID, error) {
	x, err := index.Open(b.Index)
	if err != nil {
		return nil, err
	}
	var packs []catalog.SetID
	for i := range x.Packs() {
		p, err := x.Pack(i)
		if err != nil {
			return nil, err
		}
		packs = append(packs, p.Set)
	}
	return packs, nil
}
