package vfstest

import (
	"io"
	"io/fs"
	"syscall"

	"github.com/ckptd/ckptd/localtier/vfs"
)

// handle is an open file.
type handle struct {
	m      *Mem
	f      *file
	name   string
	direct bool
	write  bool
	closed bool
}

// check refuses what the kernel would refuse.
func (h *handle) check(op string, p []byte, off int64) error {
	switch {
	case h.closed:
		return &fs.PathError{Op: op, Path: h.name, Err: fs.ErrClosed}
	case op != "read" && !h.write:
		return &fs.PathError{Op: op, Path: h.name, Err: syscall.EBADF}
	case off < 0, h.direct && len(p) > 0 && !vfs.Aligned(p, off):
		return &fs.PathError{Op: op, Path: h.name, Err: syscall.EINVAL}
	}
	return nil
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.m.read("read", h.name); err != nil {
		return 0, err
	}
	defer h.m.mu.Unlock()
	if err := h.check("read", p, off); err != nil {
		return 0, err
	}
	n := h.f.read(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// resize pays for the file's new length before it is changed.
func (h *handle) resize(op string, size int64) error {
	want := (size + sector - 1) / sector * sector
	if err := h.m.charge(want-h.f.charged, op, h.name); err != nil {
		return err
	}
	h.f.charged = want
	return nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.m.begin("write", h.name); err != nil {
		return 0, err
	}
	defer h.m.mu.Unlock()
	if err := h.check("write", p, off); err != nil {
		return 0, err
	}
	if err := h.resize("write", max(h.f.size, off+int64(len(p)))); err != nil {
		return 0, err
	}
	h.f.write(p, off)
	h.m.touch(h.f)
	return len(p), nil
}

func (h *handle) Sync() error {
	if err := h.m.begin("sync", h.name); err != nil {
		return err
	}
	defer h.m.mu.Unlock()
	if h.closed {
		return &fs.PathError{Op: "sync", Path: h.name, Err: fs.ErrClosed}
	}
	h.f.sync()
	return nil
}

func (h *handle) Truncate(size int64) error {
	if err := h.m.begin("truncate", h.name); err != nil {
		return err
	}
	defer h.m.mu.Unlock()
	if err := h.check("truncate", nil, size); err != nil {
		return err
	}
	if err := h.resize("truncate", size); err != nil {
		return err
	}
	h.f.truncate(size)
	h.m.touch(h.f)
	return nil
}

func (h *handle) Allocate(size int64) error {
	if err := h.m.begin("allocate", h.name); err != nil {
		return err
	}
	defer h.m.mu.Unlock()
	if err := h.check("allocate", nil, size); err != nil {
		return err
	}
	if size <= h.f.size {
		return nil
	}
	if err := h.resize("allocate", size); err != nil {
		return err
	}
	h.f.setSize(size)
	return nil
}

func (h *handle) Size() (int64, error) {
	if err := h.m.read("stat", h.name); err != nil {
		return 0, err
	}
	defer h.m.mu.Unlock()
	return h.f.size, nil
}

// Close works without power too: it only lets go.
func (h *handle) Close() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.closed {
		return &fs.PathError{Op: "close", Path: h.name, Err: fs.ErrClosed}
	}
	h.closed = true
	h.f.open--
	h.m.release(h.f)
	return nil
}

func (h *handle) Direct() bool        { return h.direct }
func (h *handle) Fd() (uintptr, bool) { return 0, false }
