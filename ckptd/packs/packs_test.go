package packs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/restore"
)

const mib = 1 << 20

// store is what the sources of a test read from.
type store struct {
	mu     sync.Mutex
	blobs  map[catalog.SetID][]byte
	bytes  int64         // given
	reads  int           // asked
	gate   chan struct{} // nil: open; a token lets one read through
	fail   error         // of every read
	fails  int           // of the first so many only; 0: of all
	sealed bool          // it has seals
	bad    bool          // it flips a bit
	name   string
	kind   Kind
	whole  bool // given when asked for first hand, too
}

type storeSource struct {
	s   *store
	ref restore.ShardRef
}

func (s storeSource) Name() string { return s.s.name }
func (s storeSource) Kind() Kind   { return s.s.kind }
func (s storeSource) Whole() bool  { return s.s.kind == Remote || s.s.sealed || s.s.whole }

func (s storeSource) ReadBlocks(ctx context.Context, p []byte, off int64) error {
	s.s.mu.Lock()
	s.s.reads++
	gate, fail := s.s.gate, s.s.fail
	if s.s.fails > 0 && s.s.reads > s.s.fails {
		fail = nil
	}
	b, ok := s.s.blobs[s.ref.Set]
	s.s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	if !ok {
		return fs.ErrNotExist
	}
	copy(p, b[off:])
	if s.s.bad {
		p[len(p)/2] ^= 1
	}
	s.s.mu.Lock()
	s.s.bytes += int64(len(p))
	s.s.mu.Unlock()
	return nil
}

func (s storeSource) Seal(context.Context) (*catalog.Seal, error) {
	if !s.s.sealed {
		return nil, nil
	}
	return sealOf(s.s.blobs[s.ref.Set]), nil
}

func sealOf(b []byte) *catalog.Seal {
	s := &catalog.Seal{Size: int64(len(b))}
	for i := 0; i < len(b); i += mib {
		s.CRCs = append(s.CRCs, catalog.Sum32C(b[i:min(len(b), i+mib)]))
	}
	return s
}

// world is a cache over stores.
type world struct {
	t     *testing.T
	dir   string
	tier  *localtier.Tier
	c     *Cache
	from  []*store
	blobs map[catalog.SetID][]byte
	bad   []restore.ShardRef
}

func newWorld(t *testing.T, opt Options, from ...*store) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), from: from, blobs: map[catalog.SetID][]byte{}}
	for _, s := range from {
		if s.blobs == nil {
			s.blobs = w.blobs
		}
	}
	w.start(opt, localtier.Options{Quota: 1 << 30})
	return w
}

func (w *world) start(opt Options, lopt localtier.Options) {
	w.t.Helper()
	lopt.Dirs = []string{w.dir}
	tier, err := localtier.Open(vfs.OS, lopt)
	if err != nil {
		w.t.Fatal(err)
	}
	w.tier, opt.Local = tier, tier
	opt.Sources = func(_ context.Context, ref restore.ShardRef, firstHand bool) ([]Source, func(), error) {
		var out []Source
		for _, s := range w.from {
			if !firstHand || s.whole {
				out = append(out, storeSource{s, ref})
			}
		}
		return out, func() {}, nil
	}
	opt.Bad = func(_ context.Context, ref restore.ShardRef, _ error) { w.bad = append(w.bad, ref) }
	w.c = New(opt)
	w.t.Cleanup(w.stop)
}

func (w *world) stop() {
	w.c.Close()
	w.tier.Close()
}

func (w *world) pack(n int64, size int) restore.ShardRef {
	id := catalog.SetID{Run: "_packs/d", Step: n, Attempt: 1}
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)           // never fails
	for _, s := range w.from { // some may be reading the map
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	w.blobs[id] = b
	return restore.ShardRef{Set: id, Size: int64(size), Root: sealOf(b).Root()}
}

func (w *world) open(ref restore.ShardRef) *Handle {
	w.t.Helper()
	h, err := w.c.Open(w.t.Context(), ref)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { h.Close() })
	return h
}

