package index

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"sort"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Index reads the bytes of an index in place. It is safe for concurrent use.
type Index struct {
	whole  []byte
	facts  Facts
	part   [sections][]byte
	sums   [sections]uint32
	groups int
}

// Open checks the header and the bounds of the sections. b is used as long as
// the Index is; it is usually a read-only mapping.
func Open(b []byte) (*Index, error) {
	if len(b) < headerSize {
		return nil, corrupt("%d bytes are no index", len(b))
	}
	h := b[:headerSize]
	switch {
	case string(h[:8]) != magic:
		return nil, corrupt("no index")
	case crc32.Checksum(h[:headerSize-4], catalog.Castagnoli) != le.Uint32(h[headerSize-4:]):
		return nil, corrupt("the header's checksum differs")
	case le.Uint32(h[8:]) != version:
		return nil, corrupt("version %d is unknown", le.Uint32(h[8:]))
	case le.Uint32(h[12:]) != sections:
		return nil, corrupt("%d sections, want %d", le.Uint32(h[12:]), sections)
	case le.Uint64(h[16:]) != uint64(len(b)):
		return nil, corrupt("%d bytes, the header says %d", len(b), le.Uint64(h[16:]))
	case !allZero(h[96:tableAt]) || !allZero(h[tableAt+sections*sectionRecord:headerSize-4]):
		return nil, corrupt("the header has something in what is to be zero")
	}
	entries, files, total, samples, packs := le.Uint64(h[24:]), le.Uint64(h[32:]), le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint64(h[56:])
	if entries < 1 || entries > MaxEntries || files >= entries || total > 1<<62 || samples > MaxSamples || packs > MaxPacks {
		return nil, corrupt("%d entries, %d files, %d bytes, %d samples, %d packs", entries, files, total, samples, packs)
	}
	x := &Index{whole: b, facts: Facts{
		Entries: int(entries), Files: int64(files), Bytes: int64(total), Samples: int64(samples), Packs: int(packs),
		Digest: catalog.Digest(h[64:96]), Size: int64(len(b)),
	}}
	if err := x.cut(b); err != nil {
		return nil, err
	}
	return x, nil
}

// cut finds the sections, whose order and places follow from their lengths.
func (x *Index) cut(b []byte) error {
	at := int64(headerSize)
	for i := range sections {
		s := b[tableAt+i*sectionRecord:][:sectionRecord]
		number, ver, off, n := le.Uint32(s), le.Uint32(s[4:]), le.Uint64(s[8:]), le.Uint64(s[16:])
		if number != uint32(i+1) || ver != 1 || le.Uint32(s[28:]) != 0 {
			return corrupt("section %d is number %d, version %d", i+1, number, ver)
		}
		if off != uint64(at) || n > uint64(len(b))-off {
			return corrupt("section %d has %d bytes at %d, want it at %d within %d", i+1, n, off, at, len(b))
		}
		x.part[i], x.sums[i] = b[at:at+int64(n):at+int64(n)], le.Uint32(s[24:])
		if at += int64(n); i < sections-1 {
			at = aligned(at)
		}
		if at > int64(len(b)) {
			return corrupt("section %d ends behind the end", i+1)
		}
	}
	if at != int64(len(b)) {
		return corrupt("%d bytes behind the last section", int64(len(b))-at)
	}
	f := x.facts
	x.groups = len(x.part[groupsSection]) / groupSize
	for i, want := range map[int]int64{
		entriesSection: int64(f.Entries) * entrySize, hashesSection: int64(f.Entries) * hashSize, byHashSection: f.Files * 4,
		packsSection: int64(f.Packs) * packSize, groupsSection: int64(x.groups) * groupSize,
	} {
		if int64(len(x.part[i])) != want {
			return corrupt("section %d has %d bytes, want %d", i+1, len(x.part[i]), want)
		}
	}
	if (x.groups == 0) != (f.Samples == 0) || int64(x.groups) > f.Samples || len(x.part[schemaSection]) > MaxSchema {
		return corrupt("%d groups of %d samples, a schema of %d bytes", x.groups, f.Samples, len(x.part[schemaSection]))
	}
	return nil
}

// Facts is what the header says.
func (x *Index) Facts() Facts { return x.facts }

// Len is the number of entries; entry 0 is the root folder.
func (x *Index) Len() int               { return x.facts.Entries }
func (x *Index) Packs() int             { return x.facts.Packs }
func (x *Index) Samples() int64         { return x.facts.Samples }
func (x *Index) Digest() catalog.Digest { return x.facts.Digest }
func (x *Index) Files() int64           { return x.facts.Files }
func (x *Index) Bytes() int64           { return x.facts.Bytes }

