package remotetier_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// TestWhoIsNotTrustedYetComesBeforeASecondColumn, once a target has failed the
// Put: those that answer again are tried before others get two columns.
// Without a failure they are not, for their disks may be broken.
func TestWhoIsNotTrustedYetComesBeforeASecondColumn(t *testing.T) {
	for _, c := range []struct {
		what               string
		well, doubted, bad int // targets; bad ones fail what is written to them, in this Put for the first time
		still              bool
		on                 int // targets that have columns in the end
		doubtedOn          int // of these
	}{
		{"enough are well", 6, 2, 0, false, 6, 0},
		{"one fails, another is to spare", 6, 1, 1, false, 6, 0},
		{"one fails", 5, 1, 1, false, 6, 1},
		{"two fail", 4, 2, 2, false, 6, 2},
		{"one fails, and who was doubted still does", 5, 1, 1, true, 5, 0},
		{"one fails, and one of the doubted is too few", 4, 1, 2, false, 5, 1},
		{"nobody fails, and there are too few", 5, 1, 0, false, 5, 0},
		{"there are too few even for two each", 2, 4, 0, false, 6, 4},
	} {
		w := newWorld(c.well+c.doubted+c.bad, remotetier.Options{})
		broken := func(op string, _ remotetier.Key) error {
			if op == "write" {
				return errDisk
			}
			return nil
		}
		apart, all := []remotetier.TargetInfo{}, []remotetier.TargetInfo{}
		for i, m := range w.mems {
			all = append(all, remotetier.TargetInfo{Target: m})
			apart = append(apart, remotetier.TargetInfo{Target: m, Pool: m.Name()})
			if i >= c.well {
				m.Fault(broken)
			}
		}
		if err := w.SetTargets(apart); err != nil {
			t.Fatal(err)
		}
		for i := range c.doubted {
			m := w.mems[c.well+i]
			for range 5 {
				if _, err := w.Pool(m.Name()).Put(t.Context(), blob, sealOf(random(1000, 1)), layout(1, 0, 65536)); err == nil {
					t.Fatal("a Put to a broken disk went well")
				}
			}
			if s := w.Targets(t.Context())[c.well+i]; s.State != catalog.TargetDown || s.Err != nil {
				t.Fatalf("%s: Targets = %+v, want one that is down and answers", c.what, s)
			}
			if !c.still {
				m.Fault(nil)
			}
		}
		if err := w.SetTargets(all); err != nil {
			t.Fatal(err)
		}
		var p catalog.Place
		for i := 0; ; i++ { // until each bad one was to have a column
			p = mustPut(t, w.Tier, random(900_000, byte(i)), layout(4, 2, 65536))
			met := 0
			for _, s := range w.Targets(t.Context()) {
				if i := strings.TrimPrefix(s.Name, "t"); s.Errors > 0 && slices.Contains(w.mems[c.well+c.doubted:], w.mems[i[0]-'0']) {
					met++
				}
			}
			if met == c.bad {
				break
			}
		}
		on := slices.Compact(slices.Sorted(slices.Values(p.Targets)))
		doubted := 0
		for i := range c.doubted {
			if slices.Contains(on, fmt.Sprintf("t%d", c.well+i)) {
				doubted++
			}
		}
		if len(on) != c.on || doubted != c.doubtedOn {
			t.Errorf("%s: on %v of which %d are doubted, want %d and %d", c.what, p.Targets, doubted, c.on, c.doubtedOn)
		}
		if err := w.Verify(t.Context(), p); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
