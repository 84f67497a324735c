package catalogtest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/ckptd/ckptd/catalog"
)

// MemDriver is a catalog.Driver in memory.
type MemDriver struct {
	mu struct {
		sync.Mutex
		rev    uint64
		latest map[string]catalog.Record // a nil Value is a deletion, remembered for watchers
		log    []change                  // by Rev; entries that latest has overtaken are dropped in compact
		wake   chan struct{}             // closed by the next swap; nil while nobody waits
	}
}

// change says that key was written at rev.
type change struct {
	rev uint64
	key string
}

var _ catalog.Driver = (*MemDriver)(nil)

// Mem returns an empty store.
func Mem() *MemDriver {
	m := new(MemDriver)
	m.mu.latest = make(map[string]catalog.Record)
	return m
}

// Clone copies the store as it is now; watchers stay with the original.
func (m *MemDriver) Clone() *MemDriver {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := new(MemDriver)
	c.mu.rev = m.mu.rev
	c.mu.latest = maps.Clone(m.mu.latest) // values are never changed in place
	c.mu.log = slices.Clone(m.mu.log)
	return c
}

// Len is the number of records.
func (m *MemDriver) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, r := range m.mu.latest {
		if r.Value != nil {
			n++
		}
	}
	return n
}

// Get implements catalog.Driver.
func (m *MemDriver) Get(ctx context.Context, key string) (catalog.Record, error) {
	if err := catalog.CheckKey(key); err != nil {
		return catalog.Record{}, fmt.Errorf("get: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return catalog.Record{}, fmt.Errorf("get %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.mu.latest[key]
	if r.Value == nil {
		return catalog.Record{}, fmt.Errorf("get %s: %w", key, fs.ErrNotExist)
	}
	return clone(r), nil
}

func clone(r catalog.Record) catalog.Record {
	r.Value = bytes.Clone(r.Value)
	return r
}

// Swap implements catalog.Driver.
func (m *MemDriver) Swap(ctx context.Context, key string, rev uint64, value []byte) (uint64, error) {
	if err := catalog.CheckKey(key); err != nil {
		return 0, fmt.Errorf("swap: %w", err)
	}
	if len(value) > catalog.MaxRecord {
		return 0, fmt.Errorf("swap %s: %w: a record of %d bytes, at most %d", key, catalog.ErrInvalid, len(value), catalog.MaxRecord)
	}
	if value == nil && rev == 0 {
		return 0, fmt.Errorf("swap %s: %w: deleting needs the revision to delete", key, catalog.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("swap %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var have uint64
	if r := m.mu.latest[key]; r.Value != nil {
		have = r.Rev
	}
	if have != rev {
		return 0, fmt.Errorf("swap %s: %w: revision is %d, not %d", key, catalog.ErrConflict, have, rev)
	}
	m.mu.rev++
	m.mu.latest[key] = catalog.Record{Key: key, Value: bytes.Clone(value), Rev: m.mu.rev}
	m.mu.log = append(m.mu.log, change{m.mu.rev, key})
	m.compact()
	if m.mu.wake != nil {
		close(m.mu.wake)
		m.mu.wake = nil
	}
	return m.mu.rev, nil
}

// compact keeps the log within twice the number of keys. The lock is held.
func (m *MemDriver) compact() {
	if len(m.mu.log) > 64+2*len(m.mu.latest) {
		m.mu.log = slices.DeleteFunc(m.mu.log, func(c change) bool { return m.mu.latest[c.key].Rev != c.rev })
	}
}

// since gives the last change of every key under prefix that changed after rev. The lock is held.
func (m *MemDriver) since(prefix string, rev uint64) []catalog.Record {
	first := sort.Search(len(m.mu.log), func(i int) bool { return m.mu.log[i].rev > rev })
	var out []catalog.Record
	for _, c := range m.mu.log[first:] {
		if !covers(prefix, c.key) {
			continue
		}
		if r := m.mu.latest[c.key]; r.Rev == c.rev {
			out = append(out, clone(r))
		}
	}
	return out
}

// List implements catalog.Driver.
func (m *MemDriver) List(ctx context.Context, prefix string) iter.Seq2[catalog.Record, error] {
	return func(yield func(catalog.Record, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(catalog.Record{}, fmt.Errorf("list: %w", err))
			return
		}
		m.mu.Lock()
		records := m.since(prefix, 0)
		m.mu.Unlock()
		for _, r := range records {
			if err := ctx.Err(); err != nil {
				yield(catalog.Record{}, fmt.Errorf("list %s: %w", prefix, err))
				return
			}
			if r.Value != nil && !yield(r, nil) {
				return
			}
		}
	}
}

// Watch implements catalog.Driver.
func (m *MemDriver) Watch(ctx context.Context, prefix string) iter.Seq2[catalog.Change, error] {
	return func(yield func(catalog.Change, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(catalog.Change{}, fmt.Errorf("watch: %w", err))
			return
		}
		var reached uint64
		for synced := false; ctx.Err() == nil; {
			m.mu.Lock()
			records := m.since(prefix, reached)
			reached = m.mu.rev
			if len(records) == 0 && m.mu.wake == nil {
				m.mu.wake = make(chan struct{})
			}
			wake := m.mu.wake
			m.mu.Unlock()
			for _, r := range records {
				if ctx.Err() != nil || !yield(catalog.Change{Record: r}, nil) {
					return
				}
			}
			switch {
			case !synced:
				synced = true
				if !yield(catalog.Change{Record: catalog.Record{Rev: reached}, Synced: true}, nil) {
					return
				}
			case len(records) == 0:
				select {
				case <-ctx.Done():
				case <-wake:
				}
			}
		}
	}
}

// Head implements catalog.Driver.
func (m *MemDriver) Head(ctx context.Context, prefix string) (uint64, error) {
	if err := checkPrefix(prefix); err != nil {
		return 0, fmt.Errorf("head: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("head of %s: %w", prefix, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range slices.Backward(m.mu.log) {
		if covers(prefix, c.key) {
			return c.rev, nil
		}
	}
	return 0, nil
}
