package order

import (
	"fmt"
	"iter"

	"github.com/ckptd/ckptd/catalog"
)

// Order is the order of one epoch. It never changes and may be used by many
// goroutines at once.
type Order struct {
	mode   Mode
	slices permutation // of samples in the global order
	inner  [rounds]uint64

	// Of a window.
	n, slice, group uint64
	block           uint64 // samples of a full block
	missing         uint64 // samples that the last slice lacks
	shortSlot       uint64 // where the last slice is
	shortBlock      uint64
	shortEnd        uint64 // position after the block with the last slice
}

// New makes the order of n samples.
func New(n int64, key Key, mode Mode) (*Order, error) {
	if n < 0 || n > MaxSamples {
		return nil, fmt.Errorf("order of %d samples: %w: want 0 to 2^48", n, catalog.ErrInvalid)
	}
	if err := mode.Check(); err != nil {
		return nil, err
	}
	o := &Order{mode: mode.withDefaults(), n: uint64(n)}
	outer := [rounds]uint64(key[:rounds])
	if o.mode == Global {
		o.slices = newPermutation(o.n, outer, 0)
		return o, nil
	}
	o.inner = [rounds]uint64(key[rounds:])
	// A slice longer than all samples, and a group of more slices than there are, change nothing but numbers.
	o.slice = max(1, min(uint64(o.mode.Slice), o.n))
	m := (o.n + o.slice - 1) / o.slice
	o.group = max(1, min(uint64(o.mode.Group), m))
	o.slices = newPermutation(m, outer, 0)
	o.block = o.slice * o.group
	o.missing = m*o.slice - o.n
	if m > 0 {
		o.shortSlot = o.slices.find(m - 1)
		o.shortBlock = o.shortSlot / o.group
		o.shortEnd = min((o.shortBlock+1)*o.block, m*o.slice) - o.missing
	}
	return o, nil
}

// Len is the number of samples.
func (o *Order) Len() int64 { return int64(o.n) }

// Mode is the mode with its defaults filled in.
func (o *Order) Mode() Mode { return o.mode }

// At is the sample at a position, 0 to Len()-1.
func (o *Order) At(pos int64) int64 {
	if uint64(pos) >= o.n {
		panic(fmt.Sprintf("order: position %d of %d", pos, o.n))
	}
	p := uint64(pos)
	if o.mode == Global {
		return int64(o.slices.at(p))
	}
	if p >= o.shortEnd {
		p += o.missing // as if the block before had its full length
	}
	c := p / o.block
	inner := o.within(c)
	q := inner.at(p - c*o.block)
	slot := c * o.group
	if c == o.shortBlock {
		if s := (o.shortSlot - slot) * o.slice; q >= s+o.slice-o.missing {
			q += o.missing // behind the short slice
		}
	}
	in := q / o.slice
	return int64(o.slices.at(slot+in)*o.slice + q - in*o.slice)
}

// Find is the position of a sample: At(Find(s)) == s.
func (o *Order) Find(sample int64) int64 {
	if uint64(sample) >= o.n {
		panic(fmt.Sprintf("order: sample %d of %d", sample, o.n))
	}
	s := uint64(sample)
	if o.mode == Global {
		return int64(o.slices.find(s))
	}
	slice := s / o.slice
	slot := o.slices.find(slice)
	c := slot / o.group
	q := (slot-c*o.group)*o.slice + s - slice*o.slice
	if c == o.shortBlock && slot > o.shortSlot {
		q -= o.missing
	}
	inner := o.within(c)
	p := c*o.block + inner.find(q)
	if c > o.shortBlock {
		p -= o.missing
	}
	return int64(p)
}

// within is the permutation of the samples of block c.
func (o *Order) within(c uint64) permutation {
	n := min(o.group, o.slices.n-c*o.group) * o.slice
	if c == o.shortBlock {
		n -= o.missing
	}
	return newPermutation(n, o.inner, tweak(c))
}

// Rank is the positions from at on that belong to a rank of world, each with
// its sample.
func (o *Order) Rank(at int64, rank, world int) iter.Seq2[int64, int64] {
	if at < 0 || world < 1 || rank < 0 || rank >= world {
		panic(fmt.Sprintf("order: rank %d of %d from position %d", rank, world, at))
	}
	w := int64(world)
	return func(yield func(pos, sample int64) bool) {
		for p := at + (int64(rank)-at%w+w)%w; p < int64(o.n); p += w {
			if !yield(p, o.At(p)) {
				return
			}
		}
	}
}
