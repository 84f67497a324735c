package shardwriter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/shardwriter"
)

var errDead = errors.New("dead")

// life counts what a process does to the world outside, and ends it at a
// number: from then on nothing it does has an effect.
type life struct {
	mu  sync.Mutex
	ops int
	end int // 0: it lives on
}

func (l *life) do(f func() error) error {
	l.mu.Lock()
	l.ops++
	dead := l.end > 0 && l.ops >= l.end
	l.mu.Unlock()
	if dead {
		return errDead
	}
	return f()
}

// mortal is an ingest and a journal of a process that dies.
type mortal struct {
	*localtier.Ingest
	*journal
	*life
}

func (m mortal) WriteAt(p []byte, off int64) error {
	return m.do(func() error { return m.Ingest.WriteAt(p, off) })
}

func (m mortal) Commit(ctx context.Context, info []byte) (seal *catalog.Seal, err error) {
	err = m.do(func() error { seal, err = m.Ingest.Commit(ctx, info); return err })
	return seal, err
}
func (m mortal) Close() error  { return m.do(m.Ingest.Close) }
func (m mortal) Detach() error { return m.do(m.Ingest.Detach) }
func (m mortal) PutRecord(name string, b []byte) error {
	return m.do(func() error { return m.journal.PutRecord(name, b) })
}
func (m mortal) DropRecord(name string) error {
	return m.do(func() error { return m.journal.DropRecord(name) })
}

// Promise 2: the process dies at every point of a save. If Seal had returned,
// the next one finishes the shard, to the byte; if not, there is a whole shard
// or none. Slots that had come back were written over by the client at once.
func TestPromise2DeathAtEveryPoint(t *testing.T) {
	b := pattern(6*mib + 777)
	for end := 1; ; end++ {
		mem := vfstest.New(vfstest.Options{})
		p, j, l := newPool(t, 2, 2, mib), newJournal(), &life{end: end}
		old, err := localtier.Open(mem, localtier.Options{Dirs: []string{"/disk"}})
		if err != nil {
			t.Fatal(err)
		}
		m := mortal{reserve(t, old, len(b)), j, l}
		free := func(s shardwriter.Slot) {
			if l.do(func() error { return nil }) == nil { // the dead tell nobody
				p.put(s)
			} else {
				p.free <- s // only to let the dead session run out
			}
		}
		s := shardwriter.New(shardwriter.Spec{Info: info, Size: int64(len(b))}, m, shardwriter.Options{Free: free, Journal: m})
		staged := submit(s, p, b) == nil && l.do(func() error { return s.Seal(sealed, true) }) == nil
		if staged {
			s.Finish(t.Context())
		} else {
			s.Close()
		}
		finished := l.do(func() error { return nil }) == nil

		// Only what was on the disk and in the arena is left.
		mem = mem.Crash(vfstest.Keep, nil)
		var names []string
		for _, b := range j.records {
			rec, err := shardwriter.ParseRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, rec.Staging)
		}
		tier := openTier(t, mem, "/disk", func(staging string) bool { return slices.Contains(names, staging) })
		if _, err := tier.Stat(name); err == nil {
			j.DropRecord(shardwriter.RecordName(id, 3)) // as the daemon does
		} else if j.len() > 0 {
			resume(t, tier, p, j)
		}
		_, err = tier.Stat(name)
		switch {
		case err == nil:
			wantBlob(t, tier, b)
		case staged:
			t.Errorf("death at %d: Seal had returned, and the shard is gone", end)
		default:
			wantNothing(t, tier)
		}
		if t.Failed() {
			t.Fatalf("death at operation %d", end)
		}
		if finished {
			if end < 15 {
				t.Errorf("a save of 7 slots took %d steps", end)
			}
			return
		}
	}
}

// The process that resumes dies, too, as often as it likes.
func TestDeathWhileResuming(t *testing.T) {
	b := pattern(5 * mib)
	mem := vfstest.New(vfstest.Options{})
	p, j := newPool(t, 1, 5, mib), newJournal()
	tier, err := localtier.Open(mem, localtier.Options{Dirs: []string{"/disk"}})
	if err != nil {
		t.Fatal(err)
	}
	first := mortal{reserve(t, tier, len(b)), j, &life{}}
	in := newGate(first.Ingest)
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: int64(len(b))}, in, shardwriter.Options{Free: p.put, Journal: j})
	if err := submit(s, p, b); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	record := bytes.Clone(j.get(t))
	before := mem.Crash(vfstest.Keep, nil)
	close(in.open)
	for end := 1; end <= 9; end++ {
		mem, j := before.Crash(vfstest.Keep, nil), newJournal()
		j.PutRecord(shardwriter.RecordName(id, 3), record)
		for _, end := range []int{end, end, 0} {
			rec, err := shardwriter.ParseRecord(j.get(t))
			if err != nil {
				t.Fatal(err)
			}
			tier, err := localtier.Open(mem, localtier.Options{Dirs: []string{"/disk"}, Keep: func(s string) bool { return s == rec.Staging }})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tier.Stat(name); err == nil {
				wantBlob(t, tier, b)
				break
			}
			in, err := tier.Resume(t.Context(), name, rec.Staging, rec.Size, rec.Written)
			if err != nil {
				t.Fatal(err)
			}
			m := mortal{in, j, &life{end: end}}
			s, err := shardwriter.Resume(rec, m, p.memory, shardwriter.Options{Journal: m})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Finish(t.Context()); err == nil {
				wantBlob(t, tier, b)
				break
			} else if end == 0 {
				t.Fatal(err)
			}
			mem = mem.Crash(vfstest.Keep, nil)
		}
	}
	if _, err := s.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

