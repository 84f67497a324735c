package localtier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// areaFile is a file of an area. All but a and number is guarded by Area.mu.
type areaFile struct {
	a      *Area
	number uint32
	name   string // "": it has none any more
	size   int64  // bytes it counts for
	// While somebody writes it.
	writers int
	file    vfs.File
	lost    error // why its bytes were dropped

	opens int   // for writing, so far
	sums  *sums // nil: not taken, or it was opened for writing since
}

func (f *areaFile) path() string { return filepath.Join(f.a.dir, areaFiles, f.name) }

// info is as the file is now. Area.mu is held.
func (f *areaFile) info() AreaFileInfo {
	i := AreaFileInfo{Number: f.number, Name: f.name, Size: f.size, ModTime: time.Now()}
	if f.name == "" {
		if f.file != nil {
			i.Size, _ = f.file.Size() // of a file that has no name any more
		}
	} else if fi, err := f.a.t.fsys.Stat(f.path()); err == nil {
		i.Size, i.ModTime = fi.Size(), fi.ModTime()
	}
	return i
}

// charge counts bytes of areas, without asking whether there is room.
func (t *Tier) charge(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.writing += n
}

// grow counts a file as of size bytes, if that fits. Area.mu is held.
func (f *areaFile) grow(size int64) error {
	n := size - f.size
	if n <= 0 {
		return nil
	}
	t := f.a.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if free := t.unused(); n > free {
		return &Shortage{Need: n, Free: max(0, free), Short: n - free}
	}
	t.mu.writing += n
	f.size = size
	return nil
}

// measure counts a file as it is. Area.mu is held.
func (f *areaFile) measure() {
	if f.file == nil || f.lost != nil {
		return
	}
	if size, err := f.file.Size(); err == nil {
		f.a.t.charge(size - f.size)
		f.size = size
	}
}

// unwritten is ErrConflict while somebody has the file open for writing: by
// way of this process, or, since before it started, on its own. Area.mu is held.
func (f *areaFile) unwritten() error {
	busy := fmt.Errorf("%.200q: %w: it is open for writing; close it first", f.name, catalog.ErrConflict)
	switch {
	case f.writers > 0:
		return busy
	case f.lost != nil:
		return f.lost
	}
	r, err := f.a.t.fsys.Open(f.path(), vfs.Opt{})
	if err != nil {
		return err
	}
	defer r.Close()
	fd, ok := r.Fd()
	if !ok {
		return nil
	}
	// The kernel leases a file for reading only while nobody can write it.
	switch _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); {
	case err == unix.EAGAIN:
		return busy
	case err != nil:
		return nil // this file system has no leases
	}
	_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK) // closing the file gives it back too
	return nil
}

func checkAreaFile(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > catalog.MaxFileLen || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("file name %.80q: %w", name, catalog.ErrInvalid)
	}
	return nil
}

// Create makes a new file and opens it for writing; fs.ErrExist.
func (a *Area) Create(name string) (*AreaFile, error) {
	if err := checkAreaFile(name); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.writable()
	switch {
	case err != nil:
	case a.mu.files[name] != nil:
		err = fs.ErrExist
	case len(a.mu.files) >= MaxAreaFiles:
		err = fmt.Errorf("%w: the area has %d files", catalog.ErrNoSpace, MaxAreaFiles)
	default:
		err = a.t.someRoom()
	}
	if err != nil {
		return nil, fmt.Errorf("create %.200q: %w", name, err)
	}
	a.mu.next++
	f := &areaFile{a: a, number: a.mu.next, name: name}
	f.file, err = a.t.fsys.Create(f.path(), vfs.Opt{})
	a.t.failed(a.d, err)
	if err != nil {
		return nil, fmt.Errorf("create %.200q: disk %s: %w", name, a.d.dir, err)
	}
	a.mu.files[name], a.mu.numbers[f.number] = f, f
	a.mu.loose, a.mu.changed = true, time.Now()
	return f.open(), nil
}

// someRoom is a *Shortage when nothing at all may be written.
func (t *Tier) someRoom() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if free := t.unused(); free <= 0 {
		return &Shortage{Need: 1, Short: 1 - free}
	}
	return nil
}

// open counts a writer. Area.mu is held.
func (f *areaFile) open() *AreaFile {
	f.writers++
	f.opens++
	f.sums = nil
	t := f.a.t
	t.mu.Lock()
	t.mu.open[f] = true
	t.mu.Unlock()
	return &AreaFile{f: f, file: f.file, writes: true}
}

