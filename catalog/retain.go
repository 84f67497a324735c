package catalog

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Verdict is what a retention decides about one set, and why, for people.
type Verdict struct {
	Set SetRecord
	Why string
}

// Check reports what is wrong with the retention, if anything.
func (r Retention) Check() error {
	switch {
	case r.KeepLast < 0:
		return fmt.Errorf("keep-last %d: %w: want 0 or more sets", r.KeepLast, ErrInvalid)
	case r.KeepEvery < 0:
		return fmt.Errorf("keep-every %d: %w: want 0 or more steps", r.KeepEvery, ErrInvalid)
	case r.KeepWithin < 0:
		return fmt.Errorf("keep-within %v: %w: want 0 or more", r.KeepWithin, ErrInvalid)
	case r.KeepLevel > Verified:
		return fmt.Errorf("keep-level %v: %w: no such level", r.KeepLevel, ErrInvalid)
	case r.KeepLevel != LevelNone && r.KeepLast == 0:
		return fmt.Errorf("keep-level %v: %w: it says which sets keep-last counts; give keep-last too", r.KeepLevel, ErrInvalid)
	}
	if r.KeepBest != "" {
		_, _, err := ParseKeepBest(r.KeepBest)
		return err
	}
	return nil
}

// keepsAll reports whether the retention has no rule. KeepLevel is none: it
// only says which sets KeepLast counts.
func (r Retention) keepsAll() bool {
	return r.KeepLast == 0 && r.KeepEvery == 0 && r.KeepWithin == 0 && r.KeepBest == ""
}

// ParseKeepBest reads "METRIC", "METRIC:min" or "METRIC:max"; without a
// direction the smallest value is the best, as it is of a loss.
func ParseKeepBest(s string) (metric string, largest bool, err error) {
	metric = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		switch metric = s[:i]; s[i+1:] {
		case "min":
		case "max":
			largest = true
		default:
			metric = ""
		}
	}
	if metric == "" {
		return "", false, fmt.Errorf("keep-best %q: %w: want METRIC, METRIC:min or METRIC:max", s, ErrInvalid)
	}
	return metric, largest, nil
}

// PlanRetention says which committed sets stay and which go, newest first.
// Sets that are not committed get no verdict; each run is judged by itself,
// and the sets of an older attempt count as any other.
//
// A set stays when any rule keeps it. KeepLast walks from the newest set to
// older ones until it has met that many at KeepLevel or safer; what it passes
// on the way stays too, because it is newer and may still become as safe. A
// set whose time of commit is unknown is within any KeepWithin. A retention
// without a rule, or one that fails its Check, keeps everything.
//
// Whatever the rules say, these stay: the newest set at each level (at that
// level or safer), a pinned set, a set for which leased is true, and a set
// whose successor — the next newer set that stays — is less safe than itself.
// So from any set that goes, a reader finds a newer one that is as safe.
//
// It is the same plan for a dry run and a real one. Levels, pins and leases
// may change after it was made: whoever carries it out swaps each record at
// the revision that was planned with, and plans again on a conflict.
func PlanRetention(r Retention, now time.Time, sets []SetRecord, leased func(SetID) bool) (keep, remove []Verdict) {
	all := make([]*SetRecord, 0, len(sets))
	for i := range sets {
		if sets[i].State == Committed {
			all = append(all, &sets[i])
		}
	}
	slices.SortFunc(all, func(a, b *SetRecord) int {
		return cmp.Or(b.SetID.Compare(a.SetID), cmp.Compare(b.Version, a.Version))
	})
	// Two records of one set would get two verdicts; the later record is the true one.
	all = slices.CompactFunc(all, func(a, b *SetRecord) bool { return a.SetID == b.SetID })

	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Run == all[0].Run {
			n++
		}
		k, rm := retainRun(r, now, all[:n], leased)
		keep, remove, all = append(keep, k...), append(remove, rm...), all[n:]
	}
	return keep, remove
}

// retainRun plans for the committed sets of one run, newest first.
func retainRun(r Retention, now time.Time, sets []*SetRecord, leased func(SetID) bool) (keep, remove []Verdict) {
	if err := r.Check(); err != nil || r.keepsAll() {
		why := "no rule"
		if err != nil {
			why = err.Error()
		}
		for _, s := range sets {
			keep = append(keep, Verdict{*s, why})
		}
		return keep, nil
	}
	why := make([][]string, len(sets)) // by set: the reasons to keep it
	protect(sets, leased, why)
	applyRules(r, now, sets, why)
	var successor *SetRecord // the oldest so far that stays
	for i, s := range sets {
		if len(why[i]) == 0 && successor.Level < s.Level { // the newest is protected, so there is a successor
			why[i] = append(why[i], fmt.Sprintf("its successor %s is only %v", successor.name(), successor.Level))
		}
		if len(why[i]) > 0 {
			keep, successor = append(keep, Verdict{*s, strings.Join(why[i], ", ")}), s
		} else {
			remove = append(remove, Verdict{*s, fmt.Sprintf("no rule keeps it; its successor %s is %v", successor.name(), successor.Level)})
		}
	}
	return keep, remove
}

// protect adds the reasons that hold whatever the rules are.
func protect(sets []*SetRecord, leased func(SetID) bool, why [][]string) {
	why[0] = append(why[0], "newest")
	for level := Local; level <= Verified; level++ {
		i := slices.IndexFunc(sets, func(s *SetRecord) bool { return s.Level >= level })
		if i > 0 { // 0 is the newest anyway
			why[i] = append(why[i], "newest "+level.String())
		}
	}
	for i, s := range sets {
		if s.Pinned {
			why[i] = append(why[i], "pinned")
		}
		if leased != nil && leased(s.SetID) {
			why[i] = append(why[i], "being read")
		}
	}
}

func applyRules(r Retention, now time.Time, sets []*SetRecord, why [][]string) {
	last := fmt.Sprintf("keep-last %d", r.KeepLast)
	if r.KeepLevel != LevelNone {
		last += " at " + r.KeepLevel.String()
	}
	left := r.KeepLast
	for i, s := range sets {
		if left > 0 {
			why[i] = append(why[i], last)
			if s.Level >= r.KeepLevel {
				left--
			}
		}
		if r.KeepEvery > 0 && s.Step%r.KeepEvery == 0 {
			why[i] = append(why[i], fmt.Sprintf("keep-every %d", r.KeepEvery))
		}
		if r.KeepWithin > 0 && (s.Committed.IsZero() || now.Sub(s.Committed) < r.KeepWithin) {
			why[i] = append(why[i], fmt.Sprintf("keep-within %v", r.KeepWithin))
		}
	}
	if r.KeepBest == "" {
		return
	}
	metric, largest, _ := ParseKeepBest(r.KeepBest) // checked by the caller
	if i := best(sets, metric, largest); i >= 0 {
		why[i] = append(why[i], fmt.Sprintf("best %s %v", metric, sets[i].Metrics[metric]))
	}
}

// best is the index of the set with the best value; of equal ones the newest.
// Sets without the metric, or with NaN, do not take part.
func best(sets []*SetRecord, metric string, largest bool) int {
	at, top := -1, 0.0
	for i, s := range sets {
		v, ok := s.Metrics[metric]
		if !ok || math.IsNaN(v) {
			continue
		}
		if at < 0 || largest && v > top || !largest && v < top {
			at, top = i, v
		}
	}
	return at
}

// name is the set within its run, as people write it: "1200#3".
func (s *SetRecord) name() string { return fmt.Sprintf("%d#%d", s.Step, s.Attempt) }
