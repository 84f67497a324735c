package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func TestErrno(t *testing.T) {
	t.Run("EveryClassHasARow", func(t *testing.T) {
		for _, class := range catalog.Classes {
			if got := errnoOf(fmt.Errorf("read it: %w", class)); got == syscall.EIO && class != catalog.ErrCorrupt {
				t.Errorf("errno of %q = EIO, which only corrupt bytes and unknown errors may have", class)
			}
		}
	})
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{errors.New("something else"), syscall.EIO},
		{fmt.Errorf("%w: %w", catalog.ErrNoSpace, syscall.EDQUOT), syscall.ENOSPC},
		{&os.PathError{Op: "rmdir", Path: "x", Err: syscall.ENOTEMPTY}, syscall.ENOTEMPTY},
		{fmt.Errorf("x: %w", fs.ErrExist), syscall.EEXIST},
		{fmt.Errorf("x: %w", context.Canceled), syscall.EINTR},
		{syscall.EROFS, syscall.EROFS},
		{syscall.EPERM, syscall.EPERM},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("errno of %v = %v, want %v", c.err, got, c.want)
		}
	}
}
