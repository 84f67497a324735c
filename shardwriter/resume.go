package shardwriter

import (
	"errors"
	"fmt"
)

// Resume takes up a sealed shard: memory finds n bytes of the arena, page
// aligned, in is the reopened staging file. The session is sealed; call Finish.
// After an error in is closed.
func Resume(sealed *Sealed, in Ingest, memory func(seg int, at, n int64) ([]byte, error), opt Options) (*Session, error) {
	var pieces []piece // all of them are found before one is written
	for i, p := range sealed.rec.Pending {
		b, err := memory(p.Seg, p.At, p.Len)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("resume %v rank %d: %w", sealed.Info.Set, sealed.Info.Rank, err), in.Close())
		}
		pieces = append(pieces, piece{Slot{Seg: p.Seg, Index: i, Data: b}, p.Off, p.Len})
	}
	s := New(Spec{Info: sealed.Info, Size: sealed.Size}, in, opt)
	s.mu.Lock()
	s.mu.sealed = true // written slots are held until the shard is durable
	s.mu.Unlock()
	for _, p := range pieces {
		s.queue <- p
	}
	return s, nil
}
