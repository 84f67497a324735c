package ckptd

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// mountReads is how a mount reads packs. It has those fetched that a mount is about to read. Files lie in
// packs in the order of their import, so who reads a tree from its beginning
// opens packs one after the other. Within a pack nothing need be done: what
// follows a read comes next by itself.
type mountReads struct {
	n     *Node
	packs atomic.Int64 // the mount's own setting; 0: the node's
	again atomic.Int64 // times that all sources of a pack are asked again; 0: the node's setting
	asked atomic.Int64 // packs, since it was mounted

	mu struct {
		sync.Mutex
		last map[catalog.SetID]int // the pack that was opened last, by version
	}
}

// maxAheadVersions bounds the versions of which it is known what was opened last.
const maxAheadVersions = 256

func newMountReads(n *Node, req wire.MountRequest) *mountReads {
	a := &mountReads{n: n}
	a.set(req)
	a.mu.last = make(map[catalog.SetID]int)
	return a
}

func (a *mountReads) set(req wire.MountRequest) {
	a.packs.Store(int64(req.Ahead))
	a.again.Store(int64(req.Retries))
}

func checkReads(req wire.MountRequest) error {
	if req.Ahead < 0 || req.Ahead > maxAhead {
		return fmt.Errorf("%w: ahead %d; want 1 to %d packs, or 0 for the node's setting", catalog.ErrInvalid, req.Ahead, maxAhead)
	}
	if req.Retries < 0 || req.Retries > packs.MaxRetries {
		return fmt.Errorf("%w: retries %d; want 1 to %d, or 0 for the node's setting", catalog.ErrInvalid, req.Retries, packs.MaxRetries)
	}
	return nil
}

// effective is how many packs are fetched ahead.
func (a *mountReads) effective() int {
	p := &a.n.prefetch
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(int(a.packs.Load()), p.mu.ahead)
}

// retries is how often all sources of a pack are asked again.
func (a *mountReads) retries() int {
	return cmp.Or(int(a.again.Load()), a.n.packs.Settings().Retries)
}

// opened notes that the mount reads a pack of a version.
func (a *mountReads) opened(v *Version, pack int) {
	a.mu.Lock()
	last, known := a.mu.last[v.Set]
	if !known && len(a.mu.last) >= maxAheadVersions {
		clear(a.mu.last)
	}
	a.mu.last[v.Set] = pack
	a.mu.Unlock()
	if !known {
		last = -1
	}
	for _, i := range nextPacks(last, pack, a.effective(), v.Index.Packs()) {
		ref, err := v.PackRef(i)
		if err != nil {
			return // the reader will hear of it
		}
		if a.n.wantAhead(ref) {
			a.asked.Add(1)
		}
	}
}

// nextPacks gives the packs to fetch when pack is opened after last (-1: it is
// the first): the next ones, when it lies a little behind last, and none for
// who reads here and there.
func nextPacks(last, pack, ahead, all int) (next []int) {
	if pack <= last || pack > last+ahead {
		return nil
	}
	for i := pack + 1; i < min(all, pack+1+ahead); i++ {
		next = append(next, i)
	}
	return next
}

// wantAhead has a pack fetched soon, unless it is here or many are wanted.
func (n *Node) wantAhead(ref restore.ShardRef) bool {
	if _, whole := n.packs.Have(ref.Set); whole {
		return false
	}
	p := &n.prefetch
	p.mu.Lock()
	_, asked := p.mu.wanted[ref.Set]
	take := !asked && !p.mu.coming[ref.Set] && len(p.mu.wanted)+len(p.mu.coming) < maxAhead
	if take {
		p.mu.wanted[ref.Set] = ref
	}
	p.mu.Unlock()
	if take {
		p.kick.now()
	}
	return take
}

// fetchWanted begins to fetch what mounts want.
func (n *Node) fetchWanted(ctx context.Context) {
	p := &n.prefetch
	p.mu.Lock()
	wanted := p.mu.wanted
	p.mu.wanted = make(map[catalog.SetID]restore.ShardRef)
	p.mu.Unlock()
	for _, ref := range wanted {
		n.fetchAhead(ctx, ref)
	}
}
