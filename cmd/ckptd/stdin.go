package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// untilEOF ends the context when the pipe f ends, as it does when the process
// that has its other end is gone, however that went. stop ends the watching and
// waits for it.
//
// A pipe and not the parent's death signal, which comes when the thread ends
// that started the daemon; and not its process number, which another may get.
func untilEOF(ctx context.Context, f *os.File) (_ context.Context, stop func(), err error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("--stop-at-eof: %w", err)
	}
	if fi.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return nil, nil, fmt.Errorf("--stop-at-eof: %w: standard input is no pipe; start the daemon with one, and keep its other end open", catalog.ErrInvalid)
	}
	// A read ends early only on a file that did not block when it was made.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("--stop-at-eof: %w", err)
	}
	pipe := os.NewFile(uintptr(fd), "standard input")
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, pipe) // an error is an end too
		cancel()
	}()
	return ctx, func() {
		_ = pipe.SetReadDeadline(time.Now()) // wakes the reader
		<-done
		cancel()
		_ = pipe.Close()
	}, nil
}