// Open opens a file by its number, for reading or for both.
func (a *Area) Open(number uint32, write bool) (*AreaFile, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.mu.numbers[number]
	if f == nil || f.name == "" {
		return nil, fs.ErrNotExist
	}
	open, err := a.open(f, write)
	if err != nil {
		return nil, fmt.Errorf("open %.200q: %w", f.name, err)
	}
	return open, nil
}

func (a *Area) open(f *areaFile, write bool) (*AreaFile, error) {
	if !write {
		file, err := a.t.fsys.Open(f.path(), vfs.Opt{})
		return &AreaFile{f: f, file: file}, err
	}
	if err := errors.Join(a.writable(), a.t.someRoom()); err != nil {
		return nil, err
	}
	if f.file == nil {
		var err error
		if f.file, err = a.t.fsys.OpenWrite(f.path(), vfs.Opt{}); err != nil {
			return nil, err
		}
		f.lost = nil
	}
	return f.open(), nil
}

// Rename gives a file another name, durably. replace: a file that has that
// name goes; otherwise it is fs.ErrExist. One that somebody writes stays.
func (a *Area) Rename(from, to string, replace bool) error {
	if err := checkAreaFile(to); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f, old := a.mu.files[from], a.mu.files[to]
	err := a.writable()
	switch {
	case err != nil:
	case f == nil:
		err = fs.ErrNotExist
	case f == old:
		return nil
	case old != nil && !replace:
		err = fs.ErrExist
	}
	if err != nil {
		return fmt.Errorf("rename %.200q: %w", from, err)
	}
	files := filepath.Join(a.dir, areaFiles)
	if err := a.t.fsys.Rename(f.path(), filepath.Join(files, to)); err != nil {
		a.t.failed(a.d, err)
		return fmt.Errorf("rename %.200q: disk %s: %w", from, a.d.dir, err)
	}
	if old != nil {
		old.unname()
	}
	delete(a.mu.files, from)
	f.name = to
	a.mu.files[to] = f
	a.mu.changed = time.Now()
	return a.settle()
}

// unname notes that a file lost its name. Area.mu is held.
func (f *areaFile) unname() {
	delete(f.a.mu.files, f.name)
	f.name = ""
	if f.writers == 0 {
		f.forget()
	}
}

// forget ends a file that has no name and no writer. Area.mu is held.
func (f *areaFile) forget() {
	f.a.t.charge(-f.size)
	f.size = 0
	delete(f.a.mu.numbers, f.number)
}

// settle makes the names in the area durable. Area.mu is held.
func (a *Area) settle() error {
	if err := a.t.fsys.SyncDir(filepath.Join(a.dir, areaFiles)); err != nil {
		a.t.failed(a.d, err)
		return fmt.Errorf("disk %s: %w", a.d.dir, err)
	}
	a.mu.loose = false
	return nil
}

// Unlink removes a file's name; what is open of it stays until it is closed.
func (a *Area) Unlink(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.mu.files[name]
	err := a.writable()
	if err == nil && f == nil {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = clean(a.t.fsys.Remove(f.path()))
	}
	if err != nil {
		return fmt.Errorf("unlink %.200q: %w", name, err)
	}
	f.unname()
	a.mu.loose, a.mu.changed = true, time.Now()
	return nil
}

// AreaFile is an open file of an area. Its methods may be called from many
// goroutines at once.
type AreaFile struct {
	f      *areaFile
	file   vfs.File
	writes bool
	closed bool // guarded by Area.mu
}

// Number tells the file from others of its area.
func (o *AreaFile) Number() uint32 { return o.f.number }

// Info is as the file is now.
func (o *AreaFile) Info() AreaFileInfo {
	o.f.a.mu.Lock()
	defer o.f.a.mu.Unlock()
	return o.f.info()
}

// OpenFile opens the file once more, for the kernel to read, or to write too.
// What is written by it is counted by Tier.MeasureAreas and on Close.
func (o *AreaFile) OpenFile() (*os.File, error) {
	fd, ok := o.file.Fd()
	if !ok {
		return nil, fmt.Errorf("open file: %w: its file system is not the operating system's", catalog.ErrInvalid)
	}
	flag := os.O_RDONLY
	if o.writes {
		flag = os.O_RDWR
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flag|unix.O_CLOEXEC, 0)
}

// ReadAt reads what is there: nothing is checked before it is a blob.
func (o *AreaFile) ReadAt(p []byte, off int64) (int, error) { return o.file.ReadAt(p, off) }

// WriteAt writes p; what the quota has no room for is a *Shortage.
func (o *AreaFile) WriteAt(p []byte, off int64) (int, error) {
	if err := o.reserve(off, int64(len(p))); err != nil {
		return 0, err
	}
	return o.file.WriteAt(p, off)
}

