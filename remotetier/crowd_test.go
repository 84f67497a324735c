package remotetier_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// TestPromise7FewerTargetsThanColumns: where some cannot take a column, others
// take two as long as the loss of one of them can be borne.
func TestPromise7FewerTargetsThanColumns(t *testing.T) {
	b := random(900_000, 1)
	away := func(string, remotetier.Key) error { return fmt.Errorf("dial: %w", catalog.ErrUnavailable) }
	for _, c := range []struct {
		what    string
		domains string // of the targets, one letter each
		down    int
		fault   func(string, remotetier.Key) error
		most    int // columns on one target; 0: it is refused
		class   error
	}{
		{"one is away", "......", 1, away, 2, nil},
		{"three are away", "......", 3, away, 2, nil},
		{"four are away", "......", 4, away, 0, catalog.ErrUnavailable},
		{"one is away of domains of two", "aabbcc", 1, away, 2, nil},
		{"one is away of domains of three", "aaabbb", 1, away, 2, nil},
		{"one is away and all fail together", "aaaaaa", 1, away, 2, nil},
		{"a domain is away", "aabbcc", 2, away, 2, nil},
		{"one fills up", "......", 1, fullAt("write", 3), 2, nil},
		{"one has no room to begin with", "......", 1, fullAt("create", 1), 2, nil},
		{"one fills up at the end", "......", 1, fullAt("commit", 1), 2, nil},
		{"four fill up", "......", 4, fullAt("write", 2), 0, catalog.ErrNoSpace},
	} {
		w := newWorld(6, remotetier.Options{})
		var infos []remotetier.TargetInfo
		for i, m := range w.mems {
			infos = append(infos, remotetier.TargetInfo{Target: m, Domain: strings.Trim(c.domains[i:i+1], ".")})
			if i < c.down {
				m.Fault(c.fault)
			}
		}
		var crowded []string
		w.Tier = remotetier.New(infos, remotetier.Options{Trace: remotetier.Trace{Crowded: func(target, _ string) { crowded = append(crowded, target) }}})
		p, err := w.Put(t.Context(), blob, sealOf(b), layout(4, 2, 65536))
		for _, m := range w.mems {
			m.Fault(nil)
		}
		if c.most == 0 {
			if !errors.Is(err, c.class) {
				t.Errorf("%s: on %v, %v; want %v", c.what, p.Targets, err, c.class)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		on := map[string]int{}
		for _, name := range p.Targets {
			on[name]++
		}
		twice := 0
		for name, n := range on {
			if n > 1 {
				twice++
				if !slices.Contains(crowded, name) {
					t.Errorf("%s: nobody was told that %s has %d columns", c.what, name, n)
				}
			}
		}
		if most := slices.Max(slices.Collect(maps.Values(on))); most != c.most || twice != c.down || len(crowded) != twice {
			t.Errorf("%s: on %v, told of %v", c.what, p.Targets, crowded)
		}
		w.onlyPlaced(t, c.what, p)
		if err := w.Verify(t.Context(), p); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		for f, err := range w.Scan(t.Context(), "") {
			slices.Sort(f.Place.Targets)
			want := slices.Sorted(slices.Values(p.Targets))
			if err != nil || len(f.Columns) != 6 || len(f.Strays) != 0 || !slices.Equal(f.Place.Targets, want) {
				t.Errorf("%s: Scan gives %+v, %v", c.what, f, err)
			}
		}
		for name := range on { // the loss of any one target is borne
			m := w.mems[name[1]-'0']
			m.Fault(away)
			if got, _, err := readAll(t, w.Tier, p); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: without %s: %v", c.what, name, err)
			}
			m.Fault(nil)
		}
	}
}

// removeStrays removes the columns of a place's generation that are twice, from
// where the place does not name them.
func removeStrays(t *testing.T, tier *remotetier.Tier, place catalog.Place) (n int) {
	t.Helper()
	for f, err := range tier.Scan(t.Context(), place.Blob) {
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range f.Strays {
			for _, on := range []string{s.Target, f.Place.Targets[s.Column]} { // the scan's guess of the place may be the other way round
				if on == place.Targets[s.Column] {
					continue
				}
				if err := tier.RemoveColumn(t.Context(), on, keyOf(place, s.Column)); err != nil {
					t.Error(err)
				}
				n++
			}
		}
	}
	return n
}

// fullAt lets a target have no space from the n-th operation of a kind on.
func fullAt(op string, n int64) func(string, remotetier.Key) error {
	var ops atomic.Int64
	return func(o string, _ remotetier.Key) error {
		if o == op && ops.Add(1) >= n {
			return fmt.Errorf("%s: %w", op, catalog.ErrNoSpace)
		}
		return nil
	}
}

// TestCrowdedPlaceIsMended: with targets to spare a mender moves one of two
// columns away from their target, and the other stays; and it rebuilds both
// when the target is lost.
func TestCrowdedPlaceIsMended(t *testing.T) {
	b := random(900_000, 1)
	for _, lost := range []bool{false, true} {
		w := newWorld(8, remotetier.Options{})
		for _, m := range w.mems[5:] {
			m.SetTotal(1)
		}
		p := mustPut(t, w.Tier, b, layout(4, 2, 65536))
		for _, m := range w.mems[5:] {
			m.SetTotal(1 << 40)
		}
		twice, first, second := "", -1, -1
		for c, name := range p.Targets {
			if at := slices.Index(p.Targets, name); at != c {
				twice, first, second = name, at, c
			}
		}
		if twice == "" {
			t.Fatalf("on %v", p.Targets)
		}
		m := w.mems[twice[1]-'0']
		opt := remotetier.MendOptions{Move: map[int]string{second: "t7"}}
		if lost {
			m.Fault(func(string, remotetier.Key) error { return fmt.Errorf("dial: %w", catalog.ErrUnavailable) })
			opt = remotetier.MendOptions{Leave: func(name string) bool { return name == twice }}
		}
		res, err := w.Mend(t.Context(), p, opt)
		if err != nil || len(res.Left) > 0 {
			t.Fatalf("lost=%v: Mend = %+v, %v", lost, res, err)
		}
		if err := w.DropReplaced(t.Context(), res); (err != nil) != lost {
			t.Errorf("lost=%v: DropReplaced = %v", lost, err)
		}
		on := slices.Compact(slices.Sorted(slices.Values(res.Place.Targets)))
		if len(on) != 6 || !lost && (res.Place.Targets[first] != twice || res.Place.Targets[second] != "t7") || lost && slices.Contains(on, twice) {
			t.Errorf("lost=%v: moved from %v to %v", lost, p.Targets, res.Place.Targets)
		}
		if err := w.Verify(t.Context(), res.Place); err != nil {
			t.Errorf("lost=%v: %v", lost, err)
		}
		if m.Fault(nil); lost { // it is back, with what it had
			if n := removeStrays(t, w.Tier, res.Place); n != 2 {
				t.Errorf("there were %d strays, want its two columns", n)
			}
		}
		w.onlyPlaced(t, fmt.Sprint("lost=", lost), res.Place)
	}
}

// TestSpreadGoesWhereItCanBeBorne: each column that shares a target gets one of
// its own while there are some, in domains that can bear it.
func TestSpreadGoesWhereItCanBeBorne(t *testing.T) {
	b := random(900_000, 1)
	for _, c := range []struct {
		what  string
		infos []string // those of the beginning, all up
		more  []string // name, domain and state of those that come
		moves int
	}{
		{"nobody comes", []string{"a", "b", "c", "d"}, nil, 0},
		{"one comes", []string{"a", "b", "c", "d"}, []string{"e"}, 1},
		{"three come", []string{"a", "b", "c", "d"}, []string{"e", "f", "g"}, 2},
		{"one comes that takes nothing", []string{"a", "b", "c", "d"}, []string{"e=draining", "f=down"}, 0},
		{"one comes of another pool", []string{"a", "b", "c", "d"}, []string{"p/e"}, 0},
		{"two come that fail together", []string{"a", "b", "c"}, []string{"e@rack", "f@rack", "g@rack"}, 2},
		{"one comes that fails with two", []string{"a@rack", "b@rack", "c", "d"}, []string{"e@rack"}, 0},
	} {
		at := func(names []string) (infos []remotetier.TargetInfo) {
			for _, n := range names {
				n, domain, _ := strings.Cut(n, "@")
				ti := infosOf(n)[0]
				ti.Domain = domain
				infos = append(infos, ti)
			}
			return infos
		}
		first, more := at(c.infos), at(c.more)
		away := at([]string{"x", "y", "z"}) // so that the layout fits
		for i := range away {
			away[i].State = catalog.TargetDown
		}
		tier := remotetier.New(slices.Concat(first, away), remotetier.Options{})
		p := mustPut(t, tier, b, layout(4, 2, 65536))
		if err := tier.SetTargets(slices.Concat(first, more)); err != nil {
			t.Fatal(err)
		}
		m, err := tier.Mend(t.Context(), p, remotetier.MendOptions{Spread: true})
		if err != nil || len(m.Columns) != c.moves {
			t.Errorf("%s: from %v: Mend = %+v, %v; want %d moves", c.what, p.Targets, m, err, c.moves)
		}
		if err := errors.Join(tier.DropReplaced(t.Context(), m), tier.Verify(t.Context(), m.Place)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		on := map[string]int{}
		for _, name := range p.Targets {
			on[name]--
		}
		for _, name := range m.Place.Targets {
			on[name]++
		}
		if worst := slices.Max(slices.Collect(maps.Values(on))); worst > 1 {
			t.Errorf("%s: from %v to %v", c.what, p.Targets, m.Place.Targets)
		}
	}
}
