package tree

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/fuse"
)

// Desk is a Store where sets are written too. A Tree of a Store that is none
// cannot be written.
type Desk interface {
	Store
	// Drafts are all of this node.
	Drafts() []Draft
	// MayWrite is fs.ErrPermission for who may not save.
	MayWrite(owner fuse.Owner) error
	// NewDraft begins the draft of a run's step; fs.ErrExist.
	NewDraft(ctx context.Context, run catalog.Run, step int64, owner fuse.Owner) (Draft, error)
	// Commit makes a draft's files the next set of its step, and returns when
	// that is visible. The draft is gone then; otherwise it is as it was.
	Commit(ctx context.Context, d Draft) error
}

// Draft is a folder in which the files of a set are written.
type Draft interface {
	ID() string // the same for as long as the draft is there
	Run() catalog.Run
	Step() int64
	Owner() fuse.Owner
	Changed() time.Time

	Files() []DraftFile
	Lookup(name string) (DraftFile, error) // fs.ErrNotExist
	Stat(number uint32) (DraftFile, error) // fs.ErrNotExist
	Open(number uint32) (fuse.File, error) // for reading
	Edit(number uint32) (fuse.WriteFile, error)
	Create(name string) (DraftFile, fuse.WriteFile, error)
	Rename(from, to string, replace bool) error
	Unlink(name string) error

	// Move makes it the draft of another step; fs.ErrExist.
	Move(step int64) error
	// Remove ends a draft without files.
	Remove() error
}

// DraftFile is a file in a draft.
type DraftFile struct {
	Number uint32 // its own, whatever its name; from 1
	Name   string
	Size   int64
	Mtime  time.Time
}

// writeFolder is where a run's drafts are. It can be opened and is not listed:
// what copies a tree must not copy what is half written.
const writeFolder = ".write"

// maxRunFolders bounds the folders that were made for runs that are no runs yet.
const maxRunFolders = 1024

// writing is what a Tree has for writing.
type writing struct {
	desk    Desk // nil: nothing can be written
	changed func(parent fuse.ID, name string)
	telling sync.WaitGroup
	mu      struct {
		sync.Mutex
		made map[string]time.Time // folders of runs, by mkdir
	}
}

func (w *writing) init(store Store) {
	w.desk, _ = store.(Desk)
	w.changed = func(fuse.ID, string) {}
	w.mu.made = make(map[string]time.Time)
}

// OnChange has f told of names that changed although the kernel did not ask
// for that. It is called from a goroutine of its own, which Close waits for.
// It is set before the tree is used.
func (t *Tree) OnChange(f func(parent fuse.ID, name string)) { t.write.changed = f }

func (w *writing) drafts() []Draft {
	if w.desk == nil {
		return nil
	}
	return w.desk.Drafts()
}

// of are the drafts of a run.
func (w *writing) of(path string) []Draft {
	return slices.DeleteFunc(w.drafts(), func(d Draft) bool { return string(d.Run()) != path })
}

func (w *writing) byID(id string) (Draft, error) {
	for _, d := range w.drafts() {
		if d.ID() == id {
			return d, nil
		}
	}
	return nil, errStale
}

func (w *writing) byName(path string, name []byte) (Draft, error) {
	step, ok := parseDraft(string(name))
	for _, d := range w.of(path) {
		if ok && d.Step() == step {
			return d, nil
		}
	}
	return nil, fs.ErrNotExist
}

func parseDraft(name string) (step int64, ok bool) {
	step, attempt, ok := parseStep(name)
	return step, ok && attempt == 0
}

