package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/tree"
	"github.com/ckptd/ckptd/fuse"
	"github.com/ckptd/ckptd/localtier"
)

// OpenShard opens a shard as its file on this node where that is whole, and
// otherwise through the daemon: from a peer or the remote tier, checked.
func (m mountStore) OpenShard(ctx context.Context, rec catalog.SetRecord, shard catalog.Shard) (fuse.File, error) {
	n := m.n
	if !m.checked {
		f, err := n.backing(shard.BlobName(rec.SetID), shard.Root)
		if err == nil {
			n.stats.Loads.Add(1)
			return f, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			n.log.Debug("shard not served from its file", "set", rec.SetID.String(), "rank", shard.Rank, "err", err)
		}
	}
	where, err := n.locate(ctx, rec, shard.Rank)
	if err != nil {
		return nil, err
	}
	if !where.local && len(where.peers) == 0 && (where.place == nil || n.remote == nil) {
		return nil, fmt.Errorf("%v: %w: no copy is in reach", where.ref, catalog.ErrUnavailable)
	}
	return &farShard{n: n, size: shard.Size, copies: n.open(where, ""), leave: n.enter(where.ref)}, nil
}

// backing opens a blob that is whole on this node, for the kernel to read.
func (n *Node) backing(name string, root catalog.Digest) (fuse.File, error) {
	b, err := n.local.Open(name)
	if err != nil {
		return nil, err
	}
	if b.Seal().Root() != root {
		b.Close()
		return nil, fmt.Errorf("%s: %w: it is not the copy that was voted for", name, catalog.ErrCorrupt)
	}
	f, err := b.OpenFile(false)
	if err != nil {
		b.Close()
		return nil, err
	}
	return &nearFile{b, f}, nil
}

// nearFile is a blob on this node. The kernel reads its file; what it asks the
// daemon for is checked.
type nearFile struct {
	b *localtier.Blob
	f *os.File
}

func (f *nearFile) Backing() *os.File { return f.f }
func (f *nearFile) Direct() bool      { return false }
func (f *nearFile) Close() error      { return errors.Join(f.f.Close(), f.b.Close()) }

func (f *nearFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.b.ReadAt(p, off)
}

// farShard is a shard whose bytes come from wherever a good copy is.
type farShard struct {
	n      *Node
	size   int64
	copies *copies
	leave  func()
	close  sync.Once
}

func (f *farShard) Backing() *os.File { return nil }
func (f *farShard) Direct() bool      { return false }

func (f *farShard) Close() error {
	f.close.Do(func() {
		f.copies.close()
		f.leave()
		f.n.mounts.blocks.Drop(f)
	})
	return nil
}

// mountStep is how much is fetched at a time for a mount, in bytes: the kernel
// asks for at most a megabyte, and a source has a price a request.
const mountStep = 4 << 20

func (f *farShard) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off >= f.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.size-off {
		p, eof = p[:f.size-off], io.EOF
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		i := at / mountStep
		b, err := f.n.mounts.blocks.Get(ctx, tree.BlockKey{File: f, Number: i}, func(ctx context.Context) ([]byte, error) {
			b := make([]byte, min(mountStep, f.size-i*mountStep))
			w := &sliceAt{b, i * mountStep}
			_, err := f.n.fetchFrom(ctx, f.copies, [][2]int64{{i * mountStep, int64(len(b))}}, w)
			return b, err
		})
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b[at-i*mountStep:])
	}
	f.n.stats.LoadedBytes.Add(int64(n))
	return n, eof
}

// sliceAt is memory for the bytes of a file from off on.
type sliceAt struct {
	b   []byte
	off int64
}

func (s *sliceAt) WriteAt(p []byte, off int64) (int, error) {
	if off < s.off || off-s.off > int64(len(s.b)-len(p)) {
		return 0, fmt.Errorf("%w: %d bytes at %d are not among those asked for", catalog.ErrInvalid, len(p), off)
	}
	return copy(s.b[off-s.off:], p), nil
}
