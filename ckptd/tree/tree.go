package tree

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/fuse"
)

// Store is what the tree shows. It is used by many goroutines at once.
type Store interface {
	// Runs are the names of all runs that are known, in order.
	Runs() []catalog.Run
	// Committed are a run's visible sets, newest first.
	Committed(run catalog.Run) []catalog.SetRecord
	// Set finds a visible set; attempt 0 is the newest that has the step, and
	// step catalog.Latest the newest set.
	Set(run catalog.Run, step int64, attempt int) (catalog.SetRecord, bool)
	// Manifest is the checked list of a set's shards, and its bytes.
	Manifest(ctx context.Context, rec catalog.SetRecord) (*catalog.Manifest, []byte, error)
	// OpenShard opens one shard's bytes.
	OpenShard(ctx context.Context, rec catalog.SetRecord, shard catalog.Shard) (fuse.File, error)
	// OpenVersion opens a dataset's version.
	OpenVersion(ctx context.Context, rec catalog.SetRecord) (Version, error)
	// Hold keeps a set's bytes from being pruned until release is called.
	Hold(ctx context.Context, id catalog.SetID) (release func(), err error)
	Space() fuse.Space
}

// Version is a version that is open. Its methods are used by many goroutines at once.
type Version interface {
	// Index is there until Close.
	Index() *index.Index
	// Used is told of n entries of the index, one after the other, that were
	// just read: their pages need not stay in memory for that.
	Used(n int)
	// OpenPack opens one of the index's packs, as a file of its own.
	OpenPack(ctx context.Context, pack int) (fuse.File, error)
	Close() error
}

// Parker is a pack that wants to know when nobody reads it for a while, though
// it stays open. After Park it is read, parked again or closed.
type Parker interface{ Park() }

// Options of a Tree; the zero value works.
type Options struct {
	UID, GID uint32    // who owns the files
	Started  time.Time // of the folders that have no time of their own
	Shared   bool      // others than the owner may write too, if the Desk lets them
}

// Tree shows a Store.
type Tree struct {
	store Store
	opt   Options
	vols  volumes
	sets  layouts
	vers  versions
	views views
	write writing
}

var _ fuse.WriteTree = (*Tree)(nil)

// New gives the tree of a store.
func New(store Store, opt Options) *Tree {
	t := &Tree{store: store, opt: opt}
	t.vols.init()
	t.sets.init()
	t.vers.init(store)
	t.views.init()
	t.write.init(store)
	return t
}

// Positions in volume 0, the tree's own.
const (
	rootPos        = uint32(fuse.Root)
	checkpointsPos = 2
	datasetsPos    = 3
)

// kind says what a volume is.
type kind byte

const (
	folderKind  kind = 'f' // of runs; name is their path, "" for all
	stepKind    kind = 's' // a set by its step; name is the SetID's text
	attemptKind kind = 'a' // a set by its step and attempt

	datasetKind        kind = 'd' // as folderKind, of datasets
	versionKind        kind = 'v'
	versionAttemptKind kind = 'w'
	shuffleKind        kind = 'q' // what is below .shuffle; name is the SetID's text, "|" and the path

	// The link to a run's newest set is another node with each of them: the
	// kernel keeps where a link leads for as long as it knows the node.
	linkKind  kind = 'l' // name is the SetID's text
	draftKind kind = 'p' // name is the Draft's ID
)

type volume struct {
	kind kind
	name string
}

// Positions in a folder of runs, and in a set.
const (
	selfPos     = 0
	latestPos   = 1 // in a folder's listing
	writePos    = 2 // in a folder of checkpoints: where drafts are
	manifestPos = 1 // in a set
	shardPos    = 2 // in a set, plus the rank
)

// errStale is for a node that is no more: the kernel looks its path up anew.
var errStale error = syscall.ESTALE

// find says what a node is.
func (t *Tree) find(id fuse.ID) (volume, uint32, error) {
	n, pos := splitID(id)
	if n == 0 {
		for _, sd := range sides {
			if pos == sd.pos {
				return volume{sd.folder, ""}, selfPos, nil
			}
		}
		return volume{}, pos, nil
	}
	k, ok := t.vols.of(n)
	if !ok { // of an earlier process, or long ago
		t.enumerate()
		if k, ok = t.vols.of(n); !ok {
			return volume{}, 0, errStale
		}
	}
	return k, pos, nil
}

