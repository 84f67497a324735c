// Package posix keeps blobs as plain files in a directory of a file system
// that many nodes mount: Lustre, BeeGFS, GPFS, 3FS, NFS, or a local disk.
//
// Target is a remotetier.Target over a vfs.FS. A column with one data unit a
// stripe is one file with the blob's name and bytes, and a hidden sidecar;
// every other column is one hidden file. FORMAT.md in package remotetier
// describes the directory, README.md has the decisions.
//
//  1. Any number of processes on any number of nodes use one directory at the
//     same time. It has one name for ever: another name is ErrConflict.
//  2. A column is visible only when it is whole and durable; when Commit
//     returned nil it survives a power failure, and when Remove did it is gone
//     after one. A crash at any operation leaves the old column or the new one.
//  3. A file that is not ours is never overwritten, renamed or removed,
//     whatever its name; the blob's data then has a hidden name.
//  4. What is there is found by its name. Listings serve List alone, and the
//     choice of whose data gets a name that has become free.
//  5. What a dead process left is removed once it is Options.Stale old, by
//     exactly one of those who find it.
package posix
