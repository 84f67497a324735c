package restore

import (
	"container/list"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// FlightOptions bound a Flight. The zero value works.
type FlightOptions struct {
	// Memory is for reads under way and for the last ones done, in bytes;
	// default 128 MiB. A read that does not fit goes straight to its caller
	// and is not shared.
	Memory int64
	// Readers says how many are reading the shard now. One that is alone reads
	// straight to its caller, which saves a copy of the bytes; of several, the
	// first ones wait a moment for the others before what those have not read
	// yet is dropped. nil: nobody knows, so all share and nobody waits.
	Readers func(ShardRef) int
}

const (
	// flightGrace is how long a read waits, when the memory is full, for others
	// to take what is in it.
	flightGrace = time.Second
	// flightHaste is how long nobody waits after that was in vain: the readers
	// of the shard do not want the same, or one of them stands still.
	flightHaste = 10 * time.Second
	hasty       = 64 // shards remembered
)

// Flight lets the fetches of one node share what they read: of those that ask
// a source for the same ranges of a shard at about the same time, one reads
// and the others are given its bytes. The last ones read are kept as far as
// memory goes, so that a reader somewhat behind catches up with the first, and
// goes on together with it. It never holds a byte its source did not check.
type Flight struct {
	opt FlightOptions
	mu  struct {
		sync.Mutex
		legs map[legKey]*leg
		idle *list.List // of *leg, done and used by nobody, least recently used first
		used int64      // bytes of all legs

		changed chan struct{}          // closed when a leg has been left
		haste   map[ShardRef]time.Time // nobody waits for the shard's readers until then
	}
}

type legKey struct {
	source string
	shard  ShardRef
	ranges string
}

// leg is one shared read. buf holds its ranges one after the other.
type leg struct {
	key  legKey
	buf  []byte
	done chan struct{} // closed when the read is over; what follows is set before
	rep  Report
	err  error
	gone bool // the reader's context ended: that is nobody else's failure

	users int           // under Flight.mu
	taken int           // under Flight.mu: users that have left
	idle  *list.Element // under Flight.mu; nil while there are users
}

// NewFlight makes a Flight for one node.
func NewFlight(opt FlightOptions) *Flight {
	if opt.Memory <= 0 {
		opt.Memory = 128 << 20
	}
	f := &Flight{opt: opt}
	f.mu.legs = map[legKey]*leg{}
	f.mu.idle = list.New()
	f.mu.changed = make(chan struct{})
	f.mu.haste = map[ShardRef]time.Time{}
	return f
}

// Share is src, sharing its reads with all others of the same name.
func (f *Flight) Share(src Source) Source { return &shared{f, src} }

type shared struct {
	f *Flight
	Source
}

var _ Source = (*shared)(nil)

func (s *shared) ReadRanges(ctx context.Context, shard ShardRef, ranges [][2]int64, w io.WriterAt) (Report, error) {
	key := legKey{s.Name(), shard, encodeRanges(ranges)}
	if s.f.opt.Readers != nil && s.f.opt.Readers(shard) <= 1 && !s.f.has(key) {
		return s.Source.ReadRanges(ctx, shard, ranges, w)
	}
	for {
		l, first, err := s.f.boardSoon(ctx, key, total(ranges))
		if err != nil {
			return Report{}, err
		}
		if l == nil { // no memory for it
			return s.Source.ReadRanges(ctx, shard, ranges, w)
		}
		if first {
			s.fly(ctx, l, ranges)
		} else {
			select {
			case <-l.done:
			case <-ctx.Done():
				s.f.leave(l)
				return Report{}, ctx.Err()
			}
		}
		retry := l.gone && !first
		err = l.err
		if err == nil {
			err = l.unload(ranges, w)
		}
		s.f.leave(l)
		if !retry {
			return l.rep, err
		}
	}
}

// fly does the read of a leg.
func (s *shared) fly(ctx context.Context, l *leg, ranges [][2]int64) {
	l.gone, l.err = true, context.Canceled // should the source panic
	defer func() {
		if l.err != nil {
			s.f.drop(l)
		}
		close(l.done)
	}()
	l.rep, l.err = s.Source.ReadRanges(ctx, l.key.shard, ranges, newHold(l.buf, ranges))
	if want := int64(len(l.buf)); l.err == nil && l.rep.Bytes < want {
		l.err = fmt.Errorf("%w: it gave %d bytes of %d", catalog.ErrUnavailable, l.rep.Bytes, want)
	}
	l.gone = l.err != nil && ctx.Err() != nil
}

// unload copies the ranges of a leg to one of its users.
func (l *leg) unload(ranges [][2]int64, w io.WriterAt) error {
	at := int64(0)
	for _, r := range ranges {
		if _, err := w.WriteAt(l.buf[at:at+r[1]], r[0]); err != nil {
			return err
		}
		at += r[1]
	}
	return nil
}

// boardSoon is board, after waiting for those who are behind, if there are any.
func (f *Flight) boardSoon(ctx context.Context, key legKey, size int64) (l *leg, first bool, err error) {
	var grace <-chan time.Time
	for patient := f.opt.Readers != nil; ; {
		l, first, changed := f.board(key, size, patient)
		if changed == nil {
			return l, first, nil
		}
		if grace == nil {
			timer := time.NewTimer(flightGrace)
			defer timer.Stop()
			grace = timer.C
		}
		select {
		case <-changed:
		case <-grace:
			patient = false
			f.hurry(key.shard)
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// has says whether the others have left, or are reading, what is asked for.
func (f *Flight) has(key legKey) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.legs[key] != nil
}

// hurry has nobody wait for a shard's other readers for a while.
func (f *Flight) hurry(shard ShardRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.mu.haste) >= hasty {
		clear(f.mu.haste)
	}
	f.mu.haste[shard] = time.Now().Add(flightHaste)
}

// board joins the leg of a key, or begins one of size bytes: then first is
// true. nil: there is no room; when there may soon be, for one who is patient,
// changed is closed at the next time to try.
func (f *Flight) board(key legKey, size int64, patient bool) (l *leg, first bool, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.mu.legs[key]; l != nil {
		if l.idle != nil {
			f.mu.idle.Remove(l.idle)
			l.idle = nil
		}
		l.users++
		return l, false, nil
	}
	if size > f.opt.Memory {
		return nil, false, nil
	}
	patient = patient && !time.Now().Before(f.mu.haste[key.shard])
	var buf []byte
	for f.mu.used+size > f.opt.Memory {
		old := f.oldest(patient)
		if old == nil && patient {
			return nil, false, f.mu.changed
		} else if old == nil {
			return nil, false, nil
		}
		f.mu.idle.Remove(old.idle)
		delete(f.mu.legs, old.key)
		f.mu.used -= int64(cap(old.buf))
		if int64(cap(old.buf)) >= size && int64(cap(old.buf)) <= 2*size {
			buf = old.buf[:size] // most legs have one size: its memory serves again
		}
	}
	if buf != nil && f.mu.used+int64(cap(buf)) <= f.opt.Memory {
		size = int64(cap(buf))
	} else {
		buf = make([]byte, size)
	}
	f.mu.used += size
	l = &leg{key: key, buf: buf, done: make(chan struct{}), users: 1}
	f.mu.legs[key] = l
	return l, true, nil
}

// oldest is the idle leg that was used longest ago, but for those that one who
// is patient leaves to others; nil: there is none. The lock is held.
func (f *Flight) oldest(patient bool) *leg {
	for e := f.mu.idle.Front(); e != nil; e = e.Next() {
		if l := e.Value.(*leg); !patient || l.taken >= f.opt.Readers(l.key.shard) {
			return l
		}
	}
	return nil
}

// drop takes a failed leg off the board: whoever comes now reads for itself.
func (f *Flight) drop(l *leg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.legs, l.key)
}

// leave ends one use of a leg. The last one leaves it idle, or, when it failed,
// gives its memory back.
func (f *Flight) leave(l *leg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.mu.changed)
	f.mu.changed = make(chan struct{})
	l.taken++
	if l.users--; l.users > 0 {
		return
	}
	if f.mu.legs[l.key] == l {
		l.idle = f.mu.idle.PushBack(l)
	} else {
		f.mu.used -= int64(cap(l.buf))
	}
}

func encodeRanges(ranges [][2]int64) string {
	b := make([]byte, 0, 6*len(ranges))
	last := int64(0)
	for _, r := range ranges {
		b = binary.AppendVarint(binary.AppendVarint(b, r[0]-last), r[1])
		last = r[0]
	}
	return string(b)
}

// hold keeps what is written within the ranges, one after the other.
type hold struct {
	buf    []byte
	ranges [][2]int64
	at     []int64 // where each range begins in buf
}

func newHold(buf []byte, ranges [][2]int64) *hold {
	h := &hold{buf: buf, ranges: ranges, at: make([]int64, len(ranges))}
	n := int64(0)
	for i, r := range ranges {
		h.at[i] = n
		n += r[1]
	}
	return h
}

func (h *hold) WriteAt(p []byte, off int64) (int, error) {
	i := sort.Search(len(h.ranges), func(i int) bool { return h.ranges[i][0] > off }) - 1
	if i < 0 || off+int64(len(p)) > h.ranges[i][0]+h.ranges[i][1] {
		return 0, fmt.Errorf("write of %d bytes at %d: %w: outside the ranges asked for", len(p), off, catalog.ErrInvalid)
	}
	return copy(h.buf[h.at[i]+off-h.ranges[i][0]:], p), nil
}
