// Package remotetier keeps blobs striped over remote targets.
//
// A blob (a shard, a pack, a manifest) is immutable. Put cuts it into k+m
// columns, one a target where it can, and returns a catalog.Place; Open reads it back from
// any k of them. FORMAT.md is the format of a column, README.md has the
// decisions. Callers use the Tier; a Target is the small driver that moves
// columns to and from one place, and package targettest says whether one is
// right.
//
//  1. When Put returns nil, all k+m columns are durable where the place says,
//     their bytes matched the source's seal, and Content is the BLAKE3 of
//     exactly those bytes. They are on k+m targets, unless no k+m could take
//     one: then some hold more, but none more than m.
//  2. A Put that fails, or dies, leaves nothing that a record names: its
//     columns have a generation of their own, which Sweep removes.
//  3. No read returns a byte whose CRC32C was not checked, or mixes columns of
//     two generations. Up to m missing, corrupt or foreign columns are made
//     good on the way and reported; with more there is an error.
//  4. Verify returns nil only when every byte of every column was read back,
//     parity fits data, and the content is the place's.
//  5. Memory for column data stays within Options.Memory, whatever the blobs'
//     sizes and the number of callers; checksums of columns being written
//     come on top, 1/16384 of their bytes.
//  6. Mend writes only columns of the blob's content, and at no moment of it,
//     nor after a crash, are there fewer good columns than before: a good one
//     goes when its successor is durable and recorded.
//  7. A Put outlives targets that fail, hang or fill up while it runs, as long
//     as others can take their columns. The source is read again for these
//     columns alone, and must not have changed.
//  8. A target that answers late holds a read up no longer than other reads
//     take when they are late, and a rebuild from other columns. Such rebuilds
//     are at most a twentieth more requests, and nobody writes to a caller's
//     memory when its read has returned.
package remotetier
