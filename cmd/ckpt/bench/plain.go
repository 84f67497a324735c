package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// This file holds the plain programs that the yardsticks are made of.

const plainIO = 8 << 20 // bytes of one read or write

// inParallel runs do for each part of n bytes, on some goroutines.
func inParallel(n, part int64, workers int, do func(off, len int64) error) error {
	var next atomic.Int64
	var g errgroup.Group
	for range workers {
		g.Go(func() error {
			for {
				off := next.Add(part) - part
				if off >= n {
					return nil
				}
				if err := do(off, min(part, n-off)); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// plainCopy is memcpy on some goroutines.
func plainCopy(dst, src []byte, workers int) error {
	return inParallel(int64(len(src)), plainIO, workers, func(off, n int64) error {
		copy(dst[off:off+n], src[off:off+n])
		return nil
	})
}

// plainWrite writes p into a new file past the page cache and syncs it. The
// room is allocated first and two writes are in flight: the best of what one
// can do simply.
func plainWrite(path string, p []byte) error {
	f, err := openDirect(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(len(p))); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("fallocate %s: %w", path, err)
	}
	err = inParallel(int64(len(p)), plainIO, 2, func(off, n int64) error {
		_, err := f.WriteAt(p[off:off+n], off)
		return err
	})
	if err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

// plainRead reads the first len(p) bytes of a file past the page cache, with
// some reads in flight.
func plainRead(path string, p []byte, workers int) error {
	f, err := openDirect(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return inParallel(int64(len(p)), plainIO, workers, func(off, n int64) error { return readDirect(f, p[off:off+n], off) })
}

// readDirect fills p, which begins on a page boundary; the file's end may be
// within a page.
func readDirect(f *os.File, p []byte, off int64) error { return readFrom(f, int(f.Fd()), p, off) }

// readFrom is readDirect by the file's descriptor: to ask for it is a system
// call each time, of files of a mount.
func readFrom(f *os.File, fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if n == 0 {
			return fmt.Errorf("read %s at %d: %w", f.Name(), off, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// dropCache forgets what the page cache holds of a file.
func dropCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop %s from the page cache: %w", path, err)
	}
	return nil
}

// warmCache brings a file into the page cache.
func warmCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, f, make([]byte, 1<<20))
	return err
}

// checkFile compares a file's bytes from skip on with want.
func checkFile(path string, skip int64, want []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4<<20)
	for off := int64(0); off < int64(len(want)); {
		n := min(int64(len(buf)), int64(len(want))-off)
		if _, err := f.ReadAt(buf[:n], skip+off); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := same(buf[:n], want[off:off+n], off); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		off += n
	}
	return dropCache(path)
}

// same compares what was moved with what it was.
func same(got, want []byte, at int64) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("bytes at %d: %w: they are not the ones saved", at, catalog.ErrCorrupt)
	}
	return nil
}