// Schema is a small JSON document about the samples, or "".
func (x *Index) Schema() string { return string(x.part[schemaSection]) }

// raw gives the fixed bytes of entry i.
func (x *Index) raw(i int) []byte { return x.part[entriesSection][i*entrySize:][:entrySize] }

func kindOf(b []byte) Kind  { return Kind(b[7]) }
func parentOf(b []byte) int { return int(le.Uint32(b[16:])) }

// name gives the name of the entry b, checked.
func (x *Index) name(i int, b []byte) ([]byte, error) {
	at, n, heap := get48(b), int64(b[6]), x.part[namesSection]
	if at > int64(len(heap))-n {
		return nil, corrupt("the name of entry %d lies outside", i)
	}
	name := heap[at : at+n : at+n]
	if i == 0 {
		if n != 0 {
			return nil, corrupt("the root has a name")
		}
		return name, nil
	}
	if why := badName(name); why != "" {
		return nil, corrupt("entry %d: %s", i, why)
	}
	return name, nil
}

// Entry gives entry i, checked.
func (x *Index) Entry(i int) (Entry, error) {
	if i < 0 || i >= x.facts.Entries {
		return Entry{}, fmt.Errorf("index entry %d of %d: %w", i, x.facts.Entries, catalog.ErrInvalid)
	}
	b := x.raw(i)
	e := Entry{Parent: parentOf(b), Kind: kindOf(b), Mode: uint32(le.Uint16(b[44:]))}
	var err error
	if e.Name, err = x.name(i, b); err != nil {
		return Entry{}, err
	}
	var ok bool
	if e.Mtime, ok = unpackTime(le.Uint64(b[8:])); !ok || e.Mode > 0o7777 || le.Uint16(b[46:]) != 0 {
		return Entry{}, corrupt("entry %d: its time or mode", i)
	}
	switch {
	case i == 0 && (e.Parent != 0 || e.Kind != Folder):
		return Entry{}, corrupt("the root is no folder")
	case i > 0 && (e.Parent >= i || kindOf(x.raw(e.Parent)) != Folder):
		return Entry{}, corrupt("entry %d: its parent %d is no folder before it", i, e.Parent)
	}
	switch e.Kind {
	case Folder:
		return e, x.folder(i, b, &e)
	case File:
		return e, x.file(i, b, &e)
	case Link:
		return e, x.link(i, b, &e)
	}
	return Entry{}, corrupt("entry %d is of %v", i, e.Kind)
}

func (x *Index) folder(i int, b []byte, e *Entry) error {
	first, count, folders := int64(le.Uint32(b[20:])), int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	if first <= int64(i) || first > int64(x.facts.Entries)-count || folders > count {
		return corrupt("folder %d has %d children from %d of %d entries, %d of them folders", i, count, first, x.facts.Entries, folders)
	}
	if le.Uint64(b[24:]) != 0 || le.Uint32(b[40:]) != 0 {
		return corrupt("folder %d has something in what is to be zero", i)
	}
	e.First, e.Count, e.Folders = int(first), int(count), int(folders)
	return nil
}

