// Package plain is the arithmetic of columns whose data is the blob itself.
//
// With one data unit a stripe (k = 1) a column's data is the blob's bytes and
// some zeros. An engine that keeps files or objects under readable names, as
// posix and s3 do, then keeps exactly the blob's bytes under the blob's name,
// and the rest of the column, its header, sums and footer, in a sidecar beside
// it. This package says which byte goes where, and back. It does no I/O;
// FORMAT.md in package remotetier describes the sidecar and the names.
//
//  1. What a Cut took apart a Sidecar puts together again, byte for byte. A
//     column that does not begin with its own header, or has more than one data
//     unit, is left whole.
//  2. ParseSidecar takes what Cut.Sidecar wrote, and nothing else: anything
//     else is ErrCorrupt, without a panic and without an allocation by what it
//     claims.
//  3. No name made here is that of a blob, and no two kinds of them are alike.
package plain
