package shardwriter

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ckptd/ckptd/catalog"
)

// record is the journal's entry of a sealed shard, JSON. The checksums are
// packed: a journal's record is bounded, and its making is part of the stall.
type record struct {
	Version int               `json:"version"` // 1
	Info    catalog.ShardInfo `json:"info"`
	Size    int64             `json:"size"`
	Staging string            `json:"staging"`
	Pending []pendingSlot     `json:"pending"` // bytes that are in the arena alone
	Have    []byte            `json:"have"`    // one bit a block, lowest first: it is in the staging file
	CRCs    []byte            `json:"crcs"`    // CRC32C of each block, 4 bytes little-endian; 0 where Have is not set
}

// pendingSlot says where bytes of the shard are in the arena. It counts in
// bytes, because the next process may have slots of another size.
type pendingSlot struct {
	Seg int   `json:"seg"`
	At  int64 `json:"at"`  // in the segment
	Off int64 `json:"off"` // in the shard
	Len int64 `json:"len"`
}

// RecordName is the journal's name for a shard: short, whatever the run's name.
func RecordName(id catalog.SetID, rank int) string {
	sum := sha256.Sum256([]byte(id.ShardName(rank)))
	return hex.EncodeToString(sum[:16])
}

// record makes the session's entry.
func (s *Session) record(pending []piece) ([]byte, error) {
	blocks := catalog.Blocks(s.spec.Size)
	rec := record{Version: 1, Info: s.spec.Info, Size: s.spec.Size, Staging: s.in.Staging(),
		Pending: make([]pendingSlot, 0, len(pending)), Have: make([]byte, (blocks+7)/8), CRCs: make([]byte, 4*blocks)}
	for _, p := range pending {
		rec.Pending = append(rec.Pending, pendingSlot{p.slot.Seg, int64(p.slot.Index) * int64(len(p.slot.Data)), p.off, p.len})
		for b := int(p.off / catalog.BlockSize); b < catalog.Blocks(p.off+p.len); b++ {
			rec.Have[b/8] |= 1 << (b % 8) // for now: not asked below
		}
	}
	for b := range blocks {
		if bit := byte(1) << (b % 8); rec.Have[b/8]&bit != 0 {
			rec.Have[b/8] &^= bit
		} else if crc, ok := s.in.Block(b); ok {
			rec.Have[b/8] |= bit
			binary.LittleEndian.PutUint32(rec.CRCs[4*b:], crc)
		}
	}
	return json.Marshal(rec)
}

// Sealed is a shard that an earlier process sealed and did not finish.
type Sealed struct {
	Info     catalog.ShardInfo
	Size     int64
	Staging  string
	Segments []int // of the arena that hold its missing bytes
	rec      record
}

// ParseRecord reads a journal's record; anything amiss is ErrCorrupt. Each
// byte of the shard is either written already or in one place of the arena.
func ParseRecord(b []byte) (*Sealed, error) {
	bad := func(why string) (*Sealed, error) { return nil, fmt.Errorf("journal: %w: %s", catalog.ErrCorrupt, why) }
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return bad(err.Error())
	}
	if rec.Version != 1 {
		return bad(fmt.Sprintf("version %d is unknown", rec.Version))
	}
	if rec.Size <= 0 || rec.Size > catalog.MaxShardSize {
		return bad("a field is out of range")
	}
	if err := rec.Info.Check(); err != nil {
		return bad(err.Error())
	}
	blocks := catalog.Blocks(rec.Size)
	if len(rec.Have) != (blocks+7)/8 || len(rec.CRCs) != 4*blocks {
		return bad("the checksums do not fit the size")
	}
	s := &Sealed{Info: rec.Info, Size: rec.Size, Staging: rec.Staging, rec: rec}
	covered := slices.Clone(rec.Have)
	for _, p := range rec.Pending {
		if p.Off < 0 || p.Len <= 0 || p.Off > rec.Size-p.Len || p.Seg < 0 || p.At < 0 || p.At+p.Len < 0 ||
			p.Off%catalog.BlockSize != 0 || p.Len%catalog.BlockSize != 0 && p.Off+p.Len != rec.Size {
			return bad("a slot is out of range")
		}
		for b := int(p.Off / catalog.BlockSize); b < catalog.Blocks(p.Off+p.Len); b++ {
			if covered[b/8]&(1<<(b%8)) != 0 {
				return bad(fmt.Sprintf("block %d is in two places", b))
			}
			covered[b/8] |= 1 << (b % 8)
		}
		if !slices.Contains(s.Segments, p.Seg) {
			s.Segments = append(s.Segments, p.Seg)
		}
	}
	for b := range 8 * len(covered) {
		if has := covered[b/8]&(1<<(b%8)) != 0; has != (b < blocks) {
			return bad(fmt.Sprintf("block %d is nowhere, or behind the end", b))
		}
	}
	return s, nil
}

// Written gives the checksum of a block that is in the staging file already.
func (s *Sealed) Written(block int) (uint32, bool) {
	if block < 0 || block/8 >= len(s.rec.Have) || s.rec.Have[block/8]&(1<<(block%8)) == 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(s.rec.CRCs[4*block:]), true
}
