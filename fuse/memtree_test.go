package fuse

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// memTree is a tree in memory whose files change how they are kept, as packs do.
type memTree struct {
	mu    sync.Mutex
	nodes map[ID]*memNode
	next  ID
	wide  int // entries of the folder "wide", which are computed
}

type memNode struct {
	mode     uint32
	fixed    bool
	data     []byte
	backing  string // path of the same bytes on disk; "": not complete
	direct   bool
	names    []string
	children map[string]ID
	slow     chan struct{} // a read waits for it, or for its context
	asked    chan struct{} // told when a read waits
}

const wideID, wideFirst = ID(1 << 40), ID(1<<40 + 1)

func newMemTree() *memTree {
	return &memTree{next: Root, nodes: map[ID]*memNode{Root: {mode: syscall.S_IFDIR | 0o755, children: map[string]ID{}}}}
}

func (m *memTree) add(parent ID, name string, n *memNode) ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	if n.mode&syscall.S_IFMT == syscall.S_IFDIR {
		n.children = map[string]ID{}
	}
	m.nodes[m.next] = n
	p := m.nodes[parent]
	p.children[name] = m.next
	p.names = append(p.names, name)
	return m.next
}

func (m *memTree) file(name string, data []byte) ID {
	return m.add(Root, name, &memNode{mode: syscall.S_IFREG | 0o444, fixed: true, data: data})
}

func (m *memTree) set(id ID, backing string, direct bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes[id].backing, m.nodes[id].direct = backing, direct
}

func (m *memTree) attr(id ID) (Attr, error) {
	if id == wideID {
		return Attr{Mode: syscall.S_IFDIR | 0o755, Fixed: true}, nil
	}
	if id >= wideFirst && id < wideFirst+ID(m.wide) {
		return Attr{Mode: syscall.S_IFREG | 0o444, Size: int64(id - wideFirst), Fixed: true}, nil
	}
	n := m.nodes[id]
	if n == nil {
		return Attr{}, fs.ErrNotExist
	}
	size := int64(len(n.data))
	if n.backing != "" && !n.fixed {
		if st, err := os.Stat(n.backing); err == nil {
			size = st.Size()
		}
	}
	return Attr{Mode: n.mode, Size: size, Fixed: n.fixed, Mtime: time.Unix(1e9, 5)}, nil
}

func (m *memTree) Lookup(_ context.Context, parent ID, name []byte) (Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if parent == Root && string(name) == "wide" && m.wide > 0 {
		a, err := m.attr(wideID)
		return Entry{ID: wideID, Attr: a}, err
	}
	if parent == wideID {
		i, err := strconv.Atoi(string(name))
		if err != nil || i < 0 || i >= m.wide {
			return Entry{}, fs.ErrNotExist
		}
		a, err := m.attr(wideFirst + ID(i))
		return Entry{ID: wideFirst + ID(i), Attr: a}, err
	}
	id, ok := m.nodes[parent].children[string(name)]
	if !ok {
		return Entry{}, fs.ErrNotExist
	}
	a, err := m.attr(id)
	return Entry{ID: id, Attr: a}, err
}

func (m *memTree) Attr(_ context.Context, id ID) (Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attr(id)
}

func (m *memTree) ReadDir(_ context.Context, dir ID, from uint64, add func(Entry, uint64) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dir == wideID {
		for i := from; i < uint64(m.wide); i++ {
			a, _ := m.attr(wideFirst + ID(i))
			if !add(Entry{Name: strconv.AppendUint(nil, i, 10), ID: wideFirst + ID(i), Attr: a}, i+1) {
				return nil
			}
		}
		return nil
	}
	n := m.nodes[dir]
	for i := from; i < uint64(len(n.names)); i++ { // names only grow, "" is one that went
		id, ok := n.children[n.names[i]]
		if !ok {
			continue
		}
		a, err := m.attr(id)
		if err != nil {
			return err
		}
		if !add(Entry{Name: []byte(n.names[i]), ID: id, Attr: a}, i+1) {
			return nil
		}
	}
	return nil
}

func (m *memTree) ReadLink(_ context.Context, id ID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[id].data, nil
}

func (m *memTree) Space() Space { return Space{Bytes: 1 << 30, Files: 1000} }

