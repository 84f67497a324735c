package remotetier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// TestTierMeetsAndForgives: what a target does is counted, Puts and reads go
// round it, and it is used again when it works.
func TestTierMeetsAndForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(4, remotetier.Options{})
		b := random(300_000, 1)
		status := func() remotetier.TargetStatus { return w.Targets(t.Context())[0] }
		var asked atomic.Int64
		dead := func(string, remotetier.Key) error {
			asked.Add(1)
			return fmt.Errorf("dial: %w", catalog.ErrUnavailable)
		}
		var p catalog.Place
		for i := 0; len(p.Targets) == 0 || p.Targets[0] != "t0"; i++ {
			var err error
			if p, err = w.Put(t.Context(), fmt.Sprint("b/", i), sealOf(b), layout(2, 1, 65536)); err != nil {
				t.Fatal(err)
			}
		}
		w.mems[0].Fault(dead)
		for i := range 8 {
			if q := mustPut(t, w.Tier, b, layout(2, 1, 65536)); slices.Contains(q.Targets, "t0") {
				t.Fatalf("%d: a column is on the target that is away", i)
			}
		}
		if n := asked.Load(); n != 5 { // and then it rests
			t.Errorf("the target that is down was asked %d times, want 5", n)
		}
		if got, rep, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) || rep.Degraded || asked.Load() != 5 {
			t.Errorf("a read: %+v, %v; asked %d times", rep, err, asked.Load())
		}
		if s := status(); s.State != catalog.TargetDown || s.Errors != 6 || !errors.Is(s.Err, catalog.ErrUnavailable) {
			t.Errorf("Targets = %+v", s)
		}
		for _, m := range w.mems[1:3] { // with too few others it is asked after all
			m.Fault(func(op string, _ remotetier.Key) error { return errDisk })
		}
		before := asked.Load()
		if _, err := w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536)); !errors.Is(err, catalog.ErrUnavailable) || asked.Load() != before+1 {
			t.Errorf("Put = %v; it was asked %d times more", err, asked.Load()-before)
		}
		for _, m := range w.mems {
			m.Fault(nil)
		}
		time.Sleep(10 * time.Second) // of the bubble: no time passes
		mustPut(t, w.Tier, b, layout(2, 1, 65536))
		if s := status(); s.State != catalog.TargetUp || s.Errors != 7 || s.Err != nil {
			t.Errorf("when it was back, Targets = %+v", s)
		}
	})
}

// TestTargetWithABadDiskIsTriedAgainLater: it answers all the time, but what is
// written fails.
func TestTargetWithABadDiskIsTriedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(4, remotetier.Options{})
		b := random(300_000, 1)
		var failed atomic.Int64
		w.mems[0].Fault(func(op string, _ remotetier.Key) error {
			if op == "write" {
				failed.Add(1)
				return errDisk
			}
			return nil
		})
		for failed.Load() == 0 {
			mustPut(t, w.Tier, b, layout(2, 1, 65536))
		}
		for range 20 {
			mustPut(t, w.Tier, b, layout(2, 1, 65536))
		}
		if n := failed.Load(); n != 1 {
			t.Errorf("it was written to %d times, want 1: there are others", n)
		}
		if s := w.Targets(t.Context())[0]; s.State != catalog.TargetSuspect || s.Given != catalog.TargetUp || s.Errors != 1 || s.Err != nil || !errors.Is(s.Failed, errDisk) {
			t.Errorf("Targets = %+v", s)
		}
		time.Sleep(30 * time.Second) // of the bubble
		for range 20 {
			mustPut(t, w.Tier, b, layout(2, 1, 65536))
		}
		if n := failed.Load(); n != 2 {
			t.Errorf("it was written to %d times, want once more", n)
		}
	})
}

