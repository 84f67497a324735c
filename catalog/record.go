package catalog

import (
	"errors"
	"fmt"
	"time"
)

// State is where a set is in its life.
type State string

const (
	Writing   State = "writing"   // begun, not all ranks durable
	Committed State = "committed" // visible
	Aborted   State = "aborted"   // will never commit; its bytes are garbage
	Pruned    State = "pruned"    // tombstone: no longer visible, bytes go after the grace
)

// RunRecord is the catalog's record of a run.
type RunRecord struct {
	Run       Run       `json:"run"`
	Attempt   int       `json:"attempt"`            // the newest
	Launch    string    `json:"launch,omitempty"`   // whose attempt that is
	Launches  []string  `json:"launches,omitempty"` // earlier launches, newest first, at most maxLaunches
	Created   time.Time `json:"created"`
	Policy    Policy    `json:"policy"`
	PolicySet time.Time `json:"policy_set,omitzero"` // orders the copies of Policy kept on tiers
}

// valid says whether the record may stand under key.
func (r *RunRecord) valid(key string) error {
	if _, err := ParseRun(string(r.Run)); err != nil {
		return err
	}
	if r.Attempt < 0 || r.Attempt > MaxAttempt || len(r.Launches) > maxLaunches {
		return errors.New("attempt or launches out of range")
	}
	return ofKey(key, runKey(r.Run))
}

func ofKey(key, own string) error {
	if key != own {
		return fmt.Errorf("it is the record of %s", own)
	}
	return nil
}

// Policy says how a run's sets are kept. The zero value means the defaults of the node.
type Policy struct {
	Layout     string        `json:"layout,omitempty"`     // "k+m", as 4+2; "1+1" is two copies
	Unit       int64         `json:"unit,omitempty"`       // stripe unit, bytes
	NoDrain    bool          `json:"no_drain,omitempty"`   // keep sets on their nodes only
	NoVerify   bool          `json:"no_verify,omitempty"`  // stop at remote
	Remote     string        `json:"remote,omitempty"`     // pool of targets that new columns go to; "" is the default one
	Compress   string        `json:"compress,omitempty"`   // CompressZstd: shards are compressed on the way to the remote tier; CompressNone: they are not
	Replicas   int           `json:"replicas,omitempty"`   // extra nodes that hold each shard
	Incomplete time.Duration `json:"incomplete,omitempty"` // abort a set still writing after this long, ns
	Retention  Retention     `json:"retention,omitzero"`   // applied after each commit; zero keeps everything
}

// Values of Policy.Compress.
const (
	CompressZstd = "zstd"
	CompressNone = "none"
)

// Check reports what could never be carried out. Whether there are targets
// enough is the node's to say.
func (p *Policy) Check() error {
	switch {
	case p.Remote != "" && CheckTargetName(p.Remote) != nil:
		return fmt.Errorf("remote %.80q: %w: want the name of a pool of targets", p.Remote, ErrInvalid)
	case p.Compress != "" && p.Compress != CompressZstd && p.Compress != CompressNone:
		return fmt.Errorf("compress %.80q: %w: want %s or %s", p.Compress, ErrInvalid, CompressZstd, CompressNone)
	case p.Incomplete < 0:
		return fmt.Errorf("incomplete %v: %w: it is negative", p.Incomplete, ErrInvalid)
	}
	return p.Retention.Check()
}

// Retention says which sets to keep; a set kept by any rule stays. The zero
// value keeps everything.
type Retention struct {
	KeepLast   int           `json:"keep_last,omitempty"`   // this many newest
	KeepEvery  int64         `json:"keep_every,omitempty"`  // steps divisible by this
	KeepWithin time.Duration `json:"keep_within,omitempty"` // committed less than this long ago, ns
	KeepBest   string        `json:"keep_best,omitempty"`   // "METRIC", "METRIC:min" or "METRIC:max"
	KeepLevel  Level         `json:"keep_level,omitempty"`  // only sets at this level or safer count as kept by KeepLast
}

// SetRecord is the catalog's record of a set. Only the swap of State from
// Writing to Committed makes a set visible.
type SetRecord struct {
	SetID
	State     State              `json:"state"`
	World     int                `json:"world"`
	Begun     time.Time          `json:"begun"`
	Committed time.Time          `json:"committed,omitzero"`
	Pruned    time.Time          `json:"pruned,omitzero"`  // or aborted
	Reason    string             `json:"reason,omitempty"` // of abort or prune
	Level     Level              `json:"level"`
	Manifest  Digest             `json:"manifest,omitzero"`
	Size      int64              `json:"size,omitempty"`  // bytes of all shards
	Nodes     []string           `json:"nodes,omitempty"` // that hold the manifest
	Place     *Place             `json:"place,omitempty"` // of the manifest on the remote tier
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	Tags      map[string]string  `json:"tags,omitempty"`
	Pinned    bool               `json:"pinned,omitempty"`
	Condemned time.Time          `json:"condemned,omitzero"` // it is about to be pruned, see Condemn
	Version   int64              `json:"version"`            // grows with each change; orders the copies kept on tiers
}

