package catalog

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A raw shard is a shard of any bytes: it has no header and no tensors, the
// name of the file that it was, and a few strings about it.

// Limits of what is said of a raw shard.
const (
	MaxFileLen  = 255      // bytes of its file's name
	MaxMeta     = 64       // strings about it
	MaxMetaKey  = 128      // bytes of one's name
	MaxMetaSize = 64 << 10 // bytes of all of them, names included
)

// CheckFile reports ErrInvalid unless file is the name of a file in some
// folder: never a path, and nothing that a terminal would not print.
func CheckFile(file string) error {
	bad := func(why string) error { return fmt.Errorf("file name %.80q: %w: %s", file, ErrInvalid, why) }
	switch {
	case file == "":
		return bad("it is empty")
	case len(file) > MaxFileLen:
		return bad(fmt.Sprintf("it is longer than %d bytes", MaxFileLen))
	case file == "." || file == "..":
		return bad("it is a folder")
	case strings.ContainsRune(file, '/'):
		return bad("it is a path; give the name alone")
	case !utf8.ValidString(file):
		return bad("it is not UTF-8")
	case strings.ContainsFunc(file, unicode.IsControl):
		return bad("it has a control character")
	}
	return nil
}

// CheckMeta reports ErrInvalid unless the strings about a raw shard are within
// their limits.
func CheckMeta(meta map[string]string) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("meta: %w: %d strings, at most %d", ErrInvalid, len(meta), MaxMeta)
	}
	size := 0
	for k, v := range meta {
		size += len(k) + len(v)
		if k == "" || len(k) > MaxMetaKey || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("meta %.80q: %w: want a name of 1 to %d bytes, and UTF-8", k, ErrInvalid, MaxMetaKey)
		}
	}
	if size > MaxMetaSize {
		return fmt.Errorf("meta: %w: %d bytes, at most %d", ErrInvalid, size, MaxMetaSize)
	}
	return nil
}

// Raw says whether the shard's bytes are a file of any kind, not safetensors.
func (s *Shard) Raw() bool { return s.File != "" }

// BlobName is the shard's name in every tier.
func (s *Shard) BlobName(id SetID) string { return id.BlobName(s.Rank, s.Raw()) }

// BlobName is the shard's name in every tier.
func (s *PartShard) BlobName(id SetID) string { return id.BlobName(s.Rank, s.Raw) }

// Raw says whether the shard's bytes are a file of any kind, not safetensors.
func (i *ShardInfo) Raw() bool { return i.File != "" }

// BlobName is the shard's name in every tier.
func (i *ShardInfo) BlobName() string { return i.Set.BlobName(i.Rank, i.Raw()) }

// Check reports ErrInvalid unless the statement is within its limits.
func (i *ShardInfo) Check() error {
	if err := i.Set.Check(); err != nil {
		return err
	}
	if i.World < 1 || i.World > MaxWorld || i.Rank < 0 || i.Rank >= i.World {
		return fmt.Errorf("rank %d of %d: %w", i.Rank, i.World, ErrInvalid)
	}
	if !i.Raw() {
		if len(i.Meta) > 0 {
			return fmt.Errorf("meta of a shard with a header: %w: the header has its own", ErrInvalid)
		}
		return nil
	}
	if err := CheckFile(i.File); err != nil {
		return err
	}
	return CheckMeta(i.Meta)
}

// checkRaw holds a manifest's entry of a raw shard to its rules.
func (s *Shard) checkRaw() error {
	if s.Header != 0 || len(s.Tensors) > 0 || s.Size == 0 {
		return errors.New("a raw shard has bytes, and neither header nor tensors")
	}
	if err := CheckFile(s.File); err != nil {
		return err
	}
	return CheckMeta(s.Meta)
}
