package localtier

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// Options of a Tier.
type Options struct {
	// Dirs has one folder a disk, made when missing. Required.
	Dirs []string
	// Quota is how many bytes the tier may hold over all disks; default 90 %
	// of what the file systems have free or the tier holds already.
	Quota int64
	// HighWater and LowWater are fractions of Quota: over the one Usage.High is
	// set, and Usage.EvictBytes is what leads back under the other; defaults 0.85, 0.75.
	HighWater, LowWater float64
	// Quarantine bounds the bytes of blobs put aside; default a twentieth of Quota.
	Quarantine int64
	// Keep says which staging files Open leaves for Resume; default none.
	Keep func(staging string) bool
	// Buffered turns O_DIRECT off.
	Buffered bool
	Trace    Trace
}

// Trace is told what happens on the way; nil fields are off. The functions
// may be called concurrently and must not call back.
type Trace struct {
	DirectFallback func(dir string)               // O_DIRECT does not work there; told once a disk
	Quarantined    func(name string, cause error) // a bad blob was put aside
	Orphan         func(path string)              // what a crash left was removed
	DiskFailed     func(dir string, err error)    // an operation on a disk failed; others are preferred from now on
	ArenaShrunk    func(have, want int64)         // the arena got less memory than asked for, in bytes
}

// Tier keeps blobs on the disks of one node.
type Tier struct {
	fsys  vfs.FS
	opt   Options
	disks []*disk
	start int64 // makes staging names unique over restarts

	// names serialises changes of one blob's files; readers hold it while they open.
	names [64]sync.RWMutex
	// tree is held shared while files move into folders, and exclusively while empty folders go.
	tree sync.RWMutex

	mu struct {
		sync.Mutex
		quota       int64
		index       map[string]*entry
		staged      map[string]*Ingest
		known       map[string]bool // folders whose own names are durable
		used        int64           // bytes of visible blobs
		reserved    int64           // bytes promised to ingests
		quarantined int64           // bytes put aside
		areas       map[string]*Area
		writing     int64              // bytes of files in areas
		open        map[*areaFile]bool // files of areas that are open for writing
		seq         int64
		closed      bool
	}
}

// disk is one of Options.Dirs.
type disk struct {
	dir      string
	dev      any // identifies its file system
	lock     io.Closer
	fallback sync.Once
	// Guarded by Tier.mu.
	ingests int   // open ones
	areas   int   // there are
	used    int64 // bytes of visible blobs
	err     error // of the last operation, nil after one that worked
}

// entry is a visible blob.
type entry struct {
	info Info
	disk *disk
	// pending: a replacement was interrupted, and the next seal may be the one that fits.
	pending bool
}

// Info describes a visible blob.
type Info struct {
	Name    string
	Size    int64          // bytes
	Root    catalog.Digest // of its seal
	Path    string         // of its file
	Disk    string         // the one of Options.Dirs it is on
	ModTime time.Time
}

// Open takes the tier's folders, removes what a crash left there, and indexes
// what is sealed.
func Open(fsys vfs.FS, opt Options) (_ *Tier, err error) {
	if len(opt.Dirs) == 0 {
		return nil, fmt.Errorf("open local tier: %w: no directory given", catalog.ErrInvalid)
	}
	if opt.HighWater == 0 {
		opt.HighWater = 0.85
	}
	if opt.LowWater == 0 {
		opt.LowWater = min(0.75, opt.HighWater)
	}
	if opt.Quota < 0 || opt.LowWater < 0 || opt.LowWater > opt.HighWater || opt.HighWater > 1 {
		return nil, fmt.Errorf("open local tier: %w: want 0 <= LowWater <= HighWater <= 1 and a quota that is not negative", catalog.ErrInvalid)
	}
	t := &Tier{fsys: fsys, opt: opt, start: time.Now().UnixNano()}
	t.mu.index, t.mu.staged, t.mu.known = map[string]*entry{}, map[string]*Ingest{}, map[string]bool{}
	t.mu.areas, t.mu.open = map[string]*Area{}, map[*areaFile]bool{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open local tier: %w", err), t.Close())
		}
	}()
	for _, dir := range opt.Dirs {
		d := &disk{dir: filepath.Clean(dir)}
		if err := t.take(d); err != nil {
			return nil, err
		}
	}
	for _, d := range t.disks {
		if err := t.scan(d); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.dir, err)
		}
	}
	if t.mu.quota = opt.Quota; opt.Quota == 0 {
		free, err := t.free()
		if err != nil {
			return nil, err
		}
		t.mu.quota = (free + t.mu.used + t.mu.writing) / 10 * 9
	}
	if t.opt.Quarantine == 0 {
		t.opt.Quarantine = t.mu.quota / 20
	}
	return t, t.trimQuarantine()
}

