package ckptd

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

func TestPlanTargets(t *testing.T) {
	up, suspect, draining := catalog.TargetUp, catalog.TargetSuspect, catalog.TargetDraining
	rec := func(name, node string, state catalog.TargetState) catalog.TargetRecord {
		return catalog.TargetRecord{Name: name, Node: node, State: state}
	}
	given := []catalog.TargetRecord{rec("a", "n1", ""), rec("b", "", "")}
	m := func(version int64, r ...catalog.TargetRecord) catalog.TargetMap {
		return catalog.TargetMap{Version: version, Targets: r}
	}
	for name, c := range map[string]struct {
		v    targetView
		want string
	}{
		"FlagsBeforeTheMapIsKnown":  {targetView{given: given}, "a up given, b up given"},
		"FlagsBeforeTheyAreEntered": {targetView{given: given, known: true, now: m(7, rec("c", "", up))}, "a up given, b up given"},
		"TheMapSaysTheState":        {targetView{given: given, known: true, entered: 2, now: m(2, rec("a", "n1", draining), rec("b", "", suspect))}, "a draining given, b suspect given"},
		"RemovedFromTheMap":         {targetView{given: given, known: true, entered: 2, now: m(3, rec("b", "", up))}, "b up given"},
		"TheMirrorIsBehind":         {targetView{given: given, known: true, entered: 2, now: m(1)}, "a up given, b up given"},
		"Following":                 {targetView{follow: true, given: given[:1], known: true, entered: 1, now: m(4, rec("a", "n1", up), rec("c", "", up), rec("d", "n2", up), rec("e", "n1", up))}, "a up given, c up, e up"},
		"NotFollowing":              {targetView{given: given[:1], known: true, entered: 1, now: m(4, rec("a", "n1", up), rec("c", "", up))}, "a up given"},
		"ADirectoryAndASharedOne":   {targetView{follow: true, given: given[:1], known: true, entered: 1, now: m(4, rec("a", "", draining))}, "a up given"},
		"ThisNodeDoesNotReachIt":    {targetView{follow: true, known: true, now: m(4, rec("c", "", up), rec("x", "", up), rec("y", "", draining))}, "c up, x suspect, y draining"},
		"Nothing":                   {targetView{follow: true, known: true}, ""},
	} {
		c.v.node = "n1"
		c.v.failing = func(name string) bool { return name == "x" || name == "y" }
		var got []string
		for _, w := range planTargets(c.v) {
			s := w.Name + " " + string(w.State)
			if w.given {
				s += " given"
			}
			got = append(got, s)
		}
		if got := strings.Join(got, ", "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The map's word about pool, weight and domain wins over the flags', so that
// all nodes place alike.
func TestPlanTargetsPlacement(t *testing.T) {
	given := []catalog.TargetRecord{{Name: "a", Weight: 1, Domain: "mine"}}
	now := catalog.TargetMap{Version: 1, Targets: []catalog.TargetRecord{{Name: "a", Weight: 3, Domain: "rack", Pool: "fast", State: catalog.TargetUp}}}
	w := planTargets(targetView{node: "n1", given: given, entered: 1, known: true, now: now, failing: func(string) bool { return false }})
	if len(w) != 1 || w[0].Weight != 3 || w[0].Domain != "rack" || w[0].Pool != "fast" {
		t.Errorf("%+v", w)
	}
}

// TestJudge plays rounds of two seconds against the judge. Each letter is a
// round: "." all is well, "x" nobody reaches it, "c" only the coordinator does
// not, "o" only the coordinator does, "h" no heartbeat, "?" nothing is known.
func TestJudge(t *testing.T) {
	sights := map[rune]sight{
		'.': {probed: true, reached: 2, beats: true, every: time.Second},
		'x': {probed: true, err: "refused", missed: 2, beats: true, every: time.Second, silence: time.Hour},
		'c': {probed: true, err: "refused", reached: 2, beats: true, every: time.Second},
		'o': {probed: true, missed: 2, beats: true, every: time.Second},
		'h': {probed: true, reached: 2, beats: true, every: time.Second, silence: time.Minute},
		's': {probed: true, err: "refused", missed: 2, beats: true, stopped: true, every: time.Second},
		'e': {probed: true, reached: 2, beats: true, every: time.Second, sick: "its disk failed"},
		'?': {},
	}
	for name, c := range map[string]struct {
		begin  catalog.TargetState
		rounds string
		want   string // state after each round, by its first letter
	}{
		"Well":              {"up", "....", "uuuu"},
		"OneMiss":           {"up", ".x.x.x", "uuuuuu"},
		"Killed":            {"up", "..xxxxxxx", "uuusssddd"},
		"Stopped":           {"up", ".sssssss", "uusssddd"},
		"BackFromSuspect":   {"up", "xx..", "ussu"},
		"BackFromDown":      {"down", "x.x..", "ddddu"},
		"ACutCoordinator":   {"up", "cccccccccccc", "usssssssssss"},
		"ManyNodesDoNot":    {"up", "oooooooooooo", "usssssssssss"},
		"NoHeartbeat":       {"up", "hhhhhhhhhhhh", "usssssssssss"},
		"ItsDiskFails":      {"up", "eeeeeeeeee..", "ussssssssssu"},
		"NobodyKnows":       {"suspect", "????????????", "ssssssssssss"},
		"DrainingIsOrdered": {"draining", "xxxxxxxx", "dddddddd"},
		"DrainedIsOrdered":  {"drained", "........", "dddddddd"},
		"FlapsAreHeldDown":  {"up", "xx..xx..xx....", "ussuussssssssu"},
	} {
		state, is, now := c.begin, judged{}, time.Unix(1e9, 0)
		got := ""
		for _, r := range c.rounds {
			var why string
			last := state
			state, why, is = judge(state, is, sights[r], 8*time.Second, now)
			if state != last && state != catalog.TargetUp && why == "" {
				t.Errorf("%s: %s for no reason", name, state)
			}
			got += string(state[:1])
			now = now.Add(2 * time.Second)
		}
		if got != c.want {
			t.Errorf("%s: %s became %s, want %s", name, c.rounds, got, c.want)
		}
	}
}

// A target that flaps all day changes the map a bounded number of times.
func TestJudgeHysteresis(t *testing.T) {
	state, is, now := catalog.TargetUp, judged{}, time.Unix(1e9, 0)
	changes := 0
	for round := range 24 * 3600 / 5 {
		s := sight{probed: true}
		if round%4 < 2 { // worst: as long bad as it takes, then well as long as it takes at first
			s.err = "refused"
		}
		next, _, after := judge(state, is, s, time.Hour, now)
		if next != state {
			changes++
		}
		state, is, now = next, after, now.Add(5*time.Second)
	}
	if changes > 8 {
		t.Errorf("%d changes in a day", changes)
	}
}

func TestDefaultLayout(t *testing.T) {
	for _, c := range []struct {
		targets, domains, usable int
		want                     string
	}{
		{0, 0, 0, "1+0"}, {1, 1, 1, "1+0"}, {2, 2, 2, "1+1"}, {3, 3, 3, "2+1"}, {5, 5, 5, "2+1"}, {6, 6, 6, "4+2"}, {9, 9, 9, "4+2"}, {10, 10, 10, "8+2"},
		{6, 3, 6, "4+2"}, {6, 2, 6, "2+2"}, {6, 1, 6, "4+2"}, {3, 2, 3, "1+1"}, {10, 5, 10, "8+2"}, {12, 4, 12, "6+2"}, // racks
		{6, 6, 5, "3+2"}, {6, 6, 4, "2+2"}, {6, 6, 3, "1+2"}, {6, 6, 2, "4+2"}, {3, 3, 2, "1+1"}, {3, 3, 1, "2+1"}, {1, 1, 0, "1+0"}, // some are away
	} {
		k, m := defaultLayout(c.targets, c.domains)
		k, m = narrow(k, m, c.usable)
		if got := fmt.Sprintf("%d+%d", k, m); got != c.want {
			t.Errorf("%d targets in %d domains, %d usable: %s, want %s", c.targets, c.domains, c.usable, got, c.want)
		}
	}
}