func (m *memTree) Open(_ context.Context, id ID, flags uint32) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	if n == nil {
		return &memFile{node: &memNode{}}, nil
	}
	f := &memFile{node: n, direct: n.direct}
	if n.backing == "" {
		return f, nil
	}
	how := os.O_RDONLY
	if !n.fixed {
		how = os.O_RDWR
	}
	b, err := os.OpenFile(n.backing, how, 0)
	if err != nil {
		return nil, err
	}
	f.backing, f.direct = b, false
	if !n.fixed {
		return &memWriter{*f}, nil
	}
	return f, nil
}

type memFile struct {
	node    *memNode
	backing *os.File
	direct  bool
}

func (f *memFile) Backing() *os.File { return f.backing }
func (f *memFile) Direct() bool      { return f.direct }
func (f *memFile) Close() error {
	if f.backing != nil {
		return f.backing.Close()
	}
	return nil
}

func (f *memFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.node.slow != nil {
		select {
		case f.node.asked <- struct{}{}:
		default:
		}
		select {
		case <-f.node.slow:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if f.backing != nil {
		return f.backing.ReadAt(p, off)
	}
	return bytes.NewReader(f.node.data).ReadAt(p, off)
}

type memWriter struct{ memFile }

func (w *memWriter) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return w.backing.WriteAt(p, off)
}
func (w *memWriter) Truncate(_ context.Context, size int64) error { return w.backing.Truncate(size) }
func (w *memWriter) Allocate(_ context.Context, mode uint32, off, size int64) error {
	return syscall.Fallocate(int(w.backing.Fd()), mode, off, size)
}
func (w *memWriter) Sync(context.Context) error  { return w.backing.Sync() }
func (w *memWriter) Flush(context.Context) error { return nil }

// memWriteTree keeps what is written below a folder of the disk.
type memWriteTree struct {
	*memTree
	disk string
}

func (m *memWriteTree) Create(_ context.Context, parent ID, name []byte, mode uint32, _ Owner) (Entry, WriteFile, error) {
	f, err := os.CreateTemp(m.disk, "")
	if err != nil {
		return Entry{}, nil, err
	}
	id := m.add(parent, string(name), &memNode{mode: syscall.S_IFREG | mode, backing: f.Name()})
	a, err := m.Attr(context.Background(), id)
	return Entry{ID: id, Attr: a}, &memWriter{memFile{node: &memNode{}, backing: f}}, err
}

func (m *memWriteTree) Mkdir(_ context.Context, parent ID, name []byte, mode uint32, _ Owner) (Entry, error) {
	id := m.add(parent, string(name), &memNode{mode: syscall.S_IFDIR | mode})
	a, err := m.Attr(context.Background(), id)
	return Entry{ID: id, Attr: a}, err
}

func (m *memWriteTree) Unlink(_ context.Context, parent ID, name []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.nodes[parent].children, string(name))
	return nil
}

func (m *memWriteTree) Rmdir(_ context.Context, parent ID, name []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.nodes[m.nodes[parent].children[string(name)]].children) > 0 {
		return syscall.ENOTEMPTY
	}
	delete(m.nodes[parent].children, string(name))
	return nil
}

func (m *memWriteTree) Rename(_ context.Context, parent ID, name []byte, to ID, toName []byte, replace bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.nodes[to].children[string(toName)]; ok && !replace {
		return fs.ErrExist
	}
	m.nodes[to].children[string(toName)] = m.nodes[parent].children[string(name)]
	delete(m.nodes[parent].children, string(name))
	if !slices.Contains(m.nodes[to].names, string(toName)) {
		m.nodes[to].names = append(m.nodes[to].names, string(toName))
	}
	return nil
}

func (m *memWriteTree) SetAttr(_ context.Context, id ID, c Change) (Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.Mode != nil {
		m.nodes[id].mode = m.nodes[id].mode&syscall.S_IFMT | *c.Mode
	}
	return m.attr(id)
}

// mounted mounts tree for the test; it is unmounted however the test ends.
func mounted(t *testing.T, tree Tree, opt Options) *Mount {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("mounts are tested as root: run the tests as root, as CI does")
	}
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := New(dir, tree, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

var _ io.Closer = (*memFile)(nil)
