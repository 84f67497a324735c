package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

// maxColumn is the largest column there is, in bytes: a blob, its sums and two pages.
const maxColumn = remotetier.MaxBlobSize + remotetier.MaxBlobSize/16352 + 16<<10

// writer is a column being written. Its bytes go into parts; a part is sent
// while the next is filled, where there is a buffer for that.
type writer struct {
	t      *Target
	key    remotetier.Key
	mode   remotetier.CreateMode
	cut    *plain.Cut
	name   string // data name of this writing
	object string // that the data goes to; empty: nothing came yet
	own    bool   // that is the blob's own name

	buf    []byte // the part being filled
	n      int    // bytes in it
	weight int64  // what it took of the buffers
	taken  int64  // data bytes, in parts sent or in buf

	upload *bucket.Upload // of several parts; nil: none
	next   int64          // where the next part begins
	sends  *errgroup.Group
	ctx    context.Context // of the sends, which go on between the calls
	cancel context.CancelFunc

	note string // what a sweep would clear away; empty: nothing
	put  bool   // the data is there, and not committed
	done bool   // closed: the key may be another's by now
}

// Create begins a column.
func (t *Target) Create(ctx context.Context, key remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	if err := errors.Join(ctx.Err(), key.Check(), mode.Check()); err != nil {
		return nil, err
	}
	if size <= 0 || size%4096 != 0 || size > maxColumn {
		return nil, fmt.Errorf("create %v: %w: size %d; want a multiple of 4096 up to %d", key, catalog.ErrInvalid, size, int64(maxColumn))
	}
	space, err := t.Space(ctx)
	if err != nil {
		return nil, fmt.Errorf("create %v: %w", key, err)
	}
	if space.Free < size {
		return nil, fmt.Errorf("create %v: %w: %d bytes are free of the %d needed", key, catalog.ErrNoSpace, space.Free, size)
	}
	t.sweepNow(ctx)
	if err := t.writing.Begin(key); err != nil {
		return nil, err
	}
	if mode == remotetier.CreateNew {
		if there, err := t.exists(ctx, key); err != nil || there {
			t.writing.End(key)
			if err == nil {
				err = fs.ErrExist
			}
			return nil, fmt.Errorf("create %v: %w", key, err)
		}
	}
	w := &writer{t: t, key: key, mode: mode, cut: plain.NewCut(key, size), name: plain.DataName(key, rand.Uint32())}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	w.sends, w.ctx = errgroup.WithContext(background)
	w.sends.SetLimit(t.opt.Parallel)
	return w, nil
}

func (t *Target) exists(ctx context.Context, key remotetier.Key) (bool, error) {
	for _, name := range []string{sideName(key), wholeName(key)} {
		if _, err := t.b.Stat(ctx, name); err == nil {
			return true, nil
		} else if !missing(err) {
			return false, err
		}
	}
	return false, nil
}

func (w *writer) Write(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.done {
		return fmt.Errorf("write %v: %w", w.key, fs.ErrClosed)
	}
	if w.ctx.Err() != nil { // a part could not be sent
		return fmt.Errorf("write %v: %w", w.key, w.sends.Wait())
	}
	data, off, err := w.cut.Next(p)
	if err != nil {
		return err
	}
	if err := w.begin(ctx); err != nil {
		return fmt.Errorf("write %v: %w", w.key, err)
	}
	data = data[:max(0, min(int64(len(data)), w.cut.DataSize()-off))]
	for len(data) > 0 {
		n := copy(w.buf[w.n:], data)
		data, w.n, w.taken = data[n:], w.n+n, w.taken+int64(n)
		if w.n == len(w.buf) && w.taken < w.cut.DataSize() {
			if err := w.flush(ctx); err != nil {
				return fmt.Errorf("write %v: %w", w.key, err)
			}
		}
	}
	return nil
}

// begin decides, by the first page, where the data goes.
func (w *writer) begin(ctx context.Context) error {
	if w.object != "" {
		return nil
	}
	object, own := wholeName(w.key), false
	if w.cut.Plain() {
		folder, _ := plain.Split(w.key.Blob)
		object = plain.Join(folder, w.name)
		if _, err := w.t.b.Stat(ctx, w.key.Blob); missing(err) {
			object, own = w.key.Blob, true
		} else if err != nil {
			return err
		}
	}
	w.object, w.own = object, own
	w.buf = w.t.parts.first(min(w.t.b.PartSize(w.cut.DataSize()), max(w.cut.DataSize(), 1)))
	return nil
}

