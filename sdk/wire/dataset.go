package wire

import (
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Dataset is one dataset, with its newest version.
type Dataset struct {
	Name     string          `json:"name"`
	Versions int             `json:"versions"`         // committed ones
	Latest   *DatasetVersion `json:"latest,omitempty"` // none: packs only, of an import under way or of versions removed
	Packs    int             `json:"packs"`            // of all versions, and of imports under way
	Stored   int64           `json:"stored"`           // bytes of all packs and indexes
}

// DatasetVersion is one version of a dataset as users see it.
type DatasetVersion struct {
	Ref       string            `json:"ref"` // NAME@3
	ID        string            `json:"id"`  // of the set that its index is
	Name      string            `json:"name"`
	Version   int64             `json:"version"`
	State     catalog.State     `json:"state"`
	Level     catalog.Level     `json:"level"` // of the least safe of its index and its packs; none when one is missing
	Begun     time.Time         `json:"begun"`
	Committed time.Time         `json:"committed,omitzero"`
	Digest    catalog.Digest    `json:"digest,omitzero"` // of the content
	Files     int64             `json:"files"`
	Bytes     int64             `json:"bytes"` // of the files
	Samples   int64             `json:"samples"`
	Packs     int               `json:"packs"`
	Stored    int64             `json:"stored"` // bytes of its index and packs; other versions may share packs
	Pinned    bool              `json:"pinned"`
	Tags      map[string]string `json:"tags,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Missing   []string          `json:"missing,omitempty"` // packs that the catalog does not have; their files cannot be read
	Err       string            `json:"err,omitempty"`     // why some of this is not known
}

// DatasetPack is one pack of a version.
type DatasetPack struct {
	Pack    int           `json:"pack"` // its number in the index
	ID      string        `json:"id"`
	Size    int64         `json:"size"`
	Raw     bool          `json:"raw"`     // one large file, and nothing else
	Samples int64         `json:"samples"` // whose first field is in it
	Level   catalog.Level `json:"level"`   // none: the catalog does not have it
	Shared  bool          `json:"shared"`  // another committed version names it too
}

// DatasetDetail is everything about a version.
type DatasetDetail struct {
	DatasetVersion
	Schema   string          `json:"schema,omitempty"` // of its samples, JSON
	PackList []DatasetPack   `json:"pack_list"`
	Leases   []string        `json:"leases"` // who reads it now
	Events   []catalog.Event `json:"events"`
}

// PacksRequest asks a node how much it has of some packs; at most 4,096.
type PacksRequest struct {
	Sets []string `json:"sets"`
}

// PacksAnswer has the bytes of each pack that are on the node, checked, in the
// order of the question.
type PacksAnswer struct {
	Have []int64 `json:"have"`
}

// WarmRequest has a version's packs brought to nodes.
type WarmRequest struct {
	Ref   string   `json:"ref"`             // NAME@V
	Nodes []string `json:"nodes,omitempty"` // empty: the one that is asked; "all": those that live
}

// WarmNode is how far one node is.
type WarmNode struct {
	Node     string `json:"node"`
	Verified int64  `json:"verified"` // bytes on its disks, each checked
	Total    int64  `json:"total"`    // bytes of the version's packs
	Err      string `json:"err,omitempty"`
}

// WarmResult ends an answer of /v1/dataset/warm.
type WarmResult struct {
	Set   string     `json:"set"`
	Nodes []WarmNode `json:"nodes"`
}

// DatasetNode is how much of a version one node has.
type DatasetNode struct {
	Node  string  `json:"node"`
	Bytes int64   `json:"bytes"`
	Packs int     `json:"packs"` // whole ones
	Score float64 `json:"score"` // 0 to 1: the share of the bytes
	Err   string  `json:"err,omitempty"`
}

// DatasetPlaces says which nodes have how much of a version, the most first.
type DatasetPlaces struct {
	Set   string        `json:"set"`
	Bytes int64         `json:"bytes"` // of its packs
	Packs int           `json:"packs"`
	Nodes []DatasetNode `json:"nodes"`
}

// DatasetSettings are those of a node's cache. In a request zero fields mean
// no change.
type DatasetSettings struct {
	Cache     int64  `json:"cache,omitempty"`     // bytes, at most
	Policy    string `json:"policy,omitempty"`    // next, lru
	Retries   int    `json:"retries,omitempty"`   // times that all sources are asked again
	Ahead     int    `json:"ahead,omitempty"`     // packs that may be fetched before they are needed
	Lookahead int64  `json:"lookahead,omitempty"` // samples of a reader's order that are looked at
}

// Cache is how a node's copies of packs are.
type Cache struct {
	Settings   DatasetSettings `json:"settings"`
	Used       int64           `json:"used"`     // bytes
	Arriving   int64           `json:"arriving"` // bytes of copies on their way, of used
	Copies     int             `json:"copies"`
	Open       int             `json:"open"`
	Readers    int             `json:"readers"`
	Reading    []Reader        `json:"reading,omitempty"` // them, the first hundred; in Status
	Hits       int64           `json:"hits"`
	Misses     int64           `json:"misses"`
	Joins      int64           `json:"joins"` // openings of what was arriving
	Evicted    int64           `json:"evicted"`
	Prefetched int64           `json:"prefetched"`
	Wasted     int64           `json:"wasted"` // prefetched and evicted unused
	Bad        int64           `json:"bad"`    // copies that failed a check
	Waits      int64           `json:"waits"`
	Waited     float64         `json:"waited"` // seconds
	Local      int64           `json:"local"`  // bytes read that were here
	Peer       int64           `json:"peer"`   // bytes fetched from other nodes
	Remote     int64           `json:"remote"` // bytes fetched from the remote tier
}

// Reader is where a reader is, and the settings that hold for it.
type Reader struct {
	ID        string `json:"id"`
	Set       string `json:"set"`
	Rank      int    `json:"rank"`
	World     int    `json:"world"`
	At        int64  `json:"at"` // samples of the epoch that all ranks together have taken
	Ahead     int    `json:"ahead"`
	Lookahead int64  `json:"lookahead"`
	Retries   int    `json:"retries"`
}

// Order is the order a reader reads in.
type Order struct {
	Mode  string `json:"mode"` // global, window
	Seed  uint64 `json:"seed,string"`
	Epoch uint64 `json:"epoch,string"`
	Slice int64  `json:"slice,omitempty"` // samples
	Group int64  `json:"group,omitempty"` // slices
}
