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
type memory struct {
	b    []byte
	base int64 // of its first byte in the shard
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off -= m.base; off < 0 || off > int64(len(m.b)) {
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
	if off -= m.base; off < 0 || n < 0 || off > int64(len(m.b))-n {
		return nil
	}
	return m.b[off : off+n : off+n]
}

// Bounds of the memory that a session keeps mapped between two loads.
const (
	keptMemories = 2
	keptMemory   = 64 << 20 // bytes of one
)

// clientMemory is mapped memory of a client that comes back: mapping it anew
// would have each of its pages appear anew. While it is mapped its inode's
// number is not another's.
type clientMemory struct {
	dev, ino uint64
	b        []byte
	unmap    func() // told when the memory goes
}

func (m *clientMemory) free() {
	m.unmap()
	_ = unix.Munmap(m.b)
}

// open takes a client's descriptor, whose first byte is the shard's byte base:
// mapped where it can be sealed against shrinking (made with
// MFD_ALLOW_SEALING), else written to by pwrite. It must have size bytes, of
// which fill are about to be filled. mapped is told of memory that stays.
func (r *remembered) open(f *os.File, base, size, fill int64, mapped func([]byte) (unmap func())) (w io.WriterAt, done func(), err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, nil, fmt.Errorf("stat of the memory: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < size {
		return nil, nil, fmt.Errorf("memory of %d bytes: %w: the descriptor must be a memfd of at least %d", st.Size, catalog.ErrInvalid, size)
	}
	nothing := func() {}
	if size == 0 {
		return f, nothing, nil
	}
	for i, m := range r.memory {
		if m.dev == st.Dev && m.ino == st.Ino && int64(len(m.b)) >= size {
			r.memory = append(append(r.memory[:i:i], r.memory[i+1:]...), m)
			return &memory{b: m.b, base: base}, nothing, nil
		}
	}
	if !sealed(f) {
		return &offset{f, base}, nothing, nil
	}
	keep := st.Size <= keptMemory
	if keep {
		size = st.Size
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return &offset{f, base}, nothing, nil
	}
	if fill >= size/2 {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a hint: fewer pages appear, and fewer translations are needed
	}
	if !keep {
		return &memory{b: b, base: base}, func() { _ = unix.Munmap(b) }, nil
	}
	if len(r.memory) == keptMemories {
		r.memory[0].free()
		r.memory = r.memory[1:]
	}
	unmap := nothing
	if fill >= size/2 { // registered memory takes all its pages
		unmap = mapped(b)
	}
	r.memory = append(r.memory, &clientMemory{st.Dev, st.Ino, b, unmap})
	return &memory{b: b, base: base}, nothing, nil
}

// mapped tells the remote tier of memory that columns will be read into.
func (n *Node) mapped(mem []byte) (unmap func()) {
	if n.remote == nil {
		return func() {}
	}
	return n.remote.Map(mem)
}

// sealed seals a memfd against shrinking, or says that it cannot be.
func sealed(f *os.File) bool {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err == nil {
		return true
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	return err == nil && seals&unix.F_SEAL_SHRINK != 0
}

// unmap gives the memories back. Nobody may be filling them.
func (r *remembered) unmap() {
	for _, m := range r.memory {
		m.free()
	}
	r.memory = nil
}

// offset writes a shard's bytes into memory that begins at its byte base.
type offset struct {
	f    *os.File
	base int64
}

func (o *offset) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off-o.base) }
