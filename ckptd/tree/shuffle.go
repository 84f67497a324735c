package tree

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/datasets/tarview"
	"github.com/ckptd/ckptd/fuse"
)

// Below .shuffle nothing is listed: every name of the right form is found.
//
//	SEED/EPOCH/[window/ | window-SLICE-GROUP/][from-AT/]RANK-of-WORLD.tar

// shuffled is a path below .shuffle.
type shuffled struct {
	seed, epoch uint64
	window      bool  // an order in windows; of the version's own size if slice is 0
	slice       int64 // samples
	group       int64 // slices
	share       tarview.Share
	tar         bool // it is the file, and not a folder
}

var errNoShuffle = fmt.Errorf("below .shuffle: %w: want SEED/EPOCH/[window/][from-AT/]RANK-of-WORLD.tar", fs.ErrNotExist)

// decimal reads a number as it is printed, or, with zeros, with zeros before it.
func decimal(s string, bits int, zeros bool) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, bits)
	return n, err == nil && s[0] != '+' && (zeros || s == strconv.FormatUint(n, 10))
}

func parseShuffle(p string) (q shuffled, err error) {
	parts := strings.Split(p, "/")
	ok := true
	take := func(dst *uint64) {
		if len(parts) > 0 && ok {
			*dst, ok = decimal(parts[0], 64, false)
			parts = parts[1:]
		}
	}
	take(&q.seed)
	take(&q.epoch)
	if len(parts) > 0 && ok && strings.HasPrefix(parts[0], "window") {
		q.window = true
		if rest, more := strings.CutPrefix(parts[0], "window-"); more {
			slice, group, two := strings.Cut(rest, "-")
			a, fine := decimal(slice, 48, false)
			b, good := decimal(group, 48, false)
			q.slice, q.group = int64(a), int64(b)
			ok = two && fine && good && a > 0 && order.Window(q.slice, q.group).Check() == nil
		} else {
			ok = parts[0] == "window"
		}
		parts = parts[1:]
	}
	if len(parts) > 0 && ok && strings.HasPrefix(parts[0], "from-") {
		at, fine := decimal(parts[0][len("from-"):], 62, false)
		q.share.At, ok = int64(at), fine
		parts = parts[1:]
	}
	if len(parts) > 0 && ok {
		name, is := strings.CutSuffix(parts[0], ".tar")
		rank, world, two := strings.Cut(name, "-of-")
		r, fine := decimal(rank, 31, true)
		w, good := decimal(world, 31, true)
		q.share.Rank, q.share.World, q.tar = int(r), int(w), true
		ok = is && two && fine && good && r < w && w <= catalog.MaxWorld
		parts = parts[1:]
	}
	if !ok || len(parts) > 0 {
		return q, errNoShuffle
	}
	return q, nil
}

// splitShuffle gives the version and the path of a volume below .shuffle.
func (t *Tree) splitShuffle(k volume) (rec catalog.SetRecord, q shuffled, err error) {
	set, p, _ := strings.Cut(k.name, "|")
	if rec, err = t.setOf(volume{versionKind, set}); err != nil {
		return rec, q, err
	}
	q, err = parseShuffle(p)
	return rec, q, err
}

func (t *Tree) lookupShuffle(ctx context.Context, k volume, name []byte) (fuse.Entry, error) {
	set, p, _ := strings.Cut(k.name, "|")
	p = path.Join(p, string(name))
	if len(p) > 200 {
		return fuse.Entry{}, fs.ErrNotExist
	}
	if _, err := parseShuffle(p); err != nil {
		return fuse.Entry{}, err
	}
	return t.entry(ctx, name, t.idOfVolume(volume{shuffleKind, set + "|" + p}))
}

func (t *Tree) readShuffle(k volume) error {
	_, q, err := t.splitShuffle(k)
	if err == nil && q.tar {
		return syscall.ENOTDIR
	}
	return err
}

func (t *Tree) shuffleNodeAttr(ctx context.Context, k volume) (fuse.Attr, error) {
	rec, q, err := t.splitShuffle(k)
	if err != nil {
		return fuse.Attr{}, err
	}
	if !q.tar {
		return t.folderAttr(0, rec.Committed, true), nil
	}
	v, err := t.vers.use(ctx, rec)
	if err != nil {
		return fuse.Attr{}, err
	}
	defer v.release()
	view, err := t.views.get(ctx, k.name, v, q)
	if errors.Is(err, catalog.ErrInvalid) {
		return fuse.Attr{}, fmt.Errorf("%w: %v", fs.ErrNotExist, err)
	} else if err != nil {
		return fuse.Attr{}, err
	}
	return t.fileAttr(view.Size(), rec.Committed), nil
}

func (t *Tree) openTar(ctx context.Context, k volume) (fuse.File, error) {
	rec, q, err := t.splitShuffle(k)
	if err != nil {
		return nil, err
	}
	if !q.tar {
		return nil, syscall.EISDIR
	}
	return t.openHeld(ctx, rec, func(v *version) (fuse.File, error) {
		view, err := t.views.get(ctx, k.name, v, q)
		if err != nil {
			return nil, err
		}
		return tarFile{view.Reader(&samples{x: v.Index()}, members{v})}, nil
	})
}

