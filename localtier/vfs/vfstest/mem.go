// Package vfstest has a vfs.FS in memory that can lose power, run out of
// space, and fail any operation.
//
//  1. Crash gives what a machine would see after its power failed at this
//     moment: everything synced, and of the rest nothing, all, or any part.
//     Parts are independent: each 4 KiB sector of each file holds any version
//     written since its last Sync, each name of a directory any of the files
//     it stood for since the last SyncDir. That is less than journaling file
//     systems keep, on purpose.
//  2. A Direct file refuses what O_DIRECT would refuse.
//  3. Every mutation and every sync is counted and can be made to fail; a
//     Mem whose power was lost changes no more, whoever still holds it.
package vfstest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// ErrPower is what every operation gives after the power was lost.
var ErrPower = errors.New("power lost")

// Mem is a file system in memory. The zero Mem is not usable; see New.
type Mem struct {
	mu struct {
		sync.Mutex
		root  *dir
		locks map[string]bool
		onOp  func(n int, op, name string) error
		ops   int
		lose  int // the number of the operation that meets the power loss; 0: none
		dead  bool
		total int64
		used  int64
		now   int64 // counts modifications: the source of modification times
	}
	noDirect bool
}

// Options of a Mem.
type Options struct {
	Total    int64 // bytes of the file system; default 1 TiB
	NoDirect bool  // behave like a file system without O_DIRECT
}

// New gives an empty file system that has its root only.
func New(opt Options) *Mem {
	m := &Mem{noDirect: opt.NoDirect}
	m.mu.root = newDir()
	m.mu.locks = map[string]bool{}
	if m.mu.total = opt.Total; m.mu.total == 0 {
		m.mu.total = 1 << 40
	}
	return m
}

// OnOp sets what is called before every mutation and every sync, with a number
// that counts them from 1, the method's name ("create", "write", "sync",
// "syncdir", …) and the path. When it returns an error the operation fails
// with that error and has no effect. It is called without locks held, so it
// may take a Crash; it may be called concurrently.
func (m *Mem) OnOp(f func(n int, op, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.onOp = f
}

// FailNth gives an OnOp that fails the n-th operation (from 1) with err.
func FailNth(n int, err error) func(int, string, string) error {
	return func(i int, op, name string) error {
		if i != n {
			return nil
		}
		return fmt.Errorf("%s %s: %w", op, name, err)
	}
}

// FailOn gives an OnOp that fails every op for which match returns true.
func FailOn(match func(op, name string) bool, err error) func(int, string, string) error {
	return func(_ int, op, name string) error {
		if !match(op, name) {
			return nil
		}
		return fmt.Errorf("%s %s: %w", op, name, err)
	}
}

// Ops is the number of operations counted so far.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.ops
}

// LosePowerAt makes operation n (counted from 1) and everything after it fail
// with ErrPower, reads too; 0 takes it back. Crash then gives the next boot.
func (m *Mem) LosePowerAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.lose = n
}

// LosePower makes every later operation fail with ErrPower.
func (m *Mem) LosePower() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.dead = true
}

// SetTotal changes the size of the file system, in bytes.
func (m *Mem) SetTotal(total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.total = total
}

// begin counts a mutation and asks the hook; on success the lock is held.
func (m *Mem) begin(op, name string) error {
	m.mu.Lock()
	if m.mu.dead {
		m.mu.Unlock()
		return &fs.PathError{Op: op, Path: name, Err: ErrPower}
	}
	m.mu.ops++
	n, hook := m.mu.ops, m.mu.onOp
	if m.mu.lose > 0 && n >= m.mu.lose {
		m.mu.dead = true
		m.mu.Unlock()
		return &fs.PathError{Op: op, Path: name, Err: ErrPower}
	}
	if hook == nil {
		return nil
	}
	m.mu.Unlock()
	if err := hook(n, op, name); err != nil {
		return err
	}
	m.mu.Lock()
	if m.mu.dead {
		m.mu.Unlock()
		return &fs.PathError{Op: op, Path: name, Err: ErrPower}
	}
	return nil
}

// read takes the lock for an operation that changes nothing.
func (m *Mem) read(op, name string) error {
	m.mu.Lock()
	if m.mu.dead {
		m.mu.Unlock()
		return &fs.PathError{Op: op, Path: name, Err: ErrPower}
	}
	return nil
}

// charge takes n bytes of the file system's space, or gives them back.
func (m *Mem) charge(n int64, op, name string) error {
	if n > 0 && m.mu.used+n > m.mu.total {
		return fmt.Errorf("%w: %w", catalog.ErrNoSpace, &fs.PathError{Op: op, Path: name, Err: syscall.ENOSPC})
	}
	m.mu.used += n
	return nil
}

func (m *Mem) Create(name string, opt vfs.Opt) (vfs.File, error) {
	if err := m.begin("create", name); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	d, base, err := m.parent("create", name)
	if err != nil {
		return nil, err
	}
	if d.get(base) != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	f := &file{}
	m.touch(f)
	d.set(base, f)
	f.links++
	return m.handle(f, name, opt, true), nil
}

func (m *Mem) handle(f *file, name string, opt vfs.Opt, write bool) *handle {
	f.open++
	return &handle{m: m, f: f, name: name, direct: opt.Direct && !m.noDirect, write: write}
}

func (m *Mem) openFile(name string, opt vfs.Opt, write bool) (vfs.File, error) {
	if err := m.read("open", name); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n, err := m.lookup("open", name)
	if err != nil {
		return nil, err
	}
	f, ok := n.(*file)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	return m.handle(f, name, opt, write), nil
}