// same reads the whole through the handle and compares.
func (w *world) same(h *Handle) {
	w.t.Helper()
	got := make([]byte, h.Size())
	if n, err := h.ReadAt(w.t.Context(), got, 0); n != len(got) || err != nil {
		w.t.Fatalf("read %d of %d bytes: %v", n, len(got), err)
	}
	if !bytes.Equal(got, w.blobs[h.Ref().Set]) {
		w.t.Fatal("other bytes than those saved")
	}
}

func TestCopyArrives(t *testing.T) {
	for _, size := range []int{0, 1, mib, 9*mib + 77} {
		remote := &store{name: "remote", kind: Remote}
		w := newWorld(t, Options{}, remote)
		ref := w.pack(1, size)
		h := w.open(ref)
		if size > 0 {
			w.same(h)
		}
		if err := h.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		f := h.Backing()
		if f == nil {
			t.Fatal("a whole copy has no file")
		}
		b, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(b, w.blobs[ref.Set]) {
			t.Errorf("the file of a copy of %d bytes: %d bytes, %v", size, len(b), err)
		}
		// The second epoch takes nothing from elsewhere.
		if again := w.open(ref); size > 0 {
			w.same(again)
		}
		if remote.bytes != int64(size) {
			t.Errorf("fetched %d bytes, want %d", remote.bytes, size)
		}
	}
}

// Promise 2: many openers, one fetch; and a read is served before the rest came.
func TestOneFetchForMany(t *testing.T) {
	remote := &store{name: "remote", kind: Remote, gate: make(chan struct{}, 100)}
	w := newWorld(t, Options{}, remote)
	ref := w.pack(1, 33*mib)
	var hs []*Handle
	for range 8 {
		hs = append(hs, w.open(ref))
	}
	// The last chunk is asked for, and comes to the front.
	done := make(chan error, 1)
	go func() {
		p := make([]byte, 100)
		_, err := hs[0].ReadAt(t.Context(), p, ref.Size-100)
		if err == nil && !bytes.Equal(p, w.blobs[ref.Set][ref.Size-100:]) {
			err = errors.New("other bytes")
		}
		done <- err
	}()
	// Three chunks are under way already; the urgent one is among the next.
	for range 2*parallel + 1 {
		remote.gate <- struct{}{}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if hs[0].Whole() {
		t.Error("a copy is whole of which chunks have not come")
	}
	close(remote.gate)
	for _, h := range hs {
		w.same(h)
	}
	if remote.bytes != ref.Size {
		t.Errorf("fetched %d bytes for 8 readers, want %d", remote.bytes, ref.Size)
	}
	if s := w.c.Stats(); s.Misses != 1 || s.Joins != 7 || s.Remote != ref.Size {
		t.Errorf("counted %+v", s)
	}
}

// Promises 1 and 3: what is bad, down or away is left for the next source.
func TestBadSourceIsLeft(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  *store
	}{
		{"flips, seal known", &store{bad: true, sealed: true}},
		{"down", &store{fail: fmt.Errorf("%w: refused", catalog.ErrUnavailable)}},
		{"has nothing", &store{blobs: map[catalog.SetID][]byte{}}},
		{"flips, no seal", &store{bad: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := c.bad
			bad.name, bad.kind = "peer n2", Peer
			remote := &store{name: "remote", kind: Remote}
			w := newWorld(t, Options{}, bad, remote)
			h := w.open(w.pack(1, 5*mib))
			if err := h.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.same(h)
			if remote.bytes != 5*mib {
				t.Errorf("the good source gave %d bytes, want all", remote.bytes)
			}
		})
	}
}

