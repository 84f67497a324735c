// Package restore plans and carries out the reading of a checkpoint back into
// a job, whatever its new shape.
//
// NewPlan is pure: from a manifest and what is wanted (whole tensors by glob,
// the pieces of some ranks, any box of any tensor) it gives the bytes to read
// from each shard and where each of them goes. Fetch carries out the reading
// of one shard from the cheapest source that has a good copy, Run that of a
// whole plan. What it promises (7 and 12 are those of the project's contract):
//
//  1. Whole: every byte of every output is covered by exactly one read, or
//     NewPlan returns an error. Nothing is padded, guessed or left out.
//  2. Once: a tensor that several ranks hold is read from one of them. Equal
//     manifests and wants give equal plans, so that ranks which want the same
//     ask for the same ranges.
//  3. Fall through: a source that is corrupt, absent or away is named to the
//     Trace once and not asked again; the rest comes from the next one. The
//     error of a Fetch with no source left has one class, ErrCorrupt if any
//     copy was corrupt.
//  4. Stop: when the context ends, no further source is asked.
//  7. Checked: sources give checked bytes only, in units of catalog.BlockSize;
//     restore adds nothing and passes none on that a source reported as bad.
//     The bytes of an output count only when Fetch, or Run, returned nil.
//  9. Bounded: at most Parallel reads of at most BatchBytes are in flight in a
//     Fetch; a plan's memory grows with the pieces it reads, never with the
//     number of runs a strided copy has.
//  12. Hostile bytes are data: a manifest whose tensors contradict themselves
//     or overlap in absurd ways gives ErrCorrupt.
package restore