// Resume finds all memory before it writes any; what is missing is an error
// that leaves no session behind.
func TestResumeWithoutMemory(t *testing.T) {
	tier, p, j := openTier(t, vfstest.New(vfstest.Options{}), "/disk", nil), newPool(t, 1, 3, mib), newJournal()
	in := newGate(reserve(t, tier, 3*mib))
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 3 * mib}, in, shardwriter.Options{Free: p.put, Journal: j})
	if err := submit(s, p, pattern(3*mib)); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	rec, err := shardwriter.ParseRecord(j.get(t))
	if err != nil {
		t.Fatal(err)
	}
	other := &counted{}
	_, err = shardwriter.Resume(rec, other, func(seg int, at, n int64) ([]byte, error) {
		if at == mib {
			return nil, catalog.ErrCorrupt
		}
		return p.memory(seg, at, n)
	}, shardwriter.Options{})
	if !errors.Is(err, catalog.ErrCorrupt) || other.writes != 0 || other.closed != 1 {
		t.Errorf("Resume: %v, %d writes, closed %d times", err, other.writes, other.closed)
	}
	close(in.open)
	if _, err := s.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

type counted struct {
	sink
	writes, closed int
}

func (c *counted) WriteAt([]byte, int64) error { c.writes++; return nil }
func (c *counted) Close() error                { c.closed++; return nil }

// goodRecord is of a shard of three and a bit blocks: the first is written.
func goodRecord(t testing.TB) []byte {
	p, j := newPool(t, 2, 2, mib), newJournal()
	in := &first{open: make(chan struct{})}
	freed := make(chan struct{}, 4)
	s := shardwriter.New(shardwriter.Spec{Info: info, Size: 3*mib + 5}, in, shardwriter.Options{Writers: 4, Journal: j, Free: func(slot shardwriter.Slot) {
		p.put(slot)
		freed <- struct{}{}
	}})
	for off := int64(0); off < 3*mib+5; off += mib {
		if err := s.Submit(p.take(nil), off, min(mib, 3*mib+5-off)); err != nil {
			t.Fatal(err)
		}
		if off == 0 {
			<-freed
		}
	}
	if err := s.Seal(sealed, true); err != nil {
		t.Fatal(err)
	}
	b := j.get(t)
	close(in.open)
	if _, err := s.Finish(context.Background()); err != nil {
		t.Fatal(err)
	}
	return b
}

// first writes block 0 at once and lets the others wait.
type first struct {
	sink
	open chan struct{}
}

func (f *first) WriteAt(_ []byte, off int64) error {
	if off > 0 {
		<-f.open
	}
	return nil
}
func (f *first) Block(i int) (uint32, bool) { return 0xdeadbeef, i == 0 }

func TestParseRecord(t *testing.T) {
	rec, err := shardwriter.ParseRecord(goodRecord(t))
	if err != nil {
		t.Fatal(err)
	}
	if rec.Info.Set != id || rec.Info.Rank != 3 || !rec.Info.Fence || !rec.Info.Sealed.Equal(sealed) || rec.Size != 3*mib+5 || rec.Staging != "/staging" {
		t.Errorf("the record says %+v", rec)
	}
	for i := -1; i < 6; i++ {
		if crc, ok := rec.Written(i); ok != (i == 0) || ok && crc != 0xdeadbeef {
			t.Errorf("block %d: %x, %v", i, crc, ok)
		}
	}
}

