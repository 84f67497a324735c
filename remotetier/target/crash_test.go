package target_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	randv2 "math/rand/v2"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// dirs opens n targets of one file system.
func dirs(fsys vfs.FS, n int) ([]*target.Dir, *remotetier.Tier, error) {
	var all []*target.Dir
	var infos []remotetier.TargetInfo
	for i := range n {
		d, err := target.OpenDir(fsys, fmt.Sprintf("/t%d", i), fmt.Sprintf("t%d", i))
		if err != nil {
			return nil, nil, err
		}
		all = append(all, d)
		infos = append(infos, remotetier.TargetInfo{Target: d})
	}
	return all, remotetier.New(infos, remotetier.Options{Traffic: traffic.Options{Linger: time.Nanosecond}}), nil
}

// state of an item: absent, maybe (begun, not acknowledged), durable.
type state int

const (
	absent state = iota
	maybe
	durable
)

// story is what was done to the targets, and what must be true of it.
type story struct {
	puts    map[string]catalog.Place // acknowledged
	blobs   map[string]state
	bytes   map[string][]byte
	small   [][]byte // values written to the record, the last maybe not acknowledged
	acked   int      // how many of them are
	removed state    // of blob "run/a"
	changed state    // of the column replacedKey
}

// replacedKey is a column that is written, and then replaced by a longer one.
var replacedKey = remotetier.Key{Blob: "run/c", Generation: 1, Column: 0}

func replaced(i int) []byte {
	b := vfs.AlignedBuffer(4096 * (i + 2))
	for j := range b {
		b[j] = byte(i + 1)
	}
	return b
}

// replace writes the column for the i-th time.
func replace(t *testing.T, d *target.Dir, i int) error {
	b := replaced(i)
	w, err := d.Create(t.Context(), replacedKey, int64(len(b)), remotetier.CreateReplace)
	if err != nil {
		return err
	}
	defer w.Close()
	return errors.Join(w.Write(t.Context(), b), w.Commit(t.Context()))
}

// checkReplaced: the old column or the new one, and once it was replaced the
// new one.
func checkReplaced(t *testing.T, d *target.Dir, s *story, what string) {
	if s.changed == absent {
		return
	}
	r, err := d.Open(t.Context(), replacedKey)
	if err != nil {
		t.Errorf("%s: the replaced column: %v", what, err)
		return
	}
	defer r.Close()
	got := make([]byte, r.Size())
	if _, err := r.ReadAt(t.Context(), got, 0); err != nil {
		t.Errorf("%s: the replaced column: %v", what, err)
	}
	if !bytes.Equal(got, replaced(1)) && !(s.changed == maybe && bytes.Equal(got, replaced(0))) {
		t.Errorf("%s: the replaced column has %d bytes", what, len(got))
	}
}

// tell runs the scenario until something fails.
func tell(t *testing.T, fsys vfs.FS, s *story) error {
	all, tier, err := dirs(fsys, 3)
	if err != nil {
		return err
	}
	put := func(name string, seed byte, size int) error {
		b := make([]byte, size)
		_, _ = randv2.NewChaCha8([32]byte{seed}).Read(b)
		s.bytes[name], s.blobs[name] = b, maybe
		p, err := tier.Put(t.Context(), name, bytes.NewReader(b), stripe.Layout{K: 2, M: 1, Unit: 65536})
		if err == nil {
			s.puts[name], s.blobs[name] = p, durable
		}
		return err
	}
	small := func(text string) error {
		s.small = append(s.small, []byte(text))
		_, err := tier.PutSmall(t.Context(), "run/set.json", []byte(text), 2)
		if err == nil {
			s.acked = len(s.small)
		}
		return err
	}
	if err := put("run/a", 1, 9000); err != nil {
		return err
	}
	if err := small("one"); err != nil {
		return err
	}
	if err := put("run/sub/b", 2, 150_000); err != nil {
		return err
	}
	if err := small("two"); err != nil {
		return err
	}
	s.removed = maybe
	if err := tier.Remove(t.Context(), "run/a", nil); err != nil {
		return err
	}
	s.removed = durable
	s.blobs[replacedKey.Blob] = maybe
	if err := replace(t, all[0], 0); err != nil {
		return err
	}
	s.changed = maybe
	if err := replace(t, all[0], 1); err != nil {
		return err
	}
	s.changed = durable
	return small("three")
}

