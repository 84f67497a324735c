package localtier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

const segPrefix = "seg-"

func (a *Arena) segPath(id int) string {
	return filepath.Join(a.dir, fmt.Sprintf("%s%05d", segPrefix, id))
}

// newSegment makes a segment of fresh memory. The file gets its name when all
// of it is allocated: a named segment never lacks memory, unless a client cut it.
func (a *Arena) newSegment(id int) (*Segment, error) {
	path := a.segPath(id)
	tmp := path + tmpSuffix
	f, err := vfs.OS.Create(tmp, vfs.Opt{})
	if err != nil {
		return nil, err
	}
	err = errors.Join(f.Allocate(a.opt.Segment), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	s, err := a.mapSegment(id)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	s.uid = unknownUID
	s.used = false
	// The page tables too, so that the first copy is as fast as the second. A
	// kernel without this call (before 5.14) pays at the first copy.
	unix.Madvise(s.mem, unix.MADV_POPULATE_WRITE)
	return s, nil
}

func (a *Arena) mapSegment(id int) (*Segment, error) {
	s := &Segment{a: a, id: id, path: a.segPath(id), uid: unknownUID, used: true}
	f, err := os.OpenFile(s.path, os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Size <= 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s: %w: no segment", s.path, catalog.ErrCorrupt)
	}
	s.inode = st.Ino
	s.mem, err = unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", s.path, err)
	}
	return s, nil
}

func (s *Segment) unmap() error {
	if s.mem == nil {
		return nil
	}
	mem := s.mem
	s.mem = nil
	return unix.Munmap(mem)
}

// whole reports whether all memory of the segment is still there: a client
// that holds its file may have cut it or punched holes.
func (s *Segment) whole() bool {
	var st unix.Stat_t
	return unix.Stat(s.path, &st) == nil && st.Ino == s.inode && st.Size == int64(len(s.mem)) && st.Blocks*512 >= st.Size
}

// ID names the segment within its arena, also after a restart.
func (s *Segment) ID() int { return s.id }

// Bytes is the segment's memory, on a page boundary. A client that has its
// file open can write to it, and can make it fault by cutting the file:
// Ingest.WriteAt takes that as an error.
func (s *Segment) Bytes() []byte { return s.mem }

// Slots is the number of slots.
func (s *Segment) Slots() int { return len(s.mem) / int(s.a.opt.Slot) }

// Slot gives slot i.
func (s *Segment) Slot(i int) []byte {
	n := int(s.a.opt.Slot)
	return s.mem[i*n : (i+1)*n : (i+1)*n]
}

// File opens the segment's file once more, for reading and writing, to be
// passed to the session it is lent to. Close it when it is passed.
func (s *Segment) File() (*os.File, error) {
	f, err := os.OpenFile(s.path, os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("segment %d: %w", s.id, err)
	}
	return f, nil
}