// tarFile is a tar that is made while it is read.
type tarFile struct{ *tarview.Reader }

func (tarFile) Backing() *os.File { return nil }
func (tarFile) Direct() bool      { return false }
func (tarFile) Close() error      { return nil }

// members reads the bytes of a tar's members from packs, whose blocks are checked.
type members struct{ v *version }

func (m members) ReadMember(ctx context.Context, f *tarview.Member, p []byte, off int64) error {
	if f.Pack == index.NoPack {
		return fmt.Errorf("%w: bytes of an empty file", catalog.ErrCorrupt)
	}
	return m.v.read(ctx, f.Pack, p, f.PackOffset+off)
}

// samples are a version's, as members of a tar: a whole file by its path,
// part of one by the number of its sample.
type samples struct {
	x   *index.Index
	buf sync.Pool // of *[]index.Field
}

func (s *samples) Samples() int64 { return s.x.Samples() }

func (s *samples) Members(sample int64, into []tarview.Member) ([]tarview.Member, error) {
	buf, _ := s.buf.Get().(*[]index.Field)
	if buf == nil {
		buf = new([]index.Field)
	}
	defer s.buf.Put(buf)
	fields, err := s.x.Sample(sample, (*buf)[:0])
	if err != nil {
		return into, err
	}
	*buf = fields
	for k, f := range fields {
		e, err := s.x.Entry(f.File)
		if err != nil {
			return into, err
		}
		m := tarview.Member{Size: f.Size, Mode: e.Mode, Mtime: e.Mtime, File: f.File, Offset: f.Offset, Pack: f.Pack, PackOffset: f.PackOffset}
		switch whole := f.Offset == 0 && f.Size == e.Size; {
		case whole:
			if m.Name, err = s.x.Path(f.File); err != nil {
				return into, err
			}
		case len(fields) > 1:
			m.Name = fmt.Appendf(nil, "%09d.%d.%s", sample, k, kindOfRecord(e.Name))
		default:
			m.Name = fmt.Appendf(nil, "%09d.%s", sample, kindOfRecord(e.Name))
		}
		into = append(into, m)
	}
	return into, nil
}

// kindOfRecord is what a part of a file is called by.
func kindOfRecord(name []byte) string {
	switch strings.ToLower(path.Ext(string(name))) {
	case ".jsonl", ".ndjson":
		return "json"
	}
	return "bin"
}

// maxViews bounds what is remembered of tars, in bytes.
const maxViews = 32 << 20

// views remembers the tars that were looked at last.
type views struct {
	mu struct {
		sync.Mutex
		of     map[string]*view
		recent *list.List // of *view
		bytes  int64
	}
}

// view is a tar's table.
type view struct {
	key  string
	elem *list.Element
	lock chan struct{} // held by who makes the table
	full *tarview.View // guarded by lock
}

func (c *views) init() { c.mu.of, c.mu.recent = make(map[string]*view), list.New() }

// get makes a tar's table, unless it is there. Several who want it wait for one.
func (c *views) get(ctx context.Context, key string, v *version, q shuffled) (*tarview.View, error) {
	c.mu.Lock()
	w := c.mu.of[key]
	if w == nil {
		w = &view{key: key, lock: make(chan struct{}, 1)}
		c.mu.of[key] = w
		w.elem = c.mu.recent.PushFront(w)
	} else {
		c.mu.recent.MoveToFront(w.elem)
	}
	c.mu.Unlock()
	full, err := w.of(ctx, v, q)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.of[key] != w {
		return full, err
	}
	if err != nil {
		delete(c.mu.of, key)
		c.mu.recent.Remove(w.elem)
		return nil, err
	}
	c.trim(full)
	return full, nil
}

// trim lets go of what was used longest ago; the lock is held. The table that
// was asked for last stays.
func (c *views) trim(last *tarview.View) {
	c.mu.bytes = 0
	for e := c.mu.recent.Front(); e != nil; {
		w := e.Value.(*view)
		e = e.Next()
		select {
		case w.lock <- struct{}{}:
		default:
			continue // being made
		}
		var n int64
		if w.full != nil {
			n = w.full.Memory() + 256
		}
		<-w.lock
		if c.mu.bytes += n; c.mu.bytes > maxViews && w.full != last {
			c.mu.bytes -= n
			delete(c.mu.of, w.key)
			c.mu.recent.Remove(w.elem)
		}
	}
}

// of gives the table.
func (w *view) of(ctx context.Context, v *version, q shuffled) (*tarview.View, error) {
	select {
	case w.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-w.lock }()
	if w.full != nil {
		return w.full, nil
	}
	x := v.Index()
	mode := order.Global
	switch {
	case q.slice > 0:
		mode = order.Window(q.slice, q.group)
	case q.window:
		mode = order.WindowOf(x.Samples(), x.Packs(), 0)
	}
	o, err := order.New(x.Samples(), order.NewKey(x.Digest(), q.seed, q.epoch), mode)
	if err != nil {
		return nil, err
	}
	full, err := tarview.New(ctx, &samples{x: x}, o, q.share)
	if err != nil {
		return nil, err
	}
	w.full = full
	return full, nil
}
