// Package s3 keeps blobs as plain objects of a bucket of any S3-compatible
// store.
//
// Target is a remotetier.Target. A column with one data unit a stripe is one
// object with the blob's name and bytes, and a sidecar object; every other
// column is one object. FORMAT.md in package remotetier describes the bucket,
// README.md has the decisions.
//
//  1. A column is there when its sidecar is, which is put last, and gone when
//     it is: one request each, so that a process that dies at any point leaves
//     the old column or the new one.
//  2. Every byte that is sent has a CRC32C that the store checks before it
//     keeps it, and every byte read is of the object that was written: ranges
//     are asked for with its ETag.
//  3. An object that is not ours is not overwritten or deleted, where the
//     store knows conditional requests; where it does not, a look before each
//     stands in for that.
//  4. A server that cannot be reached costs a request what package bucket
//     allows for trying again, and an error of class ErrUnavailable.
//  5. Buffers hold Options.Buffers bytes and one part for each column being
//     written; a caller that is faster waits.
//  6. A column given up leaves no upload, and what a dead process left is
//     cleared away once it is Options.Stale old.
package s3
