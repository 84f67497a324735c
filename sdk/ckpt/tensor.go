package ckpt

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/ckptd/ckptd/catalog"
)

func (r *Reader) checkRank(rank int) error {
	if rank < 0 || rank >= len(r.manifest.Shards) {
		return fmt.Errorf("shard %d of %v, which has %d: %w", rank, r.manifest.Set, len(r.manifest.Shards), fs.ErrNotExist)
	}
	return nil
}

// Tensor describes a tensor as a whole: of a sharded one, the global shape and
// size, with Rank -1.
func (r *Reader) Tensor(name string) (Tensor, error) {
	list := r.byName[name]
	if len(list) == 0 {
		return Tensor{}, fmt.Errorf("tensor %q of %v: %w", name, r.manifest.Set, fs.ErrNotExist)
	}
	for _, i := range list {
		if t := r.tensors[i]; len(t.Global) == 0 || slices.Equal(t.Global, t.Shape) {
			return t, nil
		}
	}
	t := r.tensors[list[0]]
	bits, ok := product(t.Global, uint64(t.DType.Bits()))
	if !ok || bits%8 != 0 || bits/8 > catalog.MaxShardSize {
		return Tensor{}, fmt.Errorf("tensor %q: %w: global shape %v", name, catalog.ErrCorrupt, t.Global)
	}
	return Tensor{Rank: -1, Tensor: catalog.Tensor{Name: name, DType: t.DType, Shape: t.Global, Size: int64(bits / 8)}}, nil
}

// ReadAt reads bytes of a tensor that one rank holds whole, from off on. A
// tensor in pieces is read by ReadTensor, or through Shard.
func (r *Reader) ReadAt(name string, p []byte, off int64) (int, error) {
	t, err := r.Tensor(name)
	if err != nil {
		return 0, err
	}
	if t.Rank < 0 {
		return 0, fmt.Errorf("tensor %q: %w: it is in pieces; use ReadTensor", name, catalog.ErrInvalid)
	}
	return r.readTensor(r.life, t, p, off)
}

func (r *Reader) readTensor(ctx context.Context, t Tensor, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("tensor %q at %d: %w", t.Name, off, catalog.ErrInvalid)
	}
	if off >= t.Size && len(p) > 0 {
		return 0, io.EOF
	}
	s, err := r.shared(t.Rank)
	if err != nil {
		return 0, err
	}
	var eof error
	if rest := t.Size - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	n, err := s.ReadAtContext(ctx, p, t.Offset+off)
	if n == len(p) {
		return n, eof
	}
	return n, err
}

// shared is the ShardReader the Reader keeps of a rank.
func (r *Reader) shared(rank int) (*ShardReader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return nil, fs.ErrClosed
	}
	s := r.mu.shards[rank]
	if s == nil {
		var err error
		if s, err = r.Shard(rank); err != nil {
			return nil, err
		}
		r.mu.shards[rank] = s
	}
	return s, nil
}

// ReadTensor reads a whole tensor into p, which must have its size; pieces are
// put together.
func (r *Reader) ReadTensor(ctx context.Context, name string, p []byte) error {
	t, err := r.Tensor(name)
	if err != nil {
		return err
	}
	if int64(len(p)) != t.Size {
		return fmt.Errorf("tensor %q: %w: memory of %d bytes for %d", name, catalog.ErrInvalid, len(p), t.Size)
	}
	if t.Rank >= 0 {
		_, err := r.readTensor(ctx, t, p, 0)
		return err
	}
	covered := int64(0)
	var seen [][]int64
	for _, i := range r.byName[name] {
		piece := r.tensors[i]
		told := piece.Tensor // a manifest is somebody's words
		if err := checkTensor(&told); err != nil || told.Size != piece.Size ||
			!slices.Equal(piece.Global, t.Shape) || piece.DType != t.DType {
			return fmt.Errorf("tensor %q: %w: rank %d has a piece of another tensor", name, catalog.ErrCorrupt, piece.Rank)
		}
		if slices.ContainsFunc(seen, func(s []int64) bool { return slices.Equal(s, piece.Start) }) {
			continue // a replica
		}
		seen = append(seen, piece.Start)
		buf := make([]byte, piece.Size)
		if _, err := r.readTensor(ctx, piece, buf, 0); err != nil {
			return err
		}
		if err := place(p, t.Shape, buf, piece.Tensor); err != nil {
			return err
		}
		covered += piece.Size
	}
	if covered != t.Size {
		return fmt.Errorf("tensor %q: %w: its pieces have %d of %d bytes", name, catalog.ErrIncomplete, covered, t.Size)
	}
	return nil
}

// place copies a piece's rows to where they belong in the whole.
func place(whole []byte, shape []int64, rows []byte, t catalog.Tensor) error {
	if len(rows) == 0 {
		return nil
	}
	// A run is the longest stretch that is contiguous in both: the last
	// dimension, and those before it that are complete.
	d := len(shape) - 1
	run := t.Shape[d]
	for d > 0 && t.Shape[d] == shape[d] {
		d--
		run *= t.Shape[d]
	}
	bits := t.DType.Bits()
	if run*bits%8 != 0 {
		return fmt.Errorf("tensor %q: %w: its rows do not end at whole bytes; read the pieces through Shard", t.Name, catalog.ErrInvalid)
	}
	at := make([]int64, d) // of the run, in the dimensions before d
	for off := int64(0); off < int64(len(rows)); off += run * bits / 8 {
		pos := int64(0)
		for i := range shape {
			pos = pos*shape[i] + t.Start[i]
			if i < d {
				pos += at[i]
			}
		}
		if pos*bits%8 != 0 {
			return fmt.Errorf("tensor %q: %w: its rows do not begin at whole bytes; read the pieces through Shard", t.Name, catalog.ErrInvalid)
		}
		copy(whole[pos*bits/8:], rows[off:off+run*bits/8])
		for i := d - 1; i >= 0; i-- {
			if at[i]++; at[i] < t.Shape[i] {
				break
			}
			at[i] = 0
		}
	}
	return nil
}
