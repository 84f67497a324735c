package catalog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
)

// BlockSize is the unit of a seal's checksums, in bytes.
const BlockSize = 1 << 20

// MaxShardSize bounds a shard, in bytes; its seal then has at most 4 Mi blocks.
const MaxShardSize = 1 << 42

// Castagnoli is the table of every CRC32C in ckptd.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum32C is the CRC32C of p, as crc32.Checksum gives it, and up to twice as
// fast where p is not in the processor's cache: crc32 reads three places at a
// time, which the hardware does not prefetch, so each piece is touched line by
// line first, which it does.
func Sum32C(p []byte) uint32 {
	const piece = 4 << 10 // bytes: a page, the reach of a prefetcher
	var crc uint32
	for len(p) > 0 {
		q := p[:min(piece, len(p))]
		p = p[len(q):]
		touch(q)
		crc = crc32.Update(crc, Castagnoli, q)
	}
	return crc
}

// touch reads a byte of each cache line. It is not inlined, or its loads would
// be removed, as nobody uses them.
//
//go:noinline
func touch(p []byte) (sum byte) {
	for i := 0; i < len(p); i += 64 {
		sum ^= p[i]
	}
	return sum
}

// Digest is a 32-byte hash: SHA-256 for the roots of seals and manifests,
// BLAKE3 for the content of shards. The zero Digest means "not known".
type Digest [32]byte

func (d Digest) IsZero() bool { return d == Digest{} }

func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return hex.EncodeToString(d[:])
}

func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	if len(b) != 64 {
		return fmt.Errorf("digest of %d characters: %w", len(b), ErrCorrupt)
	}
	if _, err := hex.Decode(d[:], b); err != nil {
		return fmt.Errorf("digest: %w", ErrCorrupt)
	}
	return nil
}

// Seal is the small record beside a blob on a node's disks: what the bytes
// must be. Its encoding is described in shardwriter/shardfile/FORMAT.md.
type Seal struct {
	Name string   // the blob it belongs to, as in SetID.ShardName
	Size int64    // bytes of the blob
	CRCs []uint32 // CRC32C of each BlockSize bytes; the last block may be short
	Info []byte   // the writer's statement, JSON of ShardInfo for a shard; may be empty
}

// Blocks is the number of blocks a blob of size bytes has.
func Blocks(size int64) int { return int((size + BlockSize - 1) / BlockSize) }

const (
	sealMagic   = "ckptSEAL"
	sealVersion = 1
	sealFixed   = 8 + 4 + 4 + 8 + 4 + 4 // magic, version, block size, size, len(name), len(info)
	// MaxSealName and MaxSealInfo bound the variable parts of a seal, in bytes.
	MaxSealName = 1024
	MaxSealInfo = 1 << 20
)

// body is the encoding without its trailing checksum.
func (s *Seal) body() []byte {
	b := make([]byte, 0, sealFixed+len(s.Name)+len(s.Info)+4*len(s.CRCs)+4)
	b = append(b, sealMagic...)
	b = binary.LittleEndian.AppendUint32(b, sealVersion)
	b = binary.LittleEndian.AppendUint32(b, BlockSize)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Size))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Info)))
	b = append(b, s.Name...)
	b = append(b, s.Info...)
	for _, c := range s.CRCs {
		b = binary.LittleEndian.AppendUint32(b, c)
	}
	return b
}

// Marshal encodes the seal.
func (s *Seal) Marshal() []byte {
	b := s.body()
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, Castagnoli))
}

// Root identifies the seal, and with it the bytes it describes: SHA-256 of
// size and block checksums. Copies of one blob have one root wherever they are.
func (s *Seal) Root() Digest {
	h := sha256.New()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(s.Size))
	h.Write(b[:])
	for _, c := range s.CRCs {
		binary.LittleEndian.PutUint32(b[:4], c)
		h.Write(b[:4])
	}
	return Digest(h.Sum(nil))
}

// ParseSeal decodes a seal; anything but the exact output of Marshal is ErrCorrupt.
func ParseSeal(b []byte) (*Seal, error) {
	bad := func(why string) (*Seal, error) { return nil, fmt.Errorf("seal: %w: %s", ErrCorrupt, why) }
	if len(b) < sealFixed+4 || string(b[:8]) != sealMagic {
		return bad("no seal")
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, Castagnoli) != sum {
		return bad("checksum mismatch")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != sealVersion {
		return bad(fmt.Sprintf("version %d is unknown", v))
	}
	if binary.LittleEndian.Uint32(b[12:]) != BlockSize {
		return bad("unknown block size")
	}
	size := binary.LittleEndian.Uint64(b[16:])
	nameLen, infoLen := binary.LittleEndian.Uint32(b[24:]), binary.LittleEndian.Uint32(b[28:])
	if size > MaxShardSize || nameLen > MaxSealName || infoLen > MaxSealInfo {
		return bad("a length is out of range")
	}
	blocks := Blocks(int64(size))
	if len(body) != sealFixed+int(nameLen)+int(infoLen)+4*blocks {
		return bad("length mismatch")
	}
	rest := body[sealFixed:]
	s := &Seal{Name: string(rest[:nameLen]), Size: int64(size), CRCs: make([]uint32, blocks)}
	if rest = rest[nameLen:]; infoLen > 0 {
		s.Info = append([]byte(nil), rest[:infoLen]...)
	}
	for i, rest := 0, rest[infoLen:]; i < blocks; i++ {
		s.CRCs[i] = binary.LittleEndian.Uint32(rest[4*i:])
	}
	return s, nil
}

// CheckBlock reports ErrCorrupt unless p is the whole of block i.
func (s *Seal) CheckBlock(i int, p []byte) error {
	if i < 0 || i >= len(s.CRCs) || int64(len(p)) != min(BlockSize, s.Size-int64(i)*BlockSize) {
		return fmt.Errorf("%s block %d: %w: wrong length", s.Name, i, ErrCorrupt)
	}
	if got := Sum32C(p); got != s.CRCs[i] {
		return fmt.Errorf("%s block %d: %w: CRC32C %08x, want %08x", s.Name, i, ErrCorrupt, got, s.CRCs[i])
	}
	return nil
}
