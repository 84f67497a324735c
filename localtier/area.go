package localtier

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Area is a folder of files that are written by others, in any order and as
// often as they like, until it is frozen and its files are made blobs. It
// outlives the process. Its methods may be called from many goroutines.
type Area struct {
	t   *Tier
	d   *disk
	dir string

	mu struct {
		sync.Mutex
		name    string
		note    []byte
		files   map[string]*areaFile
		numbers map[uint32]*areaFile // those too that have no name any more and are open
		next    uint32
		frozen  bool
		gone    bool
		changed time.Time // when a name in it, or a file's last writer, came or went
		loose   bool      // names changed since the folder was synced
	}
}

// Limits of areas.
const (
	MaxAreas     = 1024    // of a tier
	MaxAreaFiles = 4096    // of an area
	MaxAreaNote  = 4 << 20 // bytes
	maxAreaName  = 1024    // bytes
)

// areaRecord is an area's AREA file.
type areaRecord struct {
	Name string `json:"name"`
	Note []byte `json:"note"`
}

// AreaInfo describes an area as it is at the call.
type AreaInfo struct {
	Bytes   int64     // of its files
	Files   int       //
	Writers int       // files that are open for writing
	Changed time.Time // when something in it changed last
	Frozen  bool
}

// AreaFileInfo describes a file of an area.
type AreaFileInfo struct {
	Number  uint32 // tells it from the area's other files, whatever its name; from 1, anew with each Open of the tier
	Name    string
	Size    int64
	ModTime time.Time
}

// NewArea makes an empty area; a taken name is fs.ErrExist.
func (t *Tier) NewArea(name string, note []byte) (*Area, error) {
	a, err := t.newArea(name, note)
	if err != nil {
		return nil, fmt.Errorf("area %.200q: %w", name, err)
	}
	return a, nil
}

func (t *Tier) newArea(name string, note []byte) (_ *Area, err error) {
	disks, err := t.order(0)
	if err != nil {
		return nil, err
	}
	if len(disks) == 0 {
		return nil, &Shortage{Free: t.roomiest(), Short: sealRoom(0)}
	}
	d := t.fewestAreas(disks)
	if err := checkArea(name, note); err != nil {
		return nil, err
	}
	a := emptyArea(t, d, name, note)
	a.mu.changed = time.Now()
	a.mu.Lock() // nobody looks at it before it is there
	defer a.mu.Unlock()
	t.mu.Lock()
	switch {
	case t.mu.closed:
		err = fs.ErrClosed
	case t.mu.areas[name] != nil:
		err = fs.ErrExist
	case len(t.mu.areas) >= MaxAreas:
		err = fmt.Errorf("%w: there are %d areas already", catalog.ErrNoSpace, MaxAreas)
	case t.unused() <= 0:
		err = &Shortage{Short: 1 - t.unused()}
	default:
		t.mu.areas[name] = a
		t.mu.seq++
		a.dir = filepath.Join(d.dir, areasDir, fmt.Sprintf("%016x-%06d", t.start, t.mu.seq))
		d.areas++
	}
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err = t.fsys.MkdirAll(filepath.Join(a.dir, areaFiles)); err == nil {
		err = a.saveNote(name, note)
	}
	t.failed(d, err)
	if err != nil {
		a.mu.gone = true
		err = fmt.Errorf("disk %s: %w", d.dir, err)
		return nil, errors.Join(err, t.clearArea(a.dir), t.forgetArea(a, name))
	}
	return a, nil
}

// fewestAreas chooses among disks that are in the order in which they should
// take bytes: areas that are written at once are to be on all of them.
func (t *Tier) fewestAreas(disks []*disk) *disk {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.MinFunc(disks, func(a, b *disk) int { return a.areas - b.areas })
}

func emptyArea(t *Tier, d *disk, name string, note []byte) *Area {
	a := &Area{t: t, d: d}
	a.mu.name, a.mu.note = name, slices.Clone(note)
	a.mu.files, a.mu.numbers = map[string]*areaFile{}, map[uint32]*areaFile{}
	return a
}

func checkArea(name string, note []byte) error {
	if name == "" || len(name) > maxAreaName || len(note) > MaxAreaNote {
		return fmt.Errorf("%w: want a name of 1 to %d bytes and a note of at most %d", catalog.ErrInvalid, maxAreaName, MaxAreaNote)
	}
	return nil
}

