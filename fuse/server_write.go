package fuse

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const renameNoReplace = 1 // RENAME_NOREPLACE of renameat2(2), the only flag taken

func (s *server) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s.write == nil {
		return fuse.EROFS
	}
	e, f, err := s.write.Create(ctxOf(cancel), ID(in.NodeId), []byte(name), in.Mode&0o7777, Owner{UID: in.Uid, GID: in.Gid})
	if err != nil {
		return status(err)
	}
	if !goodID(e.ID) {
		_ = f.Close() // a bug of the tree; the file is as it would be after a crash here
		return fuse.EIO
	}
	if st := s.opened(e.ID, f, false, &out.OpenOut); !st.Ok() {
		return st
	}
	fillEntry(&out.EntryOut, e)
	return fuse.OK
}

func (s *server) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s.write == nil {
		return fuse.EROFS
	}
	e, err := s.write.Mkdir(ctxOf(cancel), ID(in.NodeId), []byte(name), in.Mode&0o7777, Owner{UID: in.Uid, GID: in.Gid})
	if err != nil {
		return status(err)
	}
	if !goodID(e.ID) {
		return fuse.EIO
	}
	fillEntry(out, e)
	return fuse.OK
}

func (s *server) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s.write == nil {
		return fuse.EROFS
	}
	return status(s.write.Unlink(ctxOf(cancel), ID(in.NodeId), []byte(name)))
}

func (s *server) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s.write == nil {
		return fuse.EROFS
	}
	return status(s.write.Rmdir(ctxOf(cancel), ID(in.NodeId), []byte(name)))
}

func (s *server) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, toName string) fuse.Status {
	switch {
	case s.write == nil:
		return fuse.EROFS
	case in.Flags&^renameNoReplace != 0:
		return fuse.EINVAL
	}
	return status(s.write.Rename(ctxOf(cancel), ID(in.NodeId), []byte(name), ID(in.Newdir), []byte(toName), in.Flags&renameNoReplace == 0))
}

// These have no place in a tree of files that are written once.
func (s *server) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (s *server) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (s *server) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (s *server) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s.write == nil {
		return fuse.EROFS
	}
	ctx, id := ctxOf(cancel), ID(in.NodeId)
	if size, ok := in.GetSize(); ok {
		// open(2) with O_TRUNC does not say which file it is.
		w := s.open.writer(id)
		if fh, ok := in.GetFh(); ok {
			if h := s.open.get(fh); h != nil {
				w = h.write
			}
		}
		if err := s.truncate(ctx, id, w, int64(size)); err != nil {
			return status(err)
		}
	}
	change, some := changeOf(in, time.Now())
	var a Attr
	var err error
	if some {
		a, err = s.write.SetAttr(ctx, id, change)
	} else {
		a, err = s.tree.Attr(ctx, id)
	}
	if err != nil {
		return status(err)
	}
	out.SetTimeout(timeout(a.Fixed))
	fillAttr(&out.Attr, id, a)
	return fuse.OK
}

// truncate sets a file's size; w is nil for truncate(2), which opens nothing.
func (s *server) truncate(ctx context.Context, id ID, w WriteFile, size int64) error {
	if w != nil {
		return w.Truncate(ctx, size)
	}
	f, err := s.write.Open(ctx, id, syscall.O_WRONLY)
	if err != nil {
		return err
	}
	if w, ok := f.(WriteFile); ok {
		err = w.Truncate(ctx, size)
	} else {
		err = syscall.EACCES
	}
	return errors.Join(err, f.Close())
}

// changeOf leaves out what is not kept: the time of the last reading.
func changeOf(in *fuse.SetAttrIn, now time.Time) (c Change, some bool) {
	if in.Valid&fuse.FATTR_MODE != 0 {
		mode := in.Mode & 0o7777
		c.Mode, some = &mode, true
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		mtime := time.Unix(int64(in.Mtime), int64(in.Mtimensec))
		if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
			mtime = now
		}
		c.Mtime, some = &mtime, true
	}
	if in.Valid&fuse.FATTR_UID != 0 {
		uid := in.Owner.Uid
		c.UID, some = &uid, true
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		gid := in.Owner.Gid
		c.GID, some = &gid, true
	}
	return c, some
}

// writer returns the file of a handle that may be written.
func (s *server) writer(fh uint64) (WriteFile, fuse.Status) {
	if h := s.open.get(fh); h != nil && h.write != nil {
		return h.write, fuse.OK
	}
	return nil, fuse.EBADF
}

func (s *server) Write(cancel <-chan struct{}, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	w, st := s.writer(in.Fh)
	if !st.Ok() {
		return 0, st
	}
	n, err := w.WriteAt(ctxOf(cancel), p, int64(in.Offset))
	if n > 0 {
		return uint32(n), fuse.OK // a short write; the error comes with the rest
	}
	return 0, status(err)
}

func (s *server) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	w, st := s.writer(in.Fh)
	if !st.Ok() {
		return fuse.OK // opened for reading
	}
	return status(w.Flush(ctxOf(cancel)))
}

func (s *server) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	w, st := s.writer(in.Fh)
	if !st.Ok() {
		return fuse.OK
	}
	return status(w.Sync(ctxOf(cancel)))
}

// FsyncDir has nothing to add: a name is as durable as the tree made it.
func (s *server) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (s *server) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	w, st := s.writer(in.Fh)
	if !st.Ok() {
		return st
	}
	if int64(in.Offset) < 0 || int64(in.Length) <= 0 {
		return fuse.Status(syscall.EINVAL)
	}
	return status(w.Allocate(ctxOf(cancel), in.Mode, int64(in.Offset), int64(in.Length)))
}
