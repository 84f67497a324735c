// Package index builds and reads the index of a dataset's version, described
// in datasets/FORMAT.md: which files it has, where their bytes lie in packs,
// and which samples they make up.
//
// What it promises (contract number in brackets):
//
//  1. An Index is used in place, from a read-only mapping: Open reads 4 KiB of
//     it, and no method but Check allocates in proportion to the number of
//     entries [9].
//  2. The same content added in any order gives the same bytes and the same
//     digest, as long as the packs are the same [8].
//  3. Hostile bytes are data: each part is checked when it is used. Whatever
//     the input, a method returns values that obey FORMAT.md or an error that
//     wraps catalog.ErrCorrupt; it never panics, loops, or allocates what a
//     length claims [9, 12].
//  4. What WriteTo wrote passes Check, which holds every byte against
//     FORMAT.md [7].
//  5. A Builder holds at most 200 bytes an entry (names of 40 bytes) and 32 a
//     field of a sample [9].
//
// Whether the bytes are the ones that were written is not this package's
// question: the index is a blob with a seal, and its reader gets checked bytes.
package index

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// The limits of the format.
const (
	MaxEntries = 1 << 27
	MaxPacks   = 1 << 22
	MaxSamples = 1 << 40
	MaxFields  = 1024 // of one sample
	MaxName    = 255  // bytes of a name
	MaxPath    = 4096 // bytes of a path
	MaxTarget  = 4095 // bytes of a link's target
	MaxSchema  = 64 << 10
	MaxSize    = catalog.MaxShardSize // bytes of the index, of a pack, and of a file
)

// Kind is what an entry is.
type Kind uint8

const (
	Folder Kind = 1
	File   Kind = 2
	Link   Kind = 3 // symbolic
)

func (k Kind) String() string {
	switch k {
	case Folder:
		return "folder"
	case File:
		return "file"
	case Link:
		return "link"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// NoPack is the Pack of a file of 0 bytes.
const NoPack = -1

// Entry is a folder, a file or a symbolic link. Its slices lie in the index's
// own bytes: they are for reading, while those are there.
type Entry struct {
	Name   []byte // any bytes but '/' and NUL; empty for the root
	Parent int
	Kind   Kind
	Mode   uint32 // permission bits, 12 of them
	Mtime  time.Time

	// Of a file. Size is also the length of a link's target.
	Size   int64
	Pack   int   // NoPack if Size is 0
	Offset int64 // in the pack
	CRC    uint32
	Hash   catalog.Digest

	// Of a folder: its children are the entries First to First+Count-1, sorted
	// by name; Folders of them are folders.
	First, Count, Folders int

	Target []byte // of a link
}

// FileMode is the mode with the type's bits.
func (e *Entry) FileMode() fs.FileMode {
	m := fs.FileMode(e.Mode & 0o777)
	for bit, is := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			m |= is
		}
	}
	switch e.Kind {
	case Folder:
		m |= fs.ModeDir
	case Link:
		m |= fs.ModeSymlink
	}
	return m
}

// Pack is one of the packs that the files' bytes are in.
type Pack struct {
	Set  catalog.SetID
	Size int64
	Root catalog.Digest // of its seal
	Raw  bool           // it is one file's bytes and nothing else

	FirstSample, Samples int64 // the samples whose first field is in it
}

// Field is a part of a sample: a range of a file.
type Field struct {
	File       int   // its entry
	Offset     int64 // in the file
	Size       int64
	Pack       int   // NoPack if the file is empty
	PackOffset int64 // of the range, in the pack
}

// Facts is what the header says of the version.
type Facts struct {
	Entries int
	Files   int64
	Bytes   int64 // sum of the files' sizes
	Samples int64
	Packs   int
	Digest  catalog.Digest
	Size    int64 // of the index
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("index: %w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}
