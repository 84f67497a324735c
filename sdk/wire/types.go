package wire

import (
	"encoding/json"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Version is the protocol version both halves speak.
const Version = 1

// Run is one row of `ckpt ls`.
type Run struct {
	Name    string    `json:"name"`
	Attempt int       `json:"attempt"`
	Launch  string    `json:"launch,omitempty"` // whose attempt that is
	Sets    int       `json:"sets"`             // committed
	Size    int64     `json:"size"`             // bytes of committed sets
	Latest  *Set      `json:"latest,omitempty"`
	Created time.Time `json:"created"`
}

// Set is one set as users see it.
type Set struct {
	Ref       string             `json:"ref"` // RUN@STEP
	ID        string             `json:"id"`  // RUN@STEP#ATTEMPT
	Run       string             `json:"run"`
	Step      int64              `json:"step"`
	Attempt   int                `json:"attempt"`
	State     catalog.State      `json:"state"`
	Level     catalog.Level      `json:"level"`
	World     int                `json:"world"`
	Size      int64              `json:"size"` // bytes
	Begun     time.Time          `json:"begun"`
	Committed time.Time          `json:"committed,omitzero"`
	Pinned    bool               `json:"pinned"`
	Condemned time.Time          `json:"condemned,omitzero"` // a pack that is about to be pruned: no version names it
	Tags      map[string]string  `json:"tags,omitempty"`
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	Manifest  catalog.Digest     `json:"manifest,omitzero"`
	Reason    string             `json:"reason,omitempty"`
}

// SetOf shows a catalog record to users.
func SetOf(r *catalog.SetRecord) Set {
	ref := r.SetID.Ref()
	ref.Attempt = 0
	return Set{
		Ref: ref.String(), ID: r.SetID.String(), Run: string(r.Run), Step: r.Step, Attempt: r.Attempt,
		State: r.State, Level: r.Level, World: r.World, Size: r.Size, Begun: r.Begun, Committed: r.Committed,
		Pinned: r.Pinned, Condemned: r.Condemned, Tags: r.Tags, Metrics: r.Metrics, Manifest: r.Manifest, Reason: r.Reason,
	}
}

// Shard is one rank's row of `ckpt show`.
type Shard struct {
	Rank     int               `json:"rank"`
	Size     int64             `json:"size"`
	Root     catalog.Digest    `json:"root"`
	Raw      bool              `json:"raw,omitempty"`  // a file of any kind, not safetensors
	File     string            `json:"file,omitempty"` // of a raw shard of a committed set: the name of the file it was
	Meta     map[string]string `json:"meta,omitempty"` // of a raw shard of a committed set: what was said of it
	Node     string            `json:"node"`           // that voted for it
	Local    []string          `json:"local"`          // nodes that have the file now
	Path     string            `json:"path,omitempty"` // on this node
	Remote   *catalog.Place    `json:"remote,omitempty"`
	Level    catalog.Level     `json:"level"`
	Bad      string            `json:"bad,omitempty"`
	Sealed   time.Time         `json:"sealed,omitzero"`
	Durable  time.Time         `json:"durable,omitzero"`
	Drained  time.Time         `json:"drained,omitzero"`
	Verified time.Time         `json:"verified,omitzero"`
}

// SetDetail is `ckpt show`.
type SetDetail struct {
	Set
	Shards  []Shard          `json:"shards"`
	Missing []int            `json:"missing,omitempty"` // ranks without a vote
	Events  []catalog.Event  `json:"events"`
	Place   *catalog.Place   `json:"manifest_place,omitempty"`
	Tensors []catalog.Tensor `json:"tensors,omitempty"` // by rank, when asked for
}

// Why is `ckpt why`: the story of a set and what is missing.
type Why struct {
	Set     *Set            `json:"set,omitempty"`
	Story   []string        `json:"story"`           // sentences, in order
	Missing []string        `json:"missing"`         // what keeps it from being safer or readable
	Older   string          `json:"older,omitempty"` // the next older set with a good copy, when this one has none
	Events  []catalog.Event `json:"events"`
}

// Status is `ckpt status`.
type Status struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Socket  string    `json:"socket"`
	Data    string    `json:"data"`
	Catalog struct {
		URL         string `json:"url"` // "embedded" or the server's
		Connected   bool   `json:"connected"`
		Coordinator string `json:"coordinator,omitempty"`
		Sets        int    `json:"sets"`
	} `json:"catalog"`
	Arena struct {
		Size    int64 `json:"size"`
		Lent    int64 `json:"lent"`
		Waiting int   `json:"waiting"`
		Warm    bool  `json:"warm"`
	} `json:"arena"`
	Local struct {
		Quota    int64  `json:"quota"`
		Used     int64  `json:"used"`
		Reserved int64  `json:"reserved"`
		Free     int64  `json:"free"`
		Disks    []Disk `json:"disks"`
	} `json:"local"`
	Remote struct {
		Layout  string   `json:"layout"`
		Targets []Target `json:"targets"`
	} `json:"remote"`
	Backlog struct {
		Votes      int   `json:"votes"`       // shards durable here and not yet in the catalog
		Drain      int   `json:"drain"`       // shards not yet remote
		DrainBytes int64 `json:"drain_bytes"` // bytes
		Verify     int   `json:"verify"`
	} `json:"backlog"`
	Cache   Cache    `json:"cache"`  // of packs of datasets
	Drafts  []Draft  `json:"drafts"` // on this node, the first hundred
	Mounts  []Mount  `json:"mounts"`
	Repair  string   `json:"repair,omitempty"` // what is being mended on the remote tier, one sentence
	Trouble []string `json:"trouble"`          // anything wrong, one sentence each; empty is healthy
}

