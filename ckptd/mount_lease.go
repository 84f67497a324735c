package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// mountLeases keeps sets from being pruned while files of them are open. One
// lease serves all files of a set, and stays a while after the last was
// closed: a program that reads a million files one after the other makes no
// million records.
type mountLeases struct {
	cat    *catalog.Catalog
	holder string

	mu struct {
		sync.Mutex
		of map[catalog.SetID]*mountLease
	}
}

type mountLease struct {
	taking sync.Mutex // while the record is written
	open   int        // files
	until  time.Time  // zero: there is no record yet
	idle   time.Time  // when the last file was closed
}

const (
	mountLeaseTime = 10 * time.Minute // renewed at half of it
	mountLeaseIdle = time.Minute      // how long it outlives the last open file
)

func (m *mountLeases) init(cat *catalog.Catalog, node string) {
	m.cat, m.holder = cat, fmt.Sprintf("%s-%d-mount", node, os.Getpid())
	m.mu.of = make(map[catalog.SetID]*mountLease)
}

// hold leases a set until release is called.
func (m *mountLeases) hold(ctx context.Context, id catalog.SetID) (release func(), err error) {
	m.mu.Lock()
	l := m.mu.of[id]
	if l == nil {
		l = new(mountLease)
		m.mu.of[id] = l
	}
	l.open++
	m.mu.Unlock()
	release = sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		l.open--
		l.idle = time.Now()
	})
	if err := m.take(ctx, id, l, time.Now()); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// take writes the record, unless there is one for long enough.
func (m *mountLeases) take(ctx context.Context, id catalog.SetID, l *mountLease, now time.Time) error {
	l.taking.Lock()
	defer l.taking.Unlock()
	if l.until.Sub(now) > mountLeaseTime/2 {
		return nil
	}
	until := now.Add(mountLeaseTime)
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := m.cat.Lease(short, id, m.holder, until)
	if errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return err
	}
	if err == nil { // with the catalog away nothing can be pruned either
		l.until = until
	}
	return nil
}

// tend renews the leases of what is open, and ends those of what is not.
func (m *mountLeases) tend(ctx context.Context, now time.Time) {
	type one struct {
		id catalog.SetID
		l  *mountLease
	}
	var renew, end []one
	m.mu.Lock()
	for id, l := range m.mu.of {
		if l.open > 0 {
			renew = append(renew, one{id, l})
		} else if now.Sub(l.idle) > mountLeaseIdle {
			delete(m.mu.of, id)
			end = append(end, one{id, l})
		}
	}
	m.mu.Unlock()
	for _, o := range renew {
		// A set that was pruned under an open file: its bytes stay for the
		// grace, and what is open of them until it is closed.
		_ = m.take(ctx, o.id, o.l, now)
	}
	for _, o := range end {
		m.unlease(ctx, o.id)
	}
}

func (m *mountLeases) unlease(ctx context.Context, id catalog.SetID) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = m.cat.Unlease(short, id, m.holder) // left to run out
	m.mu.Lock()
	l := m.mu.of[id] // somebody came between: his record may just have gone
	m.mu.Unlock()
	if l != nil {
		l.taking.Lock()
		l.until = time.Time{}
		l.taking.Unlock()
		_ = m.take(ctx, id, l, time.Now())
	}
}

// end gives all leases back.
func (m *mountLeases) end() {
	m.mu.Lock()
	all := m.mu.of
	m.mu.of = make(map[catalog.SetID]*mountLease)
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for id := range all {
		_ = m.cat.Unlease(ctx, id, m.holder) // left to run out
	}
}
