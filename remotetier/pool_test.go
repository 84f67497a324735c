package remotetier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// infosOf gives targets in memory: "pool/name" or "name", each followed by
// "=state" if it has one.
func infosOf(names ...string) []remotetier.TargetInfo {
	var infos []remotetier.TargetInfo
	for _, n := range names {
		n, state, _ := strings.Cut(n, "=")
		pool, name, ok := strings.Cut(n, "/")
		if !ok {
			pool, name = "", n
		}
		infos = append(infos, remotetier.TargetInfo{Target: targettest.NewMem(name), Pool: pool, State: catalog.TargetState(state)})
	}
	return infos
}

func TestPools(t *testing.T) {
	tier := remotetier.New(infosOf("a", "b", "p/c", "p/d", "q/e"), remotetier.Options{})
	src := sealOf(random(100_000, 1))
	for _, c := range []struct {
		pool string
		k, m int
		on   []string
		err  error
	}{
		{"", 1, 1, []string{"a", "b"}, nil},
		{"p", 1, 1, []string{"c", "d"}, nil},
		{"q", 1, 0, []string{"e"}, nil},
		{"p", 2, 1, nil, catalog.ErrInvalid},
		{"", 2, 1, nil, catalog.ErrInvalid},
		{"none", 1, 0, nil, catalog.ErrInvalid},
	} {
		place, err := tier.Pool(c.pool).Put(t.Context(), blob, src, layout(c.k, c.m, 65536))
		slices.Sort(place.Targets)
		if !errors.Is(err, c.err) || !slices.Equal(place.Targets, c.on) {
			t.Errorf("%d+%d in pool %q: on %v, %v; want %v, %v", c.k, c.m, c.pool, place.Targets, err, c.on, c.err)
		}
	}
	want := []remotetier.PoolInfo{{Name: "", Default: true, Targets: 2, Domains: 2}, {Name: "p", Targets: 2, Domains: 2}, {Name: "q", Targets: 1, Domains: 1}}
	if got := tier.Pools(); !slices.Equal(got, want) {
		t.Errorf("Pools = %+v, want %+v", got, want)
	}
}

func TestDefaultPoolIsThatOfTheFirstTarget(t *testing.T) {
	infos := infosOf("p/b", "q/a", "q/c", "q/d=draining", "q/e=down")
	infos[1].Domain, infos[2].Domain = "rack", "rack"
	tier := remotetier.New(infos, remotetier.Options{})
	place := mustPut(t, tier, random(1000, 1), layout(1, 1, 65536))
	if slices.Sort(place.Targets); !slices.Equal(place.Targets, []string{"a", "c"}) {
		t.Errorf("Put to the default pool went to %v, want those of q", place.Targets)
	}
	want := []remotetier.PoolInfo{{Name: "p", Targets: 1, Domains: 1}, {Name: "q", Default: true, Targets: 3, Domains: 2}}
	if got := tier.Pools(); !slices.Equal(got, want) {
		t.Errorf("Pools = %+v, want %+v", got, want)
	}
	if got := remotetier.New(nil, remotetier.Options{}).Pools(); len(got) != 0 {
		t.Errorf("Pools of no targets = %+v", got)
	}
}

// TestStatesSayWhereNewColumnsGo: draining, drained and down take none,
// suspect ones when there is nobody else; all of them are read.
func TestStatesSayWhereNewColumnsGo(t *testing.T) {
	for _, c := range []struct {
		targets string
		on      string
		err     error
	}{
		{"a b c=suspect", "a b", nil},
		{"a b=suspect c=suspect", "", nil},
		{"a=up b=down c=draining d=drained e=suspect", "a e", nil},
		{"a=up b=down c=draining d=drained", "", catalog.ErrUnavailable},
		{"a=down b=down", "", catalog.ErrUnavailable},
	} {
		infos := infosOf(strings.Fields(c.targets)...)
		tier := remotetier.New(infos, remotetier.Options{})
		for i := range 20 {
			place, err := tier.Put(t.Context(), fmt.Sprint(blob, i), sealOf(random(1000, 1)), layout(1, 1, 65536))
			slices.Sort(place.Targets)
			if got := strings.Join(place.Targets, " "); !errors.Is(err, c.err) || c.on != "" && got != c.on || err == nil && !slices.Contains(place.Targets, "a") {
				t.Errorf("%s: on %s, %v; want %s, %v", c.targets, got, err, c.on, c.err)
			}
		}
	}
	infos := infosOf("a", "b")
	tier := remotetier.New(infos, remotetier.Options{})
	b := random(100_000, 1)
	place := mustPut(t, tier, b, layout(2, 0, 65536))
	small, err := tier.PutSmall(t.Context(), "small", b, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []catalog.TargetState{catalog.TargetUp, catalog.TargetSuspect, catalog.TargetDown, catalog.TargetDraining, catalog.TargetDrained} {
		infos[0].State, infos[1].State = state, state
		if err := tier.SetTargets(infos); err != nil {
			t.Fatal(err)
		}
		if got, _, err := readAll(t, tier, place); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %v", state, err)
		}
		if got, p, err := tier.GetSmall(t.Context(), "small"); err != nil || !bytes.Equal(got, b) || p.Generation != small.Generation {
			t.Errorf("%s: %v", state, err)
		}
		for _, s := range tier.Targets(t.Context()) {
			if s.State != state || s.Err != nil {
				t.Errorf("Targets = %+v, want state %s", s, state)
			}
		}
	}
}

