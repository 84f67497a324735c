package localtier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// ArenaOptions of an Arena.
type ArenaOptions struct {
	// Size is the whole arena, in bytes; default a quarter of the machine's
	// memory, at most 8 GiB, and at most half of what its tmpfs has free.
	Size int64
	// Segment is what is lent at once, in bytes; default 32 MiB, or a quarter
	// of the arena where that is less.
	Segment int64
	// Slot is what is written at once, in bytes, a multiple of
	// catalog.BlockSize; default 8 MiB, at most a segment.
	Slot  int64
	Trace Trace
}

// maxSegments bounds an arena: each costs a few file descriptors and a mapping.
const maxSegments = 4096

// Arena is shared memory that a daemon owns: a pool of segments that are files
// on a tmpfs, allocated and mapped once, lent to one session at a time by
// passing a file descriptor. It outlives the process, and so do the records in it.
type Arena struct {
	dir  string
	opt  ArenaOptions
	lock io.Closer

	cancel context.CancelFunc // of warming
	warmed chan struct{}      // closed when warming has ended
	growth sync.Mutex         // held while a segment is made

	mu struct {
		sync.Mutex
		segs    map[int]*Segment // all there are
		free    []*Segment
		odd     map[int]*Segment // from an arena of another shape: to be claimed or removed
		queue   []*waiter
		held    map[string]int // segments by session
		records map[string]bool
		calls   int // of Lend, to tell their sessions apart
		want    int // segments of the pool
		closed  bool
		err     error // why warming ended early
	}
}

// Segment is a piece of the arena.
type Segment struct {
	a       *Arena
	id      int
	path    string
	mem     []byte
	inode   uint64
	uid     int64  // whose bytes may be in it; unknownUID after a restart
	used    bool   // has been lent since its memory was new
	session string // that has it; Arena.mu guards it
	lent    bool
	pin     sync.Mutex // held while mem is touched in the background, or replaced
}

const unknownUID = -1

// OpenArena makes or takes over the arena in dir, which should be on a tmpfs,
// and begins to allocate its memory in the background; see WaitWarm. A second
// process is catalog.ErrConflict; no room for two segments is catalog.ErrNoSpace.
func OpenArena(dir string, opt ArenaOptions) (_ *Arena, err error) {
	a := &Arena{dir: filepath.Clean(dir), warmed: make(chan struct{})}
	a.mu.segs, a.mu.odd = map[int]*Segment{}, map[int]*Segment{}
	a.mu.held, a.mu.records = map[string]int{}, map[string]bool{}
	if err := errors.Join(ownFolder(a.dir), vfs.OS.MkdirAll(a.dir)); err != nil {
		return nil, fmt.Errorf("open arena: %w", err)
	}
	if a.lock, err = vfs.OS.Lock(filepath.Join(a.dir, lockFile)); err != nil {
		return nil, fmt.Errorf("open arena: another daemon uses %s: %w", a.dir, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	if err := a.open(opt); err != nil {
		close(a.warmed)
		return nil, errors.Join(fmt.Errorf("open arena %s: %w", a.dir, err), a.Close())
	}
	go func() {
		defer close(a.warmed)
		a.warm(ctx)
	}()
	return a, nil
}

// ownFolder refuses a folder that others use, as /dev/shm itself: an arena makes
// its folder one that only its user can enter. Nothing is changed before.
func ownFolder(dir string) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: %s is not an arena's: %s; give the arena a folder of its own, as %s (it is made)",
			catalog.ErrInvalid, dir, why, filepath.Join(dir, "ckptd"))
	}
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%w: %s is not a folder", catalog.ErrInvalid, dir)
	case fi.Mode()&os.ModeSticky != 0:
		return bad("users share it")
	case fi.Mode().Perm() == 0o700:
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n := e.Name(); n != lockFile && !strings.HasPrefix(n, segPrefix) && !strings.HasPrefix(n, recordPrefix) {
			return bad(fmt.Sprintf("it has %q in it", n))
		}
	}
	return nil
}

func (a *Arena) open(opt ArenaOptions) error {
	if err := os.Chmod(a.dir, 0o700); err != nil {
		return err
	}
	found, err := a.find()
	if err != nil {
		return err
	}
	if a.opt, err = a.shape(opt, found); err != nil {
		return err
	}
	a.mu.want = int(a.opt.Size / a.opt.Segment)
	for id, size := range found {
		fits := id < a.mu.want && size == a.opt.Segment
		if !fits && len(a.mu.records) == 0 || size == 0 {
			if err := os.Remove(a.segPath(id)); err != nil {
				return err
			}
			continue
		}
		s, err := a.mapSegment(id)
		if err != nil {
			return err
		}
		if fits {
			a.mu.segs[id] = s
			a.mu.free = append(a.mu.free, s)
		} else {
			a.mu.odd[id] = s
		}
	}
	// The first two at once: an arena that opened can work.
	for id := 0; id < a.mu.want && len(a.mu.segs) < 2; id++ {
		if a.mu.segs[id] == nil && a.mu.odd[id] == nil {
			if err := a.grow(id); err != nil {
				return fmt.Errorf("%w: not even two segments of %d bytes fit: %w", catalog.ErrNoSpace, a.opt.Segment, err)
			}
		}
	}
	return nil
}

// find lists the segments and records of an earlier process, and removes what it was about to write.
func (a *Arena) find() (map[int]int64, error) {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return nil, err
	}
	found := map[int]int64{}
	for _, e := range entries {
		name := e.Name()
		if strings.HasSuffix(name, tmpSuffix) {
			if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
				return nil, err
			}
		} else if rec, ok := strings.CutPrefix(name, recordPrefix); ok {
			a.mu.records[rec] = true
		} else if num, ok := strings.CutPrefix(name, segPrefix); ok {
			id, err := strconv.Atoi(num)
			fi, err2 := e.Info()
			if err != nil || id < 0 || a.segPath(id) != filepath.Join(a.dir, name) {
				continue // not ours
			}
			if err2 != nil {
				return nil, err2
			}
			found[id] = fi.Size()
		}
	}
	return found, nil
}

