package posix

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"maps"
	"path/filepath"
	"slices"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

// List walks the columns at or under prefix. What is no column of ours is
// passed over; what disappears meanwhile is not there.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[remotetier.Entry, error] {
	return func(yield func(remotetier.Entry, error) bool) {
		var err error
		switch {
		case prefix == "":
			err = t.walk(ctx, "", yield)
		default:
			if err = remotetier.CheckBlob(prefix); err == nil {
				folder, base := plain.Split(prefix)
				err = t.walkSome(ctx, folder, func(name string) bool { return name == base }, yield)
			}
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(remotetier.Entry{}, err)
		}
	}
}

// errStop ends a walk whose consumer has had enough.
var errStop = errors.New("stop")

func (t *Target) walk(ctx context.Context, folder string, yield func(remotetier.Entry, error) bool) error {
	return t.walkSome(ctx, folder, func(string) bool { return true }, yield)
}

// item is what a folder has of one last part of blobs' names.
type item struct {
	columns map[remotetier.Key]plain.Kind
	folder  bool
}

// walkSome gives, for each last part of a name in the folder that want wants,
// the columns of the blob and then what is in the folder of that name. The
// depth is bounded by that of blob names.
func (t *Target) walkSome(ctx context.Context, folder string, want func(string) bool, yield func(remotetier.Entry, error) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := t.fs.ReadDir(t.path(filepath.FromSlash(folder)))
	if errors.Is(missing(err), fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	items := map[string]*item{}
	of := func(name string) *item {
		if items[name] == nil {
			items[name] = &item{columns: map[remotetier.Key]plain.Kind{}}
		}
		return items[name]
	}
	for _, e := range entries {
		key, kind, ok := plain.Parse(e.Name())
		switch {
		case e.IsDir() && want(e.Name()) && remotetier.CheckBlob(plain.Join(folder, e.Name())) == nil:
			of(e.Name()).folder = true
		case e.IsDir() || !ok || kind != plain.SidecarKind && kind != plain.WholeKind || !want(key.Blob):
		default:
			base := key.Blob
			key.Blob = plain.Join(folder, base)
			if key.Check() == nil && of(base).columns[key] != plain.SidecarKind { // which is opened, where there is one
				of(base).columns[key] = kind
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(items)) {
		columns := items[name].columns
		for _, key := range slices.SortedFunc(maps.Keys(columns), remotetier.Key.Compare) {
			size, err := t.sizeOf(key, columns[key])
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			if !yield(remotetier.Entry{Key: key, Size: size}, nil) {
				return errStop
			}
		}
		if items[name].folder {
			if err := t.walk(ctx, plain.Join(folder, name), yield); err != nil {
				return err
			}
		}
	}
	return nil
}

// sizeOf is the size of a column; of one whose sidecar is damaged, that of
// what there is.
func (t *Target) sizeOf(key remotetier.Key, kind plain.Kind) (int64, error) {
	name := t.wholePath(key)
	if kind == plain.SidecarKind {
		if s, err := t.sidecar(key); err == nil {
			return s.Size(), nil
		}
		name = t.sidePath(key)
	}
	info, err := t.fs.Stat(name)
	if err != nil {
		return 0, missing(err)
	}
	return info.Size(), nil
}
