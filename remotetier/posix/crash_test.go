package posix_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	randv2 "math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/posix"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

const foreign = "not of ckptd"

// state of an item: absent, maybe (begun, not acknowledged), durable.
type state int

const (
	absent state = iota
	maybe
	durable
)

// story is what was done to the directory, and what must be true of it.
type story struct {
	puts    map[string]catalog.Place // acknowledged
	blobs   map[string]state
	bytes   map[string][]byte
	small   [][]byte // values written to the record, the last maybe not acknowledged
	acked   int      // how many of them are
	removed state    // of blob "run/a"
}

// world is a directory with a file of somebody else's in it, at a blob's name.
func world(t *testing.T) *vfstest.Mem {
	m := vfstest.New(vfstest.Options{})
	if err := m.MkdirAll("/p/run"); err != nil {
		t.Fatal(err)
	}
	f, err := m.Create("/p/run/x", vfs.Opt{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(foreign), 0)
	if err = errors.Join(err, f.Sync(), f.Close(), m.SyncDir("/p/run")); err != nil {
		t.Fatal(err)
	}
	return m
}

func read(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name, vfs.Opt{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	b := make([]byte, n)
	if err == nil && n > 0 {
		_, err = f.ReadAt(b, 0)
	}
	return b, err
}

func one(t *testing.T, fsys vfs.FS, opt posix.Options) (*posix.Target, *remotetier.Tier, error) {
	p, err := posix.Open(t.Context(), fsys, "/p", "p1", opt)
	if err != nil {
		return nil, nil, err
	}
	return p, remotetier.New([]remotetier.TargetInfo{{Target: p}}, remotetier.Options{}), nil
}

// tell runs the scenario until something fails.
func tell(t *testing.T, fsys vfs.FS, s *story) error {
	p, tier, err := one(t, fsys, posix.Options{})
	if err != nil {
		return err
	}
	put := func(name string, seed byte, size int, l stripe.Layout) error {
		b, ok := s.bytes[name]
		if !ok {
			b = make([]byte, size)
			_, _ = randv2.NewChaCha8([32]byte{seed}).Read(b)
			s.bytes[name], s.blobs[name] = b, maybe
		}
		pl, err := tier.Put(t.Context(), name, bytes.NewReader(b), l)
		if err == nil {
			s.puts[name], s.blobs[name] = pl, durable
		}
		return err
	}
	small := func(text string) error {
		s.small = append(s.small, []byte(text))
		_, err := tier.PutSmall(t.Context(), "run/set.json", []byte(text), 1)
		if err == nil {
			s.acked = len(s.small)
		}
		return err
	}
	one := stripe.Layout{K: 1, Unit: 65536}
	for _, step := range []func() error{
		func() error { return put("run/a", 1, 9000, one) },
		func() error { return small("one") },
		func() error { return put("run/x", 2, 70_000, one) }, // where somebody's file is
		func() error { return small("two, which is longer") },
		func() error { return put("run/sub/b", 3, 4096, one) },
		func() error { return put("run/sub/b", 3, 4096, one) }, // once more, as when the record of the first was not made
		func() error {
			gen := s.puts["run/sub/b"].Generation
			return tier.Remove(t.Context(), "run/sub/b", func(g uint64) bool { return g == gen })
		},
		func() error { return replace(t, p, tier, s.puts["run/sub/b"]) },
		func() error {
			s.removed = maybe
			err := tier.Remove(t.Context(), "run/a", nil)
			if err == nil {
				s.removed = durable
			}
			return err
		},
		func() error { return small("three") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// replace writes a place's only column again, as a repair does.
func replace(t *testing.T, p *posix.Target, tier *remotetier.Tier, at catalog.Place) error {
	key := remotetier.Key{Blob: at.Blob, Generation: at.Generation}
	r, err := p.Open(t.Context(), key)
	if err != nil {
		return err
	}
	defer r.Close()
	b := vfs.AlignedBuffer(int(r.Size()))
	if n, err := r.ReadAt(t.Context(), b, 0); n != len(b) {
		return err
	}
	w, err := p.Create(t.Context(), key, int64(len(b)), remotetier.CreateReplace)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Write(t.Context(), b); err != nil {
		return err
	}
	return w.Commit(t.Context())
}

// check reopens the directory and holds it against the story.
func check(t *testing.T, fsys vfs.FS, s *story, what string, stale time.Duration) {
	p, tier, err := one(t, fsys, posix.Options{Stale: stale, Trace: func(err error) { t.Errorf("%s: %v", what, err) }})
	if err != nil {
		t.Errorf("%s: reopen: %v", what, err)
		return
	}
	if b, err := read(fsys, "/p/run/x"); err != nil || string(b) != foreign {
		t.Errorf("%s: somebody's file is %q, %v", what, b, err)
	}
	for name, pl := range s.puts {
		if name == "run/a" && s.removed != absent {
			continue
		}
		if err := tier.Verify(t.Context(), pl); err != nil {
			t.Errorf("%s: %s was acknowledged: %v", what, name, err)
		}
	}
	records := 0
	for f, err := range tier.Scan(t.Context(), "") {
		if f.Place.Blob == "run/set.json" {
			records++
		}
		if err != nil {
			t.Errorf("%s: scan: %v", what, err)
			continue
		}
		if f.Place.Blob == "run/a" && s.removed == durable {
			t.Errorf("%s: run/a was removed, and is there", what)
		}
		if want, ok := s.bytes[f.Place.Blob]; ok {
			r, err := tier.Open(t.Context(), f.Place)
			if err != nil {
				t.Errorf("%s: %s is complete: %v", what, f.Place.Blob, err)
				continue
			}
			got := make([]byte, r.Size())
			if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s: equal=%v, %v", what, f.Place.Blob, bytes.Equal(got, want), err)
			}
			_ = r.Close()
		} else if f.Place.Blob != "run/set.json" {
			t.Errorf("%s: %s was never put", what, f.Place.Blob)
		}
	}
	got, _, err := tier.GetSmall(t.Context(), "run/set.json")
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.acked == 0:
	case err != nil:
		t.Errorf("%s: the record: %v", what, err)
	default:
		ok := false
		for _, v := range s.small[max(0, s.acked-1):] {
			ok = ok || bytes.Equal(got, v)
		}
		if !ok {
			t.Errorf("%s: the record is %q, acknowledged %d of %q", what, got, s.acked, s.small)
		}
	}
	if stale != 0 {
		checkTree(t, fsys, p, what)
		if b, ferr := read(fsys, "/p/run/set.json"); records == 1 && (ferr != nil || !bytes.Equal(b, got)) {
			t.Errorf("%s: the record's plain file is %q, %v, want %q", what, b, ferr, got)
		}
	}
}

// checkTree looks for what nobody owns, after everything stale was swept.
func checkTree(t *testing.T, fsys vfs.FS, p *posix.Target, what string) {
	known := map[string]bool{"/p/run/x": true}
	for e, err := range p.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		dir, base := path.Split("/p/" + e.Key.Blob)
		known[dir+plain.SidecarName(e.Key)], known[dir+plain.WholeName(e.Key)] = true, true
		head, err := read(fsys, dir+plain.SidecarName(e.Key))
		if err != nil {
			continue
		}
		s, err := plain.ParseSidecar(e.Key, head[:plain.Head])
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		claim, err := read(fsys, dir+plain.ClaimName(base))
		if err == nil && strings.Contains(string(claim), s.Data) {
			known[dir+plain.ClaimName(base)], known[dir+base] = true, true
		}
		known[dir+s.Data] = true
	}
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := fsys.ReadDir(dir)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			switch {
			case name == "/p/.ckptd/target.id":
			case e.IsDir():
				walk(name)
			case !known[name]:
				t.Errorf("%s: nobody owns %s", what, name)
			}
		}
	}
	walk("/p")
}

