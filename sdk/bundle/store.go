package bundle

import (
	"context"
	"fmt"

	"github.com/ckptd/ckptd/catalog"
)

// Store keeps the files of one exported set: a directory, or the objects below
// a prefix of a bucket. Names are single parts, made by this package. Its
// methods may be called concurrently.
//
// A Store's list is never asked for: what is there is found by opening it.
type Store interface {
	String() string // for people, without secrets
	// Create begins a file of size bytes that replaces one of that name when it
	// is committed. root says what its bytes will be.
	Create(ctx context.Context, name string, size int64, root catalog.Digest) (File, error)
	// Has reports whether the file is there with that size and root.
	Has(ctx context.Context, name string, size int64, root catalog.Digest) (bool, error)
	// Open opens a committed file; a missing one is fs.ErrNotExist.
	Open(ctx context.Context, name string) (Object, error)
	// Ready makes sure that the store can be written, and nobody else's export is
	// writing there: else ErrConflict, or fs.ErrExist when it holds other things.
	// The caller calls release when it is done writing.
	Ready(ctx context.Context) (release func() error, err error)
}

// File is a file on its way in. Close without Commit leaves nothing behind.
type File interface {
	// Part is how many bytes each WriteAt must have, but the one that ends the
	// file; a multiple of catalog.BlockSize.
	Part() int64
	// WriteAt writes a part, at a multiple of Part; several at a time.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Commit makes the file durable and visible under its name.
	Commit(ctx context.Context) error
	Close() error
}

// Object is a file that is there. ReadAt may be called concurrently, and fills
// p or returns an error; it need not check the bytes.
type Object interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	Close() error
}

// The files of an exported set.
const (
	ManifestFile = "manifest.json" // the manifest's own bytes; written last
	RecordFile   = "set.json"      // the set's record: tags, and the manifest's digest
	sealSuffix   = ".seal"
)

// ShardFile names the shard of a rank: a safetensors file.
func ShardFile(rank int) string { return fmt.Sprintf("rank-%05d.safetensors", rank) }

// SealFile names its seal: the checksums of the shard.
func SealFile(rank int) string { return ShardFile(rank) + sealSuffix }

// RawFile names a raw shard: bytes of any kind. Its own name is in the manifest.
func RawFile(rank int) string { return fmt.Sprintf("rank-%05d.bin", rank) }

// fileOf names the file of a manifest's shard.
func fileOf(s *catalog.Shard) string {
	if s.Raw() {
		return RawFile(s.Rank)
	}
	return ShardFile(s.Rank)
}

// sealFileOf names its seal.
func sealFileOf(s *catalog.Shard) string { return fileOf(s) + sealSuffix }

const (
	maxRecord = 1 << 20 // bytes of RecordFile
	sealFixed = 64      // bytes of a seal beside its name, info and checksums, at most
)

// maxSeal bounds the seal of a shard of size bytes.
func maxSeal(size int64) int64 {
	return sealFixed + catalog.MaxSealName + catalog.MaxSealInfo + 4*int64(catalog.Blocks(size))
}

// sealOf sums bytes in memory.
func sealOf(name string, b []byte) *catalog.Seal {
	s := &catalog.Seal{Name: name, Size: int64(len(b)), CRCs: make([]uint32, catalog.Blocks(int64(len(b))))}
	sumBlocks(s.CRCs, b)
	return s
}

// sumBlocks sums whole blocks; the last one may be short.
func sumBlocks(crcs []uint32, p []byte) {
	for i := range crcs {
		crcs[i] = catalog.Sum32C(p[i*catalog.BlockSize : min(len(p), (i+1)*catalog.BlockSize)])
	}
}