// TestHealthIsOfTheTargetNotOfItsName: SetTargets with the same target keeps
// what was met of it, another one of its name begins anew.
func TestHealthIsOfTheTargetNotOfItsName(t *testing.T) {
	infos := infosOf("a", "b")
	tier := remotetier.New(infos, remotetier.Options{})
	infos[0].Target.(*targettest.Mem).Fault(func(string, remotetier.Key) error { return errDisk })
	tier.Targets(t.Context())
	infos[0].Target.(*targettest.Mem).Fault(nil)
	infos[0].Domain = "rack"
	if err := tier.SetTargets(infos); err != nil {
		t.Fatal(err)
	}
	if s := tier.Targets(t.Context())[0]; s.Errors != 1 || s.Domain != "rack" || s.State != catalog.TargetUp {
		t.Errorf("with the same target: %+v", s)
	}
	infos[0].Target = targettest.NewMem("a")
	if err := tier.SetTargets(infos); err != nil {
		t.Fatal(err)
	}
	if s := tier.Targets(t.Context())[0]; s.Errors != 0 {
		t.Errorf("with another target of the name: %+v", s)
	}
}

// TestFullIsSaidUntilThereIsRoom, whether a Put met it or saw it coming.
func TestFullIsSaidUntilThereIsRoom(t *testing.T) {
	w := newWorld(4, remotetier.Options{})
	b := random(300_000, 1)
	full := func() (names []string) {
		for _, s := range w.Targets(t.Context()) {
			if s.Full {
				names = append(names, s.Name)
			}
		}
		return names
	}
	w.mems[0].SetTotal(1000)
	w.mems[1].SetTotal(200_000)
	w.mems[1].Fault(fullAt("write", 1))
	if _, err := w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536)); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("Put = %v, want ErrNoSpace", err)
	}
	if got := full(); !slices.Equal(got, []string{"t0"}) { // there is room for it on t1 again
		t.Errorf("full: %v, want t0", got)
	}
	w.mems[1].SetTotal(1000)
	_, _ = w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536))
	if got := full(); !slices.Equal(got, []string{"t0", "t1"}) {
		t.Errorf("full: %v, want t0 and t1", got)
	}
	for _, m := range w.mems {
		m.Fault(nil)
		m.SetTotal(1 << 30)
	}
	if got := full(); len(got) != 0 {
		t.Errorf("full: %v, want none", got)
	}
}

// TestReadersAskDoubtfulTargetsLast.
func TestReadersAskDoubtfulTargetsLast(t *testing.T) {
	w := newWorld(6, remotetier.Options{})
	b := random(900_000, 1)
	p := mustPut(t, w.Tier, b, layout(4, 2, 65536))
	var infos []remotetier.TargetInfo
	var touched [6]atomic.Int64
	for i, m := range w.mems {
		m.Fault(func(op string, _ remotetier.Key) error {
			touched[i].Add(1)
			return nil
		})
		ti := remotetier.TargetInfo{Target: m}
		if m.Name() == p.Targets[0] || m.Name() == p.Targets[2] {
			ti.State = catalog.TargetDown
		}
		infos = append(infos, ti)
	}
	if err := w.SetTargets(infos); err != nil {
		t.Fatal(err)
	}
	if got, rep, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) || rep.Degraded {
		t.Errorf("%+v, %v", rep, err)
	}
	for i, m := range w.mems {
		if down := infos[i].State == catalog.TargetDown; down != (touched[i].Load() == 0) {
			t.Errorf("%s, which is %q, was asked %d times", m.Name(), infos[i].State, touched[i].Load())
		}
	}
	for i := range infos { // all are said to be down: they are asked all the same
		infos[i].State = catalog.TargetDown
	}
	if err := w.SetTargets(infos); err != nil {
		t.Fatal(err)
	}
	if got, _, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) {
		t.Error(err)
	}
}

// mute answers nothing at all.
type mute struct{ *targettest.Mem }

func (m mute) Space(ctx context.Context) (remotetier.Space, error) {
	<-ctx.Done()
	return remotetier.Space{}, ctx.Err()
}

func (m mute) List(ctx context.Context, _ string) iter.Seq2[remotetier.Entry, error] {
	return func(yield func(remotetier.Entry, error) bool) {
		<-ctx.Done()
		yield(remotetier.Entry{}, ctx.Err())
	}
}