// check reopens the targets and holds them against the story.
func check(t *testing.T, fsys vfs.FS, s *story, what string) {
	all, tier, err := dirs(fsys, 3)
	if err != nil {
		t.Errorf("%s: reopen: %v", what, err)
		return
	}
	for i, d := range all {
		if left, err := fsys.ReadDir(fmt.Sprintf("/t%d/staging", i)); err != nil || len(left) > 0 {
			t.Errorf("%s: staging holds %v, %v", what, left, err)
		}
		for e, err := range d.List(t.Context(), "") {
			if err != nil {
				t.Errorf("%s: list: %v", what, err)
			} else if s.blobs[e.Key.Blob] == absent && e.Key.Blob != "run/set.json" {
				t.Errorf("%s: %v was never put", what, e.Key)
			}
		}
	}
	for name, p := range s.puts {
		if name == "run/a" && s.removed != absent {
			continue
		}
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Errorf("%s: %s was acknowledged: %v", what, name, err)
		}
	}
	checkReplaced(t, all[0], s, what)
	for f, err := range tier.Scan(t.Context(), "") {
		if f.Place.Blob == replacedKey.Blob {
			continue // its bytes are no column's
		}
		if err != nil {
			t.Errorf("%s: scan: %v", what, err)
			continue
		}
		if f.Place.Blob == "run/a" && s.removed == durable {
			t.Errorf("%s: run/a was removed, and is there", what)
		}
		if want, ok := s.bytes[f.Place.Blob]; ok && f.Complete {
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
	// Whatever is left, the next write works.
	if _, err := tier.Put(t.Context(), "run/a", bytes.NewReader([]byte("again")), stripe.Layout{K: 2, M: 1}); err != nil {
		t.Errorf("%s: the next Put: %v", what, err)
	}
	for _, d := range all {
		_ = d.Close()
	}
}

// TestPromise2PowerLostAtEveryOperation: columns are written side by side, so
// each number stands for several orders; each is tried in every mode.
func TestPromise2PowerLostAtEveryOperation(t *testing.T) {
	points, boots := 0, 0
	for n := 1; ; n++ {
		m := vfstest.New(vfstest.Options{})
		m.LosePowerAt(n)
		s := &story{puts: map[string]catalog.Place{}, blobs: map[string]state{}, bytes: map[string][]byte{}}
		err := tell(t, m, s)
		for seed, mode := range []vfstest.Mode{vfstest.Lose, vfstest.Keep, vfstest.Torn, vfstest.Torn, vfstest.Torn, vfstest.Torn} {
			check(t, m.Crash(mode, rand.New(rand.NewSource(int64(1000*n+seed)))), s, fmt.Sprintf("operation %d, %v, seed %d", n, mode, seed))
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

// TestPromise3DiskFailsAtEveryOperation: EIO and ENOSPC of the n-th operation.
func TestPromise3DiskFailsAtEveryOperation(t *testing.T) {
	for _, cause := range []error{errors.New("EIO"), catalog.ErrNoSpace} {
		for n := 1; ; n++ {
			m := vfstest.New(vfstest.Options{})
			m.OnOp(vfstest.FailNth(n, cause))
			s := &story{puts: map[string]catalog.Place{}, blobs: map[string]state{}, bytes: map[string][]byte{}}
			err := tell(t, m, s)
			if err != nil && !errors.Is(err, cause) {
				t.Errorf("operation %d: %v, want %v", n, err, cause)
			}
			over := m.Ops() < n
			m.OnOp(nil)
			check(t, m.Crash(vfstest.Keep, nil), s, fmt.Sprintf("operation %d, %v", n, cause))
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
