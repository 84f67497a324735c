package index

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
)

// plan is what Finish decided: who has which number.
type plan struct {
	order  []uint32 // number -> id
	number []uint32 // id -> number; dropped if another has its path
	byHash []uint32 // numbers of files
	items  []uint32 // samples and rules in the order of their numbers
	groups []planned
	facts  Facts
}

const dropped = 1<<32 - 1

// planned is a group with the items it is made of.
type planned struct {
	group
	from, to int // items
}

// Finish numbers entries and samples and computes the digest. Nothing can be
// added afterwards.
func (b *Builder) Finish() (Facts, error) {
	if b.plan != nil {
		return b.plan.facts, nil
	}
	p := &plan{}
	if err := b.number(p); err != nil {
		return Facts{}, err
	}
	if err := b.sortSamples(p); err != nil {
		return Facts{}, err
	}
	b.countSamples(p)
	b.layGroups(p)
	p.facts.Entries, p.facts.Packs = len(p.order), len(b.packs)
	p.facts.Digest = b.digest(p)
	b.plan = p
	p.facts.Size = b.size()
	return p.facts, nil
}

func (b *Builder) nameOf(id uint32) []byte {
	r := &b.entries[id]
	return b.heap[r.nameAt():][:r.nameLen()]
}

// number puts the entries into level order.
func (b *Builder) number(p *plan) error {
	first := make([]uint32, len(b.entries)+1) // of each folder's children in list
	for i := range b.entries[1:] {
		first[b.entries[i+1].parent+1]++
	}
	for i := range b.entries {
		first[i+1] += first[i]
	}
	list, next := make([]uint32, len(b.entries)-1), slices.Clone(first)
	for i := range b.entries[1:] {
		at := &next[b.entries[i+1].parent]
		list[*at] = uint32(i + 1)
		*at++
	}
	p.number = next // its room is used again
	for i := range p.number {
		p.number[i] = dropped
	}
	p.order = append(make([]uint32, 0, len(b.entries)), 0)
	for at := 0; at < len(p.order); at++ {
		id := p.order[at]
		p.number[id] = uint32(at)
		r := &b.entries[id]
		if r.kind() == File {
			if err := b.checkFile(id); err != nil {
				return err
			}
			p.facts.Files++
			p.facts.Bytes += r.size
		}
		if r.kind() != Folder {
			continue
		}
		children := list[first[id]:first[id+1]]
		slices.SortFunc(children, func(i, j uint32) int {
			return cmp.Or(bytes.Compare(b.nameOf(i), b.nameOf(j)), cmp.Compare(i, j))
		})
		r.pack = uint32(len(p.order))
		var count, folders int64
		for k, c := range children {
			kind := b.entries[c].kind()
			if k+1 < len(children) && bytes.Equal(b.nameOf(c), b.nameOf(children[k+1])) {
				if other := b.entries[children[k+1]].kind(); kind == Folder || other == Folder {
					return refuse("%.300q is a %v and a %v", b.path(c), kind, other)
				}
				continue // the later one counts
			}
			p.order = append(p.order, c)
			if count++; kind == Folder {
				folders++
			}
		}
		r.offset = count | folders<<32
	}
	p.byHash = make([]uint32, 0, p.facts.Files)
	for i, id := range p.order {
		if b.entries[id].kind() == File {
			p.byHash = append(p.byHash, uint32(i))
		}
	}
	slices.SortFunc(p.byHash, func(i, j uint32) int {
		return cmp.Or(bytes.Compare(b.entries[p.order[i]].hash[:], b.entries[p.order[j]].hash[:]), cmp.Compare(i, j))
	})
	return nil
}

func (b *Builder) checkFile(id uint32) error {
	r := &b.entries[id]
	if r.size == 0 {
		return nil
	}
	if int(r.pack) >= len(b.packs) {
		return refuse("%.300q lies in pack %d, and %d were added", b.path(id), r.pack, len(b.packs))
	}
	if whole := b.packs[r.pack].Size; r.size > whole || r.offset > whole-r.size {
		return refuse("%.300q: %d bytes at %d of a pack of %d", b.path(id), r.size, r.offset, whole)
	}
	return nil
}

