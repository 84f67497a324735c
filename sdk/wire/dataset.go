package wire

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

// Order is the order a reader reads in.
type Order struct {
	Mode  string `json:"mode"` // global, window
	Seed  uint64 `json:"seed,string"`
	Epoch uint64 `json:"epoch,string"`
	Slice int64  `json:"slice,omitempty"` // samples
	Group int64  `json:"group,omitempty"` // slices
}
