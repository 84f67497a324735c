package ckptd

import (
	"context"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/tree"
	"github.com/ckptd/ckptd/fuse"
)

// mountStore is what a mount shows of this node: what the catalog's mirror
// has, without asking the store, so that a listing costs no round trip and
// works while the catalog is away.
type mountStore struct {
	n       *Node
	ahead   *mountReads
	checked bool // no passthrough: every byte of every read is checked
}

var _ tree.Desk = mountStore{}

func (m mountStore) Runs() []catalog.Run { return m.n.cat.KnownRuns() }

func (m mountStore) Committed(run catalog.Run) []catalog.SetRecord {
	return m.n.cat.KnownWhere(run, func(s *catalog.SetRecord) bool { return s.State == catalog.Committed })
}

func (m mountStore) Set(run catalog.Run, step int64, attempt int) (catalog.SetRecord, bool) {
	rec, err := m.n.cat.ResolveKnown(catalog.Ref{Run: run, Step: step, Attempt: attempt})
	return rec, err == nil
}

func (m mountStore) Manifest(ctx context.Context, rec catalog.SetRecord) (*catalog.Manifest, []byte, error) {
	return m.n.manifest(ctx, rec)
}

func (m mountStore) Hold(ctx context.Context, id catalog.SetID) (func(), error) {
	return m.n.mounts.leases.hold(ctx, id)
}

func (m mountStore) Space() fuse.Space {
	u := m.n.local.Usage()
	return fuse.Space{Bytes: uint64(u.Quota), Free: uint64(u.Free)}
}
