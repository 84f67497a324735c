package tree

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/fuse"
)

// layout is what a set's folder has.
type layout struct {
	manifest int64 // bytes
	names    []string
	ranks    map[string]int
	shards   []catalog.Shard // without tensors
}

// manifestFile is what a set's manifest is called in its folder.
const manifestFile = ".manifest.json"

// layoutOf names the shards of a manifest of size bytes.
func layoutOf(m *catalog.Manifest, size int64) *layout {
	l := &layout{manifest: size, ranks: make(map[string]int, len(m.Shards)), shards: make([]catalog.Shard, len(m.Shards))}
	for rank, s := range m.Shards {
		s.Tensors, s.Meta = nil, nil
		l.shards[rank] = s
		name := nameOf(s)
		if _, taken := l.ranks[name]; taken || name == manifestFile {
			name = fmt.Sprintf("rank-%05d.%s", rank, name)
		}
		for _, taken := l.ranks[name]; taken; _, taken = l.ranks[name] {
			name = fmt.Sprintf("rank-%05d.%s", rank, name)
		}
		l.names = append(l.names, name)
		l.ranks[name] = rank
	}
	return l
}

// nameOf is what a shard's file is called: as the file that it was, where that
// is a name. A manifest is checked when it is parsed; here nothing may depend on it.
func nameOf(s catalog.Shard) string {
	if s.Raw() && catalog.CheckFile(s.File) == nil {
		return s.File
	}
	return fmt.Sprintf("rank-%05d.safetensors", s.Rank)
}

// maxLayouts bounds the shards whose names and sizes are remembered: about
// 150 bytes each.
const maxLayouts = 1 << 18

// layouts remembers the sets that were looked at last.
type layouts struct {
	mu struct {
		sync.Mutex
		of     map[catalog.SetID]*list.Element
		recent *list.List // of known; the front was used last
		shards int
	}
}

type known struct {
	id catalog.SetID
	l  *layout
}

func (c *layouts) init() {
	c.mu.of, c.mu.recent = make(map[catalog.SetID]*list.Element), list.New()
}

func (c *layouts) get(id catalog.SetID) *layout {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.of[id]
	if e == nil {
		return nil
	}
	c.mu.recent.MoveToFront(e)
	return e.Value.(known).l
}

func (c *layouts) put(id catalog.SetID, l *layout) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.of[id] != nil {
		return
	}
	c.mu.of[id] = c.mu.recent.PushFront(known{id, l})
	c.mu.shards += len(l.shards)
	for c.mu.shards > maxLayouts && c.mu.recent.Len() > 1 {
		old := c.mu.recent.Remove(c.mu.recent.Back()).(known)
		delete(c.mu.of, old.id)
		c.mu.shards -= len(old.l.shards)
	}
}

// layout is the visible set of a volume and what it has.
func (t *Tree) layout(ctx context.Context, k volume) (catalog.SetRecord, *layout, error) {
	rec, err := t.setOf(k)
	if err != nil {
		return rec, nil, err
	}
	if l := t.sets.get(rec.SetID); l != nil {
		return rec, l, nil
	}
	m, b, err := t.store.Manifest(ctx, rec)
	if err != nil {
		return rec, nil, err
	}
	l := layoutOf(m, int64(len(b)))
	t.sets.put(rec.SetID, l)
	return rec, l, nil
}

func (t *Tree) setNodeAttr(ctx context.Context, k volume, pos uint32) (fuse.Attr, error) {
	if pos == selfPos { // needs no manifest: it may be far away
		rec, err := t.setOf(k)
		return t.folderAttr(0, rec.Committed, true), err
	}
	rec, l, err := t.layout(ctx, k)
	if err != nil {
		return fuse.Attr{}, err
	}
	return t.inSetAttr(l, pos, rec.Committed)
}

func (t *Tree) inSetAttr(l *layout, pos uint32, when time.Time) (fuse.Attr, error) {
	switch {
	case pos == manifestPos:
		return t.fileAttr(l.manifest, when), nil
	case int64(pos)-shardPos < int64(len(l.shards)):
		return t.fileAttr(l.shards[pos-shardPos].Size, when), nil
	}
	return fuse.Attr{}, errStale
}

func (t *Tree) lookupSet(ctx context.Context, k volume, name []byte) (fuse.Entry, error) {
	rec, l, err := t.layout(ctx, k)
	if err != nil {
		return fuse.Entry{}, err
	}
	pos := uint32(manifestPos)
	if string(name) != manifestFile {
		rank, ok := l.ranks[string(name)]
		if !ok {
			return fuse.Entry{}, fs.ErrNotExist
		}
		pos = uint32(shardPos + rank)
	}
	a, err := t.inSetAttr(l, pos, rec.Committed)
	return fuse.Entry{Name: name, ID: idOf(t.vols.number(k), pos), Attr: a}, err
}

func (t *Tree) readSet(ctx context.Context, k volume, from uint64, add func(fuse.Entry, uint64) bool) error {
	rec, l, err := t.layout(ctx, k)
	if err != nil {
		return err
	}
	number := t.vols.number(k)
	for pos := max(manifestPos, from+1); pos < shardPos+uint64(len(l.shards)); pos++ {
		name := manifestFile
		if pos >= shardPos {
			name = l.names[pos-shardPos]
		}
		a, err := t.inSetAttr(l, uint32(pos), rec.Committed)
		if err != nil {
			return err
		}
		if !add(fuse.Entry{Name: []byte(name), ID: idOf(number, uint32(pos)), Attr: a}, pos) {
			return nil
		}
	}
	return nil
}

func (t *Tree) openInSet(ctx context.Context, k volume, pos uint32) (fuse.File, error) {
	rec, l, err := t.layout(ctx, k)
	if err != nil {
		return nil, err
	}
	if pos == manifestPos {
		_, b, err := t.store.Manifest(ctx, rec)
		if err != nil {
			return nil, err
		}
		return memory{bytes.NewReader(b)}, nil
	}
	if int64(pos)-shardPos >= int64(len(l.shards)) {
		return nil, errStale
	}
	release, err := t.store.Hold(ctx, rec.SetID)
	if err != nil {
		return nil, err
	}
	f, err := t.store.OpenShard(ctx, rec, l.shards[pos-shardPos])
	if err != nil {
		release()
		return nil, err
	}
	return held{f, release}, nil
}
