// Package tarview shows one rank's samples of an epoch, in their order, as a
// tar that exists only while it is read.
//
// What a View promises:
//
//  1. Its size is known before a byte is read, and never changes: it follows
//     from the index, the order and the share alone.
//  2. It can be read at any offset, in any order, by many at once. Finding an
//     offset costs a binary search and a walk over at most 256 samples; reading
//     on from where the last read ended costs nothing.
//  3. It takes 8 bytes of memory for each 256 samples, whatever their number.
//  4. The views of all ranks of one world, from the same position, have every
//     sample from there on exactly once; a view of rank r of w from position p
//     has what rank r consumes when a job goes on with w ranks after p samples.
//  5. GNU tar, Python's tarfile and archive/tar read it: members of one sample
//     lie side by side, names are the bytes they are, it ends with two zero blocks.
//
// The price is paid once a view: making one looks at each of its samples (see
// BenchmarkNew for what that costs), because sizes vary and the size of a file
// must be known when it is looked up.
package tarview
