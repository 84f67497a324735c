package datasets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/datasets/source"
)

// filler puts what was read into packs, in the order of the source, and tells
// the builder where everything is. It is for one goroutine; upload is another's.
type filler struct {
	im      *importer
	builder *index.Builder
	version Version

	slots  []index.Pack          // the version's packs, in the order they came up
	slotOf map[catalog.SetID]int // of packs that were there
	fresh  map[catalog.Digest]place
	paths  map[string]place // of files, where the source has hard links

	cur    *filling
	free   chan *filling // two of them
	full   chan *filling
	sample sampleOf

	made struct { // what upload made, by slot
		sync.Mutex
		packs map[int]index.Pack
		first Blob // held until the version is there
	}
}

// put tells what became of a pack.
func (f *filler) put(slot int, p index.Pack) {
	f.made.Lock()
	defer f.made.Unlock()
	f.made.packs[slot] = p
}

// hold keeps the first pack that is made until the version is there. As long as
// somebody holds it, newer packs that no version names are not collected either.
func (f *filler) hold(ctx context.Context, set catalog.SetID) error {
	f.made.Lock()
	defer f.made.Unlock()
	if f.made.first != nil {
		return nil
	}
	var err error
	f.made.first, err = again(ctx, f.im, func() (Blob, error) {
		_, b, err := f.im.store.OpenPack(ctx, set)
		return b, err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrIncomplete) {
		err = fmt.Errorf("%w: it was collected as soon as it was there; give packs without a version more time (--pack-patience of ckptd serve) and import again", catalog.ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("hold the first pack: %w", err)
	}
	return nil
}

// release lets it go.
func (f *filler) release() {
	if f.made.first != nil {
		_ = f.made.first.Close() // a lease that ends
	}
}

// place is where content is.
type place struct {
	slot int
	rec  pack.Record
}

// filling is an aggregate that is being filled, or stored.
type filling struct {
	mem  []byte
	w    *pack.Writer
	slot int
}

// sampleOf collects the fields of a sample.
type sampleOf struct {
	key    string
	fields []index.Range
}

func newFiller(im *importer) (*filler, error) {
	f := &filler{
		im: im, builder: index.NewBuilder(), slotOf: make(map[catalog.SetID]int), fresh: make(map[catalog.Digest]place),
		free: make(chan *filling, 2), full: make(chan *filling),
	}
	f.made.packs = make(map[int]index.Pack)
	if im.facts.Stream {
		f.paths = make(map[string]place)
	}
	for range cap(f.free) {
		mem := make([]byte, im.opt.PackSize) // touched as it fills
		w, err := pack.NewBuffer(mem)
		if err != nil {
			return nil, err
		}
		f.free <- &filling{mem: mem, w: w}
	}
	return f, nil
}

// run packs the batches.
func (f *filler) run(ctx context.Context) error {
	defer close(f.full)
	for {
		var b *batch
		var ok bool
		select {
		case b, ok = <-f.im.line:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !ok {
			break
		}
		select {
		case <-b.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := f.batch(ctx, b); err != nil {
			return err
		}
		f.im.ahead.Release(min(b.bytes, aheadBytes))
		if b.done != nil {
			close(b.done)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := f.endSample(); err != nil {
		return err
	}
	return f.flush(ctx)
}

func (f *filler) batch(ctx context.Context, b *batch) error {
	for i := range b.entries {
		e := &b.entries[i]
		if e.item.Sample == "" || i == 0 || e.item.Sample != b.entries[i-1].item.Sample {
			if err := f.makeRoom(ctx, b.entries[i:]); err != nil {
				return err
			}
		}
		if err := f.entry(ctx, e); err != nil {
			return fmt.Errorf("import %q: %w", e.item.Path, err)
		}
		e.data = nil
	}
	return nil
}

// makeRoom begins a new pack when the next sample would be in two, and fits into
// one.
func (f *filler) makeRoom(ctx context.Context, entries []entry) error {
	if f.cur == nil {
		return nil
	}
	need := int64(0)
	for i := range entries {
		if i > 0 && (entries[i].item.Sample == "" || entries[i].item.Sample != entries[0].item.Sample) {
			break
		}
		need += (int64(len(entries[i].data)) + pack.Align - 1) / pack.Align * (pack.Align + pack.Align) // with a row of the table: at most this
	}
	if f.cur.w.Len() > 0 && !f.cur.w.Fits(need) && need < f.im.opt.PackSize/2 {
		return f.flush(ctx)
	}
	return nil
}

// entry tells the builder of one item, stored first if need be.
func (f *filler) entry(ctx context.Context, e *entry) error {
	it := &e.item
	add := index.Add{Path: it.Path, Mode: it.Mode, Mtime: it.Mtime}
	switch it.Kind {
	case source.Folder:
		add.Kind = index.Folder
		_, err := f.builder.Add(add)
		return err
	case source.Link:
		add.Kind, add.Target = index.Link, it.Target
		_, err := f.builder.Add(add)
		return err
	}
	at, err := f.store(ctx, e)
	if err != nil {
		return err
	}
	if f.paths != nil {
		f.paths[it.Path] = at
	}
	add.Kind, add.Size, add.Hash = index.File, at.rec.Size, at.rec.Hash
	add.Pack, add.Offset, add.CRC = at.slot, at.rec.Offset, at.rec.CRC
	id, err := f.builder.Add(add)
	if err != nil {
		return err
	}
	f.im.opt.Progress(1, at.rec.Size)
	return f.samples(e, id, at.rec.Size)
}

// samples makes the file one sample, or a field of one, or many.
func (f *filler) samples(e *entry, id index.FileID, size int64) error {
	it := &e.item
	if it.Sample == "" || it.Sample != f.sample.key || len(f.sample.fields) == index.MaxFields {
		if err := f.endSample(); err != nil {
			return err
		}
	}
	switch {
	case it.NoSample:
		return nil
	case it.Records != nil:
		return addRuns(f.builder, id, e.runs)
	case it.Sample == "":
		return f.builder.Whole(id)
	}
	f.sample.key = it.Sample
	f.sample.fields = append(f.sample.fields, index.Range{File: id, Size: size})
	return nil
}

func (f *filler) endSample() error {
	fields := f.sample.fields
	f.sample.key, f.sample.fields = "", fields[:0]
	if len(fields) == 0 {
		return nil
	}
	return f.builder.Sample(fields...)
}

// slot numbers a pack that was there.
func (f *filler) slot(p index.Pack) int {
	n, ok := f.slotOf[p.Set]
	if !ok {
		n = len(f.slots)
		f.slotOf[p.Set] = n
		f.slots = append(f.slots, p)
		f.version.OldPacks++
	}
	return n
}

// store gives the place of a file's content, which it stores if it is new.
func (f *filler) store(ctx context.Context, e *entry) (place, error) {
	switch {
	case e.item.Same != "":
		at, ok := f.paths[e.item.Same]
		if !ok {
			return place{}, fmt.Errorf("%w: a hard link to %q, which is no file before it", catalog.ErrCorrupt, e.item.Same)
		}
		return at, nil
	case e.found != nil:
		f.version.Unread++
		return place{f.slot(e.found.pack), e.found.rec}, nil
	case e.large:
		return f.large(ctx, e)
	case e.rec.Size == 0:
		return place{rec: e.rec}, nil
	}
	if at, ok, err := f.stored(e.rec); err != nil || ok {
		f.version.Known++
		return at, err
	}
	if f.cur != nil && !f.cur.w.Fits(e.rec.Size) {
		if err := f.flush(ctx); err != nil {
			return place{}, err
		}
	}
	if f.cur == nil {
		if err := f.begin(ctx); err != nil {
			return place{}, err
		}
	}
	rec, err := f.cur.w.Add(e.data, e.rec)
	if err != nil {
		return place{}, err
	}
	at := place{f.cur.slot, rec}
	f.fresh[rec.Hash] = at
	f.version.NewBytes += rec.Size
	return at, nil
}

// stored finds content by its hash.
func (f *filler) stored(rec pack.Record) (place, bool, error) {
	if at, ok := f.fresh[rec.Hash]; ok {
		return at, true, nil
	}
	have, err := f.im.known.content(rec)
	if err != nil || have == nil {
		return place{}, false, err
	}
	return place{f.slot(have.pack), have.rec}, true, nil
}

// begin takes an empty pack, when one is free.
func (f *filler) begin(ctx context.Context) error {
	select {
	case f.cur = <-f.free:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := f.cur.w.Reset(); err != nil {
		return err
	}
	f.cur.slot = len(f.slots)
	f.slots = append(f.slots, index.Pack{}) // filled in by upload
	return nil
}

// flush hands the pack over to be stored.
func (f *filler) flush(ctx context.Context) error {
	if f.cur == nil {
		return nil
	}
	select {
	case f.full <- f.cur:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f.version.NewPacks++
	f.cur = nil
	return nil
}

// upload stores full packs, one after the other.
func (f *filler) upload(ctx context.Context) error {
	for {
		var p *filling
		var ok bool
		select {
		case p, ok = <-f.full:
			if !ok {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		size, _, err := p.w.Finish()
		if err != nil {
			return err
		}
		s, err := again(ctx, f.im, func() (Stored, error) {
			return f.im.store.PutPack(ctx, Put{File: aggregateFile, Size: size, Data: bytes.NewReader(p.mem[:size]), Meta: aggregateMeta})
		})
		if err != nil {
			return fmt.Errorf("store a pack of %d bytes: %w", size, err)
		}
		if err := f.hold(ctx, s.Set); err != nil {
			return err
		}
		f.put(p.slot, s.pack(false))
		f.free <- p // has room: there are two
	}
}
