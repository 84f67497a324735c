// Package shardfile reads and writes shards (safetensors) and their seals,
// described in FORMAT.md.
//
// What it promises (contract number in brackets):
//
//  1. What NewHeader and Encode write is a valid safetensors file whose data
//     begins on a 4 KiB boundary; the same tensors give the same bytes [8].
//  2. Every file the safetensors Python package writes is read, whatever the
//     order of its keys and the length of its header [8].
//  3. Hostile bytes are data: whatever the input, a decoder returns a value
//     that obeys FORMAT.md or an error that wraps catalog.ErrCorrupt. It never
//     panics, and allocates in proportion to bytes it was given, never to a
//     length they claim [9, 12].
//  4. A tensor that cannot be stored is refused with catalog.ErrInvalid before
//     any byte is written [10].
//  5. Verify returns nil only if every byte is what the seal says [7].
//
// Decisions:
//
//   - The header has its own JSON scanner: encoding/json accepts duplicate
//     keys and broken UTF-8, and took five times as long over 10,000 tensors.
//   - Pieces of sharded tensors are described in __metadata__, because the
//     safetensors package refuses files whose tensors overlap or leave gaps, but
//     passes metadata through.
//   - An .npz file is read just far enough to save it as a shard; arrays that
//     would need a conversion (big-endian, Fortran order, objects) are refused.
package shardfile
