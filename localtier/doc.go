// Package localtier keeps blobs on a node's memory and local disks.
//
// A Tier keeps sealed blobs (shards, manifests, records) as plain files with
// readable paths on one or more disks; an Arena is the shared memory that
// ranks copy into on the way there. FORMAT.md describes what lies on disk,
// README.md why it is so.
//
// What a Tier promises:
//
//  1. When Ingest.Commit or Put returned nil, the blob survives a power failure.
//  2. Nothing without a valid seal is ever visible: a blob appears whole or not
//     at all, whatever failed and whenever.
//  3. No byte that failed its check is returned by Get, ReadAt or ReadBlocks.
//     (Blob.Raw and Blob.OpenFile give unchecked bytes, and say so.)
//  4. Room is reserved before bytes move: Reserve either allocates all of it or
//     says how much is short.
//  5. One process a directory: a second Open is ErrConflict and names the holder.
//
// What an Arena promises:
//
//  6. The bytes and records in it survive the process.
//  7. A segment lent to one user is never memory that another user has mapped.
//  8. Whoever asks for segments gets one in the order of asking, and nobody
//     keeps more than a fair share while others wait.
//
// An Area is a folder of files that others write as they like, the kernel too,
// until they are made blobs. What it promises:
//
//  9. A file that was synced is not lost by making it a blob, whatever fails
//     and whenever; nobody writes it while that is done.
//  10. Its bytes count against the quota. A file that grows over it is dropped,
//     and its writer told ErrNoSpace.
package localtier
