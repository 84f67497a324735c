package index

import (
	"errors"
	"fmt"
	"math/bits"
	"sort"

	"github.com/ckptd/ckptd/catalog"
)

func isInvalid(err error) bool { return errors.Is(err, catalog.ErrInvalid) }

// group is one row of the groups' table.
type group struct {
	first, end int64 // of its samples
	kind       uint8
	fields     int    // of each sample; 0: by starts
	at         uint64 // of its fields in their section
	starts     uint64
}

// groupOf finds the group that sample i is in.
func (x *Index) groupOf(i int64) (group, error) {
	table := x.part[groupsSection]
	first := func(k int) int64 { return int64(le.Uint64(table[k*groupSize:]) &^ (1 << 63)) }
	k := sort.Search(x.groups, func(k int) bool { return first(k) > i }) - 1
	if k < 0 {
		return group{}, corrupt("no group has sample %d", i)
	}
	return x.group(k)
}

// group gives row k, checked as far as a row can be by itself and its follower.
func (x *Index) group(k int) (group, error) {
	b := x.part[groupsSection][k*groupSize:][:groupSize]
	g := group{kind: b[8], fields: int(le.Uint16(b[10:])), at: le.Uint64(b[16:]), starts: le.Uint64(b[24:]), end: x.facts.Samples}
	first := le.Uint64(b)
	if k+1 < x.groups {
		g.end = int64(min(le.Uint64(x.part[groupsSection][(k+1)*groupSize:]), MaxSamples+1))
	}
	if first > MaxSamples || int64(first) >= g.end || g.end > x.facts.Samples || k == 0 && first != 0 {
		return group{}, corrupt("group %d has samples %d to %d of %d", k, first, g.end, x.facts.Samples)
	}
	g.first = int64(first)
	if b[9] != groupVersion || g.kind < groupWhole || g.kind > groupStride || le.Uint32(b[12:]) != 0 {
		return group{}, corrupt("group %d is of kind %d, version %d", k, g.kind, b[9])
	}
	if g.fields > MaxFields || g.fields == 0 && g.kind == groupStride || g.fields != 0 && g.starts != 0 || g.at%8 != 0 || g.starts%8 != 0 {
		return group{}, corrupt("group %d has %d fields a sample, at %d and %d", k, g.fields, g.at, g.starts)
	}
	return g, nil
}

// bytes gives n bytes of the fields' section from at on.
func (x *Index) bytes(at, n uint64) ([]byte, error) {
	part := x.part[fieldsSection]
	if n > uint64(len(part)) || at > uint64(len(part))-n {
		return nil, corrupt("fields of %d bytes at %d of %d", n, at, len(part))
	}
	return part[at : at+n], nil
}

// rows gives the fields of sample j of g: count of them, width bytes each.
func (x *Index) rows(g group, j int64, width uint64) ([]byte, error) {
	from, n := uint64(j)*uint64(g.fields), uint64(g.fields) // below 2^50
	if g.fields == 0 {
		b, err := x.bytes(g.starts, uint64(j)*4+8)
		if err != nil {
			return nil, err
		}
		start, end := le.Uint32(b[j*4:]), le.Uint32(b[j*4+4:])
		if start >= end || end-start > MaxFields || j == 0 && start != 0 {
			return nil, corrupt("sample %d has the fields %d to %d", g.first+j, start, end)
		}
		from, n = uint64(start), uint64(end-start)
	}
	skip := from * width // below 2^55
	b, err := x.bytes(g.at, skip+n*width)
	if err != nil {
		return nil, err
	}
	return b[skip:], nil
}

// Sample appends the fields of sample i to into, checked.
func (x *Index) Sample(i int64, into []Field) ([]Field, error) {
	if i < 0 || i >= x.facts.Samples {
		return nil, fmt.Errorf("index sample %d of %d: %w", i, x.facts.Samples, catalog.ErrInvalid)
	}
	g, err := x.groupOf(i)
	if err != nil {
		return nil, err
	}
	j := i - g.first
	switch g.kind {
	case groupWhole:
		b, err := x.rows(g, j, wholeSize)
		if err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[wholeSize:] {
			if into, err = x.field(into, le.Uint32(b), 0, 0, true); err != nil {
				return nil, err
			}
		}
	case groupRanges:
		b, err := x.rows(g, j, rangeSize)
		if err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[rangeSize:] {
			if into, err = x.field(into, le.Uint32(b), uint64(get48(b[4:])), uint64(get48(b[10:])), false); err != nil {
				return nil, err
			}
		}
	case groupStride:
		b, err := x.bytes(g.at, uint64(g.fields)*strideSize)
		if err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[strideSize:] {
			off, stride, size := le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
			over, step := bits.Mul64(uint64(j), stride)
			sum, carry := bits.Add64(step, off, 0)
			if over != 0 || carry != 0 || stride == 0 || le.Uint32(b[4:]) != 0 {
				return nil, corrupt("sample %d: a stride of %d", i, stride)
			}
			if into, err = x.field(into, le.Uint32(b), sum, size, false); err != nil {
				return nil, err
			}
		}
	}
	return into, nil
}

// field appends one field, held against its file.
func (x *Index) field(into []Field, file uint32, off, size uint64, whole bool) ([]Field, error) {
	if int64(file) >= int64(x.facts.Entries) || kindOf(x.raw(int(file))) != File {
		return nil, corrupt("a sample's field is in entry %d, which is no file", file)
	}
	e := Entry{}
	if err := x.file(int(file), x.raw(int(file)), &e); err != nil {
		return nil, err
	}
	if whole {
		size = uint64(e.Size)
	}
	if size > uint64(e.Size) || off > uint64(e.Size)-size {
		return nil, corrupt("a sample's field is %d bytes at %d of file %d, which has %d", size, off, file, e.Size)
	}
	return append(into, Field{File: int(file), Offset: int64(off), Size: int64(size), Pack: e.Pack, PackOffset: e.Offset + int64(off)}), nil
}