// paths are the runs that are about to be written.
func (w *writing) paths() (paths []string) {
	for _, d := range w.drafts() {
		paths = append(paths, string(d.Run()))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for path := range w.mu.made {
		paths = append(paths, path)
	}
	return paths
}

// mayWrite gives a folder of checkpoints the mode that lets drafts be made.
func (t *Tree) mayWrite(sd side, a fuse.Attr) fuse.Attr {
	if sd == checkpoints && t.write.desk != nil {
		a.Mode |= 0o200
		if t.opt.Shared {
			a.Mode |= 0o222 // who may is for the desk to say
		}
	}
	return a
}

// Mkdir implements fuse.WriteTree: it makes a folder of a run, or a draft.
func (t *Tree) Mkdir(ctx context.Context, parent fuse.ID, name []byte, _ uint32, owner fuse.Owner) (fuse.Entry, error) {
	k, pos, err := t.find(parent)
	if err != nil {
		return fuse.Entry{}, err
	}
	sd, folder, _ := sideOf(k.kind)
	w := &t.write
	if w.desk == nil || k.kind != draftKind && (!folder || sd != checkpoints) {
		return fuse.Entry{}, syscall.EROFS
	}
	if err := w.desk.MayWrite(owner); err != nil {
		return fuse.Entry{}, err
	}
	switch {
	case k.kind == draftKind:
		return fuse.Entry{}, syscall.EPERM // a set has files, no folders
	case pos == writePos:
		step, ok := parseDraft(string(name))
		if !ok {
			return fuse.Entry{}, fmt.Errorf("draft %.80q: %w: its name is the number of a step", name, catalog.ErrInvalid)
		}
		d, err := w.desk.NewDraft(ctx, catalog.Run(k.name), step, owner)
		if err != nil {
			return fuse.Entry{}, err
		}
		return t.entry(ctx, name, t.idOfVolume(volume{draftKind, d.ID()}))
	case pos != selfPos:
		return fuse.Entry{}, syscall.ENOTDIR
	}
	if err := t.makeFolder(k.name, string(name)); err != nil {
		return fuse.Entry{}, err
	}
	return t.entry(ctx, name, t.idOfVolume(volume{sd.folder, join(k.name, string(name))}))
}

// makeFolder makes the folder of a run. It is only remembered: a run begins
// with its first set.
func (t *Tree) makeFolder(path, name string) error {
	if path != "" {
		if _, _, step := parseStep(name); step || name == writeFolder || name == "latest" {
			return syscall.EPERM // a set is written in .write and renamed
		}
	}
	path = join(path, name)
	run, err := catalog.ParseRun(path)
	if err != nil {
		return err
	}
	if run.Reserved() {
		return syscall.EPERM
	}
	if isFolder(path, t.paths(checkpoints)) {
		return fs.ErrExist
	}
	w := &t.write
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.mu.made) >= maxRunFolders {
		runs := checkpoints.paths(t.store.Runs())
		maps.DeleteFunc(w.mu.made, func(made string, _ time.Time) bool { return isFolder(made, runs) })
	}
	if len(w.mu.made) >= maxRunFolders {
		return fmt.Errorf("folder %s: %w: %d folders were made for runs without a set", path, catalog.ErrNoSpace, maxRunFolders)
	}
	w.mu.made[path] = time.Now()
	return nil
}

// Rmdir implements fuse.WriteTree.
func (t *Tree) Rmdir(_ context.Context, parent fuse.ID, name []byte) error {
	k, pos, err := t.find(parent)
	if err != nil {
		return err
	}
	sd, folder, _ := sideOf(k.kind)
	w := &t.write
	switch {
	case w.desk == nil || !folder || sd != checkpoints:
		return syscall.EROFS
	case pos == writePos:
		d, err := w.byName(k.name, name)
		if err != nil {
			return err
		}
		if len(d.Files()) > 0 {
			return syscall.ENOTEMPTY
		}
		return d.Remove()
	}
	path := join(k.name, string(name))
	others := slices.DeleteFunc(t.paths(sd), func(p string) bool { return p == path })
	w.mu.Lock()
	defer w.mu.Unlock()
	_, made := w.mu.made[path]
	switch {
	case !made:
		return syscall.EROFS
	case isFolder(path, others):
		return syscall.ENOTEMPTY
	}
	delete(w.mu.made, path)
	return nil
}

// Unlink implements fuse.WriteTree.
func (t *Tree) Unlink(_ context.Context, parent fuse.ID, name []byte) error {
	k, pos, err := t.find(parent)
	if err != nil {
		return err
	}
	if k.kind != draftKind || pos != selfPos {
		return syscall.EROFS
	}
	d, err := t.write.byID(k.name)
	if err != nil {
		return err
	}
	return d.Unlink(string(name))
}

