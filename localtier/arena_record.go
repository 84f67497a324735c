package localtier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Limits of an arena's records.
const (
	maxRecords    = 65536
	maxRecordSize = 4 << 20 // bytes
	recordPrefix  = "rec-"
)

func (a *Arena) recordPath(name string) string { return filepath.Join(a.dir, recordPrefix+name) }

func checkRecord(name string) error {
	if strings.Contains(name, "/") || strings.HasSuffix(name, tmpSuffix) {
		return fmt.Errorf("record name %q: %w", name, catalog.ErrInvalid)
	}
	return checkName(name)
}

// PutRecord keeps b under name, in place of an earlier one, atomically. It
// survives the process, as the segments do, not a power failure.
func (a *Arena) PutRecord(name string, b []byte) error {
	if err := checkRecord(name); err != nil {
		return err
	}
	if len(b) > maxRecordSize {
		return fmt.Errorf("record %s: %w: %d bytes, the limit is %d", name, catalog.ErrInvalid, len(b), maxRecordSize)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.closed {
		return fmt.Errorf("record %s: %w", name, fs.ErrClosed)
	}
	if !a.mu.records[name] && len(a.mu.records) >= maxRecords {
		return fmt.Errorf("record %s: %w: there are %d records", name, catalog.ErrNoSpace, maxRecords)
	}
	tmp := a.recordPath(name) + tmpSuffix
	err := os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, a.recordPath(name))
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", name, errors.Join(err, os.Remove(tmp)))
	}
	a.mu.records[name] = true
	return nil
}

// Records gives all records. One that cannot be read is left out.
func (a *Arena) Records() map[string][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string][]byte, len(a.mu.records))
	for name := range a.mu.records {
		fi, err := os.Stat(a.recordPath(name))
		if err != nil || fi.Size() > maxRecordSize {
			continue
		}
		if b, err := os.ReadFile(a.recordPath(name)); err == nil {
			out[name] = b
		}
	}
	return out
}

// DropRecord removes a record; a missing one is nil. With the last one go the
// segments that only a record could have named.
func (a *Arena) DropRecord(name string) error {
	if err := checkRecord(name); err != nil {
		return err
	}
	var odd []int
	defer func() { a.regrow(odd) }()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := os.Remove(a.recordPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop record %s: %w", name, err)
	}
	delete(a.mu.records, name)
	if len(a.mu.records) == 0 && !a.mu.closed {
		for _, s := range a.mu.odd {
			if !s.lent {
				a.drop(s)
				odd = append(odd, s.id)
			}
		}
	}
	return nil
}

// Claim takes the segment with this id out of the pool, with the bytes that
// are in it: what a record of an earlier process named. Claim before the
// first Lend. A segment that is gone is fs.ErrNotExist, one that was cut is
// catalog.ErrCorrupt, one that is lent catalog.ErrConflict.
func (a *Arena) Claim(id int) (*Segment, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.mu.segs[id]
	if odd := a.mu.odd[id]; odd != nil {
		s = odd
	}
	switch {
	case s == nil || a.mu.closed:
		return nil, fmt.Errorf("claim segment %d: %w", id, fs.ErrNotExist)
	case s.lent:
		return nil, fmt.Errorf("claim segment %d: %w: it is lent", id, catalog.ErrConflict)
	case !s.whole():
		return nil, fmt.Errorf("claim segment %d: %w: memory is missing from it", id, catalog.ErrCorrupt)
	}
	s.lent = true
	if i := slices.Index(a.mu.free, s); i >= 0 {
		a.mu.free = slices.Delete(a.mu.free, i, i+1)
	}
	return s, nil
}
