package datasets

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/datasets/source"
)

// batch is a few files that are read by one goroutine and packed in order. A
// sample is never in two, unless it is larger than Options.RawFrom.
type batch struct {
	entries []entry
	bytes   int64         // of small files' contents
	ready   chan struct{} // closed when all was read
	done    chan struct{} // closed when a stream's large file was stored; else nil
}

// entry is an item on its way.
type entry struct {
	item  source.Item
	large bool
	data  []byte      // of a small file that was read
	rec   pack.Record // of a small file
	found *found      // where its content is, when it was not read
	runs  []run       // its records
}

// collect cuts the source's items into batches. Files of a stream are read here.
func (im *importer) collect(ctx context.Context) error {
	b := &batch{}
	flush := func() error {
		if len(b.entries) == 0 {
			return nil
		}
		err := im.send(ctx, b)
		b = &batch{}
		return err
	}
	for it, err := range im.src.Items(ctx) {
		if err != nil {
			return err
		}
		if n := len(b.entries); n > 0 {
			last := &b.entries[n-1]
			full := n >= batchFiles || b.bytes+it.Size > batchBytes
			apart := it.Sample == "" || it.Sample != last.item.Sample
			if full && (apart || b.bytes >= im.opt.RawFrom || n >= 1024) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		e := entry{item: *it, large: it.Kind == source.File && it.Size >= im.opt.RawFrom}
		if e.large && im.facts.Stream {
			b.entries = append(b.entries, e)
			b.done = make(chan struct{})
			done := b.done
			if err := flush(); err != nil {
				return err
			}
			select {
			case <-done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		if im.facts.Stream && it.Open != nil {
			if e.data, err = readAll(it); err != nil {
				return err
			}
		}
		if !e.large {
			b.bytes += it.Size
		}
		b.entries = append(b.entries, e)
	}
	return flush()
}

// send puts a batch into the line to be packed, then has it read.
func (im *importer) send(ctx context.Context, b *batch) error {
	b.ready = make(chan struct{})
	if err := im.ahead.Acquire(ctx, min(b.bytes, aheadBytes)); err != nil {
		return err
	}
	for _, line := range []chan<- *batch{im.line, im.jobs} {
		select {
		case line <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// readAll reads a small file, all of it and no more.
func readAll(it *source.Item) ([]byte, error) {
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, it.Size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("read %q: %w", it.Path, short(err))
	}
	return data, atEnd(it.Path, r)
}

func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is shorter than its size says; import when nobody writes to it", catalog.ErrConflict)
	}
	return err
}

// atEnd reads the end, where a file says whether it changed.
func atEnd(path string, r io.Reader) error {
	var one [1]byte
	switch n, err := r.Read(one[:]); {
	case n > 0:
		return fmt.Errorf("read %q: %w: it is longer than its size says; import when nobody writes to it", path, catalog.ErrConflict)
	case err == nil || errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// read reads the files of batches until there are no more.
func (im *importer) read(ctx context.Context) error {
	var sum pack.Sum
	for {
		var b *batch
		var ok bool
		select {
		case b, ok = <-im.jobs:
			if !ok {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for i := range b.entries {
			if err := im.readEntry(&b.entries[i], &sum); err != nil {
				return err
			}
		}
		close(b.ready)
	}
}

// readEntry reads one file, or finds that it need not be.
func (im *importer) readEntry(e *entry, sum *pack.Sum) error {
	it := &e.item
	if it.Kind != source.File || it.Same != "" {
		return nil
	}
	if it.Steady {
		e.rec.Stamp = pack.Stamp(it.Path, it.Size, it.Mtime)
		if !im.opt.Rehash && it.Size > 0 {
			var err error
			if e.found, err = im.known.unchanged(it, e.rec.Stamp); err != nil {
				return err
			}
		}
	}
	if e.found == nil && !e.large {
		if e.data == nil && it.Size > 0 {
			var err error
			if e.data, err = readAll(it); err != nil {
				return err
			}
		}
		sum.Reset()
		_, _ = sum.Write(e.data) // never fails
		stamp := e.rec.Stamp
		e.rec = sum.Record()
		e.rec.Stamp = stamp
	}
	if it.Records == nil {
		return nil
	}
	var err error
	if e.runs, err = readRuns(it, e.data); err != nil {
		return fmt.Errorf("records of %q: %w", it.Path, err)
	}
	return nil
}
