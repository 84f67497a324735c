package targettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// Mem is a target in memory that can fail, be full, and have its columns damaged.
type Mem struct {
	name string
	mu   struct {
		sync.Mutex
		cols  map[remotetier.Key][]byte
		busy  map[remotetier.Key]bool
		fault func(op string, key remotetier.Key) error
		total int64
		read  int64
	}
}

var _ remotetier.Target = (*Mem)(nil)

// NewMem gives an empty target of 1 TiB.
func NewMem(name string) *Mem {
	m := &Mem{name: name}
	m.mu.cols, m.mu.busy = map[remotetier.Key][]byte{}, map[remotetier.Key]bool{}
	m.mu.total = 1 << 40
	return m
}

// Fault sets what is asked before every operation ("create", "write",
// "commit", "open", "read", "remove", "list", "space"); an error makes the
// operation fail with it. Nil takes it back.
func (m *Mem) Fault(f func(op string, key remotetier.Key) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.fault = f
}

// SetTotal changes the size of the target, in bytes.
func (m *Mem) SetTotal(total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.total = total
}

// Keys lists the committed columns, sorted.
func (m *Mem) Keys() []remotetier.Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sorted()
}

func (m *Mem) sorted() []remotetier.Key {
	keys := make([]remotetier.Key, 0, len(m.mu.cols))
	for k := range m.mu.cols {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, remotetier.Key.Compare)
	return keys
}

// Column gives a copy of a column's bytes; nil when it is not there.
func (m *Mem) Column(key remotetier.Key) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mu.cols[key])
}

// SetColumn replaces a column's bytes; nil removes it. Readers that are open
// go on with what they opened.
func (m *Mem) SetColumn(key remotetier.Key, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b == nil {
		delete(m.mu.cols, key)
		return
	}
	m.mu.cols[key] = slices.Clone(b)
}

// BytesRead is how much was read so far.
func (m *Mem) BytesRead() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.read
}

// begin asks for a fault.
func (m *Mem) begin(ctx context.Context, op string, key remotetier.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	f := m.mu.fault
	m.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(op, key)
}

func (m *Mem) Name() string { return m.name }

func (m *Mem) Create(ctx context.Context, key remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	if err := errors.Join(key.Check(), mode.Check()); err != nil {
		return nil, err
	}
	if err := m.begin(ctx, "create", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.busy[key] || mode == remotetier.CreateNew && m.mu.cols[key] != nil {
		return nil, fmt.Errorf("create %v: %w", key, fs.ErrExist)
	}
	if free := m.mu.total - m.used(); free < size {
		return nil, fmt.Errorf("create %v: %w: %d bytes are free of the %d needed", key, catalog.ErrNoSpace, free, size)
	}
	m.mu.busy[key] = true
	return &memWriter{m: m, key: key, size: size}, nil
}

func (m *Mem) used() (n int64) {
	for _, b := range m.mu.cols {
		n += int64(len(b))
	}
	return n
}

type memWriter struct {
	m    *Mem
	key  remotetier.Key
	size int64
	b    []byte
	done bool
}

func (w *memWriter) Write(ctx context.Context, p []byte) error {
	if err := w.m.begin(ctx, "write", w.key); err != nil {
		return err
	}
	if w.done || len(p)%4096 != 0 || int64(len(w.b)+len(p)) > w.size {
		return fmt.Errorf("write %v: %w", w.key, catalog.ErrInvalid)
	}
	w.b = append(w.b, p...)
	return nil
}

func (w *memWriter) Commit(ctx context.Context) error {
	if err := w.m.begin(ctx, "commit", w.key); err != nil {
		return err
	}
	if w.done || int64(len(w.b)) != w.size {
		return fmt.Errorf("commit %v: %w", w.key, catalog.ErrInvalid)
	}
	w.m.mu.Lock()
	w.m.mu.cols[w.key] = w.b
	w.m.mu.Unlock()
	return w.Close()
}

func (w *memWriter) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	delete(w.m.mu.busy, w.key)
	return nil
}

func (m *Mem) Open(ctx context.Context, key remotetier.Key) (remotetier.ColumnReader, error) {
	if err := m.begin(ctx, "open", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.mu.cols[key]
	if b == nil {
		return nil, fmt.Errorf("open %v: %w", key, fs.ErrNotExist)
	}
	return &memReader{m, key, b}, nil
}

type memReader struct {
	m   *Mem
	key remotetier.Key
	b   []byte
}

func (r *memReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.m.begin(ctx, "read", r.key); err != nil {
		return 0, err
	}
	n := copy(p, r.b[min(off, int64(len(r.b))):])
	r.m.mu.Lock()
	r.m.mu.read += int64(n)
	r.m.mu.Unlock()
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *memReader) Size() int64  { return int64(len(r.b)) }
func (r *memReader) Close() error { return nil }

func (m *Mem) Remove(ctx context.Context, key remotetier.Key) error {
	if err := m.begin(ctx, "remove", key); err != nil {
		return err
	}
	m.SetColumn(key, nil)
	return nil
}

func (m *Mem) List(ctx context.Context, prefix string) iter.Seq2[remotetier.Entry, error] {
	return func(yield func(remotetier.Entry, error) bool) {
		if err := m.begin(ctx, "list", remotetier.Key{Blob: prefix}); err != nil {
			yield(remotetier.Entry{}, err)
			return
		}
		for _, k := range m.Keys() {
			if b := m.Column(k); b != nil && remotetier.Under(k.Blob, prefix) && !yield(remotetier.Entry{Key: k, Size: int64(len(b))}, nil) {
				return
			}
		}
	}
}

func (m *Mem) Space(ctx context.Context) (remotetier.Space, error) {
	if err := m.begin(ctx, "space", remotetier.Key{}); err != nil {
		return remotetier.Space{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return remotetier.Space{Total: m.mu.total, Free: m.mu.total - m.used()}, nil
}
