// Package vfs is the part of the OS file system that the tiers of ckptd depend
// on, so that tests can lose power under it.
//
// What an FS promises, and what it does not:
//
//  1. File.Sync makes the file's bytes and size durable, not its name.
//  2. SyncDir makes the names inside one directory durable: created, renamed
//     and removed ones. Until then each may or may not have changed after a
//     power failure, independently of the others.
//  3. MkdirAll is the exception: the directories it made are durable when it returns.
//  4. Rename replaces atomically: the new name holds the old or the new file, never none.
//  5. An open File keeps its bytes after its name is removed or replaced.
//
// Names are OS paths. A missing name is fs.ErrNotExist, a taken one
// fs.ErrExist, a full file system or quota catalog.ErrNoSpace.
package vfs

import (
	"io"
	"io/fs"
	"unsafe"
)

// Opt changes how a file is opened.
type Opt struct {
	// Direct asks for O_DIRECT. Where the file system has none, the file is
	// opened without it and File.Direct reports false.
	Direct bool
}

// FS is a file system.
type FS interface {
	Create(name string, opt Opt) (File, error)        // read-write, 0600; fs.ErrExist when name exists
	Open(name string, opt Opt) (File, error)          // read-only
	OpenWrite(name string, opt Opt) (File, error)     // read-write; must exist
	MkdirAll(name string) error                       // 0700, durable
	Rename(oldname, newname string) error             // of a file, within one file system
	Link(oldname, newname string) error               // a second name of a file, within one file system; fs.ErrExist when newname exists
	Remove(name string) error                         // a file or an empty directory
	ReadDir(name string) ([]fs.DirEntry, error)       // sorted by name
	Stat(name string) (fs.FileInfo, error)            //
	SyncDir(name string) error                        //
	Space(name string) (total, free int64, err error) // bytes of the file system that holds name; free: usable by this process
	Lock(name string) (io.Closer, error)              // exclusive, of the file name (made when missing); catalog.ErrConflict when held
}

// File is an open file. Its methods may be called concurrently.
//
// A Direct file takes only buffers, offsets and lengths that are multiples of
// Align; a read that meets the end of the file gives what there is and io.EOF.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error               // fdatasync
	Truncate(size int64) error //
	Allocate(size int64) error // makes room for size bytes and the file at least that long; new bytes read as zero
	Size() (int64, error)
	Direct() bool
	Fd() (fd uintptr, ok bool) // of a real file, for passing on; valid until Close
}

// Vector is a File that reads consecutive bytes into several buffers in one
// call. Of a direct file every length is a multiple of Align but perhaps the last.
type Vector interface {
	ReadvAt(bufs [][]byte, off int64) (n int, err error)
}

// Align is what O_DIRECT wants of addresses, offsets and lengths, in bytes.
const Align = 4096

// AlignedBuffer gives n zero bytes at an address that is a multiple of Align.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+Align)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Align - 1)); rest != 0 {
		skip = Align - rest
	}
	return b[skip : skip+n : skip+n]
}

// Aligned reports whether a Direct file takes p at offset off.
func Aligned(p []byte, off int64) bool {
	return off&(Align-1) == 0 && len(p)&(Align-1) == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))&(Align-1) == 0
}
