package ckptd

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// TestPlanPacks: packs a, b, c, … were committed in this order, an hour apart,
// from 40 hours ago on; the patience is a day.
func TestPlanPacks(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(hoursAgo int) time.Time { return now.Add(-time.Duration(hoursAgo) * time.Hour) }
	pack := func(name byte, hoursAgo int, change ...func(*catalog.SetRecord)) catalog.SetRecord {
		s := catalog.SetRecord{SetID: catalog.SetID{Run: "_packs/pets", Step: int64(name), Attempt: 1}, State: catalog.Committed, World: 1, Committed: at(hoursAgo)}
		for _, f := range change {
			f(&s)
		}
		return s
	}
	condemned := func(s *catalog.SetRecord) { s.Condemned = at(1) }
	pinned := func(s *catalog.SetRecord) { s.Pinned = true }
	writing := func(s *catalog.SetRecord) { s.State, s.Begun, s.Committed = catalog.Writing, s.Committed, time.Time{} }
	for _, c := range []struct {
		name    string
		packs   []catalog.SetRecord
		named   string // names of packs
		leased  string
		newest  int // hours ago; 0: there is no version
		rebuilt int // hours ago; 0: never
		writing bool
		want    string // condemned/buried/reprieved
	}{
		{name: "Nothing", want: "//"},
		{name: "OldAndUnnamed", packs: []catalog.SetRecord{pack('a', 40), pack('b', 39)}, newest: 30, want: "ab//"},
		{name: "Named", packs: []catalog.SetRecord{pack('a', 40), pack('b', 39)}, named: "a", newest: 30, want: "b//"},
		{name: "ExactlyThePatience", packs: []catalog.SetRecord{pack('a', 24)}, newest: 2, want: "a//"},
		{name: "YoungerThanThePatience", packs: []catalog.SetRecord{pack('a', 23)}, newest: 2, want: "//"},
		{name: "SecondStep", packs: []catalog.SetRecord{pack('a', 40, condemned), pack('b', 39)}, newest: 30, want: "b/a/"},
		{name: "NamedSince", packs: []catalog.SetRecord{pack('a', 40, condemned), pack('b', 39, condemned)}, named: "a", newest: 1, want: "/b/a"},
		{name: "VersionOnItsWay", packs: []catalog.SetRecord{pack('a', 40, condemned), pack('b', 39)}, newest: 30, writing: true, want: "//a"},
		{name: "Pinned", packs: []catalog.SetRecord{pack('a', 40, pinned), pack('b', 39, pinned, condemned), pack('c', 38)}, newest: 30, want: "c//b"},
		// an import: newer than the newest version
		{name: "ImportUnderWay", packs: []catalog.SetRecord{pack('a', 40), pack('b', 39), pack('c', 1)}, newest: 41, want: "//"},
		{name: "ImportOfALargeFile", packs: []catalog.SetRecord{pack('a', 40), pack('b', 1, writing)}, newest: 41, want: "//"},
		{name: "FirstImportUnderWay", packs: []catalog.SetRecord{pack('a', 40), pack('b', 2)}, want: "//"},
		{name: "ImportCutShortLongAgo", packs: []catalog.SetRecord{pack('a', 40), pack('b', 25)}, newest: 41, want: "ab//"},
		{name: "ImportBesideOldPacks", packs: []catalog.SetRecord{pack('a', 40), pack('b', 30), pack('c', 2)}, newest: 35, want: "a//"},
		{name: "NamedPacksAreNoSignOfLife", packs: []catalog.SetRecord{pack('a', 40), pack('b', 2)}, named: "b", want: "a//"},
		// leases
		{name: "Leased", packs: []catalog.SetRecord{pack('b', 39), pack('a', 40)}, leased: "b", newest: 30, want: "a//"},
		{name: "NewerThanALeasedOne", packs: []catalog.SetRecord{pack('c', 38), pack('b', 39, condemned), pack('a', 40)}, leased: "a", newest: 30, want: "//b"},
		{name: "ALeaseOfANamedOneHoldsNothing", packs: []catalog.SetRecord{pack('a', 40), pack('b', 39)}, named: "a", leased: "a", newest: 30, want: "b//"},
		// rebuild
		{name: "Rebuilt", packs: []catalog.SetRecord{pack('a', 40), pack('b', 39, condemned)}, newest: 30, rebuilt: 23, want: "//b"},
		{name: "RebuiltLongAgo", packs: []catalog.SetRecord{pack('a', 40)}, newest: 30, rebuilt: 24, want: "a//"},
		{name: "Writing", packs: []catalog.SetRecord{pack('a', 40, writing)}, want: "//"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := packSight{packs: c.packs, named: map[catalog.SetID]bool{}, writing: c.writing, patience: 24 * time.Hour, now: now}
			for _, b := range []byte(c.named) {
				d.named[pack(b, 0).SetID] = true
			}
			if c.newest > 0 {
				d.newest = at(c.newest)
			}
			if c.rebuilt > 0 {
				d.rebuilt = at(c.rebuilt)
			}
			plan := planPacks(d, func(id catalog.SetID) bool { return slices.Contains([]byte(c.leased), byte(id.Step)) })
			names := func(recs []catalog.SetRecord) (s string) {
				for _, r := range recs {
					s += string(rune(r.Step))
				}
				return s
			}
			if got := fmt.Sprintf("%s/%s/%s", names(plan.condemn), names(plan.bury), names(plan.reprieve)); got != c.want {
				t.Errorf("condemn/bury/reprieve %s, want %s", got, c.want)
			}
			if any := len(plan.condemn)+len(plan.bury)+len(plan.reprieve) > 0; any && !d.worth() {
				t.Error("it is said not to be worth a look")
			}
		})
	}
}

func TestNamedPacksAreBounded(t *testing.T) {
	var p namedPacks
	key := func(i int) namedBy {
		return namedBy{set: catalog.SetID{Run: "_datasets/pets", Step: int64(i), Attempt: 1}}
	}
	some := make([]catalog.SetID, maxNamedPacks/4)
	for i := range 9 {
		p.put(key(i), some)
		if _, ok := p.get(key(i)); !ok || p.n > maxNamedPacks {
			t.Fatalf("after %d: %v, %d in mind", i, ok, p.n)
		}
	}
	if _, ok := p.get(key(0)); ok {
		t.Error("the first is still in mind")
	}
	p.put(key(100), make([]catalog.SetID, 2*maxNamedPacks))
	if ids, ok := p.get(key(100)); !ok || len(ids) != 2*maxNamedPacks {
		t.Error("a large one is not given")
	}
}