func (m mute) Open(ctx context.Context, _ remotetier.Key) (remotetier.ColumnReader, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (m mute) Remove(ctx context.Context, _ remotetier.Key) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestSmallRecordsDoNotWaitForMuteTargets for ever; and when one is known to
// be down, not at all.
func TestSmallRecordsDoNotWaitForMuteTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		infos := infosOf("a", "b", "c")
		tier := remotetier.New(infos, remotetier.Options{})
		for len(infos[0].Target.(*targettest.Mem).Keys()) == 0 {
			if _, err := tier.PutSmall(t.Context(), "small", []byte("first"), 2); err != nil {
				t.Fatal(err)
			}
		}
		infos[0].Target = mute{infos[0].Target.(*targettest.Mem)}
		if err := tier.SetTargets(infos); err != nil {
			t.Fatal(err)
		}
		want := "first"
		for i := range 10 {
			begin := time.Now()
			got, _, err := tier.GetSmall(t.Context(), "small")
			if err != nil || string(got) != want {
				t.Errorf("%d: GetSmall = %q, %v, want %q", i, got, err, want)
			}
			want = fmt.Sprint("version ", i)
			if p, err := tier.PutSmall(t.Context(), "small", []byte(want), 2); err != nil || slices.Contains(p.Targets, "a") {
				t.Errorf("%d: PutSmall: on %v, %v", i, p.Targets, err)
			}
			took := time.Since(begin)
			if i == 0 && took > 30*time.Second || i > 2 && took > 0 {
				t.Errorf("%d: a small record was read and replaced in %v", i, took)
			}
		}
		infos[0].Target = infos[0].Target.(mute).Mem // what it has is old
		if err := tier.SetTargets(infos); err != nil {
			t.Fatal(err)
		}
		if got, _, err := tier.GetSmall(t.Context(), "small"); err != nil || string(got) != want {
			t.Errorf("GetSmall = %q, %v, want %q", got, err, want)
		}
	})
}

// TestReadersTrustADiskThatOnlyWritesBadly.
func TestReadersTrustADiskThatOnlyWritesBadly(t *testing.T) {
	w := newWorld(4, remotetier.Options{})
	b := random(300_000, 1)
	p := mustPut(t, w.Tier, b, layout(2, 1, 65536))
	m := w.mem(p, 0)
	var read atomic.Int64
	m.Fault(func(op string, _ remotetier.Key) error {
		switch op {
		case "create", "write":
			return errDisk
		case "read":
			read.Add(1)
		}
		return nil
	})
	for i := range 20 {
		if q, err := w.Put(t.Context(), fmt.Sprint("b/", i), sealOf(b), layout(2, 1, 65536)); err != nil || slices.Contains(q.Targets, m.Name()) {
			t.Errorf("on %v, %v", q.Targets, err)
		}
	}
	if s := w.Targets(t.Context())[m.Name()[1]-'0']; s.State == catalog.TargetUp {
		t.Errorf("Targets = %+v", s)
	}
	if got, rep, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) || rep.Degraded || read.Load() == 0 {
		t.Errorf("%+v, %v, %d reads of it", rep, err, read.Load())
	}
}

// TestTargetThatWasAwayIsUsedWhenItAnswers: reads, and columns that were not
// begun, for not reaching it say nothing of its disk.
func TestTargetThatWasAwayIsUsedWhenItAnswers(t *testing.T) {
	w := newWorld(4, remotetier.Options{})
	p := mustPut(t, w.Tier, random(300_000, 1), layout(2, 1, 65536))
	r, err := w.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := w.mem(p, 0)
	status := func() remotetier.TargetStatus { return w.Targets(t.Context())[m.Name()[1]-'0'] }
	for _, c := range []struct {
		err  error
		want catalog.TargetState
	}{
		{fmt.Errorf("dial: %w", catalog.ErrUnavailable), catalog.TargetUp},
		{errDisk, catalog.TargetSuspect},
	} {
		m.Fault(func(op string, _ remotetier.Key) error {
			if op == "read" || op == "create" {
				return c.err
			}
			return nil
		})
		if _, err := r.ReadAt(make([]byte, 1000), 0); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			mustPut(t, w.Tier, nil, layout(2, 1, 65536))
		}
		if s := status(); s.Errors == 0 || s.State != c.want {
			t.Errorf("after %v: %+v, want %s", c.err, s, c.want)
		}
	}
}
