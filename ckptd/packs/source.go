package packs

import (
	"context"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
)

// Kind is where bytes come from, as counters and clients tell it.
type Kind int

const (
	Local Kind = iota
	Peer
	Remote
	kinds
)

func (k Kind) String() string { return [kinds]string{"local", "peer", "remote"}[k] }

// Source gives whole blocks of one shard. Its methods are called by several
// goroutines at once.
type Source interface {
	Name() string // for people: "peer n2", "remote"
	Kind() Kind
	// ReadBlocks fills p, whole blocks of the shard that begin at off, with
	// bytes that passed the source's own check. Errors wrap a class.
	ReadBlocks(ctx context.Context, p []byte, off int64) error
	// Whole says whether the source has the whole shard and waits for nobody.
	Whole() bool
	// Seal gives the shard's seal; nil where the source has none. It is asked
	// where the committed set does not say what the blocks must be.
	Seal(ctx context.Context) (*catalog.Seal, error)
}

// Sources finds who has a shard, the best first, and is asked again when none
// of them could give what was wanted. firstHand asks for those only that have
// the whole of it: another node waits for what this one fetches. done is
// called when the sources are not used any more.
type Sources func(ctx context.Context, ref restore.ShardRef, firstHand bool) (from []Source, done func(), err error)