// flush sends the part that is full: while the caller goes on, if there is a
// buffer to go on with.
func (w *writer) flush(ctx context.Context) (err error) {
	if w.upload == nil {
		if w.upload, err = w.t.b.Upload(ctx, w.object, w.cut.DataSize(), map[string]string{metaData: w.name}); err != nil {
			return err
		}
	}
	off, buf, weight, n := w.next, w.buf, w.weight, w.n
	w.next, w.n = w.next+int64(n), 0
	more, ok := w.t.parts.more(int64(len(buf)))
	if !ok {
		return w.upload.Part(ctx, buf[:n], off)
	}
	w.buf, w.weight = more, int64(len(more))
	w.sends.Go(func() error {
		defer w.t.parts.done(buf, weight)
		return w.upload.Part(w.ctx, buf[:n], off)
	})
	return nil
}

// Commit: the data first, then, of a plain column, the sidecar.
func (w *writer) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.done {
		return fmt.Errorf("commit %v: %w", w.key, fs.ErrClosed)
	}
	if err := w.cut.Complete(); err != nil {
		return err
	}
	commit := w.commitWhole
	if w.cut.Plain() {
		commit = w.commitPlain
	}
	if err := commit(ctx); err != nil {
		return fmt.Errorf("commit %v: %w", w.key, err)
	}
	return w.Close()
}

// finish makes the data an object, only if there is none of the name, or in
// place of what has it.
func (w *writer) finish(ctx context.Context, isNew bool) (etag string, err error) {
	if w.upload == nil {
		return w.t.b.PutAs(ctx, w.object, w.buf[:w.n], metaData, w.name, isNew)
	}
	if w.n > 0 {
		if err := w.flush(ctx); err != nil {
			return "", err
		}
	}
	if err := w.sends.Wait(); err != nil {
		return "", err
	}
	return w.upload.CompleteAs(ctx, metaData, w.name, isNew)
}

func (w *writer) commitWhole(ctx context.Context) error {
	isNew := w.mode == remotetier.CreateNew
	_, err := w.finish(ctx, isNew)
	if isNew && errors.Is(err, bucket.ErrTaken) {
		return fs.ErrExist
	} else if err != nil {
		return err
	}
	w.t.addUsed(w.cut.DataSize())
	if !isNew {
		w.t.trace(w.t.retire(ctx, w.key)) // a column with a sidecar, if it took the place of one
	}
	return nil
}

func (w *writer) commitPlain(ctx context.Context) (err error) {
	t := w.t
	if w.note, err = t.addNote(ctx, kindNew, w.cut.Sidecar(w.name, "", w.own)); err != nil {
		return err
	}
	w.put = true // perhaps, whatever comes back
	etag, err := w.finish(ctx, true)
	if errors.Is(err, bucket.ErrTaken) && w.own && w.upload == nil { // somebody else was faster; the bytes are still here
		folder, _ := plain.Split(w.key.Blob)
		w.object, w.own = plain.Join(folder, w.name), false
		etag, err = w.finish(ctx, true)
	}
	if errors.Is(err, bucket.ErrTaken) {
		return fmt.Errorf("%w: an object has got the name meanwhile; try again", catalog.ErrConflict)
	} else if err != nil {
		return err
	}
	var old *plain.Sidecar
	oldNote := ""
	if w.mode == remotetier.CreateReplace {
		if old, oldNote, err = t.noteOld(ctx, w.key); err != nil {
			return err
		}
	}
	side := w.cut.Sidecar(w.name, etag[:min(len(etag), plain.MaxTag)], w.own)
	_, err = t.b.PutAs(ctx, sideName(w.key), side, metaData, w.name, w.mode == remotetier.CreateNew)
	if w.mode == remotetier.CreateNew && errors.Is(err, bucket.ErrTaken) {
		return fs.ErrExist
	} else if err != nil {
		w.put = false // it may be committed: a sweep will see by the note
		return err
	}
	w.put = false
	t.addUsed(w.cut.DataSize() + int64(len(side)))
	t.trace(t.b.Remove(ctx, w.note))
	w.note = ""
	if w.mode == remotetier.CreateReplace {
		t.trace(t.dropReplaced(ctx, w.key, w.name, old, oldNote))
	}
	return nil
}

// cleanupTime bounds what is done for a column that is given up.
const cleanupTime = 30 * time.Second

// Close gives up a column that was not committed.
func (w *writer) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	defer w.t.writing.End(w.key)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), cleanupTime)
	defer cancel()
	w.cancel()
	_ = w.sends.Wait() // the error was told, or is the cancelling
	if w.buf != nil {
		w.t.parts.done(w.buf, w.weight)
		w.buf = nil
	}
	var errs []error
	if w.upload != nil {
		errs = append(errs, w.upload.Close())
	}
	if w.put {
		errs = append(errs, w.t.dropData(ctx, w.object, w.name, ""))
		if errors.Join(errs...) == nil && w.note != "" {
			errs = append(errs, w.t.b.Remove(ctx, w.note))
		}
	}
	return errors.Join(errs...)
}
