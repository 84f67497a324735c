// Package planes compresses blobs of tensors without loss, so that any part can
// be read on its own: FORMAT.md has the bytes, README.md the decisions.
//
//  1. What Encode wrote, a Reader gives back byte for byte; each frame was
//     decoded and compared before it was written.
//  2. A read fetches and decodes only the frames it touches.
//  3. No byte is given away that does not fit its block's checksum, and Root is
//     that of the blob's seal.
//  4. Hostile bytes are ErrCorrupt: no panic, and no allocation that follows
//     from a length they claim.
//  5. Memory is bounded: Encode maps 16 MiB for each frame it works on at a time
//     and one more, and gives it back; a Reader has its index (24 bytes a frame)
//     and some frames.
package planes
