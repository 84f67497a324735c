package fuse

import (
	"context"
	"io"
	"math"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// long is how long the kernel may keep what never changes: a year.
	long = 365 * 24 * time.Hour
	// short is how long it may keep the rest without asking again.
	short = time.Second
	// dots are the offsets of "." and ".." that come before the tree's own.
	dots = 2
	// lastOffset is the largest that a tree may tell: off_t must hold it.
	lastOffset = 1 << 62
)

// server translates between the kernel's requests and the Tree. The embedded
// file system answers ENOSYS to everything that is not here: the kernel then
// stops asking (extended attributes, access, lseek), which is what we want.
type server struct {
	fuse.RawFileSystem
	tree   Tree
	write  WriteTree // nil: nothing can be written
	forget Forgetter // nil: it does not care
	open   *table
	habits habits
}

func newServer(tree Tree, readOnly bool, limit int) *server {
	s := &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), tree: tree, open: newTable(limit)}
	if !readOnly {
		s.write, _ = tree.(WriteTree)
	}
	s.forget, _ = tree.(Forgetter)
	return s
}

// call is the context of one request: it ends when the kernel interrupts it,
// or the mount goes away, and costs nothing.
type call struct {
	context.Context
	cancel <-chan struct{}
}

func ctxOf(cancel <-chan struct{}) context.Context { return call{context.Background(), cancel} }

func (c call) Done() <-chan struct{} { return c.cancel }

func (c call) Err() error {
	select {
	case <-c.cancel:
		return context.Canceled
	default:
		return nil
	}
}

func status(err error) fuse.Status { return fuse.Status(errnoOf(err)) }

func (s *server) String() string { return "ckptd" }

// OnUnmount closes what the kernel had no time to close.
func (s *server) OnUnmount() {
	for _, h := range s.open.removeAll() {
		_ = h.file.Close() // nobody is left to be told
	}
}

func timeout(fixed bool) time.Duration {
	if fixed {
		return long
	}
	return short
}

func fillAttr(out *fuse.Attr, id ID, a Attr) {
	sec, nsec := uint64(a.Mtime.Unix()), uint32(a.Mtime.Nanosecond())
	*out = fuse.Attr{
		Ino: uint64(id), Size: uint64(a.Size), Blocks: (uint64(a.Size) + 511) / 512, Blksize: 4096,
		Atime: sec, Mtime: sec, Ctime: sec, Atimensec: nsec, Mtimensec: nsec, Ctimensec: nsec,
		Mode: a.Mode, Nlink: max(a.Nlink, 1), Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
	}
}

func fillEntry(out *fuse.EntryOut, e Entry) {
	out.NodeId = uint64(e.ID)
	if e.Attr.Fixed || e.Attr.Mode&syscall.S_IFMT != syscall.S_IFLNK { // who follows a link that changes wants to come where it leads now
		out.SetEntryTimeout(timeout(e.Attr.Fixed && !e.Brief))
	}
	out.SetAttrTimeout(timeout(e.Attr.Fixed))
	fillAttr(&out.Attr, e.ID, e.Attr)
}

func goodID(id ID) bool { return id != 0 && id != math.MaxUint64 }

func (s *server) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := ctxOf(cancel)
	e, err := s.tree.Lookup(ctx, ID(in.NodeId), []byte(name))
	if errno := errnoOf(err); errno == syscall.ENOENT {
		if s.fixed(ctx, ID(in.NodeId)) { // a name that can never appear is remembered as missing
			out.SetEntryTimeout(long)
			return fuse.OK
		}
		return fuse.ENOENT
	} else if errno != 0 {
		return fuse.Status(errno)
	}
	if !goodID(e.ID) {
		return fuse.EIO
	}
	if e.Attr.Mode&syscall.S_IFMT != syscall.S_IFDIR { // a folder is looked up to be listed
		s.habits.looked(in.Pid)
	}
	e.Brief = e.Brief || !s.fixed(ctx, ID(in.NodeId))
	fillEntry(out, e)
	return fuse.OK
}

// fixed says whether names in a folder never come or go. Otherwise a node that
// never changes may yet be removed, and its name is asked for again.
func (s *server) fixed(ctx context.Context, dir ID) bool {
	a, err := s.tree.Attr(ctx, dir)
	return err == nil && a.Fixed
}

