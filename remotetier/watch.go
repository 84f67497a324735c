package remotetier

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// watched is a target whose operations feed its health.
type watched struct {
	Target
	mu struct {
		sync.Mutex
		health
	}
}

// watchedChecker is one that is a Checker.
type watchedChecker struct {
	*watched
	check Checker
}

// watch puts a watch on a target, or keeps the one that is on it.
func watch(t Target, before *members) (Target, *watched) {
	w := &watched{Target: t}
	if before != nil {
		if was := before.byName[t.Name()]; was != nil && same(was.watch.Target, t) {
			w = was.watch
		}
	}
	if c, ok := t.(Checker); ok {
		return watchedChecker{w, c}, w
	}
	return w, w
}

// same reports whether two are one. What cannot be compared is not.
func same(a, b Target) (is bool) {
	defer func() { _ = recover() }()
	return a == b
}

// note feeds the outcome of an operation that began then. size is that of the
// column it writes.
func (w *watched) note(ctx context.Context, kind opKind, size int64, begin time.Time, err error) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(err, catalog.ErrNoSpace) {
		w.mu.noRoom(size)
	}
	switch {
	case err != nil && ctx.Err() != nil && !ours(ctx): // the caller went away, and that says nothing
	case ill(err) || err != nil && ctx.Err() != nil:
		if kind&(reads|begins) != 0 && errors.Is(err, catalog.ErrUnavailable) {
			kind = answers // it was away, which says nothing of its disk; nobody's writes were lost by it
		}
		w.mu.fail(kind, err, now)
	case err != nil && !errors.Is(err, io.EOF):
		w.mu.ok(answers, now) // to refuse shows no more
	default:
		w.mu.ok(kind, now)
		if size == 0 && kind == answers {
			w.mu.answered(now.Sub(begin))
		}
	}
}

// met is what was met of the target so far.
func (w *watched) met() health {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.health
}

// noRoom notes that a column did not fit.
func (w *watched) noRoom(size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.noRoom(size)
}

func (w *watched) Create(ctx context.Context, key Key, size int64, mode CreateMode) (ColumnWriter, error) {
	begin := time.Now()
	cw, err := w.Target.Create(ctx, key, size, mode)
	w.note(ctx, begins, size, begin, err)
	if err != nil {
		return nil, err
	}
	return &watchedWriter{cw, w, size}, nil
}

func (w *watched) Open(ctx context.Context, key Key) (ColumnReader, error) {
	begin := time.Now()
	r, err := w.Target.Open(ctx, key)
	w.note(ctx, answers, 0, begin, err)
	if err != nil {
		return nil, err
	}
	return &watchedReader{r, w}, nil
}

func (w *watched) Remove(ctx context.Context, key Key) error {
	begin := time.Now()
	err := w.Target.Remove(ctx, key)
	w.note(ctx, answers, 0, begin, err)
	return err
}

func (w *watched) List(ctx context.Context, prefix string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for e, err := range w.Target.List(ctx, prefix) {
			if err != nil {
				w.note(ctx, answers, 1, time.Time{}, err)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (w *watched) Space(ctx context.Context) (Space, error) {
	begin := time.Now()
	s, err := w.Target.Space(ctx)
	w.note(ctx, answers, 0, begin, err)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.mu.room(s.Free)
	}
	return s, err
}

func (w watchedChecker) CheckColumn(ctx context.Context, key Key, pace Pace) (ColumnInfo, error) {
	info, err := w.check.CheckColumn(ctx, key, pace)
	w.note(ctx, reads, 1, time.Time{}, err)
	return info, err
}

type watchedWriter struct {
	ColumnWriter
	w    *watched
	size int64
}

func (w *watchedWriter) Write(ctx context.Context, p []byte) error {
	err := w.ColumnWriter.Write(ctx, p)
	w.w.note(ctx, writes, w.size, time.Time{}, err)
	return err
}

func (w *watchedWriter) Commit(ctx context.Context) error {
	err := w.ColumnWriter.Commit(ctx)
	w.w.note(ctx, commits, w.size, time.Time{}, err)
	return err
}

type watchedReader struct {
	ColumnReader
	w *watched
}

func (r *watchedReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := r.ColumnReader.ReadAt(ctx, p, off)
	r.w.note(ctx, reads, 1, time.Time{}, err)
	return n, err
}