// Promise 1: where the set says what the blocks must be, a bad one is refused as
// it comes, whatever the source says of it: also in what is read without being
// kept, of which no root is ever compared.
func TestPromise7BlocksAgainstTheSetsSums(t *testing.T) {
	for _, quota := range []int64{0, 1} { // 1: no room for a copy
		bad, remote := &store{name: "peer n2", kind: Peer, bad: true}, &store{name: "remote", kind: Remote}
		asked := 0
		var w *world
		w = newWorld(t, Options{Quota: quota, Seal: func(_ context.Context, ref restore.ShardRef) (*catalog.Seal, error) {
			asked++
			return sealOf(w.blobs[ref.Set]), nil
		}}, bad, remote)
		h := w.open(w.pack(1, 9*mib+5))
		w.same(h)
		if bad.bytes > parallel*chunkSize || remote.bytes != 9*mib+5 {
			t.Errorf("quota %d: the bad source gave %d bytes before it was left, the good one %d", quota, bad.bytes, remote.bytes)
		}
		if asked != 1 {
			t.Errorf("quota %d: the set was asked %d times", quota, asked)
		}
	}
}

func TestNoGoodSource(t *testing.T) {
	bad := &store{name: "remote", kind: Remote, bad: true, sealed: true}
	w := newWorld(t, Options{Retries: 1}, bad)
	ref := w.pack(1, 5*mib)
	h := w.open(ref)
	if _, err := h.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	bad.fail = fmt.Errorf("%w: away", catalog.ErrUnavailable)
	w.c.wg.Wait()
	if _, err := w.open(ref).ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	w.c.wg.Wait()
	if u := w.tier.Usage(); u.Used != 0 || u.Reserved != 0 {
		t.Errorf("left behind: %+v", u)
	}
	bad.fail, bad.bad = nil, false
	w.same(w.open(ref))
}

// Promise 4.
func TestQuotaHolds(t *testing.T) {
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{Quota: 12 * mib}, remote)
	var refs []restore.ShardRef
	for i := range 3 {
		refs = append(refs, w.pack(int64(i), 5*mib))
	}
	a, b := w.open(refs[0]), w.open(refs[1])
	w.same(a)
	w.same(b)
	if err := errors.Join(a.Wait(t.Context()), b.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
	// All is open: the third is read without being kept.
	c := w.open(refs[2])
	w.same(c)
	if s := w.c.Stats(); s.Used != 10*mib || s.Streamed != 5*mib || s.Evicted != 0 {
		t.Errorf("with all in use: %+v", s)
	}
	if err := c.Wait(t.Context()); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("waiting for a copy that is not kept: %v", err)
	}
	c.Close()
	a.Close()
	w.c.wg.Wait()
	// The longest unused goes.
	c = w.open(refs[2])
	if err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.c.Stats(); s.Used != 10*mib || s.Evicted != 1 {
		t.Errorf("with one closed: %+v", s)
	}
	if _, whole := w.c.Have(refs[0].Set); whole {
		t.Error("the one that was closed is still there")
	}
	w.same(b)
}

// Promise 4: the disk is full of other things.
func TestNoRoomOnDisk(t *testing.T) {
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{}, remote)
	w.stop()
	w.start(Options{Quota: 100 * mib}, localtier.Options{Quota: 8 * mib})
	keep, err := w.tier.Reserve(t.Context(), "run/x", 6*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	w.same(w.open(w.pack(1, 5*mib)))
	if s := w.c.Stats(); s.Streamed == 0 || s.Used != 0 {
		t.Errorf("counted %+v", s)
	}
}

