package tree

import (
	"cmp"
	"context"
	"io/fs"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/fuse"
)

// writeAttr is of the folder of a run's drafts.
func (t *Tree) writeAttr(sd side, path string) (fuse.Attr, error) {
	if t.write.desk == nil || sd != checkpoints || !isFolder(path, t.paths(sd)) {
		return fuse.Attr{}, errStale
	}
	drafts := t.write.of(path)
	var newest time.Time
	for _, d := range drafts {
		if at := d.Changed(); at.After(newest) {
			newest = at
		}
	}
	a := t.mayWrite(sd, t.folderAttr(len(drafts), newest, false))
	if t.opt.Shared {
		a.Mode |= syscall.S_ISVTX // a draft is its owner's to commit or remove
	}
	return a, nil
}

func (t *Tree) draftAttr(d Draft) fuse.Attr {
	o := d.Owner()
	return fuse.Attr{Mode: syscall.S_IFDIR | 0o755, Nlink: 2, UID: o.UID, GID: o.GID, Mtime: d.Changed()}
}

func draftFileAttr(d Draft, f DraftFile) fuse.Attr {
	o := d.Owner()
	nlink := uint32(1)
	if f.Name == "" {
		nlink = 0
	}
	return fuse.Attr{Mode: syscall.S_IFREG | 0o644, Nlink: nlink, UID: o.UID, GID: o.GID, Size: f.Size, Mtime: f.Mtime}
}

func (t *Tree) draftNodeAttr(k volume, pos uint32) (fuse.Attr, error) {
	d, err := t.write.byID(k.name)
	if err != nil {
		return fuse.Attr{}, err
	}
	if pos == selfPos {
		return t.draftAttr(d), nil
	}
	f, err := d.Stat(pos)
	if err != nil {
		return fuse.Attr{}, errStale
	}
	return draftFileAttr(d, f), nil
}

func (t *Tree) draftEntry(number uint32, d Draft, f DraftFile) fuse.Entry {
	return fuse.Entry{Name: []byte(f.Name), ID: idOf(number, f.Number), Attr: draftFileAttr(d, f)}
}

// lookupDraft finds a draft in .write.
func (t *Tree) lookupDraft(ctx context.Context, sd side, path string, name []byte) (fuse.Entry, error) {
	if sd != checkpoints {
		return fuse.Entry{}, errStale
	}
	d, err := t.write.byName(path, name)
	if err != nil {
		return fuse.Entry{}, err
	}
	return t.entry(ctx, name, t.idOfVolume(volume{draftKind, d.ID()}))
}

func (t *Tree) lookupInDraft(k volume, name []byte) (fuse.Entry, error) {
	d, err := t.write.byID(k.name)
	if err != nil {
		return fuse.Entry{}, err
	}
	f, err := d.Lookup(string(name))
	if err != nil {
		return fuse.Entry{}, fs.ErrNotExist
	}
	return t.draftEntry(t.vols.number(k), d, f), nil
}

// readDrafts lists .write. A cookie is the number of the draft's volume.
func (t *Tree) readDrafts(sd side, path string, from uint64, add func(fuse.Entry, uint64) bool) error {
	if sd != checkpoints {
		return errStale
	}
	type item struct {
		d      Draft
		number uint32
	}
	var items []item
	for _, d := range t.write.of(path) {
		items = append(items, item{d, t.vols.number(volume{draftKind, d.ID()})})
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Compare(a.number, b.number) })
	for _, it := range items {
		if uint64(it.number) <= from {
			continue
		}
		e := fuse.Entry{Name: strconv.AppendInt(nil, it.d.Step(), 10), ID: idOf(it.number, selfPos), Attr: t.draftAttr(it.d)}
		if !add(e, uint64(it.number)) {
			break
		}
	}
	return nil
}

// readDraft lists a draft. A cookie is the number of the file.
func (t *Tree) readDraft(k volume, from uint64, add func(fuse.Entry, uint64) bool) error {
	d, err := t.write.byID(k.name)
	if err != nil {
		return err
	}
	files := d.Files()
	slices.SortFunc(files, func(a, b DraftFile) int { return cmp.Compare(a.Number, b.Number) })
	number := t.vols.number(k)
	for _, f := range files {
		if uint64(f.Number) > from && !add(t.draftEntry(number, d, f), uint64(f.Number)) {
			break
		}
	}
	return nil
}

func (t *Tree) openInDraft(k volume, pos uint32, writes bool) (fuse.File, error) {
	d, err := t.write.byID(k.name)
	if err != nil {
		return nil, err
	}
	if writes {
		return d.Edit(pos)
	}
	return d.Open(pos)
}
