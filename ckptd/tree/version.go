package tree

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"syscall"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/fuse"
)

// Positions in a version: an entry of its index is at its own number, 0 being
// the root; pack k at packPos+k; then two folders that are found and not
// listed, so that the mounted tree is the tree that was imported.
const (
	packPos    = 1 << 31
	packsPos   = 1<<32 - 2
	shufflePos = 1<<32 - 3
)

// withVersion calls f with the version of a volume.
func (t *Tree) withVersion(ctx context.Context, k volume, f func(v *version) error) error {
	rec, err := t.setOf(k)
	if err != nil {
		return err
	}
	v, err := t.vers.use(ctx, rec)
	if err != nil {
		return err
	}
	defer v.release()
	defer v.Used(1)
	return f(v)
}

// attrOf is an entry's.
func (t *Tree) attrOf(e *index.Entry) fuse.Attr {
	a := fuse.Attr{Mode: e.Mode, Nlink: 1, UID: t.opt.UID, GID: t.opt.GID, Size: e.Size, Mtime: e.Mtime, Fixed: true}
	switch e.Kind {
	case index.Folder:
		a.Mode |= syscall.S_IFDIR
		a.Nlink = uint32(2 + e.Folders)
	case index.File:
		a.Mode |= syscall.S_IFREG
	case index.Link:
		a.Mode |= syscall.S_IFLNK
	}
	return a
}

func (t *Tree) versionNodeAttr(ctx context.Context, k volume, pos uint32) (a fuse.Attr, err error) {
	err = t.withVersion(ctx, k, func(v *version) error {
		a, err = t.inVersionAttr(v, pos)
		return err
	})
	return a, err
}

func (t *Tree) inVersionAttr(v *version, pos uint32) (fuse.Attr, error) {
	switch {
	case pos == packsPos, pos == shufflePos:
		return t.folderAttr(0, v.rec.Committed, true), nil
	case pos >= packPos:
		p, err := v.Index().Pack(int(pos - packPos))
		if err != nil {
			return fuse.Attr{}, stale(err)
		}
		return t.fileAttr(p.Size, v.rec.Committed), nil
	}
	e, err := v.Index().Entry(int(pos))
	if err != nil {
		return fuse.Attr{}, stale(err)
	}
	return t.attrOf(&e), nil
}

// stale turns a number that is not in an index into a node that is no more.
func stale(err error) error {
	if catalog.ClassOf(err) == catalog.ErrInvalid {
		return errStale
	}
	return err
}

func (t *Tree) lookupVersion(ctx context.Context, k volume, pos uint32, name []byte) (e fuse.Entry, err error) {
	err = t.withVersion(ctx, k, func(v *version) error {
		at, err := t.childOf(v, pos, name)
		if err != nil {
			return err
		}
		a, err := t.inVersionAttr(v, at)
		e = fuse.Entry{Name: name, ID: idOf(t.vols.number(k), at), Attr: a}
		return err
	})
	if err == nil || pos != shufflePos {
		return e, err
	}
	if err == errShuffle {
		return t.lookupShuffle(ctx, volume{shuffleKind, k.name + "|"}, name)
	}
	return e, err
}

// errShuffle says that a name is to be looked up below .shuffle.
var errShuffle = fmt.Errorf("shuffle: %w", fs.ErrNotExist)

