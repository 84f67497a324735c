package target

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"

	"github.com/ckptd/ckptd/remotetier"
)

// List walks the columns at or under prefix, folder by folder.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[remotetier.Entry, error] {
	return d.list(ctx, prefix, remotetier.Key{})
}

// list is List of what comes after a key (zero: of everything).
func (d *Dir) list(ctx context.Context, prefix string, after remotetier.Key) iter.Seq2[remotetier.Entry, error] {
	return func(yield func(remotetier.Entry, error) bool) {
		if prefix != "" {
			if err := remotetier.CheckBlob(prefix); err != nil {
				yield(remotetier.Entry{}, err)
				return
			}
		}
		if err := d.walk(ctx, prefix, after, yield); err != nil && !errors.Is(err, errStop) {
			yield(remotetier.Entry{}, err)
		}
	}
}

// errStop ends a walk whose consumer has had enough.
var errStop = errors.New("stop")

// walk gives a folder's own columns, then those of its subfolders. What is
// neither is passed over; what disappears meanwhile is not there. The depth is
// bounded by that of blob names.
func (d *Dir) walk(ctx context.Context, blob string, after remotetier.Key, yield func(remotetier.Entry, error) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := d.fs.ReadDir(d.path("columns", filepath.FromSlash(blob)))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.IsDir() || blob == "" {
			continue
		}
		key, err := remotetier.ParseKey(blob + "/" + e.Name())
		if err != nil || key.Compare(after) <= 0 {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !yield(remotetier.Entry{Key: key, Size: info.Size()}, nil) {
			return errStop
		}
	}
	for _, e := range entries {
		sub := e.Name()
		if blob != "" {
			sub = blob + "/" + sub
		}
		if !e.IsDir() || remotetier.CheckBlob(sub) != nil {
			continue
		}
		if (remotetier.Key{Blob: sub}).Compare(after) < 0 && !remotetier.Under(after.Blob, sub) {
			continue // all of it comes before
		}
		if err := d.walk(ctx, sub, after, yield); err != nil {
			return err
		}
	}
	return nil
}