func (o *AreaFile) reserve(off, n int64) error {
	a := o.f.a
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !o.writes:
		return fs.ErrPermission
	case o.f.lost != nil:
		return o.f.lost
	case off < 0 || n < 0 || off > catalog.MaxShardSize-n:
		return fmt.Errorf("%w: a file has at most %d bytes", catalog.ErrNoSpace, int64(catalog.MaxShardSize))
	}
	return o.f.grow(off + n)
}

// Truncate sets the file's size.
func (o *AreaFile) Truncate(size int64) error {
	if err := o.reserve(0, size); err != nil {
		return err
	}
	if err := o.file.Truncate(size); err != nil {
		return err
	}
	o.f.a.mu.Lock()
	defer o.f.a.mu.Unlock()
	o.f.measure()
	return nil
}

// Allocate makes room for the first size bytes.
func (o *AreaFile) Allocate(size int64) error {
	if err := o.reserve(0, size); err != nil {
		return err
	}
	return o.file.Allocate(size)
}

// Err says why the file's bytes were dropped, if they were.
func (o *AreaFile) Err() error {
	o.f.a.mu.Lock()
	defer o.f.a.mu.Unlock()
	return o.f.lost
}

// Sync makes the file's bytes and its name durable.
func (o *AreaFile) Sync() error {
	if err := o.Err(); err != nil {
		return err
	}
	a := o.f.a
	err := o.file.Sync()
	a.t.failed(a.d, err)
	if err != nil {
		return fmt.Errorf("disk %s: %w", a.d.dir, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	o.f.measure()
	if a.mu.loose && !a.mu.gone {
		return a.settle()
	}
	return nil
}

// Close ends it.
func (o *AreaFile) Close() error {
	a := o.f.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	if !o.writes {
		return o.file.Close()
	}
	f := o.f
	f.measure()
	a.mu.changed = time.Now()
	if f.writers--; f.writers > 0 {
		return nil
	}
	t := a.t
	t.mu.Lock()
	delete(t.mu.open, f)
	t.mu.Unlock()
	if f.name == "" {
		f.forget()
	}
	err := f.file.Close()
	f.file = nil
	return err
}

// MeasureAreas counts the files that others write, and says how many bytes
// they are over the quota, and whether anybody writes any.
func (t *Tier) MeasureAreas() (over int64, writing bool) {
	for _, f := range t.written() {
		f.a.mu.Lock()
		f.measure()
		if f.lost != nil && f.file != nil {
			_ = f.file.Truncate(0) // its writer goes on until he asks
		}
		f.a.mu.Unlock()
	}
	return t.overrun(), t.writes()
}

func (t *Tier) writes() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.mu.open) > 0
}

// overrun is how many bytes areas are over the quota. A little does not count:
// small blobs are taken in without being asked for room (see Put), and no
// file of somebody else's is to be dropped for them.
func (t *Tier) overrun() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, -t.unused()-min(t.mu.quota/64, maxSlack))
}

const maxSlack = 64 << 20 // bytes

// written are the files that are open for writing, the newest first.
func (t *Tier) written() []*areaFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	files := make([]*areaFile, 0, len(t.mu.open))
	for f := range t.mu.open {
		files = append(files, f)
	}
	slices.SortFunc(files, func(x, y *areaFile) int {
		return strings.Compare(y.a.dir+fmt.Sprintf("/%010d", y.number), x.a.dir+fmt.Sprintf("/%010d", x.number))
	})
	return files
}

// DropOverrun drops files that are being written, the newest first, until the
// rest is within the quota, but for a sixty-fourth of it: their names go, their bytes too, and their writers
// are told ErrNoSpace. It gives their names.
func (t *Tier) DropOverrun() (dropped []string) {
	for _, f := range t.written() {
		over := t.overrun()
		if over == 0 {
			break
		}
		if name, ok := f.drop(over); ok {
			dropped = append(dropped, name)
		}
	}
	return dropped
}

func (f *areaFile) drop(over int64) (name string, ok bool) {
	a := f.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if f.lost != nil || f.file == nil {
		return "", false
	}
	f.lost = &Shortage{Need: f.size, Free: max(0, f.size-over), Short: over}
	name = a.mu.name + "/" + f.name
	if f.name != "" && clean(a.t.fsys.Remove(f.path())) == nil { // otherwise it stays, and Freeze refuses it
		f.unname()
		a.mu.loose = true
	}
	_ = f.file.Truncate(0)
	a.t.charge(-f.size)
	f.size = 0
	return name, true
}
