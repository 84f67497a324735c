package index

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ckptd/ckptd/catalog"
)

// WriteTo writes the index, after Finish, which it calls if need be. It gives
// the same bytes each time.
func (b *Builder) WriteTo(w io.Writer) (int64, error) {
	if _, err := b.Finish(); err != nil {
		return 0, err
	}
	header, err := b.header()
	if err != nil {
		return 0, err
	}
	out := &counted{w: bufio.NewWriterSize(w, 256<<10)}
	out.write(header)
	for s := range sections {
		var pad [align]byte
		out.write(pad[:aligned(out.n)-out.n])
		b.emit(s, out.write)
	}
	if out.err == nil {
		out.err = out.w.Flush()
	}
	if out.err != nil {
		return out.n, fmt.Errorf("write index: %w", out.err)
	}
	return out.n, nil
}

// counted remembers the first error and counts what was given to it.
type counted struct {
	w   *bufio.Writer
	n   int64
	err error
}

func (c *counted) write(p []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(p)
	}
	c.n += int64(len(p))
}

// size is what the index has, in bytes.
func (b *Builder) size() int64 {
	at := int64(headerSize)
	for s := range sections {
		at = aligned(at) + b.length(s)
	}
	return at
}

// length is what a section has, without its padding.
func (b *Builder) length(section int) (n int64) {
	p := b.plan
	switch section {
	case entriesSection:
		return int64(len(p.order)) * entrySize
	case hashesSection:
		return int64(len(p.order)) * hashSize
	case byHashSection:
		return int64(len(p.byHash)) * 4
	case packsSection:
		return int64(len(b.packs)) * packSize
	case groupsSection:
		return int64(len(p.groups)) * groupSize
	case schemaSection:
		return int64(len(b.schema))
	}
	b.emit(section, func(q []byte) { n += int64(len(q)) })
	return n
}

// header needs the checksums of what follows, so everything is encoded twice:
// it takes little time, and w need not seek.
func (b *Builder) header() ([]byte, error) {
	h, f := make([]byte, headerSize), b.plan.facts
	if f.Size > MaxSize {
		return nil, refuse("an index of %d bytes; divide the dataset", f.Size)
	}
	copy(h, magic)
	le.PutUint32(h[8:], version)
	le.PutUint32(h[12:], sections)
	for i, v := range []int64{f.Size, int64(f.Entries), f.Files, f.Bytes, f.Samples, int64(f.Packs)} {
		le.PutUint64(h[16+8*i:], uint64(v))
	}
	copy(h[64:], f.Digest[:])
	at := int64(headerSize)
	for s := range sections {
		at = aligned(at)
		var n int64
		var crc uint32
		b.emit(s, func(q []byte) {
			n += int64(len(q))
			crc = crc32.Update(crc, catalog.Castagnoli, q)
		})
		row := h[tableAt+s*sectionRecord:]
		le.PutUint32(row, uint32(s+1))
		le.PutUint32(row[4:], 1)
		le.PutUint64(row[8:], uint64(at))
		le.PutUint64(row[16:], uint64(n))
		le.PutUint32(row[24:], crc)
		at += n
	}
	le.PutUint32(h[headerSize-4:], crc32.Checksum(h[:headerSize-4], catalog.Castagnoli))
	return h, nil
}

// emit gives the bytes of a section, piece by piece.
func (b *Builder) emit(section int, write func([]byte)) {
	p := b.plan
	switch section {
	case entriesSection:
		b.emitEntries(write)
	case namesSection:
		for _, id := range p.order {
			r := &b.entries[id]
			write(b.heap[r.nameAt():][:r.heapLen()])
		}
	case hashesSection:
		for _, id := range p.order {
			write(b.entries[id].hash[:])
		}
	case byHashSection:
		var q [4]byte
		for _, i := range p.byHash {
			le.PutUint32(q[:], i)
			write(q[:])
		}
	case packsSection:
		b.emitPacks(write)
	case runsSection:
		for i := range b.packs {
			if i == 0 || b.packs[i].Set.Run != b.packs[i-1].Set.Run {
				write([]byte(b.packs[i].Set.Run))
			}
		}
	case groupsSection:
		var q [groupSize]byte
		for _, g := range p.groups {
			le.PutUint64(q[:], uint64(g.first))
			q[8], q[9] = g.kind, groupVersion
			le.PutUint16(q[10:], uint16(g.fields))
			le.PutUint64(q[16:], g.at)
			le.PutUint64(q[24:], g.starts)
			write(q[:])
		}
	case fieldsSection:
		b.emitFields(write)
	case schemaSection:
		write([]byte(b.schema))
	}
}

