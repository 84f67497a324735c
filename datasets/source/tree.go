package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

const (
	walkers     = 8   // goroutines that stat and read folders ahead
	statBatch   = 256 // names a batch
	batchAhead  = 16  // batches that wait for the reader of items
	foldersSoon = 4   // folders of one level that are listed ahead
	maxListed   = 20  // special files an error names
	maxDepth    = 1024
)

// tree is a directory tree, or one file as a tree of one.
type tree struct {
	root   string // what Path is relative to
	only   string // the one file; "" is all
	opt    Options
	format Format
	shards map[string]mdsShard // by path, of MDS
	kinds  kinds

	skipped atomic.Int64
}

// records is the reader of a file's records, nil when it holds none.
func (t *tree) records(path string) func(io.ReaderAt, int64) iter.Seq2[Range, error] {
	switch t.format {
	case Tree:
		return nil
	case MDS:
		if s, ok := t.shards[path]; ok {
			return s.records
		}
		return nil
	}
	if formatOfName(path) != t.format {
		return nil
	}
	switch t.format {
	case JSONL:
		return jsonlRecords
	case Parquet:
		return t.parquetRecords
	case NPY:
		return t.npyRecords
	case Safetensors:
		return safetensorsRecords
	case FFRecord:
		return ffrecordRecords
	}
	panic("source: no records of " + string(t.format))
}

// batch is some names of one folder, with what lstat says of them. sub has what
// lies in those that are folders.
type batch struct {
	items []Item
	errs  []error // of each item
	ready chan struct{}
}

// listing is one folder's names, in order.
type listing struct {
	names []string
	err   error
	ready chan struct{}
}

func (t *tree) Facts() Facts {
	s := t.kinds.schema(t.format)
	return Facts{Format: t.format, Schema: s, Skipped: t.skipped.Load()}
}

func (t *tree) Close() error { return nil }

// Items walks depth first, the names of each folder in the order of their
// bytes. Folders are listed and names looked at ahead, in parallel.
func (t *tree) Items(ctx context.Context) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var group sync.WaitGroup
		defer group.Wait()
		defer cancel()
		w := &walk{t: t, ctx: ctx, jobs: make(chan func()), out: make(chan *batch, batchAhead)}
		for range walkers {
			group.Go(func() {
				for {
					select {
					case job := <-w.jobs:
						job()
					case <-ctx.Done():
						return
					}
				}
			})
		}
		group.Go(w.run)
		var special []string
		for {
			var b *batch
			select {
			case b = <-w.out:
			case <-ctx.Done():
				yield(nil, context.Cause(ctx))
				return
			}
			if b == nil {
				break // the end
			}
			select {
			case <-b.ready:
			case <-ctx.Done():
				yield(nil, context.Cause(ctx))
				return
			}
			for i := range b.items {
				it, err := &b.items[i], b.errs[i]
				if errors.Is(err, errSpecial) {
					t.skipped.Add(1)
					if !t.opt.SkipSpecial {
						special = append(special, err.Error())
						if len(special) > maxListed {
							yield(nil, refuse(special))
							return
						}
					}
					continue
				}
				if err != nil {
					yield(nil, err)
					return
				}
				if len(special) == 0 && !yield(it, nil) {
					return
				}
			}
		}
		if len(special) > 0 {
			yield(nil, refuse(special))
		}
	}
}

var errSpecial = errors.New("special file")

// refuse names the special files. What follows the first one was looked at, but
// not given: the import is over, and the list complete up to its bound.
func refuse(special []string) error {
	more := ""
	if len(special) > maxListed {
		special, more = special[:maxListed], ", and more"
	}
	return fmt.Errorf("%w: these are no files, folders or symlinks: %s%s; take them away, or leave them out with --skip-special",
		catalog.ErrInvalid, strings.Join(special, ", "), more)
}

// walk is one pass over a tree.
type walk struct {
	t    *tree
	ctx  context.Context //nolint:containedctx // it lives as long as the one call of Items
	jobs chan func()
	out  chan *batch // nil: the end
}

// do hands a job to a walker; false when it is over.
func (w *walk) do(job func()) bool {
	select {
	case w.jobs <- job:
		return true
	case <-w.ctx.Done():
		return false
	}
}

func (w *walk) emit(b *batch) bool {
	select {
	case w.out <- b:
		return true
	case <-w.ctx.Done():
		return false
	}
}

func (w *walk) run() {
	var ok bool
	if w.t.only != "" {
		ok = w.stat("", []string{w.t.only})
	} else {
		ok = w.stat("", []string{""}) && w.folder("", w.list(""), 0)
	}
	if ok {
		w.emit(nil)
	}
}

// list begins to list a folder.
func (w *walk) list(path string) *listing {
	l := &listing{ready: make(chan struct{})}
	w.do(func() {
		defer close(l.ready)
		l.names, l.err = w.t.list(path)
	})
	return l
}

