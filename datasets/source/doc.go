// Package source reads the data that a dataset is made of: directory trees,
// tars, and files of records, as one stream of items. README.md has the formats
// and the decisions.
//
//  1. The order of the items, and what they say, are a function of the source
//     alone: the same bytes give the same stream, however many goroutines read.
//  2. A file that changes while it is read is an error that names it
//     (ErrConflict), never half of the old and half of the new.
//  3. Memory is bounded: a folder's names while it is walked, some read-ahead,
//     and 16 bytes a member of the tar at hand. It does not grow with sizes.
//  4. Hostile bytes are data: a tar that leaves its root, repeats a name, or
//     grows without end, and a record table that does not fit its file, are
//     ErrCorrupt or ErrInvalid with what to do; never a panic, nor an allocation
//     by what they claim.
//  5. What cannot be kept (sockets, devices, pipes, sparse members) is refused by
//     name, all of it in one list, or skipped and counted when that is asked for.
package source
