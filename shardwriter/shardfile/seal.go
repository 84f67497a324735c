package shardfile

import (
	"errors"
	"fmt"
	"io"

	"github.com/ckptd/ckptd/catalog"
)

// SealOf reads a file of size bytes and makes its seal. Info is left empty.
func SealOf(r io.ReaderAt, size int64, name string) (*catalog.Seal, error) {
	if size < 0 || size > catalog.MaxShardSize || len(name) > catalog.MaxSealName {
		return nil, fmt.Errorf("seal %.80s: %w: %d bytes of data, %d of name", name, catalog.ErrInvalid, size, len(name))
	}
	s := &catalog.Seal{Name: name, Size: size}
	err := eachBlock(r, size, func(_ int, p []byte) error {
		s.CRCs = append(s.CRCs, catalog.Sum32C(p))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	if s.CRCs == nil {
		s.CRCs = []uint32{} // as ParseSeal gives it
	}
	return s, nil
}

// Verify reads all of r and compares it with its seal. A wrong, missing or
// surplus byte is ErrCorrupt; errors of r are passed on.
func Verify(r io.ReaderAt, s *catalog.Seal) error {
	if s.Size < 0 || s.Size > catalog.MaxShardSize || len(s.CRCs) != catalog.Blocks(s.Size) {
		return fmt.Errorf("verify %s: %w: the seal contradicts itself", s.Name, catalog.ErrCorrupt)
	}
	if err := eachBlock(r, s.Size, s.CheckBlock); err != nil {
		return fmt.Errorf("verify %s: %w", s.Name, err)
	}
	var one [1]byte
	switch n, err := r.ReadAt(one[:], s.Size); {
	case n > 0:
		return fmt.Errorf("verify %s: %w: the file is longer than %d bytes", s.Name, catalog.ErrCorrupt, s.Size)
	case err != nil && !errors.Is(err, io.EOF):
		return fmt.Errorf("verify %s: %w", s.Name, err)
	}
	return nil
}

// eachBlock calls do with every block of the first size bytes of r.
func eachBlock(r io.ReaderAt, size int64, do func(i int, p []byte) error) error {
	buf := make([]byte, min(size, bufSize))
	for i := range catalog.Blocks(size) {
		off := int64(i) * catalog.BlockSize
		p := buf[:min(catalog.BlockSize, size-off)]
		if err := readFull(r, p, off); err != nil {
			return err
		}
		if err := do(i, p); err != nil {
			return err
		}
	}
	return nil
}
