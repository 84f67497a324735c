package pack

import (
	"fmt"
	"hash/crc32"
	"strconv"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
)

// Sum computes what a Record says of bytes written to it: for a raw pack,
// whose bytes go elsewhere. The zero value is ready.
type Sum struct {
	hash *blake3.Hasher
	crc  uint32
	size int64
}

// Write takes the next bytes; it never fails.
func (s *Sum) Write(p []byte) (int, error) {
	if s.hash == nil {
		s.hash = blake3.New()
	}
	n := len(p)
	for len(p) > 0 { // each piece is brought into the cache once for both
		q := p[:min(64<<10, len(p))]
		p = p[len(q):]
		_, _ = s.hash.Write(q) // never fails
		s.crc = crc32.Update(s.crc, catalog.Castagnoli, q)
	}
	s.size += int64(n)
	return n, nil
}

// Record gives the size, checksum and hash of all that was written.
func (s *Sum) Record() Record {
	if s.hash == nil {
		s.hash = blake3.New()
	}
	r := Record{Size: s.size, CRC: s.crc}
	s.hash.Sum(r.Hash[:0])
	return r
}

// Reset forgets what was written.
func (s *Sum) Reset() {
	if s.hash != nil {
		s.hash.Reset()
	}
	s.crc, s.size = 0, 0
}

// Values of the key "pack" in the metadata of a pack's shard.
const (
	metaKind      = "pack"
	KindRaw       = "raw"
	KindAggregate = "aggregate"
)

// AggregateMeta is the metadata of the shard of an aggregate.
func AggregateMeta() map[string]string { return map[string]string{metaKind: KindAggregate} }

// RawMeta is the metadata of the shard of a raw pack that holds r.
func RawMeta(r Record) map[string]string {
	return map[string]string{
		metaKind: KindRaw,
		"size":   strconv.FormatInt(r.Size, 10),
		"crc32c": fmt.Sprintf("%08x", r.CRC),
		"blake3": r.Hash.String(),
		"stamp":  fmt.Sprintf("%016x", r.Stamp),
	}
}

// ParseMeta reads the metadata of a pack's shard: whether the pack is raw, and
// if so the record it is.
func ParseMeta(meta map[string]string) (raw bool, r Record, err error) {
	switch meta[metaKind] {
	case KindAggregate:
		return false, Record{}, nil
	case KindRaw:
	default:
		return false, Record{}, corrupt("its metadata says kind %.40q", meta[metaKind])
	}
	crc, errCRC := strconv.ParseUint(meta["crc32c"], 16, 32)
	r.CRC = uint32(crc)
	var errSize, errStamp error
	r.Size, errSize = strconv.ParseInt(meta["size"], 10, 64)
	r.Stamp, errStamp = strconv.ParseUint(meta["stamp"], 16, 64)
	errHash := r.Hash.UnmarshalText([]byte(meta["blake3"]))
	for key, err := range map[string]error{"crc32c": errCRC, "size": errSize, "stamp": errStamp, "blake3": errHash} {
		if err != nil {
			return false, Record{}, corrupt("its metadata says %s %.80q", key, meta[key])
		}
	}
	if r.Size < 0 || r.Size > MaxSize || r.Hash.IsZero() {
		return false, Record{}, corrupt("its metadata says size %d, hash %q", r.Size, r.Hash)
	}
	return true, r, nil
}
