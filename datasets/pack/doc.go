// Package pack writes and reads packs: the blobs that hold the bytes of a
// dataset's files, described in datasets/FORMAT.md.
//
// What it promises (contract number in brackets):
//
//  1. The same records in the same order give the same bytes [8].
//  2. A record that Append or Reader.Read returned has the checksum and the
//     hash of the very bytes that are, or were, in the pack [7].
//  3. Append that fails leaves no trace: the next record takes its place.
//  4. Hostile bytes are data: whatever the input, Open returns a table that
//     obeys FORMAT.md or an error that wraps catalog.ErrCorrupt. It never
//     panics, and allocates in proportion to bytes it was given [9, 12].
//  5. A Writer holds 1 MiB and 64 bytes a record, beside the buffer it was
//     given [9].
//
// Decisions:
//
//   - The table stands behind the records, so that a pack is written in one
//     pass; a raw pack has no table, so that the kernel can pass reads of its
//     one file through to it.
//   - Records begin at multiples of 64 bytes: arrays are aligned for every
//     vector unit, and small files lose 32 bytes on average.
//   - The hash is zeebo/blake3, as in the remote tier.
package pack

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
)

// The sizes of the format, in bytes.
const (
	Align      = 64      // records begin at multiples of it
	headerSize = 64      //
	recordSize = 64      // in the table
	footerSize = 64      //
	MaxRecords = 1 << 24 // of one pack

	// MaxSize bounds a pack, raw or aggregate.
	MaxSize = catalog.MaxShardSize
	// DefaultSize is what an aggregate is filled up to, MinDefault and
	// MaxDefault what an import may choose.
	DefaultSize = 256 << 20
	MinDefault  = 64 << 20
	MaxDefault  = 1 << 30
	// RawSize is from where on a file is a pack by itself.
	RawSize = 64 << 20
)

// Record is one file's bytes in a pack. In a raw pack Offset is 0.
type Record struct {
	Offset int64
	Size   int64
	CRC    uint32         // CRC32C of the bytes
	Stamp  uint64         // of the file when it was read; 0: none
	Hash   catalog.Digest // BLAKE3 of the bytes
}

// aligned gives the smallest multiple of Align that is at least n.
func aligned(n int64) int64 { return (n + Align - 1) &^ (Align - 1) }

// Stamp tells whether a file is the one that was read before: it is a hash of
// its path in the dataset, its size and its time of modification. Never 0.
func Stamp(path string, size int64, mtime time.Time) uint64 {
	b := make([]byte, 0, 64+len(path))
	b = append(b, "ckptd stamp 1\x00"...)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint64(b, uint64(mtime.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(mtime.Nanosecond()))
	b = append(b, path...)
	sum := blake3.Sum256(b)
	return max(binary.LittleEndian.Uint64(sum[:]), 1)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("pack: %w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}
