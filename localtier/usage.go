package localtier

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Shortage is the error of what does not fit; it is a catalog.ErrNoSpace.
type Shortage struct {
	Need  int64 // bytes asked for
	Free  int64 // bytes there are, by quota and by file system
	Short int64 // bytes that must go first
}

func (s *Shortage) Error() string {
	return fmt.Sprintf("%v: need %d bytes, %d are free, %d short", catalog.ErrNoSpace, s.Need, s.Free, s.Short)
}
func (s *Shortage) Unwrap() error { return catalog.ErrNoSpace }

// Usage says how full a tier is, in bytes.
type Usage struct {
	Quota       int64
	Used        int64 // by visible blobs
	Reserved    int64 // by ingests
	Quarantined int64 // by blobs put aside
	Writing     int64 // by files in areas
	Free        int64 // what Reserve could give, by quota and by file systems
	Disks       []DiskUsage
	ToHigh      int64 // what fits before it is over the high water
	High        bool  // over the high water: the evictor should run
	EvictBytes  int64 // how much to remove to get under the low water; 0 unless High
}

// DiskUsage says how full a disk is.
type DiskUsage struct {
	Dir   string
	Total int64  // bytes of its file system
	Free  int64  // bytes of its file system
	Used  int64  // bytes of visible blobs
	Err   string // of the last operation, when it failed
}

// device identifies the file system of a folder; nil where that is unknown.
func device(fi fs.FileInfo) any {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return nil
}

// free sums what the file systems have, each once.
func (t *Tier) free() (sum int64, err error) {
	seen := map[any]bool{}
	for _, d := range t.disks {
		if seen[d.dev] {
			continue
		}
		_, free, e := t.fsys.Space(d.dir)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		seen[d.dev] = true
		sum += free
	}
	if len(seen) > 0 {
		err = nil // a disk that cannot be asked has no room
	}
	return sum, err
}

// Usage says how full the tier is.
func (t *Tier) Usage() Usage {
	physical, _ := t.free()
	t.mu.Lock()
	defer t.mu.Unlock()
	u := Usage{Quota: t.mu.quota, Used: t.mu.used, Reserved: t.mu.reserved, Quarantined: t.mu.quarantined, Writing: t.mu.writing}
	u.Free = max(0, min(physical, t.unused()))
	for _, d := range t.disks {
		du := DiskUsage{Dir: d.dir, Used: d.used}
		total, free, err := t.fsys.Space(d.dir)
		if err = cmp.Or(d.err, err); err != nil {
			du.Err = err.Error()
		}
		du.Total, du.Free = total, free
		u.Disks = append(u.Disks, du)
	}
	// A full file system counts like a full quota, whoever filled it.
	u.ToHigh = max(0, int64(t.opt.HighWater*float64(u.Quota))-(u.Quota-u.Free))
	if full := u.Quota - u.Free; float64(full) > t.opt.HighWater*float64(u.Quota) {
		u.High = true
		u.EvictBytes = min(u.Used, full-int64(t.opt.LowWater*float64(u.Quota)))
	}
	return u
}

// unused is what the quota leaves, in bytes; below zero when it is overdrawn.
// Tier.mu is held.
func (t *Tier) unused() int64 {
	return t.mu.quota - t.mu.used - t.mu.reserved - t.mu.quarantined - t.mu.writing
}

// sealRoom is what a blob of size bytes takes beyond its own bytes, at most.
func sealRoom(size int64) int64 { return 4*int64(catalog.Blocks(size)) + catalog.MaxSealInfo + 64<<10 }

// order gives the disks in the order in which they should take size bytes:
// working ones first, then those with the fewest open ingests, so that disks
// work in parallel, then those with the most room. Disks without room are left
// out; err says why a disk could not be asked, when none could.
func (t *Tier) order(size int64) (_ []*disk, err error) {
	type choice struct {
		d            *disk
		bad, ingests int
		free, used   int64
	}
	var all []choice
	asked := false
	for _, d := range t.disks {
		_, free, e := t.fsys.Space(d.dir)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("disk %s: %w", d.dir, e))
			continue
		}
		asked = true
		if free < size+sealRoom(size) {
			continue
		}
		c := choice{d: d, free: free}
		t.mu.Lock()
		c.ingests, c.used = d.ingests, d.used
		if d.err != nil {
			c.bad = 1
		}
		t.mu.Unlock()
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b choice) int {
		return cmp.Or(a.bad-b.bad, a.ingests-b.ingests, cmp.Compare(b.free, a.free), cmp.Compare(a.used, b.used))
	})
	out := make([]*disk, len(all))
	for i, c := range all {
		out[i] = c.d
	}
	if asked {
		err = nil
	}
	return out, err
}

// roomiest is the most that one disk has room for, in bytes.
func (t *Tier) roomiest() (most int64) {
	for _, d := range t.disks {
		if _, free, err := t.fsys.Space(d.dir); err == nil {
			most = max(most, free)
		}
	}
	return most
}

// Candidate is a blob, or a set of blobs, that might be evicted.
type Candidate struct {
	Name    string
	Size    int64     // bytes
	LastUse time.Time // or when it was committed
	Safe    bool      // another tier has a checked copy
	Leased  bool      // somebody reads it
}

// PlanEvict chooses what to evict to free need bytes: the longest unused first,
// only what is safe and not leased. What it chooses may be less than needed.
func PlanEvict(cands []Candidate, need int64) []string {
	sorted := slices.Clone(cands)
	slices.SortStableFunc(sorted, func(a, b Candidate) int {
		return cmp.Or(a.LastUse.Compare(b.LastUse), cmp.Compare(a.Name, b.Name))
	})
	var out []string
	for _, c := range sorted {
		if need <= 0 {
			break
		}
		if c.Safe && !c.Leased {
			out = append(out, c.Name)
			need -= c.Size
		}
	}
	return out
}
