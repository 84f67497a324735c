package source

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// stamp is what a file's inode says; it changes with the content.
type stamp struct {
	dev, ino uint64
	size     int64
	sec      int64
	nsec     int64
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec}
}

// steadyFile reads a file that was seen as stamp says, and fails when it is not
// that file, or not as it was, at the beginning, or at the end.
type steadyFile struct {
	fd    int
	path  string
	stamp stamp
	at    int64
	ended bool // the check at the end was made
}

func changed(path string) error {
	return fmt.Errorf("read %q: %w: it changed while it was read; import when nobody writes to it", path, catalog.ErrConflict)
}

// retry makes a system call again when a signal came in between.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

func openSteady(full, path string, want stamp) (*steadyFile, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(full, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	})
	if err == unix.ELOOP || err == unix.ENOENT || err == unix.ENXIO {
		return nil, changed(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return &steadyFile{fd: fd, path: path, stamp: want}, nil
}

// check holds the file against what was seen before.
func (f *steadyFile) check() error {
	var st unix.Stat_t
	if _, err := retry(func() (int, error) { return 0, unix.Fstat(f.fd, &st) }); err != nil {
		return fmt.Errorf("stat %q: %w", f.path, err)
	}
	if stampOf(&st) != f.stamp {
		return changed(f.path)
	}
	return nil
}

func (f *steadyFile) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), f.stamp.size-f.at)]
	if len(p) == 0 {
		if f.at < f.stamp.size {
			return 0, nil
		}
		if !f.ended {
			if err := f.check(); err != nil {
				return 0, err
			}
			f.ended = true
		}
		return 0, io.EOF
	}
	n, err := retry(func() (int, error) { return unix.Read(f.fd, p) })
	if err != nil {
		return 0, fmt.Errorf("read %q: %w", f.path, err)
	}
	if n == 0 {
		return 0, changed(f.path)
	}
	f.at += int64(n)
	return n, nil
}

func (f *steadyFile) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := retry(func() (int, error) { return unix.Pread(f.fd, p[done:], off+int64(done)) })
		if err != nil {
			return done, fmt.Errorf("read %q: %w", f.path, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

func (f *steadyFile) Close() error {
	if f.fd < 0 {
		return errors.New("source: closed twice")
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}
