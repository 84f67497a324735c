package tarview

import (
	"fmt"

	"github.com/ckptd/ckptd/catalog"
)

// Share says whose samples of an epoch a view has: those at the positions from
// At on that go to Rank of World. Position p goes to rank p mod World.
type Share struct {
	Rank, World int
	At          int64 // samples that all ranks together have consumed before
}

// Check reports what is wrong with a share of an epoch of n samples.
func (s Share) Check(n int64) error {
	switch {
	case s.World < 1 || s.World > catalog.MaxWorld:
		return fmt.Errorf("world %d: %w: want 1 to %d", s.World, catalog.ErrInvalid, catalog.MaxWorld)
	case s.Rank < 0 || s.Rank >= s.World:
		return fmt.Errorf("rank %d: %w: want 0 to %d", s.Rank, catalog.ErrInvalid, s.World-1)
	case s.At < 0 || s.At > n:
		return fmt.Errorf("position %d: %w: want 0 to %d", s.At, catalog.ErrInvalid, n)
	}
	return nil
}

// first is the share's first position.
func (s Share) first() int64 {
	w := int64(s.World)
	return s.At + ((int64(s.Rank)-s.At)%w+w)%w
}

// Count is how many samples of an epoch of n the share has.
func (s Share) Count(n int64) int64 {
	if s.first() >= n {
		return 0
	}
	return (n - s.first() + int64(s.World) - 1) / int64(s.World)
}

// position is where in the epoch the share's i-th sample is.
func (s Share) position(i int64) int64 { return s.first() + i*int64(s.World) }
