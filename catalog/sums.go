package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxSumsSize bounds a raw shard whose manifest has the sums of its blocks, in
// bytes: they are then at most 1 MiB. The blocks of a larger one are held
// against its root alone, once all of them are there.
const MaxSumsSize = 256 << 30

// SetSums puts the block checksums of a raw shard's seal into its entry, so
// that who fetches the shard from a place without seals can check each block
// as it comes. Only a set of one shard has them: manifests stay small.
func (s *Shard) SetSums(seal *Seal, world int) {
	s.Sums = nil
	if world != 1 || !s.Raw() || s.Size > MaxSumsSize {
		return
	}
	for _, crc := range seal.CRCs {
		s.Sums = binary.LittleEndian.AppendUint32(s.Sums, crc)
	}
}

// Seal is the shard's seal, made of the sums of its entry; nil where it has
// none, as those of tensors and of manifests written before there were sums.
// It gives Root, or the error is ErrCorrupt.
func (s *Shard) Seal(id SetID) (*Seal, error) {
	if len(s.Sums) == 0 {
		return nil, nil
	}
	if err := s.checkSums(); err != nil {
		return nil, fmt.Errorf("sums of %s: %w: %w", s.BlobName(id), ErrCorrupt, err)
	}
	seal := &Seal{Name: s.BlobName(id), Size: s.Size, CRCs: make([]uint32, len(s.Sums)/4)}
	for i := range seal.CRCs {
		seal.CRCs[i] = binary.LittleEndian.Uint32(s.Sums[4*i:])
	}
	if seal.Root() != s.Root {
		return nil, fmt.Errorf("sums of %s: %w: they do not give its root", s.BlobName(id), ErrCorrupt)
	}
	return seal, nil
}

func (s *Shard) checkSums() error {
	switch {
	case len(s.Sums) == 0:
		return nil
	case !s.Raw():
		return errors.New("only a raw shard has sums")
	case s.Size > MaxSumsSize || len(s.Sums) != 4*Blocks(s.Size):
		return errors.New("there is not one sum a block")
	}
	return nil
}