// path is for messages.
func (b *Builder) path(id uint32) string {
	var path string
	for id != 0 {
		path, id = "/"+string(b.nameOf(id))+path, b.entries[id].parent
	}
	return path[min(1, len(path)):]
}

// fieldOf gives field k of an item: for a rule, that of its first sample.
func (b *Builder) fieldOf(item uint32, k int) (s span, ok bool) {
	if n := uint64(len(b.starts)); uint64(item) >= n {
		fields := b.rules[uint64(item)-n].fields
		if k >= len(fields) {
			return span{}, false
		}
		return newSpan(fields[k].File, fields[k].Offset, fields[k].Size), true
	}
	i := b.starts[item] + uint64(k)
	if i >= b.endOf(item) {
		return span{}, false
	}
	return b.ranges[i], true
}

func (b *Builder) endOf(item uint32) uint64 {
	if int(item)+1 < len(b.starts) {
		return b.starts[item+1]
	}
	return uint64(len(b.ranges))
}

// ruleOf is nil for a sample.
func (b *Builder) ruleOf(item uint32) *rule {
	if int(item) < len(b.starts) {
		return nil
	}
	return &b.rules[int(item)-len(b.starts)]
}

func (b *Builder) fieldsOf(item uint32) int {
	if r := b.ruleOf(item); r != nil {
		return len(r.fields)
	}
	return int(b.endOf(item) - b.starts[item])
}