// TestSmallRecordsMoveBetweenPools: the newest generation counts wherever it
// is, and what is older goes.
func TestSmallRecordsMoveBetweenPools(t *testing.T) {
	infos := infosOf("a", "b", "p/c", "p/d", "q/e=draining")
	tier := remotetier.New(infos, remotetier.Options{Generation: func() uint64 { return 1 }})
	for i, pool := range []string{"", "p", "", "p", "p"} {
		want := random(1000, byte(i))
		place, err := tier.Pool(pool).PutSmall(t.Context(), "small", want, 2)
		if err != nil {
			t.Fatal(err)
		}
		if on := slices.Sorted(slices.Values(place.Targets)); on[0] != map[string]string{"": "a", "p": "c"}[pool] {
			t.Errorf("%d: in pool %q it is on %v", i, pool, on)
		}
		if got, _, err := tier.GetSmall(t.Context(), "small"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: GetSmall gives another, %v", i, err)
		}
		n := 0
		for _, ti := range infos {
			n += len(ti.Target.(*targettest.Mem).Keys())
		}
		if n != 2 {
			t.Errorf("%d: %d copies are there, want 2", i, n)
		}
	}
}

func TestSetTargetsRefuses(t *testing.T) {
	tier := remotetier.New(infosOf("a", "b"), remotetier.Options{})
	for _, names := range []string{"c c", "c p/c", "a b c|d", "p|q/a", "a=off", "y z@1 a\x00"} {
		if err := tier.SetTargets(infosOf(strings.Split(names, " ")...)); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("SetTargets(%q) = %v, want ErrInvalid", names, err)
		}
	}
	mustPut(t, tier, random(1000, 1), layout(1, 1, 65536))
}

// TestTargetsChangeWhileInUse: what was begun ends on the targets it began
// with, what begins takes the new ones, and what was written stays readable.
func TestTargetsChangeWhileInUse(t *testing.T) {
	infos := infosOf("a", "b", "c", "d", "e", "f", "g", "h")
	tier := remotetier.New(infos[:4], remotetier.Options{})
	b := random(300_000, 1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			set := slices.Clone(infos[i%5 : i%5+4])
			set[0].State = catalog.TargetDraining
			if err := tier.SetTargets(append(set, infosOf("p/z")...)); err != nil {
				t.Error(err)
			}
		}
	})
	var mu sync.Mutex
	var places []catalog.Place
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for j := range 25 {
				name := fmt.Sprintf("b/%d-%d", i, j)
				p, err := tier.Put(t.Context(), name, sealOf(b), layout(2, 1, 65536))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				mu.Lock()
				places = append(places, p)
				mu.Unlock()
				tier.Targets(t.Context())
				for range tier.Scan(t.Context(), name) {
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	wg.Wait()
	if err := tier.SetTargets(infos); err != nil {
		t.Fatal(err)
	}
	for _, p := range places {
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p.Blob, err)
		}
	}
}

// silent never says how it is.
type silent struct{ *targettest.Mem }

func (s silent) Space(ctx context.Context) (remotetier.Space, error) {
	<-ctx.Done()
	return remotetier.Space{}, ctx.Err()
}

// TestSilentTargetDoesNotHoldPuts: it is asked at the same time as the others,
// and not for ever; those of other pools are not asked.
func TestSilentTargetDoesNotHoldPuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		infos := infosOf("a", "b", "c", "d", "p/e", "p/f")
		infos[0].Target, infos[1].Target = silent{targettest.NewMem("a")}, silent{targettest.NewMem("b")}
		tier := remotetier.New(infos, remotetier.Options{})
		begin := time.Now()
		if p := mustPut(t, tier, random(1000, 1), layout(1, 1, 65536)); slices.Contains(p.Targets, "a") || slices.Contains(p.Targets, "b") {
			t.Errorf("columns on %v", p.Targets)
		}
		if d := time.Since(begin); d != 5*time.Second {
			t.Errorf("two silent targets held it for %v, want 5s", d)
		}
		if _, err := tier.Put(t.Context(), blob, sealOf(nil), layout(2, 1, 65536)); !errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "a: unavailable: no answer within 5s") {
			t.Errorf("Put with too few that answer = %v", err)
		}
		begin = time.Now()
		if _, err := tier.Pool("p").Put(t.Context(), blob, sealOf(nil), layout(1, 1, 65536)); err != nil || time.Since(begin) != 0 {
			t.Errorf("Put to another pool took %v, %v", time.Since(begin), err)
		}
	})
}

// TestFullerTargetsGetFewerColumns: shares follow what is free.
func TestFullerTargetsGetFewerColumns(t *testing.T) {
	infos := infosOf("a", "b", "c")
	full := infos[0].Target.(*targettest.Mem)
	full.SetTotal(64 << 20)
	full.SetColumn(remotetier.Key{Blob: "ballast"}, make([]byte, 48<<20)) // a quarter is left
	tier := remotetier.New(infos, remotetier.Options{})
	const n = 600
	got := map[string]int{}
	for i := range n {
		p, err := tier.Put(t.Context(), fmt.Sprintf("b/%d", i), sealOf(nil), layout(1, 0, 65536))
		if err != nil {
			t.Fatal(err)
		}
		got[p.Targets[0]]++
	}
	if share := float64(got["a"]) / n; share < 0.07 || share > 0.16 {
		t.Errorf("the target that is a quarter free has %.2f of the columns, want 1/9", share)
	}
}