// saveNote writes AREA. Area.mu is held.
func (a *Area) saveNote(name string, note []byte) error {
	b, err := json.Marshal(areaRecord{name, note})
	if err != nil {
		return err
	}
	return a.t.replaceFile(a.d, filepath.Join(a.dir, areaNote), b)
}

func (t *Tier) forgetArea(a *Area, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.areas[name] == a {
		delete(t.mu.areas, name)
		a.d.areas--
	}
	return nil
}

// Area finds an area by its name.
func (t *Tier) Area(name string) (*Area, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.mu.areas[name]
	return a, a != nil
}

// Areas are all there are, by name.
func (t *Tier) Areas() []*Area {
	t.mu.Lock()
	names := make([]string, 0, len(t.mu.areas))
	for name := range t.mu.areas {
		names = append(names, name)
	}
	slices.Sort(names)
	areas := make([]*Area, len(names))
	for i, name := range names {
		areas[i] = t.mu.areas[name]
	}
	t.mu.Unlock()
	return areas
}

// Name is the area's.
func (a *Area) Name() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.name
}

// ID tells it from other areas, whatever its name, and after a restart too.
func (a *Area) ID() string { return filepath.Base(a.dir) }

// Note is what its user keeps with it.
func (a *Area) Note() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.mu.note)
}

// SetNote replaces the note, durably.
func (a *Area) SetNote(note []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.change(a.mu.name, note); err != nil {
		return fmt.Errorf("note of area %.200q: %w", a.mu.name, err)
	}
	return nil
}

// SetName gives the area another name; a taken one is fs.ErrExist.
func (a *Area) SetName(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.mu.name
	if name == old {
		return nil
	}
	t := a.t
	t.mu.Lock()
	taken := t.mu.areas[name] != nil
	if !taken {
		t.mu.areas[name] = a
	}
	t.mu.Unlock()
	if taken {
		return fmt.Errorf("area %.200q: %w", name, fs.ErrExist)
	}
	err := a.writable()
	if err == nil {
		err = a.change(name, a.mu.note)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		delete(t.mu.areas, name)
		return fmt.Errorf("rename area %.200q: %w", old, err)
	}
	delete(t.mu.areas, old)
	return nil
}

// change writes AREA anew. Area.mu is held.
func (a *Area) change(name string, note []byte) error {
	if a.mu.gone {
		return fs.ErrNotExist
	}
	if err := checkArea(name, note); err != nil {
		return err
	}
	err := a.saveNote(name, note)
	a.t.failed(a.d, err)
	if err != nil {
		return fmt.Errorf("disk %s: %w", a.d.dir, err)
	}
	a.mu.name, a.mu.note = name, slices.Clone(note)
	return nil
}

// Info describes the area.
func (a *Area) Info() AreaInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := AreaInfo{Files: len(a.mu.files), Changed: a.mu.changed, Frozen: a.mu.frozen}
	for _, f := range a.mu.files {
		i.Bytes += f.size
		if f.writers > 0 {
			i.Writers++
			i.Changed = time.Now()
		}
	}
	return i
}

// Files describes the area's files, by name.
func (a *Area) Files() []AreaFileInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	files := make([]AreaFileInfo, 0, len(a.mu.files))
	for _, f := range a.mu.files {
		files = append(files, f.info())
	}
	slices.SortFunc(files, func(x, y AreaFileInfo) int { return strings.Compare(x.Name, y.Name) })
	return files
}

// Lookup finds a file by its name; fs.ErrNotExist.
func (a *Area) Lookup(name string) (AreaFileInfo, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.mu.files[name]; f != nil {
		return f.info(), nil
	}
	return AreaFileInfo{}, fs.ErrNotExist
}

// Stat finds a file by its number; fs.ErrNotExist.
func (a *Area) Stat(number uint32) (AreaFileInfo, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.mu.numbers[number]; f != nil {
		return f.info(), nil
	}
	return AreaFileInfo{}, fs.ErrNotExist
}

// Freeze forbids every change of the area's files. One that is open for
// writing, by whomever, is ErrConflict.
func (a *Area) Freeze() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.gone {
		return fs.ErrNotExist
	}
	if a.mu.frozen {
		return fmt.Errorf("area %.200q: %w: it is being committed", a.mu.name, catalog.ErrConflict)
	}
	for _, f := range a.mu.files {
		if err := f.unwritten(); err != nil {
			return err
		}
	}
	a.mu.frozen = true
	return nil
}

