package ckptd

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// memory is a client's memfd, mapped here so that bytes are read straight into
// it. Only a memfd that can no longer shrink is mapped: cutting a mapped file
// would kill the daemon by SIGBUS.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m.b)) {
		return 0, fmt.Errorf("write at %d of %d bytes: %w", off, len(m.b), catalog.ErrInvalid)
	}
	n := copy(m.b[off:], p)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// at gives the memory itself for a range, or nil.
func (m *memory) at(off, n int64) []byte {
	if off < 0 || n < 0 || off > int64(len(m.b))-n {
		return nil
	}
	return m.b[off : off+n : off+n]
}

// openMemory takes a client's descriptor: mapped where it can be sealed
// against shrinking (made with MFD_ALLOW_SEALING), else written to by pwrite.
func openMemory(f *os.File, size int64) (w io.WriterAt, done func(), err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() || st.Size() < size {
		return nil, nil, fmt.Errorf("memory of %d bytes: %w: the descriptor must be a memfd of at least %d", st.Size(), catalog.ErrInvalid, size)
	}
	nothing := func() {}
	if size == 0 {
		return f, nothing, nil
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
		if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
			return f, nothing, nil
		}
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return f, nothing, nil
	}
	return &memory{b}, func() { unix.Munmap(b) }, nil
}