// childOf finds a name in a folder of a version.
func (t *Tree) childOf(v *version, pos uint32, name []byte) (uint32, error) {
	switch {
	case pos == shufflePos:
		return 0, errShuffle
	case pos == packsPos:
		n, err := strconv.ParseUint(string(name), 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != string(name) || int(n) >= v.Index().Packs() {
			return 0, fs.ErrNotExist
		}
		return packPos + uint32(n), nil
	case pos >= packPos:
		return 0, syscall.ENOTDIR
	}
	i, ok, err := v.Index().Lookup(int(pos), name)
	switch {
	case catalog.ClassOf(err) == catalog.ErrInvalid:
		return 0, syscall.ENOTDIR
	case err != nil:
		return 0, err
	case ok:
		return uint32(i), nil
	case pos == selfPos && string(name) == ".packs":
		return packsPos, nil
	case pos == selfPos && string(name) == ".shuffle":
		return shufflePos, nil
	}
	return 0, fs.ErrNotExist
}

func (t *Tree) readVersion(ctx context.Context, k volume, pos uint32, from uint64, add func(fuse.Entry, uint64) bool) error {
	return t.withVersion(ctx, k, func(v *version) error {
		number, x := t.vols.number(k), v.Index()
		switch {
		case pos == shufflePos:
			return nil
		case pos == packsPos:
			for i := from; i < uint64(x.Packs()); i++ {
				a, err := t.inVersionAttr(v, packPos+uint32(i))
				if err != nil {
					return err
				}
				if !add(fuse.Entry{Name: strconv.AppendUint(nil, i, 10), ID: idOf(number, packPos+uint32(i)), Attr: a}, i+1) {
					return nil
				}
			}
			return nil
		case pos >= packPos:
			return syscall.ENOTDIR
		}
		dir, err := x.Entry(int(pos))
		if err != nil {
			return stale(err)
		}
		if dir.Kind != index.Folder {
			return syscall.ENOTDIR
		}
		i := from
		defer func() { v.Used(int(i - min(i, from))) }()
		for ; i < uint64(dir.Count); i++ {
			e, err := x.Entry(dir.First + int(i))
			if err != nil {
				return err
			}
			if !add(fuse.Entry{Name: e.Name, ID: idOf(number, uint32(dir.First)+uint32(i)), Attr: t.attrOf(&e)}, i+1) {
				return nil
			}
		}
		return nil
	})
}

func (t *Tree) linkInVersion(ctx context.Context, k volume, pos uint32) (target []byte, err error) {
	err = t.withVersion(ctx, k, func(v *version) error {
		if pos >= packPos {
			return syscall.EINVAL
		}
		e, err := v.Index().Entry(int(pos))
		if err != nil {
			return stale(err)
		}
		if e.Kind != index.Link {
			return syscall.EINVAL
		}
		target = append(target, e.Target...)
		return nil
	})
	return target, err
}

// openHeld opens a file of a version: while it is open the version stays, and
// holds a lease.
func (t *Tree) openHeld(ctx context.Context, rec catalog.SetRecord, open func(v *version) (fuse.File, error)) (fuse.File, error) {
	v, err := t.vers.use(ctx, rec)
	if err != nil {
		return nil, err
	}
	release, err := t.store.Hold(ctx, rec.SetID)
	if err != nil {
		v.release()
		return nil, err
	}
	release = both(release, v.release)
	f, err := open(v)
	if err != nil {
		release()
		return nil, err
	}
	return held{f, release}, nil
}

func both(a, b func()) func() {
	return func() {
		a()
		b()
	}
}

func (t *Tree) openInVersion(ctx context.Context, k volume, pos uint32) (fuse.File, error) {
	rec, err := t.setOf(k)
	if err != nil {
		return nil, err
	}
	return t.openHeld(ctx, rec, func(v *version) (fuse.File, error) {
		switch {
		case pos == packsPos, pos == shufflePos:
			return nil, syscall.EISDIR
		case pos >= packPos:
			return v.OpenPack(ctx, int(pos-packPos))
		}
		e, err := v.Index().Entry(int(pos))
		if err != nil {
			return nil, stale(err)
		}
		switch {
		case e.Kind == index.Folder:
			return nil, syscall.EISDIR
		case e.Kind == index.Link:
			return nil, syscall.ELOOP
		case e.Size == 0:
			return &record{v: v}, nil
		}
		p, err := v.Index().Pack(e.Pack)
		if err != nil {
			return nil, err
		}
		if p.Raw && p.Size == e.Size { // the pack is the file: the kernel may read it
			return v.OpenPack(ctx, e.Pack)
		}
		return &record{v: v, pack: e.Pack, off: e.Offset, size: e.Size, crc: e.CRC}, nil
	})
}

// record is a file within a pack. A pack's blocks are checked as they are read;
// a small file is read whole and held against its own checksum too, which says
// that these are the bytes that were imported, and not only those of the pack.
type record struct {
	v         *version
	pack      int
	off, size int64
	crc       uint32

	mu    sync.Mutex
	small []byte // all of it, once it was read
}

// smallFile is the size up to which a file is read whole, in bytes.
const smallFile = 256 << 10

func (r *record) Backing() *os.File { return nil }
func (r *record) Direct() bool      { return false }
func (r *record) Close() error      { return nil }

func (r *record) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off >= r.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > r.size-off {
		p, eof = p[:r.size-off], io.EOF
	}
	if r.size > smallFile {
		if err := r.v.read(ctx, r.pack, p, r.off+off); err != nil {
			return 0, err
		}
		return len(p), eof
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.small
	if b == nil {
		b = p
		whole := off == 0 && int64(len(p)) == r.size // as nearly always: nothing need be kept
		if !whole {
			b = make([]byte, r.size)
		}
		if err := r.v.read(ctx, r.pack, b, r.off); err != nil {
			return 0, err
		}
		if catalog.Sum32C(b) != r.crc {
			return 0, fmt.Errorf("%d bytes at %d of pack %d of %v: %w: not the file's checksum", r.size, r.off, r.pack, r.v.rec.SetID, catalog.ErrCorrupt)
		}
		if whole {
			return len(p), eof
		}
		r.small = b
	}
	copy(p, b[off:])
	return len(p), eof
}
