package restore

import (
	"cmp"
	"math/bits"
	"slices"
)

// maxBytes bounds a whole tensor, in bytes, so that no product below overflows.
const maxBytes = 1 << 56

// maxDims bounds the dimensions of a tensor.
const maxDims = 64

// box is a part of a tensor: where it begins and how far it reaches, in
// elements, one number a dimension. Boxes share their slices: never write them.
type box struct{ start, shape []int64 }

func (b box) compare(o box) int {
	return cmp.Or(slices.Compare(b.start, o.start), slices.Compare(b.shape, o.shape))
}

func (b box) empty() bool { return slices.Contains(b.shape, 0) }

// within reports whether the box has the dimensions of global and lies in it.
func (b box) within(global []int64) bool {
	if len(b.start) != len(global) || len(b.shape) != len(global) {
		return false
	}
	for i, g := range global {
		if b.start[i] < 0 || b.shape[i] < 0 || b.shape[i] > g || b.start[i] > g-b.shape[i] {
			return false
		}
	}
	return true
}

// meets reports whether two boxes share an element.
func (b box) meets(o box) bool {
	for i := range b.start {
		if b.start[i] >= o.start[i]+o.shape[i] || o.start[i] >= b.start[i]+b.shape[i] || b.shape[i] == 0 || o.shape[i] == 0 {
			return false
		}
	}
	return true
}

// contains reports whether all of o lies in b.
func (b box) contains(o box) bool {
	for i := range b.start {
		if o.start[i] < b.start[i] || o.start[i]+o.shape[i] > b.start[i]+b.shape[i] {
			return false
		}
	}
	return true
}

// arena lends the memory of boxes that live no longer than the covering of one output.
type arena struct{ buf []int64 }

// box is one of n dimensions, of any content.
func (a *arena) box(n int) box {
	if cap(a.buf)-len(a.buf) < 2*n {
		a.buf = make([]int64, 0, max(1024, 2*cap(a.buf))) // boxes lent before keep the old memory alive
	}
	i := len(a.buf)
	a.buf = a.buf[:i+2*n]
	return box{a.buf[i : i+n : i+n], a.buf[i+n : i+2*n : i+2*n]}
}

func (a *arena) reset() { a.buf = a.buf[:0] }

// and is what two boxes that meet share.
func (b box) and(o box, mem *arena) box {
	if o.contains(b) { // the common cases need no memory
		return b
	}
	if b.contains(o) {
		return o
	}
	r := mem.box(len(b.start))
	for i := range b.start {
		r.start[i] = max(b.start[i], o.start[i])
		r.shape[i] = min(b.start[i]+b.shape[i], o.start[i]+o.shape[i]) - r.start[i]
	}
	return r
}

// minus appends to list what is left of b without o, where o lies in b: at
// most two boxes a dimension, none of which overlap.
func (b box) minus(o box, list []box, mem *arena) []box {
	for i := range b.start {
		bEnd, oEnd := b.start[i]+b.shape[i], o.start[i]+o.shape[i]
		if o.start[i] > b.start[i] {
			list = append(list, b.beside(o, i, b.start[i], o.start[i], mem))
		}
		if oEnd < bEnd {
			list = append(list, b.beside(o, i, oEnd, bEnd, mem))
		}
	}
	return list
}

// beside is the part of b from from to to in dimension i, as wide as o in the
// dimensions before, which other parts cover.
func (b box) beside(o box, i int, from, to int64, mem *arena) box {
	r := mem.box(len(b.start))
	copy(r.start, o.start[:i])
	copy(r.shape, o.shape[:i])
	copy(r.start[i:], b.start[i:])
	copy(r.shape[i:], b.shape[i:])
	r.start[i], r.shape[i] = from, to-from
	return r
}

// sizeOf is the bytes of an array, or false when the shape has a negative
// number, too many dimensions, over maxBytes, or does not end on a whole byte.
func sizeOf(width int64, shape []int64) (int64, bool) {
	if len(shape) > maxDims || width <= 0 {
		return 0, false
	}
	n, zero := uint64(1), false
	for _, d := range shape {
		if d < 0 {
			return 0, false
		}
		if d == 0 {
			zero = true
			continue
		}
		// Zero dimensions are left out, so that the strides of the others are bounded too.
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 || lo > maxBytes {
			return 0, false
		}
		n = lo
	}
	if n > 8*maxBytes/uint64(width) {
		return 0, false
	}
	if zero {
		return 0, true
	}
	n *= uint64(width)
	return int64(n / 8), n%8 == 0
}

// Dim is one level of a strided copy: N steps, each of Src bytes in the shard
// and Dst bytes in the output.
type Dim struct{ N, Src, Dst int64 }

// stride describes the copy of part from the array of box src to that of box
// dst, both row-major; part lies in both and is not empty. It gives the first
// byte in each, the bytes of one run, and the levels around it, outermost
// first. False: elements narrower than a byte, and a run that begins or ends
// within one.
func stride(width int64, part, src, dst box) (from, to, run int64, dims []Dim, ok bool) {
	run = 1
	srcStep, dstStep := int64(1), int64(1)
	for i := len(part.shape) - 1; i >= 0; i-- {
		n := part.shape[i]
		from += (part.start[i] - src.start[i]) * srcStep
		to += (part.start[i] - dst.start[i]) * dstStep
		last := len(dims) - 1
		switch {
		case n == 1:
		case last < 0 && srcStep == run && dstStep == run:
			run *= n
		case last >= 0 && dims[last].Src*dims[last].N == srcStep && dims[last].Dst*dims[last].N == dstStep:
			dims[last].N *= n
		default:
			dims = append(dims, Dim{n, srcStep, dstStep})
		}
		srcStep *= src.shape[i]
		dstStep *= dst.shape[i]
	}
	slices.Reverse(dims)
	ok = true
	toBytes := func(v *int64) {
		*v *= width
		ok = ok && *v%8 == 0
		*v /= 8
	}
	toBytes(&from)
	toBytes(&to)
	toBytes(&run)
	for i := range dims {
		toBytes(&dims[i].Src)
		toBytes(&dims[i].Dst)
	}
	return from, to, run, dims, ok
}
