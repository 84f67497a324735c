package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/restore"
)

// Version is a dataset's version that somebody has open: its index is on this
// node's disk, checked and mapped, and a lease keeps it from being pruned.
type Version struct {
	Set catalog.SetID
	mapped

	n       *Node
	users   int           // under Node.versions
	ready   chan struct{} // closed when it is open, or err is set
	err     error
	touched atomic.Int64 // bytes of the mapping that came in, about, since they were let go
}

// versionLease is how long a version is leased at a time; it is renewed.
const versionLease = 6 * time.Hour

// OpenVersion opens a dataset's version by reference: NAME@3, NAME@latest, or
// NAME. The index comes to this node's disk first. Many openers share one.
func (n *Node) OpenVersion(ctx context.Context, ref string) (*Version, error) {
	r, err := catalog.ParseDatasetRef(ref)
	if err != nil {
		return nil, err
	}
	rec, err := n.cat.Resolve(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("dataset %s: %w", ref, err)
	}
	v, err := n.openVersion(ctx, rec.SetID)
	if err != nil {
		return nil, fmt.Errorf("dataset %s: %w", ref, err)
	}
	return v, nil
}

func (n *Node) openVersion(ctx context.Context, id catalog.SetID) (*Version, error) {
	for {
		n.versions.Lock()
		v := n.versions.of[id]
		mine := v == nil
		if mine {
			v = &Version{Set: id, n: n, ready: make(chan struct{})}
			n.versions.of[id] = v
		}
		v.users++
		n.versions.Unlock()
		if mine {
			v.err = v.open(ctx)
			close(v.ready)
		}
		select {
		case <-v.ready:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), v.Close())
		}
		if v.err == nil {
			return v, nil
		}
		err := errors.Join(v.err, v.Close())
		if mine || ctx.Err() != nil || !errors.Is(v.err, context.Canceled) {
			return nil, err
		} // else the one who opened it left
	}
}

// holdVersion is one more use of a version that is open; an error when it was
// closed meanwhile.
func (n *Node) holdVersion(v *Version) (*Version, error) {
	n.versions.Lock()
	defer n.versions.Unlock()
	if v.users == 0 {
		return nil, fs.ErrClosed
	}
	v.users++
	return v, nil
}

func (v *Version) holder() string { return fmt.Sprintf("%s-versions-%d", v.n.cfg.Name, os.Getpid()) }

func (v *Version) lease(ctx context.Context) error {
	err := v.n.cat.Lease(ctx, v.Set, v.holder(), time.Now().Add(versionLease))
	if errors.Is(err, catalog.ErrUnavailable) { // nothing can be pruned either
		return nil
	}
	return err
}

func (v *Version) open(ctx context.Context) (err error) {
	if err := v.lease(ctx); err != nil {
		return err
	}
	ref, err := v.n.packRef(ctx, v.Set)
	if err != nil {
		return err
	}
	v.mapped, err = v.n.mapIndex(ctx, ref)
	return err
}

// mapped is a version's index on this node's disk, checked and mapped.
type mapped struct {
	Index *index.Index
	index *packs.Handle
	mem   []byte
}

// mapIndex brings an index to this node's disk and maps it. Nothing holds the
// version: that is the caller's.
func (n *Node) mapIndex(ctx context.Context, ref restore.ShardRef) (m mapped, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, m.unmap())
		}
	}()
	if m.index, err = n.packs.Open(ctx, ref); err != nil {
		return m, err
	}
	if err := m.index.Wait(ctx); err != nil {
		return m, fmt.Errorf("index: %w", err)
	}
	f, err := m.index.Lend(ctx)
	if err != nil {
		return m, fmt.Errorf("index: %w", err)
	}
	defer f.Close()
	if size := m.index.Size(); size > 0 {
		if m.mem, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return m, fmt.Errorf("map index: %w", err)
		}
	}
	m.Index, err = index.Open(m.mem)
	return m, err
}

// unmap must not be called while the index is in use. Calling it again does nothing.
func (m *mapped) unmap() error {
	var err error
	if m.mem != nil {
		err = unix.Munmap(m.mem)
	}
	if m.index != nil {
		err = errors.Join(err, m.index.Close())
	}
	*m = mapped{}
	return err
}

// File is a new descriptor of the whole, checked index.
func (v *Version) File(ctx context.Context) (*os.File, error) { return v.index.Lend(ctx) }

// PackRef is the shard that pack i of the version is.
func (v *Version) PackRef(i int) (restore.ShardRef, error) {
	if i < 0 || i >= v.Index.Packs() {
		return restore.ShardRef{}, fmt.Errorf("%v: %w: no pack %d, it has %d", v.Set, catalog.ErrInvalid, i, v.Index.Packs())
	}
	p, err := v.Index.Pack(i)
	return restore.ShardRef{Set: p.Set, Size: p.Size, Root: p.Root}, err
}

// Pack opens pack i of the version. The caller closes the handle.
func (v *Version) Pack(ctx context.Context, i int) (*packs.Handle, error) {
	ref, err := v.PackRef(i)
	if err != nil {
		return nil, err
	}
	return v.n.packs.Open(ctx, ref)
}

const (
	// indexKept is how much of a mapped index stays in this process's memory,
	// in bytes, about, when a mount goes through it. The page cache keeps it.
	indexKept  = 32 << 20
	entryBytes = 128      // of an index, an entry
	faultBytes = 64 << 10 // that one access brings in
)

// used is told of entries of the index, one after the other, that were read.
func (v *Version) used(entries int) {
	if v.touched.Add(max(faultBytes, int64(entries)*entryBytes)) < indexKept || len(v.mem) == 0 {
		return
	}
	v.touched.Store(0)
	_ = unix.Madvise(v.mem, unix.MADV_DONTNEED) // of a mapped file: it is read again when it is wanted
}

// Close ends one use. The index must not be used after the last one.
func (v *Version) Close() error {
	v.n.versions.Lock()
	v.users--
	last := v.users == 0
	if last && v.n.versions.of[v.Set] == v {
		delete(v.n.versions.of, v.Set)
	}
	v.n.versions.Unlock()
	if !last {
		return nil
	}
	err := v.unmap()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if uerr := v.n.cat.Unlease(ctx, v.Set, v.holder()); uerr != nil {
		v.n.log.Debug("lease left to run out", "set", v.Set.String(), "err", uerr)
	}
	return err
}

// renewVersions renews the leases of what is open.
func (n *Node) renewVersions(ctx context.Context) error {
	n.versions.Lock()
	due := time.Since(n.versions.renewed) > versionLease/3
	var open []*Version
	if due {
		for _, v := range n.versions.of {
			open = append(open, v)
		}
		n.versions.renewed = time.Now()
	}
	n.versions.Unlock()
	var errs error
	for _, v := range open {
		if err := v.lease(ctx); err != nil {
			errs = errors.Join(errs, fmt.Errorf("lease of an open version: %w", err))
		}
	}
	return errs
}
