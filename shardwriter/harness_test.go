package shardwriter_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/shardwriter"
)

const mib = 1 << 20

var (
	id     = catalog.SetID{Run: "llama/7b", Step: 1200, Attempt: 3}
	info   = catalog.ShardInfo{Set: id, Rank: 3, World: 8, Metrics: map[string]float64{"loss": 1.5}}
	sealed = time.Unix(1e9, 0).UTC()
	name   = id.ShardName(3)
)

var scribble = bytes.Repeat([]byte{0xEE}, mib)

// pool is shared memory as a client uses it: a slot that comes back is written
// over at once.
type pool struct {
	t    testing.TB
	size int
	segs [][]byte
	free chan shardwriter.Slot
	mu   sync.Mutex
	lent map[[2]int]bool
}

func newPool(t testing.TB, segs, slots, size int) *pool {
	p := &pool{t: t, size: size, free: make(chan shardwriter.Slot, segs*slots), lent: make(map[[2]int]bool)}
	for seg := range segs {
		mem := vfs.AlignedBuffer(slots * size)
		p.segs = append(p.segs, mem)
		for i := range slots {
			p.free <- shardwriter.Slot{Seg: seg, Index: i, Data: mem[i*size : (i+1)*size : (i+1)*size]}
		}
	}
	return p
}

// take waits for a slot and fills it.
func (p *pool) take(b []byte) shardwriter.Slot {
	s := <-p.free
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lent[[2]int{s.Seg, s.Index}] = true
	copy(s.Data, b)
	return s
}

// put is Options.Free.
func (p *pool) put(s shardwriter.Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := [2]int{s.Seg, s.Index}
	if !p.lent[at] {
		p.t.Errorf("slot %v came back, and was not lent", at)
		return
	}
	delete(p.lent, at)
	for rest := s.Data; len(rest) > 0; rest = rest[copy(rest, scribble):] {
	}
	p.free <- s
}

func (p *pool) wantAllFree() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lent) > 0 {
		p.t.Errorf("%d slots did not come back", len(p.lent))
	}
}

// memory is what Resume asks for.
func (p *pool) memory(seg int, at, n int64) ([]byte, error) {
	if seg >= len(p.segs) || at > int64(len(p.segs[seg]))-n {
		return nil, catalog.ErrCorrupt
	}
	return p.segs[seg][at : at+n], nil
}

// journal keeps records in memory.
type journal struct {
	mu      sync.Mutex
	records map[string][]byte
	failPut error // after it was kept, as a disk may
}

func newJournal() *journal { return &journal{records: make(map[string][]byte)} }

func (j *journal) PutRecord(name string, b []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records[name] = bytes.Clone(b)
	return j.failPut
}

func (j *journal) DropRecord(name string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.records, name)
	return nil
}

func (j *journal) get(t testing.TB) []byte {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.records) != 1 {
		t.Fatalf("%d records, want 1", len(j.records))
	}
	for _, b := range j.records {
		return b
	}
	return nil
}

func (j *journal) len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.records)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(b)
	return b
}

// submit hands over all of b, in slots of p, in random order.
func submit(s *shardwriter.Session, p *pool, b []byte) error {
	n := (len(b) + p.size - 1) / p.size
	for _, i := range rand.Perm(n) {
		off := i * p.size
		part := b[off:min(len(b), off+p.size)]
		slot := p.take(part)
		if err := s.Submit(slot, int64(off), int64(len(part))); err != nil {
			p.put(slot)
			return err
		}
	}
	return nil
}

func openTier(t testing.TB, fsys vfs.FS, dir string, keep func(string) bool) *localtier.Tier {
	t.Helper()
	tier, err := localtier.Open(fsys, localtier.Options{Dirs: []string{dir}, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tier.Close() })
	return tier
}

func reserve(t testing.TB, tier *localtier.Tier, size int) *localtier.Ingest {
	t.Helper()
	in, err := tier.Reserve(t.Context(), name, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// wantBlob checks that the tier holds exactly b, summed and signed.
func wantBlob(t testing.TB, tier *localtier.Tier, b []byte) {
	t.Helper()
	blob, err := tier.Open(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer blob.Close()
	got, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("the blob has %d bytes, equal %v, %v", len(got), bytes.Equal(got, b), err)
	}
}

// wantNothing checks that nothing is visible or held of the shard.
func wantNothing(t testing.TB, tier *localtier.Tier) {
	t.Helper()
	if _, err := tier.Stat(name); err == nil {
		t.Error("the shard is visible")
	}
	if u := tier.Usage(); u.Used != 0 || u.Reserved != 0 {
		t.Errorf("the tier still holds %d bytes and reserves %d", u.Used, u.Reserved)
	}
	if in, err := tier.Reserve(t.Context(), name, mib); err != nil {
		t.Errorf("the name is still taken: %v", err)
	} else if err := in.Close(); err != nil {
		t.Error(err)
	}
}
