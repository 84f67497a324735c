package fuse

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

const (
	requestBytes  = 64 << 20 // of requests under way that wait for the Tree
	backgroundMax = 64       // requests that the kernel sends ahead
	request       = 1 << 20  // bytes of the largest read or write
)

// Options of a mount; the zero value works.
type Options struct {
	ReadOnly   bool // also when the tree is a WriteTree
	AllowOther bool // other users may look in; as a user that needs user_allow_other in /etc/fuse.conf
	Checked    bool // never passthrough: every read goes through File.ReadAt, which checks
	// NoPassthrough: everything goes through this process, as it does where the kernel cannot do otherwise.
	NoPassthrough bool
	OpenFiles     int  // at most, ENFILE after that; default 65536
	Fusermount    bool // mount through fusermount3 also as root
}

// Info is how a mount works.
type Info struct {
	Dir         string `json:"dir"`
	Kernel      string `json:"kernel"` // version of its FUSE protocol
	Passthrough bool   `json:"passthrough"`
	Why         string `json:"why,omitempty"` // there is no passthrough
	Open        int    `json:"open"`          // files, now
	// Opens since the mount began, by how they are served.
	Plain  int64 `json:"opens_plain"`
	Direct int64 `json:"opens_direct"`
	Passed int64 `json:"opens_passthrough"`
}

// Mount is a tree that is mounted.
type Mount struct {
	dir    string
	opt    Options
	srv    *fuse.Server
	fs     *server
	done   chan struct{} // the server has ended
	closed atomic.Bool
}

// New mounts tree at dir, an empty folder. A dead mount there is taken away
// first; a live one, or files, are fs.ErrExist. Whoever has the Mount closes it.
func New(dir string, tree Tree, opt Options) (*Mount, error) {
	if opt.OpenFiles <= 0 {
		opt.OpenFiles = 65536
	}
	dir, err := place(dir)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if _, err := Recover(dir); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if err := mayMount(dir); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	m := &Mount{dir: dir, opt: opt, done: make(chan struct{})}
	_, writes := tree.(WriteTree)
	m.opt.ReadOnly = opt.ReadOnly || !writes
	m.fs = newServer(tree, m.opt.ReadOnly, opt.OpenFiles)
	mo, err := m.options()
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	if m.srv, err = fuse.NewServer(m.fs, dir, mo); err != nil {
		return nil, fmt.Errorf("mount %s: %w: %w (as root mount(2), otherwise fusermount3 of package fuse3, must be able to; /dev/fuse must be there)", dir, catalog.ErrUnavailable, err)
	}
	if !m.declined() && m.kernelPasses() {
		m.fs.open.register = func(fd int) (int32, syscall.Errno) {
			return m.srv.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
		}
		m.fs.open.drop = func(id int32) { _ = m.srv.UnregisterBackingFd(id) } // EBADF, EIO: it went with the mount
		if why := probe(m.fs.open.register, m.fs.open.drop); why != 0 {
			m.fs.open.mu.refused, m.fs.open.mu.never = why, true
		}
	}
	go func() {
		defer close(m.done)
		m.srv.Serve()
	}()
	if err := m.srv.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), m.Close(context.Background()))
	}
	return m, nil
}

// declined says that passthrough is not wanted.
func (m *Mount) declined() bool { return m.opt.Checked || m.opt.NoPassthrough }

func (m *Mount) kernelPasses() bool {
	return m.srv.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH != 0
}

// probe asks whether this process may hand files to the kernel.
func probe(register func(int) (int32, syscall.Errno), drop func(int32)) syscall.Errno {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return 0 // the first file will tell
	}
	defer f.Close()
	id, errno := register(int(f.Fd()))
	switch errno {
	case 0:
		drop(id)
		return 0
	case syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOTTY, syscall.ENOSYS:
		return errno
	}
	return 0 // about that file, not about us
}