// take makes a disk's folders and takes its lock.
func (t *Tier) take(d *disk) error {
	for _, sub := range []string{shardsDir, stagingDir, quarantineDir, areasDir} {
		if err := t.fsys.MkdirAll(filepath.Join(d.dir, sub)); err != nil {
			return err
		}
	}
	lock, err := t.fsys.Lock(filepath.Join(d.dir, lockFile))
	if err != nil {
		return fmt.Errorf("another daemon uses %s: %w", d.dir, err)
	}
	d.lock = lock
	t.disks = append(t.disks, d)
	if fi, err := t.fsys.Stat(d.dir); err == nil {
		d.dev = device(fi)
	}
	name := filepath.Join(d.dir, formatFile)
	b, err := t.readFile(name, 4096)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(b) == 0: // new, or the power failed while it was
		return t.replaceFile(d, name, []byte(formatText))
	case err != nil:
		return err
	case string(b) != formatText:
		return fmt.Errorf("%s: %w: %q is not the format of this version of ckptd (%q)", name, catalog.ErrInvalid,
			strings.TrimSpace(string(b)), strings.TrimSpace(formatText))
	}
	return nil
}

// Close lets go of the folders. Ingests that are open keep their staging
// files, for Resume in the next process.
func (t *Tier) Close() error {
	t.mu.Lock()
	closed := t.mu.closed
	t.mu.closed = true
	t.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	for _, d := range t.disks {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// failed notes what became of an operation on d.
func (t *Tier) failed(d *disk, err error) {
	if errors.Is(err, catalog.ErrNoSpace) {
		return // full is not broken
	}
	t.mu.Lock()
	first := err != nil && d.err == nil
	d.err = err
	t.mu.Unlock()
	if first && t.opt.Trace.DiskFailed != nil {
		t.opt.Trace.DiskFailed(d.dir, err)
	}
}

func (t *Tier) direct(d *disk, f vfs.File) {
	if !t.opt.Buffered && !f.Direct() && t.opt.Trace.DirectFallback != nil {
		d.fallback.Do(func() { t.opt.Trace.DirectFallback(d.dir) })
	}
}

var seed = maphash.MakeSeed()

func (t *Tier) lockOf(name string) *sync.RWMutex {
	return &t.names[maphash.String(seed, name)%uint64(len(t.names))]
}

func (t *Tier) lookup(name string) (entry, error) {
	if err := checkName(name); err != nil {
		return entry{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.mu.index[name]
	if e == nil {
		return entry{}, fmt.Errorf("blob %s: %w", name, fs.ErrNotExist)
	}
	return *e, nil
}

// show makes a blob visible, or replaces what is known of it.
func (t *Tier) show(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hide(e.info.Name)
	t.mu.index[e.info.Name] = e
	t.mu.used += e.info.Size
	e.disk.used += e.info.Size
}

// hide takes a blob out of the index; Tier.mu is held.
func (t *Tier) hide(name string) *entry {
	e := t.mu.index[name]
	if e != nil {
		delete(t.mu.index, name)
		t.mu.used -= e.info.Size
		e.disk.used -= e.info.Size
	}
	return e
}

// Stat describes a blob; a missing one is fs.ErrNotExist.
func (t *Tier) Stat(name string) (Info, error) {
	e, err := t.lookup(name)
	return e.info, err
}

// List gives the blobs in the folder prefix ("" for all) as they are at the
// call, by name.
func (t *Tier) List(prefix string) iter.Seq[Info] {
	t.mu.Lock()
	var all []Info
	for name, e := range t.mu.index {
		if under(name, prefix) {
			all = append(all, e.info)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return slices.Values(all)
}
