package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// bulkChunk is how much of a bulk goes into one record, in bytes.
const bulkChunk = 512 << 10

// MaxBulk bounds a bulk, in bytes.
const MaxBulk = 256 << 20

// PutBulk keeps bytes too large for a record until DropBulk, under their
// SHA-256. It is idempotent.
func (c *Catalog) PutBulk(ctx context.Context, b []byte) (Digest, error) {
	if len(b) > MaxBulk {
		return Digest{}, fmt.Errorf("bulk of %d bytes: %w: at most %d", len(b), ErrInvalid, MaxBulk)
	}
	d := Digest(sha256.Sum256(b))
	for i := 0; i == 0 || i*bulkChunk < len(b); i++ {
		chunk := b[i*bulkChunk : min(len(b), (i+1)*bulkChunk)]
		if chunk == nil {
			chunk = []byte{}
		}
		if _, err := c.parts.Swap(ctx, bulkKey(d, i), 0, chunk); err != nil && !errors.Is(err, ErrConflict) {
			return d, fmt.Errorf("bulk %s: %w", d, err)
		}
	}
	return d, nil
}

// GetBulk reads size bytes that PutBulk kept.
func (c *Catalog) GetBulk(ctx context.Context, d Digest) ([]byte, error) {
	var b []byte
	for i := 0; ; i++ {
		rec, err := c.parts.Get(ctx, bulkKey(d, i))
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			break
		} else if err != nil {
			return nil, fmt.Errorf("bulk %s: %w", d, err)
		}
		if b = append(b, rec.Value...); len(rec.Value) < bulkChunk {
			break
		}
		if len(b) > MaxBulk {
			return nil, fmt.Errorf("bulk %s: %w: too large", d, ErrCorrupt)
		}
	}
	if sha256.Sum256(b) != d {
		return nil, fmt.Errorf("bulk %s: %w: SHA-256 differs", d, ErrCorrupt)
	}
	return b, nil
}

// DropBulk forgets a bulk, its last piece first: what is left when it is cut
// short begins at the first piece, so that another call finds it.
func (c *Catalog) DropBulk(ctx context.Context, d Digest) error {
	var pieces []Record
	for i := 0; i*bulkChunk <= MaxBulk; i++ {
		rec, err := c.parts.Get(ctx, bulkKey(d, i))
		if errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return fmt.Errorf("drop bulk %s: %w", d, err)
		}
		pieces = append(pieces, Record{Key: rec.Key, Rev: rec.Rev})
		if len(rec.Value) < bulkChunk {
			break
		}
	}
	for _, rec := range slices.Backward(pieces) {
		_, err := c.parts.Swap(ctx, rec.Key, rec.Rev, nil)
		if errors.Is(err, ErrConflict) {
			err = remove(ctx, c.parts, rec.Key)
		}
		if err != nil {
			return fmt.Errorf("drop bulk %s: %w", d, err)
		}
	}
	return nil
}
