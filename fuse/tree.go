package fuse

import (
	"context"
	"os"
	"time"
)

// ID names a node. It is the tree's own number, and also the kernel's node id
// and the inode number that programs see: a tree whose numbers are positions
// of something stored needs no table of what was looked up, and a daemon that
// was restarted knows the same files. An ID means the same thing as long as
// the kernel may know it. 0 and the largest number are nobody's.
type ID uint64

// Root is the folder that is mounted.
const Root ID = 1

// Attr is what stat(2) tells of a node.
type Attr struct {
	Mode     uint32 // type and permission bits, as in st_mode: syscall.S_IFREG | 0o444
	Nlink    uint32 // 0 is told as 1
	UID, GID uint32
	Size     int64 // bytes
	Mtime    time.Time

	// Fixed: this node never changes while it is there (and in a folder: no
	// name appears or goes). The kernel keeps it, its names and its absent
	// names, until it is told otherwise by Mount.Changed or Mount.Invalidate.
	Fixed bool
}

// Entry is a name in a folder.
type Entry struct {
	Name []byte // as stored: any bytes but 0 and '/', at most 255
	ID   ID
	Attr Attr

	// Brief: the name may come to mean another node, although this one is
	// Fixed. The kernel asks again after a short while; of a symbolic link
	// that is not Fixed, each time. Where a node's link leads may never change:
	// another target is another node.
	Brief bool
}

// Space is what statfs(2) tells.
type Space struct {
	Bytes, Free  uint64
	Files, Spare uint64 // nodes there are, and may still be added
}

// Tree is what is mounted. Its methods are called from many goroutines at
// once; a slow call holds up nobody else. ctx ends when the caller is
// interrupted or the mount goes away. Names and buffers belong to the caller
// and are not kept. Errors are of catalog's classes, fs.ErrNotExist and so on,
// or a syscall.Errno: errno.go has the table.
type Tree interface {
	// Lookup finds a name in a folder, or fs.ErrNotExist.
	Lookup(ctx context.Context, parent ID, name []byte) (Entry, error)

	Attr(ctx context.Context, id ID) (Attr, error)

	// ReadDir tells the entries of a folder to add, beginning at from: 0, or
	// a next that was told before, perhaps long ago. next is where the listing
	// goes on after that entry: not 0, below 1<<62, and good for as long as
	// the folder is there, also when names come and go. add answers false when
	// it has had enough, and has not taken that entry. "." and ".." are not told.
	ReadDir(ctx context.Context, dir ID, from uint64, add func(e Entry, next uint64) (more bool)) error

	// ReadLink returns where a symbolic link leads.
	ReadLink(ctx context.Context, id ID) ([]byte, error)

	// Open opens a file; flags are open(2)'s. A writer (O_WRONLY, O_RDWR) must
	// get a WriteFile, or an error: syscall.EROFS, EACCES.
	Open(ctx context.Context, id ID, flags uint32) (File, error)

	Space() Space
}

// File is an open file. ReadAt is called from many goroutines at once.
type File interface {
	// Backing returns the file whose bytes, all of them and no others, are
	// this one's, so that the kernel may read it without asking; nil: there is
	// none (yet). It is asked once, at the beginning, and the descriptor is
	// used until Close; the file behind it may be removed in the meantime, but
	// not changed.
	Backing() *os.File

	// Direct says, of a file without a backing one, that the kernel should
	// keep no pages of it: it is on its way to have a backing file, and would
	// then be in memory twice. It is asked once, at the beginning.
	Direct() bool

	// ReadAt reads as io.ReaderAt does: less than len(p) only with an error,
	// io.EOF at the end.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)

	Close() error
}

// Forgetter is a tree that wants to know that the kernel has let go of a node:
// lookups many of the lookups (Lookup, ReadDir, Create, Mkdir) that it was
// told. It is not told when the mount goes away.
type Forgetter interface {
	Forget(id ID, lookups uint64)
}

// WriteTree is a tree with a part that can be written. Where it cannot, it
// answers syscall.EROFS. After a change that came through the mount, the
// kernel knows; other changes are told by Mount.Changed and Mount.Invalidate.
type WriteTree interface {
	Tree

	// Create makes a new file and opens it, or fs.ErrExist.
	Create(ctx context.Context, parent ID, name []byte, mode uint32, owner Owner) (Entry, WriteFile, error)

	Mkdir(ctx context.Context, parent ID, name []byte, mode uint32, owner Owner) (Entry, error)
	Unlink(ctx context.Context, parent ID, name []byte) error
	Rmdir(ctx context.Context, parent ID, name []byte) error

	// Rename moves a file or a folder. replace: a file, or an empty folder,
	// that has the new name may be replaced; otherwise fs.ErrExist.
	Rename(ctx context.Context, parent ID, name []byte, toParent ID, toName []byte, replace bool) error

	// SetAttr changes mode or time of a node. Sizes are changed by WriteFile.
	SetAttr(ctx context.Context, id ID, change Change) (Attr, error)
}

// Owner is who makes a node.
type Owner struct{ UID, GID uint32 }

// Change is what SetAttr shall change; nil: leave it.
type Change struct {
	Mode     *uint32 // permission bits
	Mtime    *time.Time
	UID, GID *uint32
}

// WriteFile is a file that is being written. When it has a backing file
// (opened for reading and writing), the kernel writes it without asking, and
// Attr must take size and time from that file.
type WriteFile interface {
	File
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Truncate(ctx context.Context, size int64) error
	Allocate(ctx context.Context, mode uint32, off, size int64) error // as fallocate(2)
	Sync(ctx context.Context) error                                   // durable when it returns
	Flush(ctx context.Context) error                                  // at every close(2) of a descriptor: its error is close's
}
