package ckptd

import (
	"slices"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// scrubPlan is what there is to do about one set's columns on one target.
type scrubPlan struct {
	check   []scrubColumn      // that are there: to be read
	missing []scrubColumn      // that should be there
	extra   []remotetier.Entry // that no record names there
}

// scrubColumn is a column of a blob that a record names.
type scrubColumn struct {
	placed
	column int
	size   int64 // of the file
}

// planScrub holds what a target lists of a set against the places of its
// blobs. A column of a blob without any place is left out: its record is on
// its way.
func planScrub(target string, blobs []placed, listed []remotetier.Entry) scrubPlan {
	var p scrubPlan
	for _, b := range blobs {
		for c, name := range b.place.Targets {
			if name != target {
				continue
			}
			key := remotetier.Key{Blob: b.place.Blob, Generation: b.place.Generation, Column: c}
			i := slices.IndexFunc(listed, func(e remotetier.Entry) bool { return e.Key == key })
			if i < 0 {
				p.missing = append(p.missing, scrubColumn{placed: b, column: c})
			} else {
				p.check = append(p.check, scrubColumn{b, c, listed[i].Size})
			}
		}
	}
	for _, e := range listed {
		if slices.ContainsFunc(blobs, func(b placed) bool { return b.place.Blob == e.Key.Blob }) && !namedHere(target, blobs, e.Key) {
			p.extra = append(p.extra, e)
		}
	}
	return p
}

// namedHere says whether a place has that column on that target.
func namedHere(target string, blobs []placed, key remotetier.Key) bool {
	return slices.ContainsFunc(blobs, func(b placed) bool {
		return b.place.Blob == key.Blob && b.place.Generation == key.Generation && key.Column < len(b.place.Targets) && b.place.Targets[key.Column] == target
	})
}

// namedElsewhere gives the place of a column's generation, if a record names
// one: the column is then a second copy.
func namedElsewhere(blobs []placed, key remotetier.Key) (catalog.Place, bool) {
	for _, b := range blobs {
		if b.place.Blob == key.Blob && b.place.Generation == key.Generation {
			return b.place, true
		}
	}
	return catalog.Place{}, false
}

// mayScrub says whether a node is the one to look at a target: of those that
// are alive and reach it, the one that hashing picks.
func (v *mendView) mayScrub(r *catalog.TargetRecord) bool {
	var able []string
	for _, node := range v.live {
		if r.Node == "" || r.Node == node {
			able = append(able, node)
		}
	}
	return rendezvous("scrub/"+r.Name, able) == v.node
}

// scrubbedByOther says whether another node is at it, as far as its record
// tells. If it is not, two look, which does no harm.
func scrubbedByOther(r *catalog.ScrubRecord, node string, now time.Time) bool {
	return r.Running() && r.By != node && r.By != "" && now.Sub(r.Seen) < scrubSilence
}
