package ckptd

import (
	"context"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/ckptd/tree"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/fuse"
)

// mountedVersion is a version as a tree wants it.
type mountedVersion struct {
	v       *Version
	ahead   *mountReads
	checked bool
}

var _ tree.Version = mountedVersion{}

// OpenVersion brings a version's index here and maps it.
func (m mountStore) OpenVersion(ctx context.Context, rec catalog.SetRecord) (tree.Version, error) {
	v, err := m.n.openVersion(ctx, rec.SetID)
	if err != nil {
		return nil, err
	}
	return mountedVersion{v, m.ahead, m.checked}, nil
}

func (m mountedVersion) Index() *index.Index { return m.v.Index }
func (m mountedVersion) Used(n int)          { m.v.used(n) }
func (m mountedVersion) Close() error        { return m.v.Close() }

// OpenPack opens a pack in the cache: the kernel may read it once it is whole
// and checked; until then it comes as it arrives, and no pages of it are kept.
// In a mount that is to be checked it never may, and every read is checked.
func (m mountedVersion) OpenPack(ctx context.Context, i int) (fuse.File, error) {
	h, err := m.v.Pack(ctx, i)
	if err != nil {
		return nil, err
	}
	h.Retry(int(m.ahead.again.Load()))
	m.ahead.opened(m.v, i)
	if m.checked {
		h.CheckEvery()
	}
	return mountedPack{h, m.checked}, nil
}

// mountedPack is a pack that is open in a mount.
type mountedPack struct {
	*packs.Handle
	checked bool
}

var _ tree.Parker = mountedPack{}

// Direct says that the pack is on its way to have a file of its own.
func (p mountedPack) Direct() bool { return !p.checked }