// Disk is one disk of the local tier.
type Disk struct {
	Dir  string `json:"dir"`
	Used int64  `json:"used"`
	Free int64  `json:"free"`
	Err  string `json:"err,omitempty"`
}

// Target is one place of the remote tier.
type Target struct {
	Name     string              `json:"name"`
	Node     string              `json:"node,omitempty"` // the only one that reaches it
	State    catalog.TargetState `json:"state"`
	Since    time.Time           `json:"since,omitzero"` // of the state
	Reason   string              `json:"reason,omitempty"`
	Domain   string              `json:"domain,omitempty"`
	Pool     string              `json:"pool,omitempty"`
	Scheme   string              `json:"scheme,omitempty"` // tcp, tls, ofi, dir, posix, s3
	Addrs    []string            `json:"addrs"`
	Weight   float64             `json:"weight"`
	Total    int64               `json:"total"`   // bytes
	Free     int64               `json:"free"`    // bytes
	Columns  int64               `json:"columns"` // that lie on it; -1: not known
	Errors   int64               `json:"errors"`  // of its disk, since it was started
	Latency  float64             `json:"latency"` // of a small question, seconds
	Seen     time.Time           `json:"seen,omitzero"`
	Full     bool                `json:"full,omitempty"`
	Scrubbed time.Time           `json:"scrubbed,omitzero"` // when every column on it was last looked at
	Err      string              `json:"err,omitempty"`     // why this node cannot use it
	Trouble  string              `json:"trouble,omitempty"` // anything to know, one sentence; empty is healthy
}

// Targets is the target map, with how each member is.
type Targets struct {
	Version int64    `json:"version"` // of the map; 0: none
	Targets []Target `json:"targets"`
}

// Node is one daemon.
type Node struct {
	catalog.NodeRecord
	Alive bool `json:"alive"`
}

// Prune says what a prune does, or did.
type Prune struct {
	DryRun bool        `json:"dry_run"`
	Keep   []PruneItem `json:"keep"`
	Remove []PruneItem `json:"remove"`
	Freed  int64       `json:"freed"` // bytes of the removed sets
}

// PruneItem is one set and why.
type PruneItem struct {
	Set
	Why string `json:"why"`
}

// Progress is a line of a long answer.
type Progress struct {
	What  string `json:"what"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"` // 0: unknown
	Unit  string `json:"unit"`  // "bytes" or "sets"
}

// Draft is a folder of a mount, RUN/.write/STEP, in which a set is being written.
type Draft struct {
	Name       string    `json:"name"` // RUN@STEP
	Files      int       `json:"files"`
	Bytes      int64     `json:"bytes"`
	Writers    int       `json:"writers"` // files that are open for writing
	Changed    time.Time `json:"changed"` // when somebody touched it last
	Until      time.Time `json:"until"`   // when it is removed if nobody does
	Committing bool      `json:"committing,omitempty"`
}