// heapLen is the length of a name and of a link's target.
func (r *record) heapLen() int {
	if r.kind() == Link {
		return r.nameLen() + int(r.size)
	}
	return r.nameLen()
}

func (b *Builder) emitEntries(write func([]byte)) {
	var q [entrySize]byte
	var heap uint64
	for _, id := range b.plan.order {
		r := &b.entries[id]
		le.PutUint64(q[:], heap|r.name&^(1<<48-1))
		le.PutUint64(q[8:], r.time)
		le.PutUint32(q[16:], b.plan.number[r.parent])
		le.PutUint32(q[20:], r.pack)
		le.PutUint64(q[24:], uint64(r.size))
		le.PutUint64(q[32:], uint64(r.offset))
		le.PutUint32(q[40:], r.crc)
		le.PutUint16(q[44:], r.mode)
		write(q[:])
		heap += uint64(r.heapLen())
	}
}

func (b *Builder) emitPacks(write func([]byte)) {
	var q [packSize]byte
	run := uint32(0) // where the name of the pack's run begins
	for i := range b.packs {
		p := &b.packs[i]
		if i > 0 && p.Set.Run != b.packs[i-1].Set.Run {
			run += uint32(len(b.packs[i-1].Set.Run))
		}
		kind := uint32(1)
		if p.Raw {
			kind = 2
		}
		le.PutUint64(q[:], uint64(p.Set.Step))
		le.PutUint32(q[8:], uint32(p.Set.Attempt))
		le.PutUint32(q[12:], kind)
		le.PutUint64(q[16:], uint64(p.Size))
		copy(q[24:], p.Root[:])
		le.PutUint64(q[56:], uint64(p.FirstSample))
		le.PutUint64(q[64:], uint64(p.Samples))
		le.PutUint32(q[72:], run)
		le.PutUint32(q[76:], uint32(len(p.Set.Run)))
		write(q[:])
	}
}

func (b *Builder) emitFields(write func([]byte)) {
	var at uint64
	put := func(q []byte) {
		write(q)
		at += uint64(len(q))
	}
	pad := func() {
		var zero [8]byte
		put(zero[:(8-at%8)%8])
	}
	var q [strideSize]byte
	for i := range b.plan.groups {
		g := &b.plan.groups[i]
		if g.kind == groupStride {
			for _, f := range b.ruleOf(b.plan.items[g.from]).fields {
				le.PutUint64(q[:], uint64(b.plan.number[f.File]))
				le.PutUint64(q[8:], uint64(f.Offset))
				le.PutUint64(q[16:], uint64(f.Stride))
				le.PutUint64(q[24:], uint64(f.Size))
				put(q[:])
			}
			continue
		}
		items := b.plan.items[g.from:g.to]
		for _, item := range items {
			for k := range b.fieldsOf(item) {
				s, _ := b.fieldOf(item, k)
				le.PutUint32(q[:], b.plan.number[s.file])
				if g.kind == groupWhole {
					put(q[:wholeSize])
					continue
				}
				put48(q[4:], s.offset())
				put48(q[10:], s.bytes())
				put(q[:rangeSize])
			}
		}
		pad()
		if g.fields != 0 {
			continue
		}
		var start uint32
		for _, item := range items {
			le.PutUint32(q[:], start)
			put(q[:4])
			start += uint32(b.fieldsOf(item))
		}
		le.PutUint32(q[:], start)
		put(q[:4])
		pad()
	}
}