// compareFields orders items by their fields as the digest does: file, offset,
// size; a shorter one first, a sample before a rule.
func (p *plan) compareFields(b *Builder, i, j uint32) int {
	for k := 0; ; k++ {
		x, okX := b.fieldOf(i, k)
		y, okY := b.fieldOf(j, k)
		switch {
		case !okX && !okY:
			return boolInt(b.ruleOf(i) != nil) - boolInt(b.ruleOf(j) != nil)
		case !okX:
			return -1
		case !okY:
			return 1
		}
		if c := cmp.Or(cmp.Compare(p.number[x.file], p.number[y.file]), cmp.Compare(x.offset(), y.offset()), cmp.Compare(x.bytes(), y.bytes())); c != 0 {
			return c
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// comparePlaces orders items as samples are numbered: by pack and place in it first.
func (p *plan) comparePlaces(b *Builder, i, j uint32) int {
	x, _ := b.fieldOf(i, 0)
	y, _ := b.fieldOf(j, 0)
	if x.file != y.file {
		f, g := &b.entries[x.file], &b.entries[y.file]
		if c := cmp.Or(cmp.Compare(f.pack, g.pack), cmp.Compare(f.offset, g.offset)); c != 0 {
			return c
		}
	}
	return p.compareFields(b, i, j)
}

// sortSamples orders the samples of files that are there.
func (b *Builder) sortSamples(p *plan) error {
	p.items = make([]uint32, 0, len(b.starts)+len(b.rules))
	for item := range uint32(len(b.starts) + len(b.rules)) {
		gone := false
		for k := 0; ; k++ {
			s, ok := b.fieldOf(item, k)
			if !ok {
				break
			}
			gone = gone || p.number[s.file] == dropped
		}
		if !gone {
			p.items = append(p.items, item)
		}
	}
	slices.SortFunc(p.items, func(i, j uint32) int { return p.comparePlaces(b, i, j) })
	for k, item := range p.items[min(1, len(p.items)):] {
		r := b.ruleOf(p.items[k])
		if r == nil {
			continue
		}
		f, _ := b.fieldOf(item, 0)
		if f.file == uint32(r.fields[0].File) && f.offset() <= r.fields[0].Offset+(r.count-1)*r.fields[0].Stride {
			return refuse("the samples of %.300q given by a rule are among others of it", b.path(f.file))
		}
	}
	return nil
}

// countSamples gives each pack its range of numbers.
func (b *Builder) countSamples(p *plan) {
	for i := range b.packs {
		b.packs[i].Samples = 0
	}
	for _, item := range p.items {
		n := int64(1)
		if r := b.ruleOf(item); r != nil {
			n = r.count
		}
		s, _ := b.fieldOf(item, 0)
		if pack := b.entries[s.file].pack; pack != noPack {
			b.packs[pack].Samples += n
		}
		p.facts.Samples += n
	}
	var first int64
	for i := range b.packs {
		b.packs[i].FirstSample = first
		first += b.packs[i].Samples
	}
}

// layGroups cuts the items into groups and lays out their fields.
func (b *Builder) layGroups(p *plan) {
	var first int64
	var at uint64
	for from := 0; from < len(p.items); {
		g := planned{group: group{first: first, at: at}, from: from, to: from + 1}
		if r := b.ruleOf(p.items[from]); r != nil {
			g.kind, g.fields = groupStride, len(r.fields)
			first += r.count
			at += strideSize * uint64(g.fields)
		} else {
			for g.to < len(p.items) && b.ruleOf(p.items[g.to]) == nil {
				g.to++
			}
			width, total := b.chooseKind(p, &g)
			first += int64(g.to - from)
			if at = (at + width*total + 7) &^ 7; g.fields == 0 {
				g.starts = at
				at = (at + 4*uint64(g.to-from+1) + 7) &^ 7
			}
		}
		g.end = first
		p.groups = append(p.groups, g)
		from = g.to
	}
}

// chooseKind chooses the coding of a group of samples.
func (b *Builder) chooseKind(p *plan, g *planned) (width, total uint64) {
	g.kind, g.fields, width = groupWhole, b.fieldsOf(p.items[g.from]), wholeSize
	for _, item := range p.items[g.from:g.to] {
		n := b.fieldsOf(item)
		if total += uint64(n); n != g.fields {
			g.fields = 0
		}
		for k := range n {
			if s, _ := b.fieldOf(item, k); s.bytes() != b.entries[s.file].size {
				g.kind, width = groupRanges, rangeSize
			}
		}
	}
	return width, total
}

// digest is the hash of the content, see FORMAT.md.
func (b *Builder) digest(p *plan) catalog.Digest {
	h := blake3.New()
	buf := append(make([]byte, 0, 128<<10), "ckptd dataset 1\x00"...)
	flush := func(most int) {
		if len(buf) > most {
			_, _ = h.Write(buf) // never fails
			buf = buf[:0]
		}
	}
	for _, id := range p.order {
		r := &b.entries[id]
		parent := p.number[r.parent]
		buf = le.AppendUint32(append(buf, byte(r.kind())), parent)
		buf = append(append(buf, byte(r.nameLen())), b.nameOf(id)...)
		switch r.kind() {
		case File:
			buf = append(le.AppendUint64(buf, uint64(r.size)), r.hash[:]...)
		case Link:
			buf = append(le.AppendUint32(buf, uint32(r.size)), b.heap[r.nameAt()+r.nameLen():][:r.size]...)
		}
		flush(64 << 10)
	}
	items := slices.Clone(p.items)
	slices.SortFunc(items, func(i, j uint32) int { return p.compareFields(b, i, j) })
	for _, item := range items {
		if r := b.ruleOf(item); r != nil {
			buf = le.AppendUint64(le.AppendUint32(buf, uint32(len(r.fields))|1<<31), uint64(r.count))
			for _, f := range r.fields {
				buf = le.AppendUint64(le.AppendUint32(buf, p.number[f.File]), uint64(f.Offset))
				buf = le.AppendUint64(le.AppendUint64(buf, uint64(f.Stride)), uint64(f.Size))
			}
		} else {
			n := b.fieldsOf(item)
			buf = le.AppendUint32(buf, uint32(n))
			for k := range n {
				s, _ := b.fieldOf(item, k)
				buf = le.AppendUint32(buf, p.number[s.file])
				buf = le.AppendUint64(le.AppendUint64(buf, uint64(s.offset())), uint64(s.bytes()))
			}
		}
		flush(64 << 10)
	}
	flush(0)
	var d catalog.Digest
	h.Sum(d[:0])
	return d
}

func (f Facts) String() string {
	return fmt.Sprintf("%d files, %d bytes, %d samples, %d packs", f.Files, f.Bytes, f.Samples, f.Packs)
}