func (m *Mem) Open(name string, opt vfs.Opt) (vfs.File, error) { return m.openFile(name, opt, false) }
func (m *Mem) OpenWrite(name string, opt vfs.Opt) (vfs.File, error) {
	return m.openFile(name, opt, true)
}

func (m *Mem) MkdirAll(name string) error {
	// Only making something is an operation that can be lost.
	if err := m.read("mkdir", name); err != nil {
		return err
	}
	n, err := m.lookup("mkdir", name)
	m.mu.Unlock()
	if err == nil {
		if _, ok := n.(*dir); ok {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
	}
	if err := m.begin("mkdir", name); err != nil {
		return err
	}
	defer m.mu.Unlock()
	d := m.mu.root
	for _, part := range split(name) {
		switch n := d.get(part).(type) {
		case nil:
			sub := newDir()
			d.set(part, sub)
			d.sync(part)
			d = sub
		case *dir:
			d.sync(part)
			d = n
		default:
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
	}
	return nil
}

func (m *Mem) Rename(oldname, newname string) error {
	if err := m.begin("rename", newname); err != nil {
		return err
	}
	defer m.mu.Unlock()
	od, ob, err := m.parent("rename", oldname)
	if err != nil {
		return err
	}
	nd, nb, err := m.parent("rename", newname)
	if err != nil {
		return err
	}
	f, ok := od.get(ob).(*file)
	if !ok {
		if od.get(ob) == nil {
			return &fs.PathError{Op: "rename", Path: oldname, Err: fs.ErrNotExist}
		}
		return &fs.PathError{Op: "rename", Path: oldname, Err: syscall.EISDIR}
	}
	switch old := nd.get(nb).(type) {
	case *dir:
		return &fs.PathError{Op: "rename", Path: newname, Err: syscall.EISDIR}
	case *file:
		if old == f {
			return nil
		}
		m.unlink(old)
	}
	nd.set(nb, f)
	od.set(ob, nil)
	return nil
}

func (m *Mem) Link(oldname, newname string) error {
	if err := m.begin("link", newname); err != nil {
		return err
	}
	defer m.mu.Unlock()
	od, ob, err := m.parent("link", oldname)
	if err != nil {
		return err
	}
	nd, nb, err := m.parent("link", newname)
	if err != nil {
		return err
	}
	f, ok := od.get(ob).(*file)
	switch {
	case od.get(ob) == nil:
		return &fs.PathError{Op: "link", Path: oldname, Err: fs.ErrNotExist}
	case !ok:
		return &fs.PathError{Op: "link", Path: oldname, Err: syscall.EPERM}
	case nd.get(nb) != nil:
		return &fs.PathError{Op: "link", Path: newname, Err: fs.ErrExist}
	}
	f.links++
	nd.set(nb, f)
	return nil
}

func (m *Mem) Remove(name string) error {
	if err := m.begin("remove", name); err != nil {
		return err
	}
	defer m.mu.Unlock()
	d, base, err := m.parent("remove", name)
	if err != nil {
		return err
	}
	switch n := d.get(base).(type) {
	case nil:
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	case *dir:
		if len(n.names()) > 0 {
			return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
		}
		d.set(base, nil)
	case *file:
		m.unlink(n)
		d.set(base, nil)
	}
	return nil
}

// unlink takes a name from f and, with the last one, its space.
func (m *Mem) unlink(f *file) {
	f.links--
	m.release(f)
}

func (m *Mem) release(f *file) {
	if f.links <= 0 && f.open == 0 {
		m.mu.used -= f.charged
		f.charged = 0
	}
}

func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := m.read("readdir", name); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n, err := m.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	d, ok := n.(*dir)
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	var out []fs.DirEntry
	for _, base := range d.names() {
		out = append(out, fs.FileInfoToDirEntry(infoOf(base, d.get(base))))
	}
	return out, nil
}

func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	if err := m.read("stat", name); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n, err := m.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	return infoOf(filepath.Base(name), n), nil
}

func (m *Mem) SyncDir(name string) error {
	if err := m.begin("syncdir", name); err != nil {
		return err
	}
	defer m.mu.Unlock()
	n, err := m.lookup("syncdir", name)
	if err != nil {
		return err
	}
	d, ok := n.(*dir)
	if !ok {
		return &fs.PathError{Op: "syncdir", Path: name, Err: syscall.ENOTDIR}
	}
	d.syncAll()
	return nil
}

func (m *Mem) Space(name string) (total, free int64, err error) {
	if err := m.read("statfs", name); err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	return m.mu.total, max(0, m.mu.total-m.mu.used), nil
}

// Lock's holder is this Mem: a Mem that Crash made has no locks held. The file
// is made for show, durably.
func (m *Mem) Lock(name string) (io.Closer, error) {
	if err := m.read("lock", name); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	d, base, err := m.parent("lock", name)
	if err != nil {
		return nil, err
	}
	if m.mu.locks[name] {
		return nil, fmt.Errorf("lock %s: %w: held by process 1", name, catalog.ErrConflict)
	}
	if d.get(base) == nil {
		f := &file{links: 1}
		m.touch(f)
		d.set(base, f)
		d.sync(base)
	}
	m.mu.locks[name] = true
	return closeFunc(func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.mu.locks, name)
		return nil
	}), nil
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

func (m *Mem) touch(f *file) {
	m.mu.now++
	f.mtime = epoch.Add(time.Duration(m.mu.now) * time.Millisecond)
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var _ vfs.FS = (*Mem)(nil)
