package ckpt

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// newMemory makes a sparse memfd, which the daemon may seal against shrinking
// and then fill in place.
func newMemory(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("ckptd-load", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd of %d bytes: %w", size, err)
	}
	return f, nil
}

// dropMemory gives the pages of a memfd back.
func dropMemory(f *os.File, off, n int64) error {
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	return nil
}

// window is shared memory that the daemon fills with one part of a shard after
// the other: from the second time on its pages are there, and in the cache.
type window struct {
	f   *os.File
	mem []byte // mapped
}

func newWindow(n int64) (*window, error) {
	f, err := newMemory(n)
	if err != nil || n == 0 {
		return &window{f: f}, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %d bytes: %w", n, err), f.Close())
	}
	return &window{f, mem}, nil
}

// give hands on n bytes of the shard, which begins at off of it.
func (w *window) give(off, n int64, to sink) error {
	if p := to.memory(off, n); p != nil {
		copy(p, w.mem)
		return to.put(p, off)
	}
	return to.put(w.mem[:n:n], off)
}

// close gives the memory back, also when the daemon still has it mapped.
func (w *window) close() {
	if w.mem != nil {
		_ = unix.Munmap(w.mem)
		_ = dropMemory(w.f, 0, int64(len(w.mem)))
	}
	_ = w.f.Close()
}