// Promise 12: a record that was cut, flipped or made up is ErrCorrupt, or says
// of every byte of the shard where it is, once.
func TestPromise12Record(t *testing.T) {
	good := goodRecord(t)
	if _, err := shardwriter.ParseRecord(good); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := shardwriter.ParseRecord(good[:n]); !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("cut at %d: %v, want ErrCorrupt", n, err)
		}
		for bit := range 8 {
			b := bytes.Clone(good)
			b[n] ^= 1 << bit
			checkRecord(t, b)
		}
	}
	edit := func(path string, value any) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		m[path] = value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	slot := func(seg int, at, off, n int64) map[string]any {
		return map[string]any{"seg": seg, "at": at, "off": off, "len": n}
	}
	rest := []any{slot(0, 0, mib, mib), slot(1, 0, 2*mib, mib), slot(1, mib, 3*mib, 5)}
	if _, err := shardwriter.ParseRecord(edit("pending", rest)); err != nil {
		t.Fatalf("a record as good as the first: %v", err)
	}
	for name, b := range map[string][]byte{
		"Version":      edit("version", 2),
		"SizeZero":     edit("size", 0),
		"SizeNegative": edit("size", -1),
		"SizeOther":    edit("size", 9*mib),
		"SizeHuge":     edit("size", int64(1)<<42),
		"SizeLess":     edit("size", 3*mib),
		"NoInfo":       edit("info", nil),
		"NothingToDo":  edit("pending", nil),
		"BlockMissing": edit("pending", rest[:2]),
		"BlockTwice":   edit("pending", append(rest[:3:3], slot(0, mib, mib, mib))),
		"BlockWritten": edit("pending", append(rest[:3:3], slot(0, mib, 0, mib))),
		"OffsetOdd":    edit("pending", append(rest[1:3:3], slot(0, mib, mib+1, mib))),
		"OffsetBehind": edit("pending", append(rest[:3:3], slot(0, mib, 4*mib, mib))),
		"OffsetWraps":  edit("pending", append(rest[:3:3], slot(0, mib, 1<<62, 1<<62))),
		"LengthOdd":    edit("pending", append(rest[1:3:3], slot(0, mib, mib, mib-1))),
		"LengthZero":   edit("pending", append(rest[:3:3], slot(0, mib, mib, 0))),
		"LengthLong":   edit("pending", append(rest[:2:2], slot(0, mib, 3*mib, 6))),
		"SegmentMinus": edit("pending", append(rest[1:3:3], slot(-1, mib, mib, mib))),
		"AtMinus":      edit("pending", append(rest[1:3:3], slot(0, -mib, mib, mib))),
		"AtWraps":      edit("pending", append(rest[1:3:3], slot(0, 1<<63-1, mib, mib))),
		"NoSums":       edit("crcs", ""),
		"SumsShort":    edit("crcs", "AAAA"),
		"NoBits":       edit("have", ""),
		"BitsBehind":   edit("have", []byte{0xF1}),
		"BitsAll":      edit("have", []byte{0x0F}),
	} {
		if _, err := shardwriter.ParseRecord(b); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	for name, change := range map[string]func(*catalog.ShardInfo){
		"Run":       func(i *catalog.ShardInfo) { i.Set.Run = "../x" },
		"Attempt":   func(i *catalog.ShardInfo) { i.Set.Attempt = 0 },
		"Rank":      func(i *catalog.ShardInfo) { i.Rank = -1 },
		"World":     func(i *catalog.ShardInfo) { i.World = 0 },
		"RankWorld": func(i *catalog.ShardInfo) { i.Rank = i.World },
		"WorldHuge": func(i *catalog.ShardInfo) { i.World = 1 << 60 },
	} {
		i := info
		change(&i)
		if _, err := shardwriter.ParseRecord(edit("info", i)); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// checkRecord holds whatever ParseRecord accepts to its promise.
func checkRecord(t *testing.T, b []byte) {
	t.Helper()
	rec, err := shardwriter.ParseRecord(b)
	if err != nil {
		if !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatalf("%v is not ErrCorrupt", err)
		}
		return
	}
	if err := rec.Info.Set.Check(); err != nil || rec.Size <= 0 || rec.Size > 1<<30 {
		return // a shard that large is not tried
	}
	all := &covering{sink: sink{}, seen: make([]bool, catalog.Blocks(rec.Size))}
	for i := range all.seen {
		_, all.seen[i] = rec.Written(i)
	}
	mem := make([]byte, rec.Size)
	s, err := shardwriter.Resume(rec, all, func(_ int, _, n int64) ([]byte, error) { return mem[:n], nil }, shardwriter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i := slices.Index(all.seen, false); i >= 0 {
		t.Fatalf("block %d of %q is nowhere", i, b)
	}
}

type covering struct {
	sink
	mu   sync.Mutex
	seen []bool
}

func (c *covering) WriteAt(p []byte, off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := off / mib; i < (off+int64(len(p))+mib-1)/mib; i++ {
		if c.seen[i] {
			return fmt.Errorf("block %d twice", i)
		}
		c.seen[i] = true
	}
	return nil
}

func FuzzParseRecord(f *testing.F) {
	f.Add(goodRecord(f))
	f.Fuzz(func(t *testing.T, b []byte) { checkRecord(t, b) })
}

func TestRecordName(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		n := shardwriter.RecordName(catalog.SetID{Run: id.Run, Step: rand.Int64N(1e12), Attempt: 1}, rand.IntN(1<<20))
		if len(n) != 32 || seen[n] {
			t.Fatalf("record name %q, seen %v", n, seen[n])
		}
		seen[n] = true
	}
}
