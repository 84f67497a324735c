// Package packs keeps copies of committed raw shards (the packs of datasets
// and their indexes) on a node that did not write them.
//
// A copy is a blob of the local tier under `_cache/`. While one arrives it can
// be read already: a read waits for the blocks it needs and brings them to the
// front. Where the bytes come from is the caller's to say, by Options.Sources.
//
//  1. No byte is given that did not pass its check: a block that comes is held
//     against the seal where the set or a source has one, else against what the
//     source checked it with, and again when it is read from this node's disk. A copy
//     becomes visible only when all its blocks give the root asked for.
//  2. One node fetches a shard once at a time, however many want it.
//  3. A source that fails or gives bad bytes is left for the next one. When none
//     is left, all are asked again, as often as the retry budget says, after
//     pauses that grow and jitter. A handle that was given up on may be read
//     again: the shard then arrives anew.
//  4. The copies of packs stay within the quota; an index is let in over it. What is open or arriving is not
//     evicted, unless who has it open parked it. A copy that finds no room is
//     read all the same, without being kept, until there is some.
//  5. What is evicted is what is needed last, as far as readers' orders are
//     known, else what was used longest ago.
//  6. A crash leaves no half copy; whole ones are found again. One that turns
//     bad is put aside and fetched anew.
//  7. Memory is bounded by Options.Memory, over all that arrives, and as much
//     again over all that is read without being kept.
package packs
