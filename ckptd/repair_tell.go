package ckptd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// tellColumns says of each blob of a set how many of its columns are not where
// and what they should be, and what will be done. Damage inside a column shows
// only when it is read: `ckpt verify --deep` and `ckpt scrub` find it.
func (n *Node) tellColumns(ctx context.Context, rec catalog.SetRecord, parts []catalog.PartRecord) []string {
	if n.remote == nil || rec.State != catalog.Committed {
		return nil
	}
	v := n.mendView()
	var said []string
	for _, p := range placesOf(&rec, parts) {
		if text := tellCrowded(&p.place); text != "" {
			said = append(said, fmt.Sprintf("%s: %s: fewer targets could take one than %s needs", p.what(), text, p.place.Layout))
		}
		rep, err := n.remote.Check(ctx, p.place, false)
		if err != nil {
			said = append(said, fmt.Sprintf("%s: its columns cannot be looked at: %v", p.what(), err))
			continue
		}
		if text := tellCheck(v, &rep); text != "" {
			said = append(said, p.what()+": "+text)
		}
	}
	return said
}

// tellCheck is the sentence about one blob; "" if all is well.
func tellCheck(v *mendView, rep *remotetier.CheckReport) string {
	var where []string
	moves, comes := false, time.Duration(-1)
	bad := 0
	for _, c := range rep.Columns {
		switch {
		case c.State == remotetier.ColumnOK && !v.leaves(c.Target):
			continue
		case c.State == remotetier.ColumnOK:
			moves = true
			continue
		}
		bad++
		if where = append(where, fmt.Sprintf("%s: %s", c.Target, c.State)); c.State == remotetier.ColumnUnreachable && !v.leaves(c.Target) {
			comes = max(comes, v.waits(c.Target))
		}
	}
	var text string
	switch {
	case bad > 0 && rep.Spare < 0:
		text = fmt.Sprintf("%d of %d columns missing (%s), more than it can bear", bad, len(rep.Columns), strings.Join(where, ", "))
	case bad > 0 && comes >= 0:
		text = fmt.Sprintf("%d of %d columns missing (%s), reads go on; repair waits up to %v for the target to come back", bad, len(rep.Columns), strings.Join(where, ", "), comes.Round(time.Second))
	case bad > 0:
		text = fmt.Sprintf("%d of %d columns missing (%s), reads go on; repair rebuilds what is missing", bad, len(rep.Columns), strings.Join(where, ", "))
	case moves:
		text = "columns move away from a target that is being drained"
	}
	return text
}

// waits is how long a target that does not answer is given to come back.
func (v *mendView) waits(name string) time.Duration {
	for i := range v.targets.Targets {
		if r := &v.targets.Targets[i]; r.Name == name && r.State == catalog.TargetDown {
			return max(0, v.after-v.now.Sub(r.Since))
		}
	}
	return v.after
}

// tellRepairing is the line of `ckpt status`; "" when nothing is to be mended.
func (n *Node) tellRepairing() string {
	s := n.repairState()
	switch {
	case s.Blobs == 0:
		return ""
	case s.Stuck > 0:
		return fmt.Sprintf("%d blobs lack columns, or have some on targets to leave; %d of them wait: %s", s.Blobs, s.Stuck, s.Why)
	case s.Leaving != "":
		return fmt.Sprintf("columns of %d blobs move away from %s", s.Blobs, s.Leaving)
	}
	return fmt.Sprintf("%d blobs are being mended", s.Blobs)
}
