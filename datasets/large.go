package datasets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/pack"
)

// large stores a file as a pack by itself. Its bytes go straight on; its hash is
// known at their end, and when such bytes are stored already the pack is given
// up. Where a stored pack has its very size, the file is read for its hash first.
func (f *filler) large(ctx context.Context, e *entry) (place, error) {
	if f.im.known.sizes[e.item.Size] && !f.im.facts.Stream {
		rec, err := f.hash(ctx, e)
		if err != nil {
			return place{}, err
		}
		if at, ok, err := f.stored(rec); err != nil || ok {
			f.version.Known++
			return at, err
		}
	}
	var ordered *inOrder
	put := func() (Stored, error) {
		r, err := e.item.Open()
		if err != nil {
			return Stored{}, err
		}
		defer r.Close()
		ordered = newInOrder(r, e.item.Path, e.item.Size, f.stored)
		s, err := f.im.store.PutPack(ctx, Put{File: fileName(e.item.Path), Size: e.item.Size, Data: ordered, Meta: func() map[string]string {
			rec := ordered.record()
			rec.Stamp = e.rec.Stamp
			return pack.RawMeta(rec)
		}})
		if cause := ordered.failed(); err != nil && cause != nil {
			err = cause // says more than the save that it ended
		}
		return s, err
	}
	var s Stored
	var err error
	if f.im.facts.Stream {
		s, err = put() // its bytes come once
	} else {
		s, err = again(ctx, f.im, put)
	}
	if errors.Is(err, errStored) {
		f.version.Known++
		return ordered.at, nil
	}
	if err != nil {
		return place{}, err
	}
	if err := f.hold(ctx, s.Set); err != nil {
		return place{}, err
	}
	rec := ordered.record()
	at := place{len(f.slots), rec}
	f.slots = append(f.slots, s.pack(true))
	f.fresh[rec.Hash] = at
	f.version.NewPacks++
	f.version.NewBytes += rec.Size
	return at, nil
}

// hash reads a file for its sums alone.
func (f *filler) hash(ctx context.Context, e *entry) (pack.Record, error) {
	r, err := e.item.Open()
	if err != nil {
		return pack.Record{}, err
	}
	defer r.Close()
	var sum pack.Sum
	buf := make([]byte, batchBytes)
	for {
		n, err := r.Read(buf)
		_, _ = sum.Write(buf[:n]) // never fails
		if err == io.EOF {
			return sum.Record(), nil
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return pack.Record{}, err
		}
	}
}

// fileName is what a raw pack of the file at path is called: its base name, as
// far as the name of a shard's file may say it.
func fileName(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			path = path[i+1:]
			break
		}
	}
	for _, r := range path {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\uFFFD' {
			return "file"
		}
	}
	return path
}

// errStored ends the store of a file whose content is there.
var errStored = errors.New("its content is stored")

// inOrder gives a stream's bytes to readers at offsets. A reader whose turn it
// is not waits; Put says that every part is asked for once.
type inOrder struct {
	r      io.Reader
	path   string
	size   int64
	stored func(pack.Record) (place, bool, error)
	at     place // where its content is, with errStored

	mu   sync.Mutex
	turn sync.Cond
	off  int64
	sum  pack.Sum
	err  error
}

func newInOrder(r io.Reader, path string, size int64, stored func(pack.Record) (place, bool, error)) *inOrder {
	o := &inOrder{r: r, path: path, size: size, stored: stored}
	o.turn.L = &o.mu
	return o
}

func (o *inOrder) record() pack.Record {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sum.Record()
}

func (o *inOrder) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

func (o *inOrder) ReadAt(p []byte, off int64) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil && o.off < off {
		o.turn.Wait()
	}
	if o.err == nil && o.off > off {
		o.err = fmt.Errorf("read %q at %d: %w: its bytes come once, and are at %d", o.path, off, catalog.ErrUnavailable, o.off)
	}
	if o.err != nil {
		return 0, o.err
	}
	defer o.turn.Broadcast()
	n, err := io.ReadFull(o.r, p)
	_, _ = o.sum.Write(p[:n]) // never fails
	o.off += int64(n)
	if err != nil {
		o.err = fmt.Errorf("read %q: %w", o.path, short(err))
	} else if o.off == o.size {
		o.err = o.end()
	}
	if o.err != nil {
		return 0, o.err // who has all the bytes asked for would not look at it
	}
	return n, nil
}

// end makes sure that the file ends, and did not change, and is new.
func (o *inOrder) end() error {
	if err := atEnd(o.path, o.r); err != nil {
		return err
	}
	at, ok, err := o.stored(o.sum.Record())
	if err == nil && ok {
		o.at, err = at, errStored
	}
	return err
}
