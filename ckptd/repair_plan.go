package ckptd

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// placed is a blob of a set on the remote tier, and where a record says it is.
type placed struct {
	id    catalog.SetID
	rank  int // -1: no shard
	root  catalog.Digest
	place catalog.Place
}

// What stands where a shard's rank would.
const (
	manifestRank = -1
	recordRank   = -2 // set.json or run.json, whose place is where its columns are
)

// what names the blob for people.
func (p *placed) what() string {
	if p.rank >= 0 {
		return fmt.Sprintf("rank %d", p.rank)
	}
	_, file, _ := cutLast(p.place.Blob)
	return file
}

// placesOf lists the blobs of a committed set that records give a place, each
// place once.
func placesOf(set *catalog.SetRecord, parts []catalog.PartRecord) []placed {
	var all []placed
	add := func(p placed) {
		if !slices.ContainsFunc(all, func(o placed) bool { return samePlace(&o.place, &p.place) }) {
			all = append(all, p)
		}
	}
	if set.Place != nil {
		add(placed{set.SetID, manifestRank, catalog.Digest{}, *set.Place})
	}
	for _, part := range parts {
		for _, s := range part.Shards {
			if s.Remote != nil {
				add(placed{set.SetID, s.Rank, s.Root, *s.Remote})
			}
		}
	}
	return all
}

// samePlace says whether two places are one, down to their targets.
func samePlace(a, b *catalog.Place) bool {
	return a.Blob == b.Blob && a.Generation == b.Generation && slices.Equal(a.Targets, b.Targets)
}

// mendView is what the duties that move columns decide from.
type mendView struct {
	node    string   // this one
	live    []string // nodes that mend, this one included
	targets catalog.TargetMap
	known   bool                   // the map was seen, and is used
	gone    func(name string) bool // it has been no member for long, and this node does not use it; nil: none is
	now     time.Time
	after   time.Duration          // how long a target is down before its columns are rebuilt
	room    func(name string) bool // this node reaches it, and it is not full; nil: all are so
}

// leaves says whether the columns on a target are to be elsewhere: it is being
// drained, was down for long, or was taken out of the map.
func (v *mendView) leaves(name string) bool {
	if !v.known {
		return false
	}
	member := false
	for i := range v.targets.Targets {
		r := &v.targets.Targets[i]
		if r.Name != name {
			continue
		}
		if member = true; !r.State.Kept() && (r.State != catalog.TargetDown || v.now.Sub(r.Since) < v.after) {
			return false // of two of one name, each is reached by its own node alone: the place is of either
		}
	}
	return member || v.gone != nil && v.gone(name)
}

// lost says whether what is on a target cannot be counted on now.
func (v *mendView) lost(name string) bool {
	if !v.known {
		return false
	}
	for i := range v.targets.Targets {
		if r := &v.targets.Targets[i]; r.Name == name && r.State != catalog.TargetDown {
			return false
		}
	}
	return true
}

// leaving names the members that are to be left, for people and for the duty
// to know whether anything has changed; "" is none.
func (v *mendView) leaving() string {
	var names []string
	for i := range v.targets.Targets {
		if name := v.targets.Targets[i].Name; v.leaves(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// reaches says whether a node reaches every target of a place that is a member.
func (v *mendView) reaches(node string, p *catalog.Place) bool {
	for _, name := range p.Targets {
		of, mine := 0, false
		for i := range v.targets.Targets {
			if r := &v.targets.Targets[i]; r.Name == name {
				of++
				mine = mine || r.Node == "" || r.Node == node
			}
		}
		if of > 0 && !mine {
			return false
		}
	}
	return true
}

// owner is the node that mends a blob: one of those that are alive and reach
// its targets, by rendezvous hashing, so that the work spreads and a node that
// dies is taken over. "" if there is none.
func (v *mendView) owner(p *catalog.Place) string {
	var able []string
	for _, node := range v.live {
		if v.reaches(node, p) {
			able = append(able, node)
		}
	}
	return rendezvous(p.Blob, able)
}

// rendezvous picks one name for a key: the same for all who know the same names.
func rendezvous(key string, names []string) string {
	best, most := "", uint64(0)
	for _, name := range names {
		sum := sha256.Sum256([]byte(key + "\x00" + name))
		if h := binary.BigEndian.Uint64(sum[:8]); best == "" || h > most || h == most && name < best {
			best, most = name, h
		}
	}
	return best
}

// canSpread says whether a target has several columns of a place while another
// member of the pool has none, takes new ones and is not known to be full.
func (v *mendView) canSpread(p *catalog.Place) bool {
	if !v.known || len(crowded(p)) == 0 {
		return false
	}
	pool := map[string]bool{}
	for i := range v.targets.Targets {
		if r := &v.targets.Targets[i]; slices.Contains(p.Targets, r.Name) {
			pool[r.Pool] = true
		}
	}
	return slices.ContainsFunc(v.targets.Targets, func(r catalog.TargetRecord) bool {
		return pool[r.Pool] && r.State.OrUp() == catalog.TargetUp && (r.Node == "" || r.Node == v.node) && !slices.Contains(p.Targets, r.Name) && (v.room == nil || v.room(r.Name))
	})
}

// mendJob is a blob to be mended.
type mendJob struct {
	placed
	spare  int  // columns that may still be lost
	deep   bool // some column was seen to be bad
	spread bool // a target has several of its columns, and another has none
}

// planMend lists what of some blobs is to be mended by this node, and counts
// what is to be mended by anybody. Those that asked names are, wherever they
// are; deep says that a column of them is bad.
func planMend(v *mendView, blobs []placed, asked func(*placed) (yes, deep bool)) (mine []mendJob, all int) {
	for _, p := range blobs {
		leave, lost := false, 0
		for _, name := range p.place.Targets {
			leave = leave || v.leaves(name)
			if v.lost(name) {
				lost++
			}
		}
		yes, deep := false, false
		if asked != nil {
			yes, deep = asked(&p)
		}
		spread := v.canSpread(&p.place)
		if !yes && !leave && !spread {
			continue
		}
		all++
		if !(yes && v.reaches(v.node, &p.place)) && v.owner(&p.place) != v.node {
			continue
		}
		spare := -lost
		if l, err := stripe.Parse(p.place.Layout); err == nil {
			spare += l.M
		}
		mine = append(mine, mendJob{p, spare, deep, spread})
	}
	return mine, all
}

// sortMend puts the blobs that can bear the least first, then the newest sets.
func sortMend(jobs []mendJob) {
	slices.SortStableFunc(jobs, func(a, b mendJob) int {
		return cmp.Or(cmp.Compare(a.spare, b.spare), b.id.Compare(a.id), cmp.Compare(a.rank, b.rank))
	})
}