// Promise 6.
func TestRestartFindsCopies(t *testing.T) {
	remote := &store{name: "remote", kind: Remote}
	w := newWorld(t, Options{}, remote)
	ref := w.pack(1, 5*mib)
	if err := w.c.Fetch(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.start(Options{}, localtier.Options{Quota: 1 << 30})
	if got := w.c.Copies(); !slices.Equal(got, []catalog.SetID{ref.Set}) {
		t.Fatalf("found %v", got)
	}
	h := w.open(ref)
	if h.Backing() != nil {
		t.Error("a file was given that nobody checked")
	}
	if err := h.Check(t.Context()); err != nil || h.Backing() == nil {
		t.Errorf("after the check: %v", err)
	}
	w.same(h)
	if remote.bytes != 5*mib {
		t.Errorf("fetched %d bytes over a restart, want %d", remote.bytes, 5*mib)
	}
	h.Close()
	w.stop()
	// A flipped bit is found, put aside, and fetched anew.
	info, err := w.tier.Stat(Name(ref.Set))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, info.Path, 3*mib+5)
	w.start(Options{}, localtier.Options{Quota: 1 << 30})
	w.same(w.open(ref))
	if s := w.c.Stats(); s.Bad != 1 || s.Remote != 5*mib {
		t.Errorf("after a flipped bit: %+v", s)
	}
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// A reader that leaves does not take the bytes from the others.
func TestReaderLeaves(t *testing.T) {
	remote := &store{name: "remote", kind: Remote, gate: make(chan struct{})}
	w := newWorld(t, Options{}, remote)
	ref := w.pack(1, 9*mib)
	h := w.open(ref)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	other := w.open(ref)
	h.Close()
	close(remote.gate)
	w.same(other)
}

func TestPlanEvict(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	all := []Candidate{
		{Name: "soon", Size: 1, Next: 10, Used: at(1)},
		{Name: "late", Size: 1, Next: 90, Used: at(9)},
		{Name: "old", Size: 1, Next: NotKnown, Used: at(2)},
		{Name: "new", Size: 1, Next: NotKnown, Used: at(8)},
		{Name: "held", Size: 1, Next: NotKnown, Used: at(0), Held: true},
		{Name: "lent", Size: 1, Next: NotKnown, Used: at(0), Lent: true},
	}
	for _, c := range []struct {
		need, before int64
		policy       string
		want         []string
	}{
		{0, NotKnown, ByNext, nil},
		{1, NotKnown, ByNext, []string{"old"}},
		{3, NotKnown, ByNext, []string{"old", "new", "late"}},
		{9, NotKnown, ByNext, []string{"old", "new", "late", "soon", "lent"}},
		{9, 50, ByNext, []string{"old", "new", "late", "lent"}},
		{9, 5, ByNext, []string{"old", "new", "late", "soon", "lent"}},
		{9, NotKnown, ByLRU, []string{"soon", "old", "new", "late", "lent"}},
	} {
		if got, _ := PlanEvict(all, c.need, c.before, c.policy); !slices.Equal(got, c.want) {
			t.Errorf("need %d before %d by %s: %v, want %v", c.need, c.before, c.policy, got, c.want)
		}
	}
}

func TestRendezvous(t *testing.T) {
	nodes := []string{"n1", "n2", "n3", "n4", "n5"}
	first := map[string]int{}
	moved := 0
	const keys = 2000
	for i := range keys {
		key := fmt.Sprintf("_packs/d@%d#1", i)
		r := Rank(key, nodes)
		first[r[0]]++
		without := Rank(key, slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == "n3" }))
		if r[0] != without[0] {
			moved++
			if r[0] != "n3" {
				t.Fatalf("%s moved from %s to %s when n3 left", key, r[0], without[0])
			}
		}
	}
	for n, k := range first {
		if k < keys/5*8/10 || k > keys/5*12/10 {
			t.Errorf("%s fetches %d of %d", n, k, keys)
		}
	}
	if moved != first["n3"] {
		t.Errorf("%d moved, want %d", moved, first["n3"])
	}
	// Frozen: nodes of different versions must agree.
	for in, want := range map[[2]string]uint64{
		{"n1", "_packs/d@0#1"}: 0x1244ba5fa6c0560b,
		{"n2", "_packs/d@0#1"}: 0x63b3745e5dd58dae,
		{"", ""}:               0x25fc6dd36ce04b20,
	} {
		if got := Score(in[0], in[1]); got != want {
			t.Errorf("score of %v: %#x, want %#x", in, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	id := catalog.SetID{Run: "_packs/a/b", Step: 7, Attempt: 1}
	if got, ok := ParseName(Name(id)); !ok || got != id {
		t.Errorf("got %v %v", got, ok)
	}
	for _, bad := range []string{"", "_cache", "_cache/x", "run/000000000007-000001/rank-00000.bin", "_cache/run/000000000007-000001/rank-00001.bin"} {
		if _, ok := ParseName(bad); ok {
			t.Errorf("%q is taken for a copy", bad)
		}
	}
}