// shape fills in the defaults.
func (a *Arena) shape(opt ArenaOptions, found map[int]int64) (ArenaOptions, error) {
	bad := func(why string) (ArenaOptions, error) { return opt, fmt.Errorf("%w: %s", catalog.ErrInvalid, why) }
	_, free, err := vfs.OS.Space(a.dir)
	if err != nil {
		return opt, err
	}
	for _, size := range found {
		free += size // what an earlier arena took is there to be taken
	}
	if opt.Size == 0 {
		var si unix.Sysinfo_t
		if err := unix.Sysinfo(&si); err != nil {
			return opt, err
		}
		opt.Size = min(int64(si.Totalram)*int64(si.Unit)/4, 8<<30, free/2)
	}
	if opt.Segment == 0 {
		opt.Segment = max(catalog.BlockSize, min(32<<20, opt.Size/4/catalog.BlockSize*catalog.BlockSize))
	}
	if opt.Slot == 0 {
		opt.Slot = min(8<<20, opt.Segment)
	}
	switch {
	case opt.Size < 0 || opt.Segment < 0 || opt.Slot < 0:
		return bad("a size is negative")
	case opt.Slot%catalog.BlockSize != 0 || opt.Segment%opt.Slot != 0:
		return bad(fmt.Sprintf("slots must be whole blocks of %d bytes, and segments whole slots", catalog.BlockSize))
	case opt.Size/opt.Segment < 2:
		return bad(fmt.Sprintf("an arena of %d bytes has no room for two segments of %d", opt.Size, opt.Segment))
	case opt.Size/opt.Segment > maxSegments:
		return bad(fmt.Sprintf("more than %d segments; make them larger than %d bytes", maxSegments, opt.Segment))
	}
	return opt, nil
}

// warm makes the segments that are still missing and touches the memory of
// those that were there.
func (a *Arena) warm(ctx context.Context) {
	for id := 0; id < a.mu.want; id++ {
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		s, odd := a.mu.segs[id], a.mu.odd[id] != nil
		a.mu.Unlock()
		switch {
		case odd: // comes when it has been returned
		case s != nil:
			s.pin.Lock()
			if s.mem != nil {
				// It may fail: an old kernel, or a segment that was cut. Lend looks.
				unix.Madvise(s.mem, unix.MADV_POPULATE_WRITE)
			}
			s.pin.Unlock()
		default:
			if err := a.grow(id); err != nil {
				a.shrink(id, err)
				return
			}
		}
	}
}

// shrink notes that the tmpfs had no room for segment id and those after it.
func (a *Arena) shrink(id int, err error) {
	a.mu.Lock()
	have, want := int64(len(a.mu.segs))*a.opt.Segment, int64(a.mu.want)*a.opt.Segment
	a.mu.err = err
	a.mu.Unlock()
	if a.opt.Trace.ArenaShrunk != nil {
		a.opt.Trace.ArenaShrunk(have, want)
	}
}

// grow makes segment id and puts it into the pool.
func (a *Arena) grow(id int) error {
	a.growth.Lock()
	defer a.growth.Unlock()
	a.mu.Lock()
	there := a.mu.closed || a.mu.segs[id] != nil || a.mu.odd[id] != nil
	a.mu.Unlock()
	if there {
		return nil
	}
	s, err := a.newSegment(id)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.closed {
		return s.unmap()
	}
	a.mu.segs[id] = s
	a.mu.free = append(a.mu.free, s)
	a.serve()
	return nil
}

// WaitWarm waits until all of the arena's memory is there. It is
// catalog.ErrNoSpace when the tmpfs had less than Size.
func (a *Arena) WaitWarm(ctx context.Context) error {
	select {
	case <-a.warmed:
	case <-ctx.Done():
		return ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.err
}

// ArenaStats says how an arena is used.
type ArenaStats struct {
	Size     int64 // bytes of the pool
	Segments int
	Lent     int // segments
	Waiting  int // calls of Lend
	Records  int
	Warm     bool // all memory is there, or all there will be
}

// Stats says how the arena is used.
func (a *Arena) Stats() ArenaStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := ArenaStats{Segments: len(a.mu.segs), Waiting: len(a.mu.queue), Records: len(a.mu.records)}
	st.Size = int64(len(a.mu.segs)) * a.opt.Segment
	for _, group := range []map[int]*Segment{a.mu.segs, a.mu.odd} {
		for _, s := range group {
			if s.lent {
				st.Lent++
			}
		}
	}
	select {
	case <-a.warmed:
		st.Warm = true
	default:
	}
	return st
}

// SlotSize is the length of a slot, in bytes.
func (a *Arena) SlotSize() int64 { return a.opt.Slot }

// Close unmaps the segments and lets go of the arena. Where there are records,
// they and the segments stay for the next process; otherwise the memory is
// given back. No segment may be in use. Calls of Lend that wait end with an
// error.
func (a *Arena) Close() error {
	a.cancel()
	<-a.warmed
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.closed {
		return nil
	}
	a.mu.closed = true
	a.serve()
	var err error
	for _, group := range []map[int]*Segment{a.mu.segs, a.mu.odd} {
		for _, s := range group {
			err = errors.Join(err, s.unmap())
			if len(a.mu.records) == 0 { // nothing waits in it: the memory is the machine's again
				err = errors.Join(err, os.Remove(s.path))
			}
		}
	}
	return errors.Join(err, a.lock.Close())
}
