package posix

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// steady is a file system whose operations on names are tried again when a
// network file system says that what it remembered of them is out of date.
type steady struct{ vfs.FS }

// staleTries bounds the tries of one operation; the pauses between them add up
// to 150 ms.
const staleTries = 5

// again tells an error that passes from one that stays.
func again(err error) bool {
	return errors.Is(err, syscall.ESTALE) || errors.Is(err, syscall.EINTR)
}

func retry[T any](op func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := op()
		if err == nil || try == staleTries || !again(err) {
			return v, classify(err)
		}
		time.Sleep(10 * time.Millisecond << (try - 1))
	}
}

func retry0(op func() error) error {
	_, err := retry(func() (struct{}, error) { return struct{}{}, op() })
	return err
}

// away are the errors by which a client of a network file system says that
// the servers are not there.
var away = []error{
	syscall.ESTALE, syscall.ENOTCONN, syscall.ESHUTDOWN, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ECONNREFUSED,
	syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EREMOTEIO, syscall.ENETDOWN, syscall.ENETUNREACH,
}

// classify gives those errors their class; the others have theirs.
func classify(err error) error {
	for _, a := range away {
		if errors.Is(err, a) {
			return fmt.Errorf("%w: %w", catalog.ErrUnavailable, err)
		}
	}
	return err
}

func (s steady) Create(name string, opt vfs.Opt) (vfs.File, error) {
	return retry(func() (vfs.File, error) { return s.FS.Create(name, opt) })
}

func (s steady) Open(name string, opt vfs.Opt) (vfs.File, error) {
	return retry(func() (vfs.File, error) { return s.FS.Open(name, opt) })
}

func (s steady) MkdirAll(name string) error {
	return retry0(func() error { return s.FS.MkdirAll(name) })
}

func (s steady) Rename(oldname, newname string) error {
	return retry0(func() error { return s.FS.Rename(oldname, newname) })
}

func (s steady) Remove(name string) error { return retry0(func() error { return s.FS.Remove(name) }) }

func (s steady) ReadDir(name string) ([]fs.DirEntry, error) {
	return retry(func() ([]fs.DirEntry, error) { return s.FS.ReadDir(name) })
}

func (s steady) Stat(name string) (fs.FileInfo, error) {
	return retry(func() (fs.FileInfo, error) { return s.FS.Stat(name) })
}

func (s steady) SyncDir(name string) error {
	return retry0(func() error { return s.FS.SyncDir(name) })
}
