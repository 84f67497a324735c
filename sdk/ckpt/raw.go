package ckpt

import (
	"fmt"
	"io"
	"maps"

	"github.com/ckptd/ckptd/catalog"
)

// Raw makes the save a copy of size bytes of any kind: a raw shard, which has
// no tensors. file is the name that the bytes come back under: a name alone,
// never a path. Nothing else can be added but Meta and SealMeta. The data is
// read during Commit, by several goroutines at once.
func (s *Save) Raw(file string, size int64, data io.ReaderAt) error {
	return s.setRaw(file, size, source{at: data})
}

// RawStream is Raw of data that is read once, from its beginning to its end.
func (s *Save) RawStream(file string, size int64, data io.Reader) error {
	return s.setRaw(file, size, source{stream: data})
}

func (s *Save) setRaw(file string, size int64, data source) error {
	if s.over || s.file != nil || len(s.parts) > 0 {
		return fmt.Errorf("raw shard: %w: the save has something in it already", catalog.ErrInvalid)
	}
	if err := catalog.CheckFile(file); err != nil {
		return fmt.Errorf("raw shard: %w", err)
	}
	if size < 1 || size > catalog.MaxShardSize {
		return fmt.Errorf("raw shard %s: %w: it has %d bytes; want 1 to %d, an empty file has nothing to keep", file, catalog.ErrInvalid, size, int64(catalog.MaxShardSize))
	}
	s.raw, s.file = file, &wholeFile{size: size, source: data}
	return nil
}

// SealMeta adds a string about a raw shard that is known only while, or after,
// its data was read, as a hash of it. It may be called until the last byte was
// given to Commit, from any goroutine; a later value of a key replaces an earlier.
func (s *Save) SealMeta(key, value string) {
	s.late.Lock()
	defer s.late.Unlock()
	if s.late.meta == nil {
		s.late.meta = make(map[string]string)
	}
	s.late.meta[key] = value
}

// lateMeta is what SealMeta was told so far.
func (s *Save) lateMeta() map[string]string {
	s.late.Lock()
	defer s.late.Unlock()
	return maps.Clone(s.late.meta)
}