// list gives a folder's names in order; those of folders end with "/".
func (t *tree) list(path string) ([]string, error) {
	f, err := os.Open(t.full(path))
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", path, bare(err))
	}
	defer f.Close()
	var names []string
	for {
		entries, err := f.ReadDir(4096)
		for _, e := range entries {
			name := e.Name()
			if e.IsDir() {
				name += "/"
			}
			names = append(names, name)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list %q: %w", path, bare(err))
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Compare(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/"))
	})
	return names, nil
}

// bare drops the path from a *PathError: the caller has a better one.
func bare(err error) error {
	if p := new(os.PathError); errors.As(err, &p) {
		return p.Err
	}
	return err
}

// folder emits what lies in a folder, and below it.
func (w *walk) folder(path string, l *listing, depth int) bool {
	select {
	case <-l.ready:
	case <-w.ctx.Done():
		return false
	}
	fail := func(err error) bool {
		b := &batch{items: make([]Item, 1), errs: []error{err}, ready: make(chan struct{})}
		close(b.ready)
		w.emit(b)
		return false
	}
	if l.err != nil {
		return fail(l.err)
	}
	if depth > maxDepth {
		return fail(fmt.Errorf("folder %.200q: %w: folders are nested deeper than %d", path, catalog.ErrInvalid, maxDepth))
	}
	soon := map[int]*listing{} // by position in names
	next := 0                  // where to look for folders to list ahead
	ahead := func(i int) *listing {
		for next = max(next, i); next < len(l.names) && len(soon) < foldersSoon; next++ {
			if name := l.names[next]; strings.HasSuffix(name, "/") {
				soon[next] = w.list(join(path, name[:len(name)-1]))
			}
		}
		s := soon[i]
		delete(soon, i)
		return s
	}
	for i := 0; i < len(l.names); {
		// A run of names up to the first folder, that included.
		end := i
		for end < len(l.names) && end-i < statBatch {
			end++
			if strings.HasSuffix(l.names[end-1], "/") {
				break
			}
		}
		if !w.stat(path, l.names[i:end]) {
			return false
		}
		if name := l.names[end-1]; strings.HasSuffix(name, "/") {
			if !w.folder(join(path, name[:len(name)-1]), ahead(end-1), depth+1) {
				return false
			}
		}
		i = end
	}
	return true
}

func join(folder, name string) string {
	if folder == "" {
		return name
	}
	return folder + "/" + name
}

// stat begins to look at names of a folder.
func (w *walk) stat(folder string, names []string) bool {
	b := &batch{items: make([]Item, len(names)), errs: make([]error, len(names)), ready: make(chan struct{})}
	job := func() {
		defer close(b.ready)
		for i, name := range names {
			b.errs[i] = w.t.item(&b.items[i], join(folder, strings.TrimSuffix(name, "/")), strings.HasSuffix(name, "/"))
		}
	}
	return w.do(job) && w.emit(b)
}

func (t *tree) full(path string) string {
	if path == "" {
		return t.root
	}
	return t.root + "/" + path
}

// item fills it from what lies at path.
func (t *tree) item(it *Item, path string, folder bool) error {
	if len(path) > MaxPath {
		return fmt.Errorf("path %.200q…: %w: longer than %d bytes", path, catalog.ErrInvalid, MaxPath)
	}
	full := t.full(path)
	var st unix.Stat_t
	stat := unix.Lstat
	if path == "" || t.only != "" {
		stat = unix.Stat // what the user named may be a symlink to it
	}
	if _, err := retry(func() (int, error) { return 0, stat(full, &st) }); err == unix.ENOENT {
		return changed(path)
	} else if err != nil {
		return fmt.Errorf("stat %q: %w", path, err)
	}
	it.Path, it.Mode, it.Steady = path, st.Mode&0o7777, true
	it.Mtime = time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	if mode := st.Mode & unix.S_IFMT; folder != (mode == unix.S_IFDIR) && path != "" {
		return changed(path)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		it.Kind = Folder
	case unix.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return fmt.Errorf("read link %q: %w", path, bare(err))
		}
		it.Kind, it.Target = Link, target
	case unix.S_IFREG:
		it.Kind, it.Size = File, st.Size
		seen := stampOf(&st)
		if t.only != "" {
			full, _ = filepath.EvalSymlinks(full)
		}
		it.Open = func() (io.ReadCloser, error) { return openSteady(full, path, seen) }
		if it.Records = t.records(path); it.Records == nil && t.format != Tree {
			it.NoSample = true
		}
	default:
		return fmt.Errorf("%w %.500q (%s)", errSpecial, path, specialName(st.Mode))
	}
	return nil
}

func specialName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "device"
	}
	return "unknown kind"
}
