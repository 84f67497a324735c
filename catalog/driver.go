package catalog

import (
	"context"
	"iter"
)

// MaxRecord bounds a record's value, in bytes: NATS refuses messages over 1 MiB.
const MaxRecord = 900 << 10

// Record is a stored value and the revision that wrote it.
type Record struct {
	Key   string
	Value []byte
	Rev   uint64
}

// Driver stores small records with compare-and-swap. Implementers need no
// knowledge of checkpoints; package catalogtest says whether they got it right.
//
// A key is one or more tokens joined by "."; a token is one or more of
// letters, digits, "-", "_", "=" and "/". A prefix is a sequence of whole
// tokens: "set.a" covers "set.a" itself and "set.a.b", not "set.ab". The empty
// prefix covers everything. Revisions grow over all keys together: of two
// successful swaps, the later one has the larger revision.
//
// Any method may return ErrUnavailable (wrapped) when the store cannot be
// reached; after such an error a Swap may or may not have happened.
type Driver interface {
	// Get reads one record; a missing key is fs.ErrNotExist.
	Get(ctx context.Context, key string) (Record, error)

	// Swap writes value if the key's revision is rev (0: the key does not
	// exist) and returns the new revision; otherwise ErrConflict. A nil value
	// deletes. Values over MaxRecord are ErrInvalid. When Swap returns nil the
	// change is durable.
	Swap(ctx context.Context, key string, rev uint64, value []byte) (uint64, error)

	// List gives every record under prefix, in no particular order.
	List(ctx context.Context, prefix string) iter.Seq2[Record, error]

	// Watch gives the records under prefix, then one Event with Synced set,
	// then every change, until ctx ends or the store fails. Of several changes
	// to one key it may skip all but the last. It reconnects by itself where
	// it can, and otherwise yields the error and ends.
	Watch(ctx context.Context, prefix string) iter.Seq2[Change, error]

	// Head returns a revision not smaller than that of any swap under prefix
	// that returned before Head was called, and not larger than a watcher of
	// that prefix will reach without further swaps.
	Head(ctx context.Context, prefix string) (uint64, error)
}

// Change is what a watcher sees. Record.Value is nil for a deletion. The Rev of
// a Synced change says up to which revision everything has been given.
type Change struct {
	Record
	Synced bool // no record: everything that existed when the watch began has been given
}