// enumerate gives every volume there is its number.
func (t *Tree) enumerate() {
	for _, d := range t.write.drafts() {
		t.vols.number(volume{draftKind, d.ID()})
	}
	for _, sd := range sides {
		for _, path := range t.paths(sd) {
			for i, c := range path {
				if c == '/' {
					t.vols.number(volume{sd.folder, path[:i]})
				}
			}
			t.vols.number(volume{sd.folder, path})
			for _, rec := range t.store.Committed(sd.run(path)) {
				t.vols.number(volume{sd.set, rec.SetID.String()})
			}
			t.latest(sd, path)
		}
	}
}

// sideOf is the side whose folder, or set, a volume is.
func sideOf(k kind) (sd side, folder, set bool) {
	for _, sd := range sides {
		if folder, set = k == sd.folder, k == sd.set || k == sd.attempt; folder || set {
			return sd, folder, set
		}
	}
	return side{}, false, false
}

// idOfVolume is the node of the volume itself.
func (t *Tree) idOfVolume(k volume) fuse.ID {
	for _, sd := range sides {
		if k == (volume{sd.folder, ""}) {
			return fuse.ID(sd.pos)
		}
	}
	return idOf(t.vols.number(k), selfPos)
}

// setOf is the visible set of a volume.
func (t *Tree) setOf(k volume) (catalog.SetRecord, error) {
	ref, err := catalog.ParseRef(k.name)
	if err != nil {
		return catalog.SetRecord{}, err
	}
	if rec, ok := t.store.Set(ref.Run, ref.Step, ref.Attempt); ok {
		return rec, nil
	}
	return catalog.SetRecord{}, errStale
}

func (t *Tree) folderAttr(subfolders int, mtime time.Time, fixed bool) fuse.Attr {
	if mtime.IsZero() {
		mtime = t.opt.Started
	}
	return fuse.Attr{Mode: syscall.S_IFDIR | 0o555, Nlink: uint32(2 + subfolders), UID: t.opt.UID, GID: t.opt.GID, Mtime: mtime, Fixed: fixed}
}

func (t *Tree) fileAttr(size int64, mtime time.Time) fuse.Attr {
	return fuse.Attr{Mode: syscall.S_IFREG | 0o444, Nlink: 1, UID: t.opt.UID, GID: t.opt.GID, Size: size, Mtime: mtime, Fixed: true}
}

// Attr implements fuse.Tree.
func (t *Tree) Attr(ctx context.Context, id fuse.ID) (fuse.Attr, error) {
	k, pos, err := t.find(id)
	if err != nil {
		return fuse.Attr{}, err
	}
	sd, folder, set := sideOf(k.kind)
	switch {
	case k.kind == 0 && pos == rootPos:
		return t.folderAttr(len(sides), time.Time{}, true), nil
	case folder && pos == writePos:
		return t.writeAttr(sd, k.name)
	case folder:
		return t.folderNodeAttr(sd, k.name, pos)
	case k.kind == draftKind:
		return t.draftNodeAttr(k, pos)
	case k.kind == linkKind:
		return t.linkAttr(k)
	case set && sd == datasets:
		return t.versionNodeAttr(ctx, k, pos)
	case set:
		return t.setNodeAttr(ctx, k, pos)
	case k.kind == shuffleKind && pos == selfPos:
		return t.shuffleNodeAttr(ctx, k)
	}
	return fuse.Attr{}, errStale
}

