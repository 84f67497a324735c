package fuse

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/ckptd/ckptd/catalog"
)

// classErrno is how the classes of errors look to a program that reads files.
// EAGAIN is not among them: for some runtimes it means "no bytes yet".
var classErrno = []struct {
	class error
	errno syscall.Errno
}{
	{catalog.ErrInvalid, syscall.EINVAL},
	{catalog.ErrCorrupt, syscall.EIO},
	{catalog.ErrNoSpace, syscall.ENOSPC},
	{catalog.ErrFenced, syscall.ESTALE},
	{catalog.ErrConflict, syscall.EBUSY},
	{catalog.ErrIncomplete, syscall.EBUSY},
	{catalog.ErrUnavailable, syscall.EHOSTUNREACH},
}

// plainErrno comes after an errno that the error has itself: ENOTEMPTY, for
// one, also says that it is fs.ErrExist.
var plainErrno = []struct {
	class error
	errno syscall.Errno
}{
	{fs.ErrNotExist, syscall.ENOENT},
	{fs.ErrExist, syscall.EEXIST},
	{fs.ErrPermission, syscall.EACCES},
	{fs.ErrInvalid, syscall.EINVAL},
	{fs.ErrClosed, syscall.EBADF},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
}

// errnoOf returns what the kernel is told; 0 for nil.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, row := range classErrno {
		if errors.Is(err, row.class) {
			return row.errno
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 {
		return errno
	}
	for _, row := range plainErrno {
		if errors.Is(err, row.class) {
			return row.errno
		}
	}
	return syscall.EIO
}
