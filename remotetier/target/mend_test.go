package target_test

import (
	"bytes"
	"fmt"
	"math/rand"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
)

// mendStory damages a blob and mends it: a flipped bit, a lost column, and a
// target to leave, one after the other. Recorded is what a catalog would hold.
type mendStory struct {
	bytes    []byte
	put      bool
	recorded catalog.Place
	good     int // columns that are good at the least
}

func tellMend(t *testing.T, fsys vfs.FS, s *mendStory) error {
	all, tier, err := dirs(fsys, 5)
	if err != nil {
		return err
	}
	on := func(name string) *target.Dir {
		return all[slices.IndexFunc(all, func(d *target.Dir) bool { return d.Name() == name })]
	}
	p, err := tier.Put(t.Context(), "run/a", bytes.NewReader(s.bytes), stripe.Layout{K: 2, M: 1, Unit: 65536})
	if err != nil {
		return err
	}
	s.put, s.recorded, s.good = true, p, 3
	mend := func(opt remotetier.MendOptions) error {
		m, err := tier.Mend(t.Context(), s.recorded, opt)
		if err != nil {
			return err
		}
		if len(m.Left) > 0 {
			return m.Left[0].Err
		}
		if s.good = 3; !m.Moved() {
			return nil
		}
		s.recorded = m.Place
		return tier.DropReplaced(t.Context(), m)
	}
	s.good = 2
	if err := flip(t, on(p.Targets[1]), remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: 1}); err != nil {
		return err
	}
	if err := mend(remotetier.MendOptions{Deep: true}); err != nil {
		return err
	}
	s.good = 2
	if err := on(p.Targets[0]).Remove(t.Context(), remotetier.Key{Blob: p.Blob, Generation: p.Generation}); err != nil {
		return err
	}
	if err := mend(remotetier.MendOptions{}); err != nil {
		return err
	}
	return mend(remotetier.MendOptions{Leave: func(name string) bool { return name == p.Targets[2] }})
}

// flip changes one bit of a column's data.
func flip(t *testing.T, d *target.Dir, k remotetier.Key) error {
	r, err := d.Open(t.Context(), k)
	if err != nil {
		return err
	}
	defer r.Close()
	b := vfs.AlignedBuffer(int(r.Size()))
	if _, err := r.ReadAt(t.Context(), b, 0); err != nil {
		return err
	}
	b[5000] ^= 1
	w, err := d.Create(t.Context(), k, r.Size(), remotetier.CreateReplace)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Write(t.Context(), b); err != nil {
		return err
	}
	return w.Commit(t.Context())
}

// TestPromise2MendPowerLostAtEveryOperation: all targets lose power at once, at any
// operation. The place recorded by then has as many good columns as before,
// and mending goes on to the end.
func TestPromise2MendPowerLostAtEveryOperation(t *testing.T) {
	points, boots := 0, 0
	for n := 1; ; n++ {
		m := vfstest.New(vfstest.Options{})
		m.LosePowerAt(n)
		s := &mendStory{bytes: random(200_000, 1)}
		err := tellMend(t, m, s)
		for seed, mode := range []vfstest.Mode{vfstest.Lose, vfstest.Keep, vfstest.Torn} {
			boots++
			what := fmt.Sprintf("operation %d, %v", n, mode)
			checkMend(t, m.Crash(mode, rand.New(rand.NewSource(int64(1000*n+seed)))), s, what)
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

func checkMend(t *testing.T, fsys vfs.FS, s *mendStory, what string) {
	all, tier, err := dirs(fsys, 5)
	if err != nil {
		t.Errorf("%s: reopen: %v", what, err)
		return
	}
	defer func() {
		for _, d := range all {
			_ = d.Close()
		}
	}()
	if !s.put {
		return
	}
	rep, err := tier.Check(t.Context(), s.recorded, true)
	if err != nil || rep.Spare+2 < s.good {
		t.Errorf("%s: Check = %+v, %v; want %d good columns", what, rep.Columns, err, s.good)
	}
	m, err := tier.Mend(t.Context(), s.recorded, remotetier.MendOptions{Deep: true})
	if err != nil || len(m.Left) > 0 {
		t.Errorf("%s: Mend = %+v, %v", what, m, err)
		return
	}
	if err := tier.Verify(t.Context(), m.Place); err != nil {
		t.Errorf("%s: Verify: %v", what, err)
	}
}