// Lookup implements fuse.Tree.
func (t *Tree) Lookup(ctx context.Context, parent fuse.ID, name []byte) (fuse.Entry, error) {
	k, pos, err := t.find(parent)
	if err != nil {
		return fuse.Entry{}, err
	}
	sd, folder, set := sideOf(k.kind)
	switch {
	case k.kind == 0 && pos == rootPos:
		for _, sd := range sides {
			if string(name) == sd.name {
				return t.entry(ctx, name, fuse.ID(sd.pos))
			}
		}
		return fuse.Entry{}, fs.ErrNotExist
	case folder && pos == selfPos:
		return t.lookupFolder(ctx, sd, k.name, name)
	case folder && pos == writePos:
		return t.lookupDraft(ctx, sd, k.name, name)
	case k.kind == draftKind && pos == selfPos:
		return t.lookupInDraft(k, name)
	case set && sd == datasets:
		return t.lookupVersion(ctx, k, pos, name)
	case set && pos == selfPos:
		return t.lookupSet(ctx, k, name)
	case k.kind == shuffleKind && pos == selfPos:
		return t.lookupShuffle(ctx, k, name)
	}
	return fuse.Entry{}, syscall.ENOTDIR
}

func (t *Tree) entry(ctx context.Context, name []byte, id fuse.ID) (fuse.Entry, error) {
	a, err := t.Attr(ctx, id)
	if err == errStale {
		err = fs.ErrNotExist // it went meanwhile
	}
	return fuse.Entry{Name: name, ID: id, Attr: a}, err
}

// ReadDir implements fuse.Tree.
func (t *Tree) ReadDir(ctx context.Context, dir fuse.ID, from uint64, add func(fuse.Entry, uint64) bool) error {
	k, pos, err := t.find(dir)
	if err != nil {
		return err
	}
	sd, folder, set := sideOf(k.kind)
	switch {
	case k.kind == 0 && pos == rootPos:
		for _, sd := range sides {
			if uint64(sd.pos) <= from {
				continue
			}
			e, err := t.entry(ctx, []byte(sd.name), fuse.ID(sd.pos))
			if err != nil || !add(e, uint64(sd.pos)) {
				return err
			}
		}
		return nil
	case folder && pos == selfPos:
		return t.readFolder(ctx, sd, k.name, from, add)
	case folder && pos == writePos:
		return t.readDrafts(sd, k.name, from, add)
	case k.kind == draftKind && pos == selfPos:
		return t.readDraft(k, from, add)
	case set && sd == datasets:
		return t.readVersion(ctx, k, pos, from, add)
	case set && pos == selfPos:
		return t.readSet(ctx, k, from, add)
	case k.kind == shuffleKind && pos == selfPos:
		return t.readShuffle(k)
	}
	return syscall.ENOTDIR
}

// ReadLink implements fuse.Tree.
func (t *Tree) ReadLink(ctx context.Context, id fuse.ID) ([]byte, error) {
	k, pos, err := t.find(id)
	if err != nil {
		return nil, err
	}
	sd, _, set := sideOf(k.kind)
	switch {
	case k.kind == linkKind:
		target, _, err := t.linkTo(k)
		return []byte(target), err
	case set && sd == datasets:
		return t.linkInVersion(ctx, k, pos)
	}
	return nil, syscall.EINVAL
}

// Open implements fuse.Tree.
func (t *Tree) Open(ctx context.Context, id fuse.ID, flags uint32) (fuse.File, error) {
	k, pos, err := t.find(id)
	if err != nil {
		return nil, err
	}
	writes := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if k.kind == draftKind && pos != selfPos {
		return t.openInDraft(k, pos, writes)
	}
	if writes || flags&syscall.O_TRUNC != 0 {
		return nil, syscall.EROFS
	}
	sd, _, set := sideOf(k.kind)
	switch {
	case set && sd == datasets:
		return t.openInVersion(ctx, k, pos)
	case set && pos != selfPos:
		return t.openInSet(ctx, k, pos)
	case k.kind == shuffleKind && pos == selfPos:
		return t.openTar(ctx, k)
	case k.kind == linkKind:
		return nil, syscall.ELOOP
	}
	return nil, syscall.EISDIR
}

// Space implements fuse.Tree.
func (t *Tree) Space() fuse.Space { return t.store.Space() }

// held is an open file of a set that is leased.
type held struct {
	fuse.File
	release func()
}

func (h held) Close() error {
	defer h.release()
	return h.File.Close()
}

// memory is a small file whose bytes are here.
type memory struct{ *bytes.Reader }

func (memory) Backing() *os.File { return nil }
func (memory) Direct() bool      { return false }
func (memory) Close() error      { return nil }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off >= m.Size() {
		return 0, io.EOF
	}
	return m.Reader.ReadAt(p, off)
}