func newStory() *story {
	return &story{puts: map[string]catalog.Place{}, blobs: map[string]state{}, bytes: map[string][]byte{}}
}

// checkAll: as another process finds it at once, and when all that was left is
// stale; whatever is left, the next write works.
func checkAll(t *testing.T, fsys vfs.FS, s *story, what string) {
	check(t, fsys, s, what, 0)
	check(t, fsys, s, what+", swept", time.Nanosecond)
	_, tier, err := one(t, fsys, posix.Options{})
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := tier.Put(t.Context(), "run/a", strings.NewReader("again"), stripe.Layout{K: 1}); err != nil {
		t.Errorf("%s: the next Put: %v", what, err)
	}
}

func TestPromise2PowerLostAtEveryOperation(t *testing.T) {
	points, boots := 0, 0
	for n := 1; ; n++ {
		m := world(t)
		before := m.Ops()
		m.LosePowerAt(before + n)
		s := newStory()
		err := tell(t, m, s)
		for seed, mode := range []vfstest.Mode{vfstest.Lose, vfstest.Keep, vfstest.Torn, vfstest.Torn, vfstest.Torn, vfstest.Torn} {
			checkAll(t, m.Crash(mode, rand.New(rand.NewSource(int64(1000*n+seed)))), s, fmt.Sprintf("operation %d, %v, seed %d", n, mode, seed))
			boots++
		}
		if t.Failed() {
			return
		}
		if err == nil {
			break
		}
		points++
	}
	t.Logf("%d crash points, %d boots", points, boots)
}

// TestPromise2DiskFailsAtEveryOperation: EIO and ENOSPC of the n-th operation.
func TestPromise2DiskFailsAtEveryOperation(t *testing.T) {
	for _, cause := range []error{errors.New("EIO"), catalog.ErrNoSpace} {
		for n := 1; ; n++ {
			m := world(t)
			before := m.Ops()
			m.OnOp(vfstest.FailNth(before+n, cause))
			s := newStory()
			err := tell(t, m, s)
			if err != nil && !errors.Is(err, cause) {
				t.Errorf("operation %d: %v, want %v", n, err, cause)
			}
			over := m.Ops() < before+n
			m.OnOp(nil)
			checkAll(t, m.Crash(vfstest.Keep, nil), s, fmt.Sprintf("operation %d, %v", n, cause))
			if t.Failed() {
				return
			}
			if over {
				t.Logf("%v: %d operations failed in turn", cause, n-1)
				break
			}
		}
	}
}
