package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/restore"
)

// Packs of datasets, and their indexes, are sets of one raw shard. A node that
// did not write one keeps a copy in its cache (package packs). Each is fetched
// from the remote tier by one node of the cluster, which is found by a
// rendezvous hash over the nodes that live; the others ask that one, also
// while it is still fetching.

func (n *Node) openCache() {
	n.packs = packs.New(packs.Options{
		Local: n.local, Quota: n.cfg.Cache, Log: n.log, Sources: n.packSources, Seal: n.packSeal,
		Bad: func(ctx context.Context, ref restore.ShardRef, cause error) {
			if err := n.localBad(ctx, ref.Set, ref.Rank, cause); err != nil {
				n.log.Debug("quarantine", "err", err)
			}
		},
	})
}

// OpenPack opens the one shard of a committed raw set, wherever its bytes are.
// The caller closes the handle.
func (n *Node) OpenPack(ctx context.Context, id catalog.SetID) (*packs.Handle, error) {
	ref, err := n.packRef(ctx, id)
	if err != nil {
		return nil, err
	}
	return n.packs.Open(ctx, ref)
}

// packRef asks the catalog for size and root of a raw set's shard.
func (n *Node) packRef(ctx context.Context, id catalog.SetID) (restore.ShardRef, error) {
	where, err := n.locatePack(ctx, id)
	return where.ref, err
}

func (n *Node) locatePack(ctx context.Context, id catalog.SetID) (location, error) {
	rec, err := n.packRecord(ctx, id)
	if err != nil {
		return location{}, err
	}
	return n.locate(ctx, rec, 0)
}

// packRecord is the record of a committed set of one shard.
func (n *Node) packRecord(ctx context.Context, id catalog.SetID) (catalog.SetRecord, error) {
	rec, ok := n.cat.KnownSet(id)
	if !ok {
		var err error
		if rec, err = n.cat.Resolve(ctx, id.Ref()); err != nil {
			return rec, err
		}
	}
	if rec.State != catalog.Committed {
		return rec, fmt.Errorf("%v: %w: it is %s", id, fs.ErrNotExist, rec.State)
	}
	if rec.World != 1 {
		return rec, fmt.Errorf("%v: %w: it has %d shards; a pack has one", id, catalog.ErrInvalid, rec.World)
	}
	return rec, nil
}

// packSeal is a pack's seal as its manifest has it. The manifest of an older
// version, or of a very large pack, has none; nor can a block be held against
// one that is out of reach. Then the source's own check and the root decide.
func (n *Node) packSeal(ctx context.Context, ref restore.ShardRef) (*catalog.Seal, error) {
	rec, err := n.packRecord(ctx, ref.Set)
	if err != nil {
		return nil, err
	}
	m, _, err := n.manifest(ctx, rec)
	var seal *catalog.Seal
	if err == nil {
		seal, err = m.Shards[0].Seal(ref.Set)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		n.log.Warn("no sums of a pack's blocks: its root is compared when it is whole", "shard", ref.String(), "err", err)
		return nil, nil
	}
	return seal, nil
}

// askedPeers bounds the nodes that are asked whether they have a pack before
// the remote tier is.
const askedPeers = 4