func (x *Index) file(i int, b []byte, e *Entry) error {
	pack, size, off := le.Uint32(b[20:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	e.CRC, e.Hash = le.Uint32(b[40:]), catalog.Digest(x.part[hashesSection][i*hashSize:][:hashSize])
	if size == 0 {
		if pack != noPack || off != 0 || e.CRC != 0 {
			return corrupt("file %d is empty and lies in pack %d", i, pack)
		}
		e.Pack = NoPack
		return nil
	}
	if int64(pack) >= int64(x.facts.Packs) {
		return corrupt("file %d lies in pack %d of %d", i, pack, x.facts.Packs)
	}
	if whole := le.Uint64(x.part[packsSection][int(pack)*packSize+16:]); size > MaxSize || off > MaxSize || whole < size || off > whole-size {
		return corrupt("file %d: %d bytes at %d of a pack of %d", i, size, off, whole)
	}
	e.Size, e.Pack, e.Offset = int64(size), int(pack), int64(off)
	return nil
}

func (x *Index) link(i int, b []byte, e *Entry) error {
	n, at, heap := le.Uint64(b[24:]), get48(b)+int64(b[6]), x.part[namesSection]
	if n < 1 || n > MaxTarget || at > int64(len(heap))-int64(n) {
		return corrupt("link %d: its target of %d bytes lies outside", i, n)
	}
	if le.Uint32(b[20:]) != 0 || le.Uint64(b[32:]) != 0 || le.Uint32(b[40:]) != 0 {
		return corrupt("link %d has something in what is to be zero", i)
	}
	e.Size, e.Target = int64(n), heap[at:at+int64(n):at+int64(n)]
	if bytes.IndexByte(e.Target, 0) >= 0 {
		return corrupt("link %d: its target has a NUL", i)
	}
	return nil
}

// Lookup finds the child called name of the folder dir.
func (x *Index) Lookup(dir int, name []byte) (i int, ok bool, err error) {
	d, err := x.Entry(dir)
	if err != nil {
		return 0, false, err
	}
	if d.Kind != Folder {
		return 0, false, fmt.Errorf("look up in entry %d: %w: it is a %v", dir, catalog.ErrInvalid, d.Kind)
	}
	k, ok := sort.Find(d.Count, func(k int) int {
		child := d.First + k
		got, e := x.name(child, x.raw(child))
		if e == nil && parentOf(x.raw(child)) != dir {
			e = corrupt("entry %d is no child of folder %d", child, dir)
		}
		if e != nil {
			err = e
		}
		return bytes.Compare(name, got)
	})
	if err != nil || !ok {
		return 0, false, err
	}
	return d.First + k, true, nil
}

// Find gives the entry at a path, names joined by "/" from below the root; ""
// is the root. Links are not followed.
func (x *Index) Find(path string) (int, error) {
	at := 0
	for name := range strings.SplitSeq(path, "/") {
		if path == "" {
			break
		}
		i, ok, err := x.Lookup(at, []byte(name))
		if err != nil && !isInvalid(err) {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("find %.200q: %w", path, fs.ErrNotExist)
		}
		at = i
	}
	return at, nil
}

// Path gives the path of entry i; it is empty for the root.
func (x *Index) Path(i int) ([]byte, error) {
	var path []byte // backwards
	for i != 0 {
		e, err := x.Entry(i)
		if err != nil {
			return nil, err
		}
		if len(path) > 0 {
			path = append(path, '/')
		}
		if len(path)+len(e.Name) > MaxPath {
			return nil, corrupt("the path of entry %d is longer than %d bytes", i, MaxPath)
		}
		for k := range e.Name {
			path = append(path, e.Name[len(e.Name)-1-k])
		}
		i = e.Parent
	}
	slices.Reverse(path)
	return path, nil
}

// FindHash gives a file, not empty, whose bytes have the hash.
func (x *Index) FindHash(hash catalog.Digest) (i int, ok bool, err error) {
	list := x.part[byHashSection]
	at := func(k int) int { return int(le.Uint32(list[4*k:])) }
	k, ok := sort.Find(len(list)/4, func(k int) int {
		i := at(k)
		if i >= x.facts.Entries {
			err = corrupt("file %d of %d entries, by hash", i, x.facts.Entries)
			return -1
		}
		return bytes.Compare(hash[:], x.part[hashesSection][i*hashSize:][:hashSize])
	})
	if err != nil || !ok {
		return 0, false, err
	}
	e, err := x.Entry(at(k))
	if err == nil && (e.Kind != File || e.Hash != hash) {
		err = corrupt("entry %d, by hash, is a %v", at(k), e.Kind)
	}
	return at(k), err == nil && e.Size > 0, err
}

// Pack gives pack i, checked.
func (x *Index) Pack(i int) (Pack, error) {
	if i < 0 || i >= x.facts.Packs {
		return Pack{}, fmt.Errorf("index pack %d of %d: %w", i, x.facts.Packs, catalog.ErrInvalid)
	}
	b := x.part[packsSection][i*packSize:][:packSize]
	step, attempt, kind, size := le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint64(b[16:])
	first, samples, at, n := le.Uint64(b[56:]), le.Uint64(b[64:]), int64(le.Uint32(b[72:])), int64(le.Uint32(b[76:]))
	heap := x.part[runsSection]
	if kind != 1 && kind != 2 || size < 1 || size > MaxSize || n > catalog.MaxRunLen || at > int64(len(heap))-n {
		return Pack{}, corrupt("pack %d: kind %d, %d bytes", i, kind, size)
	}
	if all := uint64(x.facts.Samples); first > all || samples > all-first {
		return Pack{}, corrupt("pack %d: samples %d from %d of %d", i, samples, first, all)
	}
	p := Pack{
		Set:  catalog.SetID{Run: catalog.Run(heap[at : at+n]), Step: int64(step), Attempt: int(attempt)},
		Size: int64(size), Root: catalog.Digest(b[24:56]), Raw: kind == 2,
		FirstSample: int64(first), Samples: int64(samples),
	}
	if err := p.Set.Check(); err != nil {
		return Pack{}, corrupt("pack %d: %v", i, err)
	}
	if p.Root.IsZero() {
		return Pack{}, corrupt("pack %d has no root: its bytes could not be checked", i)
	}
	return p, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
