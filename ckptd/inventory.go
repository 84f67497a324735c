package ckptd

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
)

// inventory is what this node's disks hold and what it has stated about it.
// It is a cache of the local tier and of the node's own part records.
type inventory struct {
	mu struct {
		sync.Mutex
		sets map[catalog.SetID]*holding
	}
}

// holding is one set as far as this node is concerned.
type holding struct {
	shards map[int]*held
	// part is this node's statement as it is in the catalog; nil until read.
	part   *catalog.PartRecord
	orphan bool  // the catalog does not know the set, though it was committed once
	copied int64 // Version of the set.json on the local tier
	saving int   // ranks admitted here and not durable yet
}

// held is one shard on the local tier.
type held struct {
	name    string
	rank    int
	size    int64
	root    catalog.Digest
	info    catalog.ShardInfo
	durable time.Time
}

func (v *inventory) init() { v.mu.sets = make(map[catalog.SetID]*holding) }

// of returns the holding of a set, made when missing; the lock is held.
func (v *inventory) of(id catalog.SetID) *holding {
	h := v.mu.sets[id]
	if h == nil {
		h = &holding{shards: make(map[int]*held)}
		v.mu.sets[id] = h
	}
	return h
}

func (v *inventory) add(id catalog.SetID, s *held) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of(id).shards[s.rank] = s
}

func (v *inventory) drop(id catalog.SetID, rank int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if h := v.mu.sets[id]; h != nil {
		delete(h.shards, rank)
	}
}

func (v *inventory) forget(id catalog.SetID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mu.sets, id)
}

// blobName is what the shard of a rank is called here.
func (w *view) blobName(rank int) string {
	for _, s := range w.shards {
		if s.rank == rank {
			return s.name
		}
	}
	if w.part != nil {
		for _, s := range w.part.Shards {
			if s.Rank == rank {
				return s.BlobName(w.id)
			}
		}
	}
	return w.id.ShardName(rank)
}

// setPart remembers the node's statement as the catalog has it now.
func (v *inventory) setPart(id catalog.SetID, p catalog.PartRecord) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of(id).part = &p
}

// follow takes over the places in the node's statement that another node has
// changed since this one made it.
func (v *inventory) follow(id catalog.SetID, p catalog.PartRecord) {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.mu.sets[id]
	if h == nil || h.part == nil {
		return
	}
	for _, s := range h.part.Shards {
		for _, now := range p.Shards {
			if s.Rank == now.Rank && s.Root == now.Root && s.Remote != nil && now.Remote != nil && s.Remote.Generation == now.Remote.Generation && !samePlace(s.Remote, now.Remote) {
				h.part = &p
				return
			}
		}
	}
}

func (v *inventory) setOrphan(id catalog.SetID, orphan bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of(id).orphan = orphan
}

// view is a copy of a holding that needs no lock.
type view struct {
	id     catalog.SetID
	shards []held
	part   *catalog.PartRecord // never changed in place
	orphan bool
	saving int
}

// voteDelay is how long a durable shard waits for the other ranks of its set
// that are being saved here, so that one statement carries them all.
const voteDelay = time.Second

// awaits says whether the vote is better given a little later.
func (w *view) awaits(now time.Time) bool {
	if w.saving == 0 {
		return false
	}
	for _, s := range w.shards {
		if !stated(w.part, s) && now.Sub(s.durable) > voteDelay {
			return false
		}
	}
	return true
}

// enter and leave count the ranks of a set that are being saved here.
func (v *inventory) enter(id catalog.SetID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of(id).saving++
}

func (v *inventory) leave(id catalog.SetID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if h := v.mu.sets[id]; h != nil && h.saving > 0 { // the set may have been forgotten meanwhile
		h.saving--
	}
}

func (h *holding) view(id catalog.SetID) view {
	w := view{id: id, part: h.part, orphan: h.orphan, saving: h.saving}
	for _, s := range h.shards {
		w.shards = append(w.shards, *s)
	}
	slices.SortFunc(w.shards, func(a, b held) int { return a.rank - b.rank })
	return w
}

func (v *inventory) get(id catalog.SetID) (view, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.mu.sets[id]
	if h == nil {
		return view{}, false
	}
	return h.view(id), true
}

// all gives every set, newest first.
func (v *inventory) all() []view {
	v.mu.Lock()
	defer v.mu.Unlock()
	views := make([]view, 0, len(v.mu.sets))
	for id, h := range v.mu.sets {
		views = append(views, h.view(id))
	}
	slices.SortFunc(views, func(a, b view) int { return b.id.Compare(a.id) })
	return views
}

// stated says whether the statement covers the shard as it is on disk.
func stated(p *catalog.PartRecord, s held) bool {
	if p == nil {
		return false
	}
	for _, t := range p.Shards {
		if t.Rank == s.rank && t.Root == s.root && t.Local && t.Bad == "" {
			return true
		}
	}
	return false
}

// unstated lists the sets with shards the catalog has not been told of.
func (v *inventory) unstated() []view {
	var todo []view
	for _, w := range v.all() {
		if w.orphan {
			continue
		}
		for _, s := range w.shards {
			if !stated(w.part, s) {
				todo = append(todo, w)
				break
			}
		}
	}
	return todo
}

// backlog counts shards stated here and not yet remote.
func (v *inventory) backlog() (shards int, bytes int64) {
	for _, w := range v.all() {
		if w.part == nil {
			continue
		}
		for _, s := range w.part.Shards {
			if s.Remote == nil && s.Local {
				shards++
				bytes += s.Size
			}
		}
	}
	return shards, bytes
}

// takeStock reads the local tier into the inventory.
func (n *Node) takeStock() {
	for info := range n.local.List("") {
		if packs.Is(info.Name) {
			continue
		}
		dir, file, ok := cutLast(info.Name)
		if !ok || !strings.HasSuffix(file, ".safetensors") && !strings.HasSuffix(file, ".bin") {
			continue
		}
		id, err := catalog.ParseDir(dir)
		if err != nil {
			continue // not ours; fsck reports it
		}
		if s, err := n.stockOf(id, info.Name); err != nil {
			n.log.Warn("shard left aside", "name", info.Name, "err", err)
		} else {
			n.inv.add(id, s)
		}
	}
}

func cutLast(name string) (dir, file string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}

// stockOf reads a shard's own statement from its seal.
func (n *Node) stockOf(id catalog.SetID, name string) (*held, error) {
	seal, err := n.local.Seal(name)
	if err != nil {
		return nil, err
	}
	s := &held{name: name, size: seal.Size, root: seal.Root()}
	if err := json.Unmarshal(seal.Info, &s.info); err != nil {
		return nil, fmt.Errorf("seal of %s: %w: %v", name, catalog.ErrCorrupt, err)
	}
	if err := s.info.Check(); err != nil {
		return nil, fmt.Errorf("seal of %s: %w: %v", name, catalog.ErrCorrupt, err)
	}
	if s.info.Set != id || name != s.info.BlobName() {
		return nil, fmt.Errorf("seal of %s: %w: it is of %v rank %d", name, catalog.ErrCorrupt, s.info.Set, s.info.Rank)
	}
	s.rank = s.info.Rank
	if st, err := n.local.Stat(name); err == nil {
		s.durable = st.ModTime
	}
	if s.durable.IsZero() {
		s.durable = s.info.Sealed
	}
	return s, nil
}
