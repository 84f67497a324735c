package shardwriter

import (
	"encoding/json"
	"fmt"

	"github.com/ckptd/ckptd/catalog"
)

// Sealed is a shard that an earlier process sealed and did not finish.
type Sealed struct {
	Info     catalog.ShardInfo
	Size     int64
	Staging  string
	Segments []int // of the arena that hold its missing bytes
	rec      record
}

// ParseRecord reads a journal's record.
func ParseRecord(b []byte) (*Sealed, error) {
	bad := func(why string) (*Sealed, error) { return nil, fmt.Errorf("journal: %w: %s", catalog.ErrCorrupt, why) }
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return bad(err.Error())
	}
	if rec.Version != 1 || rec.Size <= 0 || rec.Size > catalog.MaxShardSize || rec.Info.Set.Check() != nil || rec.Info.Rank < 0 {
		return bad("a field is out of range")
	}
	s := &Sealed{Info: rec.Info, Size: rec.Size, Staging: rec.Staging, rec: rec}
	seen := map[int]bool{}
	for _, p := range rec.Pending {
		if p.Off < 0 || p.Len <= 0 || p.Off > rec.Size-p.Len || p.Seg < 0 || p.At < 0 {
			return bad("a slot is out of range")
		}
		if !seen[p.Seg] {
			seen[p.Seg] = true
			s.Segments = append(s.Segments, p.Seg)
		}
	}
	return s, nil
}

// Written gives the checksum of a block that is in the staging file already.
func (s *Sealed) Written(block int) (uint32, bool) {
	crc, ok := s.rec.CRCs[block]
	return crc, ok
}

// Resume takes up a sealed shard: memory finds n bytes of the arena, page
// aligned, in is the reopened staging file. The session is sealed; call Finish.
func Resume(sealed *Sealed, in Ingest, memory func(seg int, at, n int64) ([]byte, error), opt Options) (*Session, error) {
	s := New(Spec{Info: sealed.Info, Size: sealed.Size}, in, opt)
	for _, p := range sealed.rec.Pending {
		b, err := memory(p.Seg, p.At, p.Len)
		if err == nil {
			mem := Slot{Seg: p.Seg, Data: b}
			s.mu.Lock()
			s.mu.sealed = true // written slots are held until the shard is durable
			s.mu.Unlock()
			s.queue <- piece{mem, p.Off, p.Len}
			continue
		}
		s.mu.Lock()
		s.mu.sealed = false
		s.mu.Unlock()
		s.Close()
		return nil, fmt.Errorf("resume %v rank %d: %w", sealed.Info.Set, sealed.Info.Rank, err)
	}
	s.mu.Lock()
	s.mu.sealed = true
	s.mu.Unlock()
	return s, nil
}
