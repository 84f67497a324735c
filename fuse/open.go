package fuse

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// way is how an open file is read and written.
type way uint8

const (
	plain       way = iota // through this process, its pages kept by the kernel
	direct                 // through this process, no pages kept
	passthrough            // by the kernel itself, from the backing file
)

func (w way) String() string { return [...]string{"plain", "direct", "passthrough"}[w] }

// chooseWay decides how one more open of an inode is served.
//
// The kernel answers EIO to an open that does not fit the ones there are: in
// passthrough, every further one must be too, with the same backing file; and
// while pages are kept, or a direct file is mapped (which nobody tells us),
// none may be. So the first open decides between passthrough and the rest,
// and the others follow until all are closed.
func chooseWay(opens int, now way, backing, wantsDirect bool) way {
	switch {
	case opens > 0 && now == passthrough:
		return passthrough
	case opens == 0 && backing:
		return passthrough
	case wantsDirect:
		return direct
	}
	return plain
}

// inode is what is open of one node. It is there while opens > 0.
type inode struct {
	opens   int
	way     way   // passthrough, or plain for the other two
	backing int32 // the kernel's number of the backing file, in passthrough
}

// handle is one open file.
type handle struct {
	id    ID
	way   way
	file  File
	write WriteFile // nil: opened for reading
}

// table holds what is open. The kernel's view of an inode is never ahead of
// it: an open is counted before the kernel hears of it, and a close after.
type table struct {
	limit    int
	register func(fd int) (int32, syscall.Errno) // nil: never passthrough
	drop     func(backing int32)

	mu struct {
		sync.Mutex
		inodes  map[ID]*inode
		handles map[uint64]*handle
		next    uint64
		opened  [3]int64 // by way, since the mount began
		refused error    // why the kernel took no backing file, the last time
		never   bool     // it will not take any other either
	}
}

func newTable(limit int) *table {
	t := &table{limit: limit}
	t.mu.inodes, t.mu.handles = map[ID]*inode{}, map[uint64]*handle{}
	return t
}

// add counts an open and says how the kernel shall serve it. ENFILE: too many
// are open; the file is still the caller's then.
func (t *table) add(id ID, f File, keep bool) (out fuse.OpenOut, errno syscall.Errno) {
	backing, wantsDirect := f.Backing(), f.Direct()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.mu.handles) >= t.limit {
		return out, syscall.ENFILE
	}
	n := t.mu.inodes[id]
	if n == nil {
		n = &inode{}
	}
	can := t.register != nil && !t.mu.never
	if _, writes := f.(WriteFile); !can && !writes { // no backing file will ever serve it: pages are kept once
		wantsDirect = false
	}
	w := chooseWay(n.opens, n.way, backing != nil && can, wantsDirect)
	if w == passthrough && n.opens == 0 {
		number, errno := t.register(int(backing.Fd()))
		if errno != 0 {
			t.mu.refused = errno
			t.mu.never = errno == syscall.EPERM || errno == syscall.EOPNOTSUPP || errno == syscall.ENOTTY || errno == syscall.ENOSYS
			w = chooseWay(0, plain, false, wantsDirect)
		}
		n.backing = number
	}
	n.way = plain
	if w == passthrough {
		n.way = passthrough
	}
	n.opens++
	t.mu.inodes[id] = n
	t.mu.opened[w]++
	t.mu.next++
	h := &handle{id: id, way: w, file: f}
	h.write, _ = f.(WriteFile)
	t.mu.handles[t.mu.next] = h
	out.Fh = t.mu.next
	switch w {
	case passthrough:
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, n.backing
	case direct:
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
	default:
		if keep {
			out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		}
	}
	if h.write == nil {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
	return out, 0
}

// get returns an open file, or nil.
func (t *table) get(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.handles[fh]
}

// writer returns a file of the node that is open for writing, or nil.
func (t *table) writer(id ID) WriteFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.inodes[id] == nil {
		return nil
	}
	for _, h := range t.mu.handles {
		if h.id == id && h.write != nil {
			return h.write
		}
	}
	return nil
}

// remove takes a handle out; the caller closes its file.
func (t *table) remove(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.mu.handles[fh]
	if h == nil {
		return nil
	}
	delete(t.mu.handles, fh)
	n := t.mu.inodes[h.id]
	if n.opens--; n.opens == 0 {
		delete(t.mu.inodes, h.id)
		if n.way == passthrough {
			t.drop(n.backing)
		}
	}
	return h
}

// removeAll empties the table, when the mount has gone and nobody asks any more.
func (t *table) removeAll() []*handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*handle
	for _, h := range t.mu.handles {
		all = append(all, h)
	}
	clear(t.mu.handles)
	clear(t.mu.inodes) // the kernel let go of the backing files with the mount
	return all
}