// CommitRequest asks for a step's drafts, of all nodes, to be made one set.
type CommitRequest struct {
	Ref     string             `json:"ref"`             // RUN@STEP
	World   int                `json:"world,omitempty"` // how many files there must be; 0: any number
	Nodes   int                `json:"nodes,omitempty"` // how many nodes must have a draft; 0: any number
	Launch  string             `json:"launch,omitempty"`
	Metrics map[string]float64 `json:"metrics,omitempty"`
}

// VerifyResult ends an answer of /v1/verify.
type VerifyResult struct {
	Sets   int       `json:"sets"`
	Copies int       `json:"copies"`
	Bytes  int64     `json:"bytes"`
	Bad    []BadCopy `json:"bad"`
}

// BadCopy is one copy that failed a check.
type BadCopy struct {
	ID   string `json:"id"`
	Rank int    `json:"rank"` // -1: the manifest, or the whole set
	Tier string `json:"tier"` // local, remote, cache
	Node string `json:"node,omitempty"`
	Err  string `json:"err"`
}

// RebuildResult ends an answer of /v1/catalog/rebuild.
type RebuildResult struct {
	Runs     int      `json:"runs"`
	Sets     int      `json:"sets"`
	Shards   int      `json:"shards"`
	Problems []string `json:"problems"`
}

// RebalanceResult ends an answer of /v1/targets/rebalance.
type RebalanceResult struct {
	DryRun  bool            `json:"dry_run"`
	Moves   []RebalanceMove `json:"moves"`   // that were planned
	Columns int             `json:"columns"` // moved; of a dry run: planned
	Bytes   int64           `json:"bytes"`   // of them
	Least   float64         `json:"least"`   // used part of the emptiest target, after it
	Most    float64         `json:"most"`    // used part of the fullest
	Left    []string        `json:"left"`    // what did not move, and why
}

// RebalanceMove is what goes from one target to another.
type RebalanceMove struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Columns int    `json:"columns"`
	Bytes   int64  `json:"bytes"`
}

// RepairResult ends an answer of /v1/repair.
type RepairResult struct {
	Started bool     `json:"started,omitempty"` // it goes on in the daemon; the rest is not known yet
	Blobs   int      `json:"blobs"`             // that were looked at
	Mended  int      `json:"mended"`            // that are as they should be now
	Columns int      `json:"columns"`           // rebuilt or moved
	Bytes   int64    `json:"bytes"`             // written
	Left    []string `json:"left"`              // blobs that lack columns all the same, and why
}

// Mount is what a daemon shows as files in a folder of its machine.
type Mount struct {
	Dir           string `json:"dir"`
	Mounted       bool   `json:"mounted"` // it is there now
	AllowOther    bool   `json:"allow_other"`
	Checked       bool   `json:"checked"`
	NoPassthrough bool   `json:"no_passthrough"`   // it was asked for
	Ahead         int    `json:"ahead"`            // packs that are fetched before they are read, in order
	Retries       int    `json:"retries"`          // times that all sources of a pack are asked again
	FetchedAhead  int64  `json:"fetched_ahead"`    // packs that were, since it was mounted
	Kernel        string `json:"kernel,omitempty"` // version of its FUSE protocol
	Passthrough   bool   `json:"passthrough"`
	Why           string `json:"why,omitempty"` // there is no passthrough
	Open          int    `json:"open"`          // files, now
	Plain         int64  `json:"opens_plain"`   // since it was mounted, by how they are served
	Direct        int64  `json:"opens_direct"`
	Passed        int64  `json:"opens_passthrough"`
}

// Mounts is the answer of /v1/mounts.
type Mounts struct {
	Mounts []Mount `json:"mounts"`
}

// ScrubResult ends an answer of /v1/scrub.
type ScrubResult struct {
	Started bool     `json:"started,omitempty"` // it goes on in the daemons; the rest is not known yet
	Targets int      `json:"targets"`
	Columns int64    `json:"columns"` // looked at
	Bytes   int64    `json:"bytes"`   // of them
	Bad     int64    `json:"bad"`     // missing, or not what they should be
	Mended  int64    `json:"mended"`  // of the bad
	Extra   int64    `json:"extra"`   // that no record names; they go after a grace
	Left    []string `json:"left"`    // what could not be looked at or mended, and why
}

