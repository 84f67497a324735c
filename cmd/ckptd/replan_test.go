package main

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/remotetier"
)

// TestTargetStopsDuringPut: a target process stands still in the middle of a
// Put and says nothing more, as one whose machine hangs. Its column goes to
// another target, and the others' are not written again; when it goes on, it
// shows nothing of what it had begun.
func TestTargetStopsDuringPut(t *testing.T) {
	var targets []*targetProcess
	var infos []remotetier.TargetInfo
	for i := range 7 {
		p := startTarget(t, fmt.Sprintf("t%d", i))
		targets = append(targets, p)
		infos = append(infos, remotetier.TargetInfo{Target: p.dial()})
	}
	var moved []int
	newTier := func() *remotetier.Tier { // each places the blob as the others do
		return remotetier.New(infos, remotetier.Options{
			Trace: remotetier.Trace{Replanned: func(_ string, column int, from, to string, err error) {
				t.Logf("column %d goes from %s to %s: %v", column, from, to, err)
				moved = append(moved, column)
			}},
			Generation: func() uint64 { return 7 }, Memory: 16 << 20,
		})
	}
	b := targetBytes(24<<20+777, 1)
	dry, err := newTier().Put(t.Context(), "run/a", bytes.NewReader(b), layout42)
	if err != nil {
		t.Fatal(err)
	}
	if err := newTier().Remove(t.Context(), "run/a", nil); err != nil {
		t.Fatal(err)
	}
	victim := targets[dry.Targets[2][1]-'0']
	stopped := 0
	src := &tellingSource{Reader: bytes.NewReader(b), at: 8 << 20, tell: func() {
		if err := victim.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Error(err)
		}
		stopped++
	}}
	tier := newTier()
	p, err := tier.Put(t.Context(), "run/a", src, layout42)
	if err != nil {
		t.Fatal(err)
	}
	if stopped != 1 || !slices.Equal(moved, []int{2}) || slices.Contains(p.Targets, victim.name) {
		t.Errorf("stopped %d times, columns %v moved, on %v", stopped, moved, p.Targets)
	}
	checkBlob(t, tier, p, b)
	if err := victim.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Error(err)
	}
	if err := tier.Verify(t.Context(), p); err != nil {
		t.Error(err)
	}
	eventually(t, "it shows nothing", func() error {
		for e, err := range infos[slices.Index(targets, victim)].List(t.Context(), "") {
			if err == nil {
				err = fmt.Errorf("it has %v", e)
			}
			return err
		}
		return nil
	})
}