// Rename implements fuse.WriteTree: of a file within its draft, of a draft to
// another step, and of a draft out of .write, which commits it.
func (t *Tree) Rename(ctx context.Context, parent fuse.ID, name []byte, toParent fuse.ID, toName []byte, replace bool) error {
	from, pos, err := t.find(parent)
	if err != nil {
		return err
	}
	to, toPos, err := t.find(toParent)
	if err != nil {
		return err
	}
	sd, folder, _ := sideOf(from.kind)
	switch {
	case from.kind == draftKind && pos == selfPos:
		if to.kind == draftKind && from != to {
			return syscall.EXDEV
		}
		if to.kind != draftKind || toPos != selfPos {
			return syscall.EROFS
		}
		if err := checkFile(string(toName)); err != nil {
			return err
		}
		d, err := t.write.byID(from.name)
		if err != nil {
			return err
		}
		return d.Rename(string(name), string(toName), replace)
	case !folder || sd != checkpoints || pos != writePos:
		return syscall.EROFS
	}
	d, err := t.write.byName(from.name, name)
	if err != nil {
		return err
	}
	step, ok := parseDraft(string(toName))
	toSide, _, _ := sideOf(to.kind)
	switch {
	case toSide.folder != from.kind || to.kind != from.kind:
		return syscall.EROFS
	case to.name != from.name:
		return syscall.EXDEV
	case !ok:
		return fmt.Errorf("%.80q: %w: want the number of a step", toName, catalog.ErrInvalid)
	case toPos == writePos:
		return d.Move(step)
	case toPos != selfPos:
		return syscall.ENOTDIR
	case step != d.Step():
		return fmt.Errorf("step %d: %w: the draft is of step %d", step, catalog.ErrInvalid, d.Step())
	}
	if _, taken := t.store.Set(d.Run(), step, 0); taken && !replace {
		return fs.ErrExist
	}
	if err := t.write.desk.Commit(ctx, d); err != nil {
		return err
	}
	// The kernel believes that it is the same folder, moved.
	t.write.telling.Go(func() {
		t.write.changed(toParent, string(toName))
		t.write.changed(toParent, "latest")
	})
	return nil
}

// SetAttr implements fuse.WriteTree. Modes and times of a draft's files are
// not kept: a set has one time, and is read-only.
func (t *Tree) SetAttr(ctx context.Context, id fuse.ID, c fuse.Change) (fuse.Attr, error) {
	k, _, err := t.find(id)
	if err != nil {
		return fuse.Attr{}, err
	}
	if k.kind != draftKind {
		return fuse.Attr{}, syscall.EROFS
	}
	a, err := t.Attr(ctx, id)
	if err == nil && (c.UID != nil && *c.UID != a.UID || c.GID != nil && *c.GID != a.GID) {
		err = syscall.EPERM
	}
	return a, err
}

// checkFile refuses what could not be a shard's file, or would be shown under
// another name.
func checkFile(name string) error {
	if name == manifestFile {
		return fmt.Errorf("file %s: %w: it is the name of the set's manifest", name, catalog.ErrInvalid)
	}
	return catalog.CheckFile(name)
}

// Create implements fuse.WriteTree.
func (t *Tree) Create(_ context.Context, parent fuse.ID, name []byte, _ uint32, owner fuse.Owner) (fuse.Entry, fuse.WriteFile, error) {
	k, pos, err := t.find(parent)
	if err != nil {
		return fuse.Entry{}, nil, err
	}
	if k.kind != draftKind || pos != selfPos {
		return fuse.Entry{}, nil, syscall.EROFS
	}
	d, err := t.write.byID(k.name)
	if err == nil {
		err = t.write.desk.MayWrite(owner)
	}
	if err == nil {
		err = checkFile(string(name))
	}
	if err != nil {
		return fuse.Entry{}, nil, err
	}
	f, w, err := d.Create(strings.Clone(string(name)))
	if err != nil {
		return fuse.Entry{}, nil, err
	}
	return t.draftEntry(t.vols.number(k), d, f), w, nil
}
