package index

import (
	"fmt"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Builder collects a version's entries, packs and samples, in any order, and
// writes its index. It is for one goroutine.
type Builder struct {
	entries []record
	heap    []byte // names, each with a link's target behind it
	folders map[string]uint32
	last    struct { // the folder of the entry before
		path string
		id   uint32
	}
	packs  []Pack
	packOf map[catalog.SetID]int

	starts []uint64 // of each sample, in ranges; explicit ones only
	ranges []span
	rules  []rule
	schema string

	plan *plan // set by Finish
}

// record is an entry before it has a number: 80 bytes.
type record struct {
	hash         catalog.Digest
	time         uint64
	size         int64
	offset       int64 // folder: children, and folders among them << 32
	name         uint64
	parent, pack uint32 // folder: the first child
	crc          uint32
	mode         uint16
}

func (r *record) kind() Kind   { return Kind(r.name >> 56) }
func (r *record) nameLen() int { return int(r.name >> 48 & 0xff) }
func (r *record) nameAt() int  { return int(r.name & (1<<48 - 1)) }

// span is a range of a file, in 16 bytes.
type span struct {
	file     uint32
	off      uint32
	offHigh  uint16
	sizeHigh uint16
	size     uint32
}

func newSpan(file FileID, off, size int64) span {
	return span{uint32(file), uint32(off), uint16(off >> 32), uint16(size >> 32), uint32(size)}
}

func (s span) offset() int64 { return int64(s.offHigh)<<32 | int64(s.off) }
func (s span) bytes() int64  { return int64(s.sizeHigh)<<32 | int64(s.size) }

// FileID names an entry that was added, in the builder it was added to.
type FileID int

// Add says what there is at a path.
type Add struct {
	Path   string // names joined by "/", below the root; "" is the root
	Kind   Kind
	Mode   uint32    // permission bits
	Mtime  time.Time // zero: 1970
	Size   int64     // of a file
	Pack   int       // of a file: as AddPack numbered it, before or after
	Offset int64
	CRC    uint32
	Hash   catalog.Digest // of a file, of no bytes too
	Target string         // of a link
}

// Range is a part of a file.
type Range struct {
	File         FileID
	Offset, Size int64
}

// Rule is a range that repeats: sample j has (Offset + j*Stride, Size).
type Rule struct {
	File                 FileID
	Offset, Stride, Size int64
}

type rule struct {
	fields []Rule
	count  int64
}

// NewBuilder gives a builder that has the root folder.
func NewBuilder() *Builder {
	b := &Builder{folders: map[string]uint32{"": 0}, packOf: map[catalog.SetID]int{}}
	b.entries = append(b.entries, record{name: uint64(Folder) << 56, mode: 0o755, time: packTime(time.Unix(0, 0))})
	return b
}

// Len is the number of entries added so far, folders made for them included.
func (b *Builder) Len() int { return len(b.entries) }

func refuse(format string, args ...any) error {
	return fmt.Errorf("index: %w: %s", catalog.ErrInvalid, fmt.Sprintf(format, args...))
}

// Add adds an entry. Folders above it are made (mode 0755) if they were not
// added; a folder may be added after what is in it. A file or a link whose path
// comes again replaces the one before, with the samples that had a part of it.
func (b *Builder) Add(a Add) (FileID, error) {
	if b.plan != nil {
		return 0, refuse("add %.200q: the index is finished", a.Path)
	}
	if why := badPath(a.Path); why != "" {
		return 0, refuse("path %.200q: %s", a.Path, why)
	}
	if a.Mode > 0o7777 {
		return 0, refuse("%.200q has mode %o", a.Path, a.Mode)
	}
	switch a.Kind {
	case Folder:
		id, err := b.folder(a.Path)
		if err != nil {
			return 0, err
		}
		r := &b.entries[id]
		r.mode, r.time = uint16(a.Mode), mtimeOf(a.Mtime)
		return FileID(id), nil
	case File:
		if why := badFile(&a); why != "" {
			return 0, refuse("file %.200q: %s", a.Path, why)
		}
	case Link:
		if a.Target == "" || len(a.Target) > MaxTarget || strings.IndexByte(a.Target, 0) >= 0 {
			return 0, refuse("link %.200q: its target has %d bytes, or a NUL: want 1 to %d", a.Path, len(a.Target), MaxTarget)
		}
	default:
		return 0, refuse("%.200q is of %v", a.Path, a.Kind)
	}
	if a.Path == "" {
		return 0, refuse("the root is a folder")
	}
	return b.leaf(&a)
}

func badFile(a *Add) string {
	switch {
	case a.Size < 0 || a.Size > MaxSize:
		return fmt.Sprintf("its size is %d", a.Size)
	case a.Size > 0 && (a.Pack < 0 || a.Pack >= MaxPacks || a.Offset < 0 || a.Offset > MaxSize):
		return fmt.Sprintf("it lies at %d in pack %d", a.Offset, a.Pack)
	case a.Hash.IsZero():
		return "it has no hash"
	}
	return ""
}

// badPath says what is wrong with a path, or "".
func badPath(path string) string {
	if len(path) > MaxPath {
		return fmt.Sprintf("longer than %d bytes", MaxPath)
	}
	if path == "" {
		return ""
	}
	for name := range strings.SplitSeq(path, "/") {
		if len(name) > MaxName {
			return "a name is longer than 255 bytes"
		}
		if why := badName([]byte(name)); why != "" {
			return why
		}
	}
	return ""
}

func mtimeOf(t time.Time) uint64 {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	return packTime(t)
}

// leaf adds a file or a link.
func (b *Builder) leaf(a *Add) (FileID, error) {
	dir, name := split(a.Path)
	parent, err := b.folder(dir)
	if err != nil {
		return 0, err
	}
	r := record{time: mtimeOf(a.Mtime), parent: parent, mode: uint16(a.Mode)}
	if a.Kind == File {
		r.size, r.hash, r.pack = a.Size, a.Hash, noPack
		if a.Size > 0 {
			r.pack, r.offset, r.crc = uint32(a.Pack), a.Offset, a.CRC
		}
	} else {
		r.size = int64(len(a.Target))
	}
	return b.append(r, a.Kind, name, a.Target)
}

func (b *Builder) append(r record, kind Kind, name, target string) (FileID, error) {
	if len(b.entries) >= MaxEntries {
		return 0, refuse("more than %d entries; divide the dataset", MaxEntries)
	}
	r.name = uint64(len(b.heap)) | uint64(len(name))<<48 | uint64(kind)<<56
	b.heap = append(append(b.heap, name...), target...)
	b.entries = append(b.entries, r)
	return FileID(len(b.entries) - 1), nil
}

// folder gives the folder at path, made if need be.
func (b *Builder) folder(path string) (uint32, error) {
	if path == b.last.path {
		return b.last.id, nil
	}
	id, ok := b.folders[path]
	if !ok {
		dir, name := split(path)
		parent, err := b.folder(dir) // not deeper than a path has names
		if err != nil {
			return 0, err
		}
		n, err := b.append(record{parent: parent, mode: 0o755, time: packTime(time.Unix(0, 0))}, Folder, name, "")
		if err != nil {
			return 0, err
		}
		id, path = uint32(n), strings.Clone(path)
		b.folders[path] = id
	}
	b.last.path, b.last.id = path, id
	return id, nil
}

func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// AddPack gives the pack its number, the next one, or the one it has. Its
// samples are counted by the builder.
func (b *Builder) AddPack(p Pack) (int, error) {
	if n, ok := b.packOf[p.Set]; ok {
		return n, nil
	}
	if err := p.Set.Check(); err != nil {
		return 0, err
	}
	if p.Size < 1 || p.Size > MaxSize || p.Root.IsZero() || b.plan != nil || len(b.packs) >= MaxPacks {
		return 0, refuse("pack %v of %d bytes, root %q, after %d others", p.Set, p.Size, p.Root, len(b.packs))
	}
	n := len(b.packs)
	b.packOf[p.Set] = n
	b.packs = append(b.packs, p)
	return n, nil
}

// SetSchema describes the samples: a small JSON document.
func (b *Builder) SetSchema(json string) error {
	if len(json) > MaxSchema {
		return refuse("a schema of %d bytes; want at most %d", len(json), MaxSchema)
	}
	b.schema = json
	return nil
}

// Whole makes one sample of the file.
func (b *Builder) Whole(id FileID) error {
	if id < 0 || int(id) >= len(b.entries) {
		return refuse("sample of entry %d of %d", id, len(b.entries))
	}
	return b.Sample(Range{File: id, Size: b.entries[id].size})
}

// Sample makes one sample of the ranges.
func (b *Builder) Sample(fields ...Range) error {
	if len(fields) < 1 || len(fields) > MaxFields || b.plan != nil {
		return refuse("a sample of %d fields; want 1 to %d", len(fields), MaxFields)
	}
	if len(b.ranges)+len(fields) > 1<<32-1 {
		return refuse("more than %d fields; divide the dataset", uint32(1<<32-1))
	}
	for _, f := range fields {
		if err := b.within(f.File, f.Offset, f.Size); err != nil {
			return err
		}
	}
	b.starts = append(b.starts, uint64(len(b.ranges)))
	for _, f := range fields {
		b.ranges = append(b.ranges, newSpan(f.File, f.Offset, f.Size))
	}
	return nil
}

// Stride makes count samples of ranges that repeat, in a few bytes.
func (b *Builder) Stride(count int64, fields ...Rule) error {
	if count < 0 || count > MaxSamples || len(fields) < 1 || len(fields) > MaxFields || b.plan != nil {
		return refuse("%d samples of %d fields", count, len(fields))
	}
	if count == 0 {
		return nil
	}
	one := make([]Range, len(fields))
	for i, f := range fields {
		one[i] = Range{f.File, f.Offset, f.Size}
		if count > 1 && (f.Stride < 1 || f.Stride > (MaxSize-min(f.Offset, MaxSize))/(count-1)) {
			return refuse("%d samples with a stride of %d bytes", count, f.Stride)
		}
		if err := b.within(f.File, f.Offset, f.Size); err != nil {
			return err
		}
		if err := b.within(f.File, f.Offset+(count-1)*f.Stride, f.Size); err != nil {
			return err
		}
	}
	if count == 1 {
		return b.Sample(one...)
	}
	b.rules = append(b.rules, rule{append([]Rule(nil), fields...), count})
	return nil
}

func (b *Builder) within(id FileID, off, size int64) error {
	if id < 0 || int(id) >= len(b.entries) || b.entries[id].kind() != File {
		return refuse("a field of a sample is in entry %d, which is no file", id)
	}
	if whole := b.entries[id].size; off < 0 || size < 0 || size > whole || off > whole-size {
		return refuse("a field of %d bytes at %d of a file of %d", size, off, whole)
	}
	return nil
}
