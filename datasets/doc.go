// Package datasets imports what a source gives as the next version of a dataset:
// it builds packs and an index, and hands them to a Store. FORMAT.md has the
// bytes; README.md the decisions.
//
//  1. A version is there when its index is committed, last of all. An import that
//     fails, is killed or cancelled leaves no version; its packs that were
//     committed are taken up by the next import of that name.
//  2. The bytes of a version are the source's: each file was read once, summed
//     (CRC32C and BLAKE3) as it was read, and a file that changed meanwhile ends
//     the import.
//  3. Content is stored once: a file whose hash the base version, an earlier pack
//     or this import has is not stored again. Files whose path, size and time are
//     those of the base version are not even read, unless Rehash asks for it.
//  4. Packs are filled in the order of the source, so that the same source gives
//     the same packs; new fields of a sample are in one pack.
//  5. Memory is bounded: two packs, 64 MiB of files read ahead (or one file below
//     Options.RawFrom and a sample), the index builder, and about 100 bytes a
//     file that is new. Files from RawFrom on are streamed.
//  6. Two imports at once both get a version, or one is told ErrConflict; a
//     version is never a mix.
package datasets