// valid says whether the record may stand under key.
func (s *SetRecord) valid(key string) error {
	if err := s.Check(); err != nil {
		return err
	}
	if s.World < 1 || s.World > MaxWorld || s.Size < 0 || s.Version < 0 {
		return errors.New("world, size or version out of range")
	}
	switch s.State {
	case Writing, Committed, Aborted, Pruned:
		return ofKey(key, setKey(s.SetID))
	}
	return fmt.Errorf("state %.20q is unknown", s.State)
}

// mayBecome says which states may follow: a committed set never goes back.
func (s State) mayBecome(next State) bool {
	return s == next || s == Writing && (next == Committed || next == Aborted) || s == Committed && next == Pruned
}

// Place says where the columns of a blob are on the remote tier.
type Place struct {
	Blob       string   `json:"blob"`
	Layout     string   `json:"layout"`             // "k+m"
	Unit       int64    `json:"unit"`               // bytes
	Size       int64    `json:"size"`               // bytes of the blob as it is kept there
	Encoding   string   `json:"encoding,omitempty"` // what those bytes are: "" the blob itself, "planes" a container of remotetier/planes
	Generation uint64   `json:"generation,string"`
	Targets    []string `json:"targets"`          // by column
	Content    Digest   `json:"content,omitzero"` // BLAKE3 of the blob
}

// PartRecord is one node's statement about a set: its vote, and where the
// copies it answers for are.
type PartRecord struct {
	Set    SetID       `json:"set"`
	Node   string      `json:"node"`
	Shards []PartShard `json:"shards"`
	// Index holds the manifest's entries of the shards until the set is
	// committed, encoded by the node; a large one is a bulk, named by Bulk.
	Index []byte `json:"index,omitempty"`
	Bulk  Digest `json:"bulk,omitzero"`
}

// valid says whether the record may stand under key.
func (p *PartRecord) valid(key string) error {
	if err := p.Set.Check(); err != nil {
		return err
	}
	return ofKey(key, partKey(p.Set, p.Node))
}

// PartShard is one shard in a node's statement.
type PartShard struct {
	Rank     int       `json:"rank"`
	Size     int64     `json:"size"`
	Root     Digest    `json:"root"`
	Raw      bool      `json:"raw,omitempty"` // its name is SetID.RawName's
	Sealed   time.Time `json:"sealed,omitzero"`
	Durable  time.Time `json:"durable,omitzero"` // file and folder fsynced: the vote
	Local    bool      `json:"local,omitempty"`  // the bytes are on this node's disks now
	Bad      string    `json:"bad,omitempty"`    // why the local copy was quarantined
	Remote   *Place    `json:"remote,omitempty"`
	Drained  time.Time `json:"drained,omitzero"`
	Verified time.Time `json:"verified,omitzero"`
}

// ShardInfo is the writer's statement inside a shard's seal, so that a node's
// disks say what they hold without the catalog.
type ShardInfo struct {
	Set     SetID              `json:"set"`
	Rank    int                `json:"rank"`
	World   int                `json:"world"`
	Sealed  time.Time          `json:"sealed"`
	Fence   bool               `json:"fence,omitempty"` // the attempt was checked to be the newest when the shard was sealed
	Metrics map[string]float64 `json:"metrics,omitempty"`
	File    string             `json:"file,omitempty"` // of a raw shard: as in Shard
	Meta    map[string]string  `json:"meta,omitempty"` // of a raw shard: as in Shard
}

// NodeRecord announces a daemon.
type NodeRecord struct {
	Name     string    `json:"name"`
	Addr     string    `json:"addr,omitempty"` // host:port of its peer listener, if any
	Started  time.Time `json:"started"`
	Seen     time.Time `json:"seen"`     // last heartbeat
	Capacity int64     `json:"capacity"` // bytes of its local tier
	Used     int64     `json:"used"`     // bytes
	Backlog  int64     `json:"backlog"`  // bytes committed and not yet remote
	Trouble  []string  `json:"trouble,omitempty"`

	Follows       int64          `json:"follows,omitempty"`        // version of the target map it uses; 0: none
	Targets       []TargetStatus `json:"targets,omitempty"`        // those its flags name, as it sees them
	Unreached     []string       `json:"unreached,omitempty"`      // targets it uses and cannot reach, the first of them
	UnreachedMore int            `json:"unreached_more,omitempty"` // how many more
}

// valid says whether the record may stand under key.
func (n *NodeRecord) valid(key string) error {
	if len(n.Targets) > MaxTargets || len(n.Unreached) > MaxTargets {
		return errors.New("more targets than a map holds")
	}
	return ofKey(key, nodeKey(n.Name))
}

// Event is one line of a set's story.
type Event struct {
	Time   time.Time `json:"time"`
	Node   string    `json:"node"`
	What   string    `json:"what"` // begin, sealed, durable, committed, drained, verified, evicted, quarantined, pruned, aborted, …
	Detail string    `json:"detail,omitempty"`
}
