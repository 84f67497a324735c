package fuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

const (
	kind   = "fuse.ckptd"          // our file system's type in the table of mounts
	stacks = 16                    // dead mounts upon each other that are taken away
	again  = 20 * time.Millisecond // between two tries to unmount, to begin with
	rarely = 500 * time.Millisecond
)

// place returns dir without links. dir itself is not asked: it may be dead.
func place(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	full := filepath.Join(parent, filepath.Base(abs))
	if target, err := os.Readlink(full); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		return filepath.EvalSymlinks(target)
	}
	return full, nil
}

// typeAt returns the type of the file system that is mounted at dir, the
// topmost one; "": nothing is mounted there.
func typeAt(mountinfo, dir string) string {
	kind := ""
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f, t := strings.Fields(before), strings.Fields(after)
		if ok && len(f) >= 5 && len(t) >= 1 && unescape(f[4]) == dir {
			kind = t[0]
		}
	}
	return kind
}

// unescape undoes what the kernel does to blanks in its table: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func mountedAt(dir string) (string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return typeAt(string(table), dir), nil
}

// Recover takes away dead mounts of ours at dir: what a daemon that was killed
// leaves behind. It says whether there was one. A live one stays.
func Recover(dir string) (found bool, err error) {
	if dir, err = place(dir); err != nil {
		return false, err
	}
	for range stacks {
		at, err := mountedAt(dir)
		if err != nil || at != kind {
			return found, err
		}
		// Not lstat, which the kernel answers from what it has kept of the root.
		if err := unix.Statfs(dir, new(unix.Statfs_t)); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
			return found, nil
		}
		if err := detach(dir); err != nil {
			return found, fmt.Errorf("take away the dead mount at %s: %w (umount -l %s as root does it)", dir, err, dir)
		}
		found = true
	}
	return found, fmt.Errorf("%s: %w: more than %d dead mounts upon each other; umount -l takes them away", dir, catalog.ErrConflict, stacks)
}

// mayMount refuses what would hide something.
func mayMount(dir string) error {
	at, err := mountedAt(dir)
	if err != nil {
		return err
	}
	if at != "" {
		return fmt.Errorf("%s: %w: something is mounted there already (%s); unmount it, or choose another folder", dir, fs.ErrExist, at)
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s: %w: not a folder", dir, catalog.ErrInvalid)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w: make the folder first", dir, fs.ErrNotExist)
	case err != nil:
		return err
	}
	defer f.Close()
	switch _, err := f.Readdirnames(1); {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s: %w: the folder is not empty, and a mount would hide what is in it; choose another", dir, fs.ErrExist)
}

// detach takes a mount out of the tree of files at once; files that are open stay open.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, syscall.EPERM) {
		return fusermount("-uz", dir)
	}
	return err
}

func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, syscall.EPERM) {
		return fusermount("-u", dir)
	}
	return err
}

func fusermount(flag, dir string) error {
	out, err := exec.Command("fusermount3", flag, "--", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3 %s: %w: %s", flag, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Close unmounts. While files are open it tries again until ctx ends; then the
// mount is taken away from under them: passthrough files stay readable, the
// others answer an error. It returns when the server has ended.
func (m *Mount) Close(ctx context.Context) error {
	if m.closed.Swap(true) {
		<-m.done
		return nil
	}
	if err := m.try(ctx); err != nil {
		return m.abort(err)
	}
	return nil
}

// Unmount is Close, except that what is in use when ctx ends stays mounted:
// ErrConflict, which names processes that use it, as far as they can be seen.
func (m *Mount) Unmount(ctx context.Context) error {
	err := m.try(ctx)
	if err == nil {
		m.closed.Store(true)
		return nil
	}
	if who := users(m.dir); len(who) > 0 {
		return fmt.Errorf("%w: it is in use by %s", catalog.ErrConflict, strings.Join(who, ", "))
	}
	return fmt.Errorf("%w: it is in use: %w", catalog.ErrConflict, err)
}

// try unmounts as soon as nobody uses the mount, until ctx ends.
func (m *Mount) try(ctx context.Context) error {
	pause := again
	for {
		select {
		case <-m.done: // somebody else unmounted it: what is there now is not ours
			return nil
		default:
		}
		err := unmount(m.dir)
		if err == nil || errors.Is(err, syscall.EINVAL) {
			<-m.done
			return nil
		}
		select { // nobody tells when the last file is closed
		case <-m.done:
			return nil
		case <-time.After(pause):
			pause = min(2*pause, rarely)
		case <-ctx.Done():
			return err
		}
	}
}

// abort ends the connection to the kernel, whoever still has files open.
func (m *Mount) abort(busy error) error {
	var st unix.Stat_t
	control := ""
	if err := unix.Stat(m.dir, &st); err == nil {
		control = fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", unix.Minor(st.Dev))
	}
	if err := unix.Unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err == nil {
		<-m.done
		return nil
	}
	if control != "" && os.WriteFile(control, []byte("1"), 0) == nil {
		err := detach(m.dir)
		<-m.done
		return err
	}
	if err := detach(m.dir); err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, errors.Join(busy, err))
	}
	return fmt.Errorf("unmount %s: %w: it is gone from the tree of files, but is served until the files that are open in it are closed", m.dir, catalog.ErrConflict)
}