// FsckResult ends an answer of /v1/catalog/fsck.
type FsckResult struct {
	Sets     int           `json:"sets"`
	Problems []FsckProblem `json:"problems"`
}

// FsckProblem is one difference between the catalog and the tiers.
type FsckProblem struct {
	ID     string `json:"id,omitempty"`
	What   string `json:"what"`
	Mended bool   `json:"mended"`
}

// Line is one line of a streamed answer: exactly one field is set.
type Line struct {
	Progress *Progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Requests.
type (
	AttachRequest struct {
		Run    string `json:"run"`
		Launch string `json:"launch"` // empty only when World is 1
		World  int    `json:"world"`
	}
	AttachReply struct {
		Attempt int `json:"attempt"`
	}
	WaitRequest struct {
		Ref     string        `json:"ref"`
		Level   catalog.Level `json:"level"`
		Timeout float64       `json:"timeout"` // seconds
	}
	TagRequest struct {
		Ref  string             `json:"ref"`
		Tags map[string]*string `json:"tags"` // null removes
	}
	PinRequest struct {
		Ref    string `json:"ref"`
		Pinned bool   `json:"pinned"`
	}
	RemoveRequest struct {
		Ref string `json:"ref"`
	}
	PruneRequest struct {
		Run       string             `json:"run"`
		Retention *catalog.Retention `json:"retention,omitempty"`
		DryRun    bool               `json:"dry_run"`
	}
	PolicyRequest struct {
		Run    string         `json:"run"`
		Policy catalog.Policy `json:"policy"`
	}
	VerifyRequest struct {
		Ref  string `json:"ref,omitempty"`
		All  bool   `json:"all,omitempty"`
		Deep bool   `json:"deep,omitempty"` // BLAKE3 of every copy

		Dataset bool `json:"dataset,omitempty"` // ref is a dataset's version, NAME@3: its index and all packs
	}
	TargetAddRequest struct {
		Spec string `json:"spec"` // as for ckptd serve --remote
	}
	TargetRemoveRequest struct {
		Name  string `json:"name"`
		Node  string `json:"node,omitempty"`  // of a target that one node has to itself; default the node asked
		Force bool   `json:"force,omitempty"` // although it is not drained: what it holds counts as lost
	}
	TargetDrainRequest struct {
		Name string `json:"name"`
		Node string `json:"node,omitempty"` // as of TargetRemoveRequest
		Undo bool   `json:"undo,omitempty"` // take the drain back: new columns go there again
		Wait bool   `json:"wait,omitempty"` // tell of the progress until it is drained
	}
	RebalanceRequest struct {
		DryRun bool `json:"dry_run,omitempty"`
	}
	RepairRequest struct {
		Run  string `json:"run,omitempty"`  // default all
		Wait bool   `json:"wait,omitempty"` // until it is done; otherwise it goes on without the caller
	}
	MountRequest struct {
		Dir           string `json:"dir"` // absolute
		AllowOther    bool   `json:"allow_other,omitempty"`
		NoPassthrough bool   `json:"no_passthrough,omitempty"` // everything goes through the daemon, as where the kernel cannot do otherwise
		Checked       bool   `json:"checked,omitempty"`        // no passthrough: every byte that is read is checked
		Ahead         int    `json:"ahead,omitempty"`          // packs that are fetched before they are read, at most 64; 0: the node's setting, or no change of the mount's
		Retries       int    `json:"retries,omitempty"`        // times that all sources of a pack are asked again, at most 100; 0 as for ahead
	}
	UnmountRequest struct {
		Dir  string `json:"dir"`
		Lazy bool   `json:"lazy,omitempty"` // also from under those who use it
	}
	ScrubRequest struct {
		Target string `json:"target,omitempty"` // default all
		Wait   bool   `json:"wait,omitempty"`   // until it is done; otherwise it goes on without the caller
	}
	FsckRequest struct {
		Mend bool `json:"mend"`
	}
)
