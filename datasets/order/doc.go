// Package order computes the shuffled order of an epoch: a keyed permutation of
// the sample numbers, of which nothing is stored. ORDER.md describes it to the bit.
//
//  1. At is a permutation of 0 … n-1 in every mode, and Find is its inverse.
//  2. An order depends on the version's digest, the seed, the epoch and the mode
//     alone: not on the number of ranks, workers or nodes, nor on any library's
//     random numbers. The numbers of version 1 never change.
//  3. Any position costs the same, at once: no memory or work grows with n.
//  4. A position belongs to the rank p mod world. So a job that goes on with
//     another number of ranks repeats no sample and skips none.
//  5. Cursor is what a checkpoint keeps: a comparable value with one text form.
package order
