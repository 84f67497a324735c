package posix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

// The directory of a target. Names of blobs do not begin with a dot.
const (
	ownDir     = ".ckptd"
	idName     = "target.id"
	idMagic    = "ckptd posix 1\n"
	stagingDir = "staging" // sidecars, and data of the file system's own striping
	stripedDir = "striped" // data of Options.Stripe
)

// Options of a Target; the zero value works.
type Options struct {
	Stripe Stripe        // how a Lustre file system is to stripe large files; zero: as it does by itself
	Stale  time.Duration // after which leftovers are those of a dead process; default 24 h
	Trace  func(error)   // is told what could not be cleared away; nil: nobody
}

// Target is a directory of plain files.
type Target struct {
	fs   vfs.FS
	dir  string
	name string
	opt  Options

	writing plain.Writing

	mu struct {
		sync.Mutex
		seq   int
		swept time.Time
		known map[string]bool // folders whose names are durable up to dir
	}
}

var _ remotetier.Target = (*Target)(nil)

// Open opens a directory, which must exist, as the target of that name, and
// makes it one when it is none. An empty name stands for the one it has.
func Open(ctx context.Context, fsys vfs.FS, dir, name string, opt Options) (*Target, error) {
	if opt.Stale <= 0 {
		opt.Stale = 24 * time.Hour
	}
	t := &Target{fs: steady{fsys}, dir: dir, name: name, opt: opt}
	t.mu.known = map[string]bool{}
	if err := t.open(ctx); err != nil {
		return nil, fmt.Errorf("open posix target %s in %s: %w", name, dir, err)
	}
	return t, nil
}

func (t *Target) open(ctx context.Context) error {
	switch info, err := t.fs.Stat(t.dir); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: make it first; a file system that is not mounted must not be taken for an empty one", err)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%w: it is no directory", catalog.ErrInvalid)
	}
	for _, other := range []string{idName, "columns"} {
		if _, err := t.fs.Stat(t.path(other)); err == nil {
			return fmt.Errorf("%w: it holds the columns of a dir: target", catalog.ErrConflict)
		}
	}
	if err := t.identify(); err != nil {
		return err
	}
	for _, sub := range []string{stagingDir, stripedDir} {
		if err := t.fs.MkdirAll(t.path(ownDir, sub)); err != nil {
			return err
		}
	}
	if err := t.opt.Stripe.apply(ctx, t.path(ownDir, stripedDir)); err != nil {
		return err
	}
	t.sweep(ctx)
	return ctx.Err()
}

// identify reads the directory's name, or gives it one. Two processes that do
// so at the same time agree, or one of them is refused here or by check.
func (t *Target) identify() error {
	got, err := t.readID()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if t.name == "" {
			t.name = "posix"
		}
		if err := remotetier.CheckTargetName(t.name); err != nil {
			return err
		}
		if err := t.fs.MkdirAll(t.path(ownDir, stagingDir)); err != nil {
			return err
		}
		tmp, err := t.stage(kindNew, []byte(idMagic+t.name+"\n"))
		if err != nil {
			return err
		}
		if err := t.fs.Rename(tmp, t.path(ownDir, idName)); err != nil {
			return err
		}
		if err := t.fs.SyncDir(t.path(ownDir)); err != nil {
			return err
		}
		return t.check()
	case err != nil:
		return err
	case t.name == "":
		t.name = got
	case got != t.name:
		return fmt.Errorf("%w: the directory belongs to target %q", catalog.ErrConflict, got)
	}
	return nil
}

func (t *Target) readID() (string, error) {
	b, err := t.readFile(t.path(ownDir, idName), len(idMagic)+remotetier.MaxTargetName+2)
	if err != nil {
		return "", err
	}
	name, magic := strings.CutPrefix(string(b), idMagic)
	name, line := strings.CutSuffix(name, "\n")
	if !magic || !line || remotetier.CheckTargetName(name) != nil {
		return "", fmt.Errorf("%s: %w: remove it if this directory is to become a target anew", t.path(ownDir, idName), catalog.ErrCorrupt)
	}
	return name, nil
}

// check refuses to go on in a directory that is no longer the target's: the
// mount point of a file system that is not mounted any more looks like one.
func (t *Target) check() error {
	got, err := t.readID()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s is gone: is the file system still mounted?", catalog.ErrUnavailable, t.path(ownDir, idName))
	case err != nil:
		return err
	case got != t.name:
		return fmt.Errorf("%w: %s belongs to target %q now, and was %q", catalog.ErrConflict, t.dir, got, t.name)
	}
	return nil
}

func (t *Target) path(parts ...string) string {
	return filepath.Join(t.dir, filepath.Join(parts...))
}

// folder is where a blob's files are; base is the last part of its name.
func (t *Target) folder(blob string) (folder, base string) {
	p := t.path(filepath.FromSlash(blob))
	return filepath.Dir(p), filepath.Base(p)
}

// Name is the target's name.
func (t *Target) Name() string { return t.name }

// Close does nothing: nothing is held open.
func (t *Target) Close() error { return nil }

// Space is that of the file system.
func (t *Target) Space(ctx context.Context) (remotetier.Space, error) {
	if err := ctx.Err(); err != nil {
		return remotetier.Space{}, err
	}
	if err := t.check(); err != nil {
		return remotetier.Space{}, err
	}
	total, free, err := t.fs.Space(t.dir)
	return remotetier.Space{Total: total, Free: free}, err
}

// readFile reads a file of at most limit bytes; a longer one is cut.
func (t *Target) readFile(name string, limit int) ([]byte, error) {
	f, err := t.fs.Open(name, vfs.Opt{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, limit)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

func (t *Target) trace(err error) {
	if err != nil && t.opt.Trace != nil {
		t.opt.Trace(fmt.Errorf("posix target %s: %w", t.name, err))
	}
}
