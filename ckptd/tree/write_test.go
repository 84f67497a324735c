package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/fuse"
)

// emptyDesk lets everybody make folders and has no drafts.
type emptyDesk struct{ *shelf }

func (emptyDesk) Drafts() []Draft                     { return nil }
func (emptyDesk) MayWrite(fuse.Owner) error           { return nil }
func (emptyDesk) Commit(context.Context, Draft) error { return fs.ErrNotExist }
func (emptyDesk) NewDraft(context.Context, catalog.Run, int64, fuse.Owner) (Draft, error) {
	return nil, catalog.ErrNoSpace
}

// TestFoldersOfRuns: a run's folder is made by mkdir before the run is there,
// is no more than a name, and there is an end to it.
func TestFoldersOfRuns(t *testing.T) {
	tr := New(emptyDesk{newShelf("job@1#1")}, Options{})
	mkdir := func(parent fuse.ID, name string) (fuse.ID, error) {
		e, err := tr.Mkdir(t.Context(), parent, []byte(name), 0o755, fuse.Owner{})
		return e.ID, err
	}
	a, err := mkdir(checkpointsPos, "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := mkdir(a, "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		parent fuse.ID
		name   string
		want   error
	}{
		{fuse.Root, "x", syscall.EROFS}, {datasetsPos, "x", syscall.EROFS}, {checkpointsPos, "a", fs.ErrExist}, {checkpointsPos, "job", fs.ErrExist},
		{checkpointsPos, "_x", syscall.EPERM}, {checkpointsPos, "a b", catalog.ErrInvalid}, {b, "7", syscall.EPERM}, {b, "latest", syscall.EPERM},
		{b, ".write", syscall.EPERM}, {checkpointsPos, ".write", catalog.ErrInvalid},
	} {
		if _, err := mkdir(bad.parent, bad.name); !errors.Is(err, bad.want) {
			t.Errorf("mkdir %s: %v, want %v", bad.name, err, bad.want)
		}
	}
	if _, err := walk(t, tr, "checkpoints/a/b/.write"); err != nil {
		t.Errorf("where drafts are: %v", err)
	}
	if err := tr.Rmdir(t.Context(), checkpointsPos, []byte("job")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("rmdir of a run: %v, want EROFS", err)
	}
	if err := tr.Rmdir(t.Context(), checkpointsPos, []byte("a")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("rmdir with a folder in it: %v, want ENOTEMPTY", err)
	}
	if err := errors.Join(tr.Rmdir(t.Context(), a, []byte("b")), tr.Rmdir(t.Context(), checkpointsPos, []byte("a"))); err != nil {
		t.Error(err)
	}
	if _, err := walk(t, tr, "checkpoints/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after rmdir: %v, want fs.ErrNotExist", err)
	}
	for i := range maxRunFolders {
		if _, err := mkdir(checkpointsPos, fmt.Sprint("r", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mkdir(checkpointsPos, "more"); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("more than %d folders: %v, want ErrNoSpace", maxRunFolders, err)
	}
}

// TestReadOnlyStore: a tree of a store that takes no writing has nothing to write to.
func TestReadOnlyStore(t *testing.T) {
	tr := New(newShelf("job@1#1"), Options{})
	if _, err := tr.Mkdir(t.Context(), checkpointsPos, []byte("x"), 0o755, fuse.Owner{}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("mkdir: %v, want EROFS", err)
	}
	if _, err := walk(t, tr, "checkpoints/job/.write"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf(".write: %v, want fs.ErrNotExist", err)
	}
	e, err := walk(t, tr, "checkpoints/job")
	if err != nil || e.Attr.Mode&0o222 != 0 {
		t.Errorf("a run's folder: %o, %v", e.Attr.Mode, err)
	}
}
