package catalog_test

import (
	"errors"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

func TestScrubRecords(t *testing.T) {
	d := catalogtest.Mem()
	c := catalog.New(d, d)
	now := time.Now()
	for _, name := range []string{"b:1", "a"} {
		r, err := c.UpdateScrub(t.Context(), name, "", func(r *catalog.ScrubRecord) error { r.Started, r.After = now, "run/1"; return nil })
		if err != nil || !r.Running() || r.Target != name {
			t.Errorf("UpdateScrub = %+v, %v", r, err)
		}
	}
	if _, err := c.UpdateScrub(t.Context(), "a", "n1", func(r *catalog.ScrubRecord) error { return nil }); err != nil {
		t.Error(err)
	}
	all, err := c.Scrubs(t.Context())
	if err != nil || len(all) != 3 || all[0].Target != "a" || all[1].Node != "n1" || all[2].Target != "b:1" || all[2].After != "run/1" {
		t.Errorf("Scrubs = %+v, %v", all, err)
	}
	if r, err := c.Scrub(t.Context(), "never", ""); err != nil || r.Running() || r.Target != "never" {
		t.Errorf("Scrub of a target that was never scrubbed = %+v, %v", r, err)
	}
	if err := c.DropScrub(t.Context(), "b:1", ""); err != nil {
		t.Error(err)
	}
	if r, err := c.Scrub(t.Context(), "b:1", ""); err != nil || r.After != "" {
		t.Errorf("Scrub after DropScrub = %+v, %v", r, err)
	}
	if _, err := c.UpdateScrub(t.Context(), "no name", "", func(*catalog.ScrubRecord) error { return nil }); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("UpdateScrub of a bad name = %v", err)
	}
}

func TestScrubDue(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		what  string
		r     catalog.ScrubRecord
		every time.Duration
		want  bool
	}{
		{"never", catalog.ScrubRecord{}, time.Hour, true},
		{"never, and off", catalog.ScrubRecord{}, 0, false},
		{"under way", catalog.ScrubRecord{Started: ago(time.Minute)}, time.Hour, true},
		{"done just now", catalog.ScrubRecord{Started: ago(time.Minute), Finished: now}, time.Hour, false},
		{"done long ago", catalog.ScrubRecord{Started: ago(2 * time.Hour), Finished: ago(time.Hour)}, time.Hour, true},
		{"done long ago, and off", catalog.ScrubRecord{Started: ago(2 * time.Hour), Finished: ago(time.Hour)}, 0, false},
		{"asked since", catalog.ScrubRecord{Started: ago(time.Minute), Finished: ago(30 * time.Second), Asked: now}, 0, true},
		{"asked before", catalog.ScrubRecord{Started: ago(time.Minute), Finished: now, Asked: ago(time.Hour)}, 0, false},
	} {
		if got := c.r.Due(now, c.every); got != c.want {
			t.Errorf("%s: Due = %v, want %v", c.what, got, c.want)
		}
	}
}
