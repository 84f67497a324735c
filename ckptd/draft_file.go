package ckptd

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/fuse"
	"github.com/ckptd/ckptd/localtier"
)

// draftFile is an open file of a draft. With a backing file the kernel writes
// it by itself, and the watch counts what it has written.
type draftFile struct {
	n    *Node
	o    *localtier.AreaFile
	back *os.File // nil: everything goes through the daemon
}

var _ fuse.WriteFile = (*draftFile)(nil)

// file makes an open file one of the mount.
func (d mountDraft) file(o *localtier.AreaFile, writes bool) (*draftFile, error) {
	f := &draftFile{n: d.n, o: o}
	if !d.checked {
		var err error
		if f.back, err = o.OpenFile(); err != nil {
			return nil, errors.Join(err, o.Close())
		}
	}
	if writes {
		d.n.drafts.watch.now()
	}
	return f, nil
}

func (f *draftFile) Backing() *os.File { return f.back }
func (f *draftFile) Direct() bool      { return false }

func (f *draftFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.o.ReadAt(p, off)
}

func (f *draftFile) WriteAt(_ context.Context, p []byte, off int64) (n int, err error) {
	err = f.n.withRoom(func() error {
		n, err = f.o.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *draftFile) Truncate(_ context.Context, size int64) error {
	return f.n.withRoom(func() error { return f.o.Truncate(size) })
}

// Allocate makes room from the beginning; nothing is punched or moved.
func (f *draftFile) Allocate(_ context.Context, mode uint32, off, size int64) error {
	if mode != 0 {
		return syscall.EOPNOTSUPP
	}
	return f.n.withRoom(func() error { return f.o.Allocate(off + size) })
}

// Sync tells a writer whose bytes were dropped, as Flush does.
func (f *draftFile) Sync(ctx context.Context) error {
	f.n.holdDrafts(ctx)
	return f.o.Sync()
}

func (f *draftFile) Flush(ctx context.Context) error {
	f.n.holdDrafts(ctx)
	return f.o.Err()
}

func (f *draftFile) Close() error {
	var err error
	if f.back != nil {
		err = f.back.Close()
	}
	return errors.Join(err, f.o.Close())
}

// readOnly hides that a file could be written.
type readOnly struct{ fuse.File }

// draftsEvery is how often files that the kernel writes are counted. What they
// may be over the quota is what is written in that time.
const draftsEvery = 100 * time.Millisecond

// watchDrafts holds what is being written against the quota.
func (n *Node) watchDrafts(ctx context.Context) error {
	for {
		if n.holdDrafts(ctx) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(draftsEvery):
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.drafts.watch:
		}
	}
}

// holdDrafts counts what is being written, makes room for it, and drops what
// there is no room for. It says whether anybody writes.
func (n *Node) holdDrafts(ctx context.Context) (writing bool) {
	over, writing := n.local.MeasureAreas()
	if over == 0 {
		return writing
	}
	if _, err := n.makeRoom(ctx, over); err != nil {
		n.log.Warn("no room for drafts, and eviction failed", "err", err)
	}
	if over, _ = n.local.MeasureAreas(); over == 0 {
		return writing
	}
	for _, name := range n.local.DropOverrun() {
		n.stats.DraftsDropped.Add(1)
		n.log.Error("a draft's file was dropped: it was written beyond the local tier's quota", "file", name, "over", over)
	}
	return writing
}
