package index

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"

	"github.com/ckptd/ckptd/catalog"
)

// Check holds every byte of the index against FORMAT.md, checksums and digest
// included: it builds the index anew from what it says, which takes a
// Builder's memory, and compares.
func (x *Index) Check(ctx context.Context) error {
	b := NewBuilder()
	for i := range x.facts.Packs {
		p, err := x.Pack(i)
		if err != nil {
			return err
		}
		if n, err := b.AddPack(p); err != nil || n != i {
			return corrupt("pack %d is %v, as pack %d is (%v)", i, p.Set, n, err)
		}
	}
	ids := make([]FileID, x.facts.Entries)
	for i := range x.facts.Entries {
		if err := ctx.Err(); err != nil && i%4096 == 0 {
			return err
		}
		var err error
		if ids[i], err = x.addTo(b, i); err != nil {
			return err
		}
	}
	for k := range x.groups {
		if err := x.addGroup(ctx, b, ids, k); err != nil {
			return err
		}
	}
	if err := b.SetSchema(x.Schema()); err != nil {
		return corrupt("%v", err)
	}
	if facts, err := b.Finish(); err != nil {
		return corrupt("%v", err)
	} else if facts != x.facts {
		return corrupt("it holds %v, and says %v", facts, x.facts)
	}
	_, err := b.WriteTo(&same{want: x.whole})
	return err
}

// CheckPacks holds the table of packs against its checksums: for who concludes
// something from a pack that is not in it. It costs 80 bytes a pack.
func (x *Index) CheckPacks() error {
	for _, i := range []int{packsSection, runsSection} {
		if crc32.Checksum(x.part[i], catalog.Castagnoli) != x.sums[i] {
			return corrupt("the checksum of section %d differs", i+1)
		}
	}
	return nil
}

// addTo adds entry i to a builder.
func (x *Index) addTo(b *Builder, i int) (FileID, error) {
	e, err := x.Entry(i)
	if err != nil {
		return 0, err
	}
	path, err := x.Path(i)
	if err != nil {
		return 0, err
	}
	id, err := b.Add(Add{
		Path: string(path), Kind: e.Kind, Mode: e.Mode, Mtime: e.Mtime, Size: e.Size,
		Pack: e.Pack, Offset: e.Offset, CRC: e.CRC, Hash: e.Hash, Target: string(e.Target),
	})
	if err != nil {
		return 0, corrupt("entry %d: %v", i, err)
	}
	return id, nil
}

// addGroup adds the samples of group k to a builder.
func (x *Index) addGroup(ctx context.Context, b *Builder, ids []FileID, k int) error {
	g, err := x.group(k)
	if err != nil {
		return err
	}
	fields, err := x.Sample(g.first, nil)
	if err != nil {
		return err
	}
	if g.kind == groupStride {
		rows := x.part[fieldsSection][g.at:] // Sample was within
		rules := make([]Rule, len(fields))
		for i, f := range fields {
			rules[i] = Rule{ids[f.File], f.Offset, int64(le.Uint64(rows[i*strideSize+16:])), f.Size}
		}
		if err := b.Stride(g.end-g.first, rules...); err != nil {
			return corrupt("group %d: %v", k, err)
		}
		return nil
	}
	var ranges []Range
	for i := g.first; i < g.end; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if fields, err = x.Sample(i, fields[:0]); err != nil {
			return err
		}
		ranges = ranges[:0]
		for _, f := range fields {
			ranges = append(ranges, Range{ids[f.File], f.Offset, f.Size})
		}
		if err := b.Sample(ranges...); err != nil {
			return corrupt("sample %d: %v", i, err)
		}
	}
	return nil
}

// same is a writer that wants certain bytes.
type same struct {
	want []byte
	at   int
}

func (s *same) Write(p []byte) (int, error) {
	if s.at+len(p) > len(s.want) || !bytes.Equal(p, s.want[s.at:s.at+len(p)]) {
		return 0, fmt.Errorf("compare from byte %d: %w: not the encoding of what it says", s.at, catalog.ErrCorrupt)
	}
	s.at += len(p)
	return len(p), nil
}
