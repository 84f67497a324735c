package vfstest

import (
	"io/fs"
	"math/rand"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const sector = 4096 // bytes that reach the disk together or not at all

// node is a *file or a *dir.
type node any

// dir is a directory. Each name has every file it stood for since the last
// sync: versions[0] is durable, the last one is what running programs see.
type dir struct {
	entries map[string][]node
}

func newDir() *dir { return &dir{entries: map[string][]node{}} }

func (d *dir) get(name string) node {
	if v := d.entries[name]; len(v) > 0 {
		return v[len(v)-1]
	}
	return nil
}

func (d *dir) set(name string, n node) {
	v := d.entries[name]
	if len(v) == 0 {
		v = append(v, nil) // durably absent
	}
	d.entries[name] = append(v, n)
}

func (d *dir) sync(name string) {
	if n := d.get(name); n != nil {
		d.entries[name] = []node{n}
	} else {
		delete(d.entries, name)
	}
}

func (d *dir) syncAll() {
	for name := range d.entries {
		d.sync(name)
	}
}

func (d *dir) names() []string {
	var out []string
	for name := range d.entries {
		if d.get(name) != nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// file is an inode. Sectors are immutable, so versions cost a pointer each.
type file struct {
	pages   []*[sector]byte         // what running programs see; nil reads as zeros
	size    int64                   //
	durable map[int][]*[sector]byte // sector -> its versions since the last sync, the durable one first
	sizes   []int64                 // sizes since the last sync, the durable one first; empty: unchanged
	links   int
	open    int
	charged int64 // bytes of the file system's space this file takes
	mtime   time.Time
}

func (f *file) page(i int) *[sector]byte {
	if i < len(f.pages) {
		return f.pages[i]
	}
	return nil
}

func (f *file) setPage(i int, p *[sector]byte) {
	for len(f.pages) <= i {
		f.pages = append(f.pages, nil)
	}
	if f.durable == nil {
		f.durable = map[int][]*[sector]byte{}
	}
	if len(f.durable[i]) == 0 {
		f.durable[i] = append(f.durable[i], f.pages[i])
	}
	f.durable[i] = append(f.durable[i], p)
	f.pages[i] = p
}

func (f *file) setSize(size int64) {
	if size == f.size {
		return
	}
	if len(f.sizes) == 0 {
		f.sizes = append(f.sizes, f.size)
	}
	f.sizes = append(f.sizes, size)
	f.size = size
}

func (f *file) write(p []byte, off int64) {
	end := off + int64(len(p))
	for len(p) > 0 {
		i, at := int(off/sector), int(off%sector)
		q := new([sector]byte)
		if old := f.page(i); old != nil {
			*q = *old
		}
		n := copy(q[at:], p)
		f.setPage(i, q)
		p, off = p[n:], off+int64(n)
	}
	f.setSize(max(f.size, end))
}

func (f *file) truncate(size int64) {
	if size < f.size {
		first := int((size + sector - 1) / sector)
		for i := first; i < len(f.pages); i++ {
			if f.pages[i] != nil {
				f.setPage(i, nil)
			}
		}
		if at := size % sector; at != 0 {
			if old := f.page(int(size / sector)); old != nil {
				q := *old
				clear(q[at:])
				f.setPage(int(size/sector), &q)
			}
		}
	}
	f.setSize(size)
}

func (f *file) read(p []byte, off int64) int {
	if off >= f.size {
		return 0
	}
	p = p[:min(int64(len(p)), f.size-off)]
	for n := 0; n < len(p); {
		i, at := int((off+int64(n))/sector), int((off+int64(n))%sector)
		if q := f.page(i); q != nil {
			n += copy(p[n:], q[at:])
		} else {
			end := min(len(p), n+sector-at)
			clear(p[n:end])
			n = end
		}
	}
	return len(p)
}

func (f *file) sync() { f.durable, f.sizes = nil, nil }

// Mode says what a power failure leaves of what was not synced.
type Mode int

const (
	Lose Mode = iota // nothing
	Keep             // everything
	Torn             // any part, chosen by the random source
)

func (m Mode) String() string { return [...]string{"lose", "keep", "torn"}[m] }

// Crash gives what a fresh boot finds after a power failure at this moment.
// r is used by Torn alone. The old Mem goes on; see LosePower.
func (m *Mem) Crash(mode Mode, r *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := New(Options{Total: m.mu.total, NoDirect: m.noDirect})
	out.mu.now = m.mu.now
	c := crash{mode: mode, r: r, files: map[*file]*file{}, dirs: map[*dir]*dir{}}
	out.mu.root = c.dir(m.mu.root)
	for _, f := range c.files {
		f.charged = (f.size + sector - 1) / sector * sector
		out.mu.used += f.charged
	}
	return out
}

type crash struct {
	mode  Mode
	r     *rand.Rand
	files map[*file]*file
	dirs  map[*dir]*dir
}

// pick chooses among n versions, the durable one first.
func (c *crash) pick(n int) int {
	switch c.mode {
	case Lose:
		return 0
	case Keep:
		return n - 1
	default:
		return c.r.Intn(n)
	}
}

func (c *crash) dir(d *dir) *dir {
	if out := c.dirs[d]; out != nil {
		return out
	}
	out := newDir()
	c.dirs[d] = out
	names := make([]string, 0, len(d.entries))
	for name := range d.entries {
		names = append(names, name)
	}
	slices.Sort(names) // the random choices must not depend on the order of a map
	for _, name := range names {
		v := d.entries[name]
		switch n := v[c.pick(len(v))].(type) {
		case *dir:
			out.entries[name] = []node{c.dir(n)}
		case *file:
			f := c.file(n)
			f.links++
			out.entries[name] = []node{f}
		}
	}
	return out
}

func (c *crash) file(f *file) *file {
	if out := c.files[f]; out != nil {
		return out
	}
	out := &file{size: f.size, mtime: f.mtime, pages: slices.Clone(f.pages)}
	c.files[f] = out
	if len(f.sizes) > 0 {
		out.size = f.sizes[c.pick(len(f.sizes))]
	}
	sectors := make([]int, 0, len(f.durable))
	for i := range f.durable {
		sectors = append(sectors, i)
	}
	slices.Sort(sectors)
	for _, i := range sectors {
		out.pages[i] = f.durable[i][c.pick(len(f.durable[i]))]
	}
	// Whatever lies behind the end does not exist.
	last := int((out.size + sector - 1) / sector)
	if len(out.pages) > last {
		out.pages = out.pages[:last]
	}
	if at := out.size % sector; at != 0 && last <= len(out.pages) && out.pages[last-1] != nil {
		q := *out.pages[last-1]
		clear(q[at:])
		out.pages[last-1] = &q
	}
	return out
}

// parent finds the directory a name is in, and its last part.
func (m *Mem) parent(op, name string) (*dir, string, error) {
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	d := m.mu.root
	for _, part := range parts[:len(parts)-1] {
		switch n := d.get(part).(type) {
		case nil:
			return nil, "", &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		case *dir:
			d = n
		default:
			return nil, "", &fs.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
		}
	}
	return d, parts[len(parts)-1], nil
}

func (m *Mem) lookup(op, name string) (node, error) {
	if len(split(name)) == 0 {
		return m.mu.root, nil
	}
	d, base, err := m.parent(op, name)
	if err != nil {
		return nil, err
	}
	if n := d.get(base); n != nil {
		return n, nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

func split(name string) []string {
	name = strings.Trim(filepath.Clean(name), "/")
	if name == "" || name == "." {
		return nil
	}
	return strings.Split(name, "/")
}

type info struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
}

func infoOf(name string, n node) fs.FileInfo {
	if f, ok := n.(*file); ok {
		return info{name: name, size: f.size, mode: 0o600, mtime: f.mtime}
	}
	return info{name: name, mode: fs.ModeDir | 0o700}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.mtime }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }
