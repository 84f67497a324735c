package s3

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

// List walks the columns at or under prefix, folder by folder. What is no
// column of ours is passed over.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[remotetier.Entry, error] {
	return func(yield func(remotetier.Entry, error) bool) {
		err := t.begin(ctx)
		if err == nil && prefix == "" {
			err = t.walk(ctx, "", yield)
		} else if err == nil {
			if err = remotetier.CheckBlob(prefix); err == nil {
				err = t.walkBlob(ctx, prefix, yield)
			}
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(remotetier.Entry{}, err)
		}
	}
}

// errStop ends a walk whose consumer has had enough.
var errStop = errors.New("stop")

// walkBlob gives the columns of a blob and what is in the folder of its name.
func (t *Target) walkBlob(ctx context.Context, blob string, yield func(remotetier.Entry, error) bool) error {
	folder, base := plain.Split(blob)
	objects, _, err := t.b.Folder(ctx, plain.Join(folder, "."+base+"."))
	if err != nil {
		return err
	}
	own, _, err := t.b.Folder(ctx, blob)
	if err != nil {
		return err
	}
	for _, i := range columnsOf(folder, append(objects, own...)) {
		if i.key.Blob == blob && !yield(remotetier.Entry{Key: i.key, Size: i.size}, nil) {
			return errStop
		}
	}
	return t.walk(ctx, blob, yield)
}

// walk gives, for each last part of a name in the folder, the columns of the
// blob and then what is in the folder of that name. The depth is bounded by
// that of blob names.
func (t *Target) walk(ctx context.Context, folder string, yield func(remotetier.Entry, error) bool) error {
	begins := ""
	if folder != "" {
		begins = folder + "/"
	}
	objects, folders, err := t.b.Folder(ctx, begins)
	if err != nil {
		return err
	}
	byName := map[string][]column{}
	for _, c := range columnsOf(folder, objects) {
		_, base := plain.Split(c.key.Blob)
		byName[base] = append(byName[base], c)
	}
	sub := map[string]bool{}
	for _, f := range folders {
		if remotetier.CheckBlob(plain.Join(folder, f)) == nil {
			sub[f] = true
			byName[f] = append(byName[f], nil...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		for _, c := range byName[name] {
			if !yield(remotetier.Entry{Key: c.key, Size: c.size}, nil) {
				return errStop
			}
		}
		if sub[name] {
			if err := t.walk(ctx, plain.Join(folder, name), yield); err != nil {
				return err
			}
		}
	}
	return nil
}

// column is one of a listing.
type column struct {
	key  remotetier.Key
	size int64 // bytes of the whole column
}

// columnsOf finds the columns among the objects of a folder, in order. The
// size of one that lies in two objects is theirs together, without the
// sidecar's own page.
func columnsOf(folder string, objects []bucket.Info) []column {
	sizes, data := map[string]int64{}, map[remotetier.Key]int64{}
	for _, o := range objects {
		sizes[o.Name] = o.Size
		if key, kind, ok := plain.Parse(o.Name); ok && kind == plain.DataKind {
			data[key] = o.Size
		}
	}
	all := map[remotetier.Key]int64{}
	for _, o := range objects {
		key, kind, ok := plain.Parse(o.Name)
		if !ok {
			continue
		}
		size := o.Size
		switch kind {
		case plain.SidecarKind:
			blob, hidden := data[key]
			if !hidden {
				blob = sizes[key.Blob]
			}
			size += (blob+4095)/4096*4096 - 4096
		case plain.WholeKind:
			if _, ok := sizes[strings.TrimSuffix(o.Name, string(plain.WholeKind))+string(plain.SidecarKind)]; ok {
				continue // the sidecar's is the column
			}
		default:
			continue
		}
		key.Blob = plain.Join(folder, key.Blob)
		if key.Check() == nil {
			all[key] = size
		}
	}
	var out []column
	for _, key := range slices.SortedFunc(maps.Keys(all), remotetier.Key.Compare) {
		out = append(out, column{key, all[key]})
	}
	return out
}