func (m *Mount) options() (*fuse.MountOptions, error) {
	mo := &fuse.MountOptions{
		Name: "ckptd", FsName: "ckptd", AllowOther: m.opt.AllowOther,
		MaxWrite: request, MaxBackground: backgroundMax, MaxInflightRequestBytes: requestBytes,
		DisableSplice: true, DisableXAttrs: true, EnableSymlinkCaching: true,
		ExtraCapabilities: fuse.CAP_DIRECT_IO_ALLOW_MMAP, // so that files on their way can be mapped
		Options:           []string{"default_permissions"},
		Logger:            log.New(quiet{}, "", 0),
	}
	if m.declined() {
		mo.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	}
	if m.byMount() {
		mo.DirectMountStrict = true
		mo.DirectMountFlags = unix.MS_NODEV | unix.MS_NOSUID
		if m.opt.ReadOnly {
			mo.DirectMountFlags |= unix.MS_RDONLY
		}
		return mo, nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return nil, fmt.Errorf("%w: fusermount3 is not there: install package fuse3, or mount as root", catalog.ErrUnavailable)
	}
	if m.opt.AllowOther && os.Geteuid() != 0 && !userAllowOther() {
		return nil, fmt.Errorf("%w: other users may look in only when /etc/fuse.conf has a line user_allow_other", catalog.ErrInvalid)
	}
	mo.Options = append(mo.Options, "nodev", "nosuid")
	if m.opt.ReadOnly {
		mo.Options = append(mo.Options, "ro")
	}
	return mo, nil
}

func (m *Mount) byMount() bool { return os.Geteuid() == 0 && !m.opt.Fusermount }

func userAllowOther() bool {
	conf, err := os.ReadFile("/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(conf)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// quiet drops what go-fuse has to say: requests that came too late for a
// mount that is going away.
type quiet struct{}

func (quiet) Write(p []byte) (int, error) { return len(p), nil }

// Dir is where the mount is.
func (m *Mount) Dir() string { return m.dir }

// Done is closed when the mount has gone, also by umount(8).
func (m *Mount) Done() <-chan struct{} { return m.done }

// Info says how the mount works.
func (m *Mount) Info() Info {
	k := m.srv.KernelSettings()
	t := m.fs.open
	t.mu.Lock()
	defer t.mu.Unlock()
	i := Info{
		Dir: m.dir, Kernel: fmt.Sprintf("%d.%d", k.Major, k.Minor), Open: len(t.mu.handles),
		Plain: t.mu.opened[plain], Direct: t.mu.opened[direct], Passed: t.mu.opened[passthrough],
	}
	switch {
	case m.opt.Checked:
		i.Why = "every read shall be checked"
	case m.opt.NoPassthrough:
		i.Why = "it was asked for"
	case !m.kernelPasses():
		i.Why = "the kernel cannot: Linux 6.9 or newer, built with CONFIG_FUSE_PASSTHROUGH, can"
	case t.mu.never && t.mu.refused == syscall.EPERM:
		i.Why = "the process may not: it needs CAP_SYS_ADMIN"
	case t.mu.refused != nil:
		i.Why = "the kernel did not take a file: " + t.mu.refused.Error()
	}
	i.Passthrough = !m.declined() && m.kernelPasses() && !t.mu.never
	return i
}

// Changed tells the kernel that a name came, went or means something else,
// and that its folder changed. It must not be called from within a method of
// the Tree, nor with a lock that one of them takes: the kernel may be waiting
// for that method with the folder locked.
func (m *Mount) Changed(parent ID, name string) {
	_ = m.srv.EntryNotify(uint64(parent), name) // ENOENT: the kernel does not know it
	m.Invalidate(parent)
}

// Invalidate makes the kernel forget what it knows of a node, its pages too.
// What Changed says of locks holds here.
func (m *Mount) Invalidate(id ID) { _ = m.srv.InodeNotify(uint64(id), 0, 0) }
