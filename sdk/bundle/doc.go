// Package bundle copies committed sets out of ckptd and back into it, as plain
// files that are complete and readable alone. README.md lists the files and the
// decisions.
//
//  1. A set is there when its manifest.json is; that comes last, after all
//     else is durable. What was cut short is no set, and the same Export goes on
//     with it: a file that is there, whole and right, is not sent again.
//  2. Nothing is exported that was not checked: the checksums written beside a
//     shard have the root that the catalog knows.
//  3. Nothing is imported that was not checked: the manifest against its digest,
//     each shard's size, header and every block against a seal that has the
//     manifest's root. A set becomes visible when all of it was, or not at all.
//  4. Names come from ranks, never from what a manifest says; a directory is not
//     left by a link. Hostile files are ErrCorrupt, without a panic and without
//     an allocation by what they claim.
//  5. A committed set is never overwritten, here or there: another one under the
//     same name is ErrConflict.
//  6. Memory is bounded: some parts of Store.Part bytes on their way.
package bundle
