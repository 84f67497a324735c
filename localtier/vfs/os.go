package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// OS is the real file system.
var OS FS = new(osFS)

type osFS struct {
	// mkdir is held while directories are made, so that nobody builds on a
	// directory that exists but is not durable yet.
	mkdir sync.Mutex
}

// classify gives ENOSPC and EDQUOT their class; everything else already has one.
func classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", catalog.ErrNoSpace, err)
	}
	return err
}

func (*osFS) open(name string, flag int, opt Opt) (File, error) {
	if opt.Direct {
		f, err := os.OpenFile(name, flag|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
		if err == nil {
			return &osFile{File: f, direct: true}, nil
		}
		if !errors.Is(err, syscall.EINVAL) {
			return nil, classify(err)
		}
		// Some kernels make the file before they find that they cannot do O_DIRECT.
		if flag&os.O_EXCL != 0 {
			os.Remove(name)
		}
	}
	f, err := os.OpenFile(name, flag|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, classify(err)
	}
	return &osFile{File: f}, nil
}

func (o *osFS) Create(name string, opt Opt) (File, error) {
	return o.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, opt)
}
func (o *osFS) Open(name string, opt Opt) (File, error)      { return o.open(name, os.O_RDONLY, opt) }
func (o *osFS) OpenWrite(name string, opt Opt) (File, error) { return o.open(name, os.O_RDWR, opt) }

func (o *osFS) MkdirAll(name string) error {
	o.mkdir.Lock()
	defer o.mkdir.Unlock()
	return o.mkdirAll(filepath.Clean(name))
}

func (o *osFS) mkdirAll(name string) error {
	fi, err := os.Stat(name)
	switch {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := o.mkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return classify(err)
	}
	return o.SyncDir(parent)
}

func (*osFS) Rename(oldname, newname string) error { return classify(os.Rename(oldname, newname)) }
func (*osFS) Link(oldname, newname string) error   { return classify(os.Link(oldname, newname)) }
func (*osFS) Remove(name string) error             { return os.Remove(name) }

func (*osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (*osFS) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }

func (*osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

func (*osFS) Space(name string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

func (*osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, classify(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
		}
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // who holds it is only a hint
		holder := strings.TrimSpace(string(pid[:n]))
		if holder == "" {
			holder = "unknown"
		}
		return nil, fmt.Errorf("lock %s: %w: held by process %s", name, catalog.ErrConflict, holder)
	}
	// The pid is for people; a lock whose note could not be written is still a lock.
	if f.Truncate(0) == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

type osFile struct {
	*os.File
	direct bool
}

func (f *osFile) Direct() bool        { return f.direct }
func (f *osFile) Fd() (uintptr, bool) { return f.File.Fd(), true }

func (f *osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// control runs a system call on the descriptor, again when a signal cut it short.
func (f *osFile) control(op string, call func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno error
	if err := rc.Control(func(fd uintptr) {
		for errno = call(int(fd)); errno == unix.EINTR; errno = call(int(fd)) {
		}
	}); err != nil {
		return err
	}
	if errno != nil {
		return classify(&fs.PathError{Op: op, Path: f.Name(), Err: errno})
	}
	return nil
}

// ReadAt of a direct file must not go on after a short read as os.File does:
// only the end of the file cuts a read short, and going on from there would
// be an unaligned read.
func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if !f.direct {
		return f.File.ReadAt(p, off)
	}
	n := 0
	for n < len(p) {
		var got int
		err := f.control("read", func(fd int) (err error) {
			got, err = unix.Pread(fd, p[n:min(len(p), n+maxIO)], off+int64(n))
			return err
		})
		if err != nil {
			return n, err
		}
		n += got
		if got == 0 || got%Align != 0 {
			return n, io.EOF
		}
	}
	return n, nil
}

// maxVector is how many buffers the kernel takes in one call.
const maxVector = 1024

func (f *osFile) ReadvAt(bufs [][]byte, off int64) (int, error) {
	bufs = slices.Clone(bufs) // they are cut below
	n := 0
	for len(bufs) > 0 {
		var got int
		err := f.control("read", func(fd int) (err error) {
			got, err = unix.Preadv(fd, bufs[:min(len(bufs), maxVector)], off+int64(n))
			return err
		})
		if err != nil {
			return n, err
		}
		n += got
		end := got == 0 || f.direct && got%Align != 0 // see ReadAt
		for len(bufs) > 0 && got >= len(bufs[0]) {
			got -= len(bufs[0])
			bufs = bufs[1:]
		}
		if len(bufs) > 0 && end {
			return n, io.EOF
		}
		if got > 0 {
			bufs[0] = bufs[0][got:]
		}
	}
	return n, nil
}

// maxIO bounds one read call, in bytes: the kernel cuts longer ones at 2 GiB
// less a page, which would look like the end of the file.
const maxIO = 1 << 30

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	return n, classify(err)
}

func (f *osFile) Sync() error { return f.control("fdatasync", unix.Fdatasync) }

func (f *osFile) Truncate(size int64) error { return classify(f.File.Truncate(size)) }

func (f *osFile) Allocate(size int64) error {
	if size == 0 {
		return nil
	}
	err := f.control("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// Without fallocate the room is not certain, but the length can be.
	now, err := f.Size()
	if err != nil || now >= size {
		return err
	}
	return f.Truncate(size)
}