// Thaw undoes Freeze.
func (a *Area) Thaw() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.frozen = false
}

// writable says whether names and files of the area may change. Area.mu is held.
func (a *Area) writable() error {
	switch {
	case a.mu.gone:
		return fs.ErrNotExist
	case a.mu.frozen:
		return fmt.Errorf("%w: it is being committed", catalog.ErrConflict)
	}
	return nil
}

// Discard removes the area and all its files. One that is open for writing is
// ErrConflict.
func (a *Area) Discard() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.gone {
		return nil
	}
	name := a.mu.name
	for _, f := range a.mu.files {
		if f.writers > 0 {
			return fmt.Errorf("discard area %.200q: %w: %.200q is open for writing", name, catalog.ErrConflict, f.name)
		}
	}
	// From here on it is garbage, whatever fails.
	err := a.t.fsys.Remove(filepath.Join(a.dir, areaNote))
	if clean(err) == nil {
		err = a.t.fsys.SyncDir(a.dir)
	}
	if err != nil {
		a.t.failed(a.d, err)
		return fmt.Errorf("discard area %.200q: disk %s: %w", name, a.d.dir, err)
	}
	a.mu.gone = true
	for _, f := range a.mu.files {
		f.name = ""
		a.t.charge(-f.size)
	}
	clear(a.mu.files)
	clear(a.mu.numbers)
	return errors.Join(a.t.clearArea(a.dir), a.t.forgetArea(a, name))
}

// clearArea removes an area's folder, whatever is in it.
func (t *Tier) clearArea(dir string) error {
	files := filepath.Join(dir, areaFiles)
	entries, err := t.fsys.ReadDir(files)
	if clean(err) != nil {
		return err
	}
	for _, e := range entries {
		err = errors.Join(clean(err), clean(t.fsys.Remove(filepath.Join(files, e.Name()))))
	}
	return errors.Join(clean(err), clean(t.fsys.Remove(files)), clean(t.fsys.Remove(filepath.Join(dir, areaNote))), clean(t.fsys.Remove(dir)))
}

// scanAreas finds the areas of a disk.
func (t *Tier) scanAreas(d *disk) error {
	top := filepath.Join(d.dir, areasDir)
	entries, err := t.fsys.ReadDir(top)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue // not ours
		}
		if err := t.scanArea(d, filepath.Join(top, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tier) scanArea(d *disk, dir string) error {
	b, err := t.readFile(filepath.Join(dir, areaNote), 2*MaxAreaNote)
	var rec areaRecord
	if err == nil && json.Unmarshal(b, &rec) != nil {
		err = fs.ErrNotExist // it was being made: AREA is durable before it gets its name
	}
	if errors.Is(err, fs.ErrNotExist) {
		if t.opt.Trace.Orphan != nil {
			t.opt.Trace.Orphan(dir)
		}
		return t.clearArea(dir)
	}
	if err != nil {
		return err
	}
	if checkArea(rec.Name, rec.Note) != nil || t.mu.areas[rec.Name] != nil {
		return nil // not ours, or of a disk that was copied: left alone
	}
	a := emptyArea(t, d, rec.Name, rec.Note)
	a.dir = dir
	files := filepath.Join(dir, areaFiles)
	if err := t.fsys.MkdirAll(files); err != nil {
		return err
	}
	entries, err := t.fsys.ReadDir(files)
	if err != nil {
		return err
	}
	if fi, err := t.fsys.Stat(files); err == nil {
		a.mu.changed = fi.ModTime()
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		a.mu.next++
		f := &areaFile{a: a, number: a.mu.next, name: e.Name(), size: fi.Size()}
		a.mu.files[f.name], a.mu.numbers[f.number] = f, f
		t.mu.writing += f.size
		if fi.ModTime().After(a.mu.changed) {
			a.mu.changed = fi.ModTime()
		}
	}
	t.mu.areas[rec.Name] = a
	d.areas++
	// What is seen now must stay so.
	return errors.Join(t.fsys.SyncDir(files), t.fsys.SyncDir(dir), t.fsys.SyncDir(filepath.Dir(dir)))
}