// packSources finds who has a pack: nodes that wrote it, then the one whose
// task it is to fetch it, then the remote tier.
func (n *Node) packSources(ctx context.Context, ref restore.ShardRef, firstHand bool) ([]packs.Source, func(), error) {
	where, err := n.locatePack(ctx, ref.Set)
	if err != nil {
		return nil, nil, err
	}
	if where.ref.Root != ref.Root || where.ref.Size != ref.Size {
		return nil, nil, fmt.Errorf("%v: %w: the catalog knows another root or size", ref, catalog.ErrCorrupt)
	}
	plan := packPlan{self: n.cfg.Name, key: ref.Set.String(), firstHand: firstHand}
	addr := map[string]string{}
	for _, p := range where.peers {
		if n.alive(p) {
			addr[p.Name] = p.Addr
			plan.holders = append(plan.holders, p.Name)
		}
	}
	known, _ := n.cat.Nodes(ctx) // with the catalog away those it knows of
	for _, p := range known {
		if n.alive(p) && p.Addr != "" {
			addr[p.Name] = p.Addr
			plan.live = append(plan.live, p.Name)
		}
	}
	done := func() {}
	var out []packs.Source
	for _, step := range plan.order() {
		switch {
		case step.node != "":
			out = append(out, &packPeer{n: n, node: step.node, addr: addr[step.node], ref: ref, fetch: step.fetch, wrote: step.wrote})
		case where.place != nil && n.remote != nil:
			src := &remoteSource{n: n, place: *where.place}
			done = src.close
			out = append(out, &packRemote{src: src, ref: ref})
		}
	}
	return out, done, nil
}

// packPlan decides who is asked for a pack.
type packPlan struct {
	self, key     string
	live, holders []string // nodes, without order; holders wrote the pack and have it
	firstHand     bool     // another node waits for it: ask nobody who would wait in turn
}

// packStep is one to ask: a node, or the remote tier.
type packStep struct {
	node  string // "" is the remote tier
	fetch bool   // it is asked to fetch what it does not have
	wrote bool   // it wrote the pack, and said that it has it
}

// order is pure. Those before this node in the rendezvous order are asked to
// fetch the pack; when they are all away it is this node's turn, which then
// takes it from the remote tier, unless one of the next ones has it already.
func (p packPlan) order() (steps []packStep) {
	asked := map[string]bool{p.self: true}
	add := func(node string, fetch bool) {
		if !asked[node] {
			asked[node] = true
			steps = append(steps, packStep{node: node, fetch: fetch})
		}
	}
	ranked := packs.Rank(p.key, append([]string{p.self}, p.live...))
	turn := 0 // this node's place
	for i, node := range ranked {
		if node == p.self {
			turn = i
			break
		}
		if !p.firstHand && i < askedPeers {
			add(node, true)
		}
	}
	more := askedPeers
	for i, node := range ranked {
		if (p.firstHand || i > turn) && more > 0 && node != p.self {
			add(node, false)
			more--
		}
	}
	steps = append(steps, packStep{})
	// Who wrote it comes first; one that lost it may still be whose turn it is.
	holders := packs.Rank(p.key, p.holders)
	place := func(s packStep) int {
		if i := slices.Index(holders, s.node); i >= 0 {
			return i
		}
		return len(holders)
	}
	for _, node := range holders {
		add(node, false)
	}
	for i := range steps {
		steps[i].wrote = place(steps[i]) < len(holders)
	}
	slices.SortStableFunc(steps, func(a, b packStep) int { return place(a) - place(b) })
	return steps
}

// tidyEvery is how often copies are held against the catalog.
const tidyEvery = time.Minute

// tidyPacks drops copies of sets that the catalog knows no more, and keeps the
// leases of versions that are open.
func (n *Node) tidyPacks(ctx context.Context) error {
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	for _, id := range n.packs.Copies() {
		if rec, ok := n.cat.KnownSet(id); ok && rec.State == catalog.Committed {
			continue
		}
		if err := n.packs.Remove(ctx, id); err != nil {
			return err
		}
		n.log.Info("cached pack dropped: its set is no more", "set", id.String())
	}
	return n.renewVersions(ctx)
}

// verifyCached reads and checks the cached copy of a pack or an index, if this
// node has one. A bad one is dropped: it is fetched anew when it is needed.
func (n *Node) verifyCached(ctx context.Context, id catalog.SetID) (cached bool, err error) {
	name := packs.Name(id)
	if _, err := n.local.Stat(name); err != nil || !id.Run.Reserved() {
		return false, nil
	}
	err = n.local.Verify(ctx, name, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // evicted meanwhile
	}
	if errors.Is(err, catalog.ErrCorrupt) {
		err = errors.Join(err, n.packs.Remove(ctx, id))
	}
	return true, err
}
