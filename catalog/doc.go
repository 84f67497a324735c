// Package catalog defines checkpoints and records which exist, which are
// complete, and where their shards are.
//
// It holds the vocabulary of the whole project (Run, SetID, Ref, Level, Seal,
// Manifest, the error classes) and depends on the standard library alone. The
// rules are coded once, in Catalog; a Driver only stores small records with
// compare-and-swap. Package natscatalog is the driver for NATS JetStream,
// package catalogtest checks any driver and has one in memory.
//
// What a Catalog promises (the numbers are those of the project's contract):
//
//  1. All or nothing: a set is resolvable only after the one compare-and-swap
//     that Commit makes, and Commit needs a durable shard of every rank.
//  3. Fenced: once Attach has returned a newer attempt, Begin and CheckAttempt
//     refuse every older one with ErrFenced.
//  4. No overwrite: a committed set's manifest root never changes.
//  5. Never the last copy: SafeToDrop is the one rule.
//  6. Prune in two phases: Tombstone first, Forget after the bytes are gone. Of
//     a reader that takes a lease and a pruner, one sees the other; of a version
//     that is committed and a collector that condemns its pack, too.
//  9. Bounded: names, metrics, stories, launches, watches and retries have
//     limits; a node that mirrors the catalog pays about 1 KB a set.
//  10. Refuse early: what can never work is ErrInvalid before the store is asked.
//  12. Hostile bytes are data: a record, seal or manifest that breaks its rules, or
//     stands where another belongs, is ErrCorrupt.
//
// Decisions are made by compare-and-swap on a revision, never on a read alone.
// Lists and Resolve read a local mirror that is first brought up to the
// driver's head, so they show every commit that returned before they began.
//
// The targets of the remote tier are one record, TargetMap, whose Version grows
// with each change; who may change what is in TargetRecord.SetState and in the
// methods of TargetMap, and a state that a person ordered is not overwritten by
// probes. What a target says of itself, TargetStatus, is a record each and
// decides nothing.
//
// Every change can be made again: after ErrUnavailable it may have happened,
// and the caller just calls once more. A lost answer burns no attempt and
// commits no set twice.
//
// Records found on the tiers are merged, not compared by age alone: a set's
// state only goes forward, two manifests of one name are ErrConflict, and a
// run's policy is the one that was set last. The order of adopting is no matter.
package catalog