func (s *server) Forget(id, lookups uint64) {
	if s.forget != nil {
		s.forget.Forget(ID(id), lookups)
	}
}

func (s *server) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a, err := s.tree.Attr(ctxOf(cancel), ID(in.NodeId))
	if err != nil {
		return status(err)
	}
	out.SetTimeout(timeout(a.Fixed))
	fillAttr(&out.Attr, ID(in.NodeId), a)
	return fuse.OK
}

func (s *server) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := s.tree.ReadLink(ctxOf(cancel), ID(in.NodeId))
	return target, status(err)
}

func (s *server) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const block = 4096
	sp := s.tree.Space()
	*out = fuse.StatfsOut{
		Bsize: block, Frsize: block, Blocks: (sp.Bytes + block - 1) / block, Bfree: sp.Free / block, Bavail: sp.Free / block,
		Files: sp.Files, Ffree: sp.Spare, NameLen: 255,
	}
	return fuse.OK
}

func (s *server) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	a, err := s.tree.Attr(ctxOf(cancel), ID(in.NodeId))
	if err != nil {
		return status(err)
	}
	attributes := s.habits.begins(in.Pid)
	if a.Fixed {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR
		if !attributes { // which a listing that the kernel kept does not bring
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		}
	}
	return fuse.OK
}

func (s *server) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(cancel, in, func(d fuse.DirEntry, _ *Entry) bool { return out.AddDirEntry(d) })
}

func (s *server) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	attributes := s.habits.asks(in.Pid)
	brief := attributes && !s.fixed(ctxOf(cancel), ID(in.NodeId))
	return s.list(cancel, in, func(d fuse.DirEntry, e *Entry) bool {
		entry := out.AddDirLookupEntry(d)
		if entry != nil && e != nil && attributes { // otherwise its node is 0, which the kernel takes as a name alone
			e.Brief = e.Brief || brief
			fillEntry(entry, *e)
		}
		return entry != nil
	})
}

// list tells a folder from an offset on. Nothing is kept between two requests
// of one listing: the offset says it all.
func (s *server) list(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry, *Entry) bool) fuse.Status {
	off := in.Offset
	for ; off < dots; off++ {
		d := fuse.DirEntry{Mode: syscall.S_IFDIR, Name: "..", Off: off + 1}
		if off == 0 {
			d.Name, d.Ino = ".", in.NodeId
		}
		if !add(d, nil) {
			return fuse.OK
		}
	}
	told, full, bad := false, false, false
	err := s.tree.ReadDir(ctxOf(cancel), ID(in.NodeId), off-dots, func(e Entry, next uint64) bool {
		if bad = next == 0 || next >= lastOffset || !goodID(e.ID); bad {
			return false
		}
		d := fuse.DirEntry{Mode: e.Attr.Mode, Name: string(e.Name), Ino: uint64(e.ID), Off: next + dots}
		if full = !add(d, &e); full {
			return false
		}
		told = true
		return true
	})
	switch {
	case bad:
		return fuse.EIO
	case err != nil && !told:
		return status(err) // otherwise what there is goes first, and the error comes with the next request
	}
	return fuse.OK
}

func (s *server) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	writes := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if writes && s.write == nil {
		return fuse.EROFS
	}
	ctx, id := ctxOf(cancel), ID(in.NodeId)
	a, err := s.tree.Attr(ctx, id)
	if err != nil {
		return status(err)
	}
	f, err := s.tree.Open(ctx, id, in.Flags)
	if err != nil {
		return status(err)
	}
	if _, ok := f.(WriteFile); writes && !ok {
		_ = f.Close() // opened for reading only: there is nothing to lose
		return fuse.EACCES
	}
	return s.opened(id, f, a.Fixed, out)
}

func (s *server) opened(id ID, f File, keep bool, out *fuse.OpenOut) fuse.Status {
	o, errno := s.open.add(id, f, keep)
	if errno != 0 {
		_ = f.Close() // nothing was written yet
		return fuse.Status(errno)
	}
	*out = o
	return fuse.OK
}

func (s *server) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := s.open.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	buf = buf[:min(len(buf), int(in.Size))]
	n, err := h.file.ReadAt(ctxOf(cancel), buf, int64(in.Offset))
	if err != nil && err != io.EOF {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (s *server) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if h := s.open.remove(in.Fh); h != nil {
		_ = h.file.Close() // close(2) was answered long ago; Flush is where a writer is told
	}
}
