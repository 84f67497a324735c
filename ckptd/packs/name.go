package packs

import (
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Prefix is the folder of the local tier that holds copies; stock taking,
// votes, fsck and rebuilds leave it alone.
const Prefix = "_cache"

// base is the one file of a raw set: such sets have world size 1.
const base = "rank-00000.bin"

// Name is the blob a copy of a set's shard is kept as.
func Name(id catalog.SetID) string { return Prefix + "/" + id.Dir() + "/" + base }

// Own is the blob that a node has of a shard it wrote itself.
func Own(id catalog.SetID) string { return id.Dir() + "/" + base }

// Is says whether a blob is a copy.
func Is(name string) bool { return strings.HasPrefix(name, Prefix+"/") }

// ParseName is the inverse of Name.
func ParseName(name string) (catalog.SetID, bool) {
	dir, ok := strings.CutPrefix(name, Prefix+"/")
	if !ok {
		return catalog.SetID{}, false
	}
	dir, ok = strings.CutSuffix(dir, "/"+base)
	if !ok {
		return catalog.SetID{}, false
	}
	id, err := catalog.ParseDir(dir)
	return id, err == nil
}
