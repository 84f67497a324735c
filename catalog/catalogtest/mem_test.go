package catalogtest_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

func TestMem(t *testing.T) {
	catalogtest.Run(t, func(t *testing.T) catalog.Driver { return catalogtest.Mem() })
}

func TestFaultPassesEverything(t *testing.T) {
	catalogtest.Run(t, func(t *testing.T) catalog.Driver { return catalogtest.NewFault(catalogtest.Mem()) })
}

func must(t *testing.T, d catalog.Driver, key string, rev uint64, value string) uint64 {
	t.Helper()
	next, err := d.Swap(t.Context(), key, rev, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func get(t *testing.T, d catalog.Driver, key string) string {
	t.Helper()
	r, err := d.Get(t.Context(), key)
	if err != nil {
		return err.Error()
	}
	return string(r.Value)
}

func TestClone(t *testing.T) {
	m := catalogtest.Mem()
	rev := must(t, m, "a", 0, "old")
	c := m.Clone()
	must(t, m, "a", rev, "new")
	must(t, c, "b", 0, "only in the copy")
	if got := get(t, c, "a"); got != "old" {
		t.Errorf("the copy has %q", got)
	}
	if m.Len() != 1 || c.Len() != 2 {
		t.Errorf("Len = %d and %d, want 1 and 2", m.Len(), c.Len())
	}
}

// The log of changes stays in proportion to the keys, and loses none.
func TestMemCompacts(t *testing.T) {
	m := catalogtest.Mem()
	revs := make([]uint64, 10)
	for i := range 10_000 {
		k := i * i % 10
		revs[k] = must(t, m, fmt.Sprintf("k.%d", k), revs[k], fmt.Sprint(i))
	}
	n := 0
	for range m.List(t.Context(), "k") {
		n++
	}
	if n != m.Len() {
		t.Errorf("List gives %d of %d records", n, m.Len())
	}
}

func TestFailBeforeAndAfter(t *testing.T) {
	f := catalogtest.NewFault(catalogtest.Mem())
	f.FailAt(1, catalogtest.FailBefore)
	f.FailAt(3, catalogtest.FailAfter)
	if _, err := f.Swap(t.Context(), "a", 0, []byte("1")); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("operation 1: %v", err)
	}
	rev := must(t, f, "a", 0, "2") // nothing had happened
	if _, err := f.Swap(t.Context(), "a", rev, []byte("3")); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("operation 3: %v", err)
	}
	if got := get(t, f, "a"); got != "3" { // it had
		t.Errorf("after FailAfter the value is %q", got)
	}
	if got := f.Ops(); got != 4 {
		t.Errorf("Ops = %d, want 4", got)
	}
	f.Decide(func(n int, op, key string) catalogtest.Outcome {
		if op == "list" {
			return catalogtest.FailAfter
		}
		return catalogtest.Pass
	})
	var last error
	for _, last = range f.List(t.Context(), "") {
	}
	if !errors.Is(last, catalog.ErrUnavailable) {
		t.Errorf("a list that fails in the middle ends with %v", last)
	}
}

func TestDownAndHealed(t *testing.T) {
	f := catalogtest.NewFault(catalogtest.Mem())
	rev := must(t, f, "a", 0, "1")
	m := catalogtest.NewMirror(t, f, "")
	has := func(want string) func(map[string]string, uint64, bool) bool {
		return func(got map[string]string, _ uint64, synced bool) bool { return synced && got["a"] == want }
	}
	if err := m.Wait(t.Context(), has("1")); err != nil {
		t.Fatal(err)
	}
	f.SetDown(true)
	if _, err := f.Swap(t.Context(), "a", rev, []byte("2")); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Swap while down: %v", err)
	}
	f.SetDown(false)
	must(t, f, "a", rev, "3")
	if err := m.Wait(t.Context(), has("3")); err != nil {
		t.Fatal(err)
	}
	f.CutWatches()
	if err := m.Wait(t.Context(), has("never")); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("a watch that was cut ends with %v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := catalogtest.NewFault(catalogtest.Mem())
		f.SetDelay(time.Minute)
		start := time.Now()
		must(t, f, "a", 0, "x")
		if got := time.Since(start); got != time.Minute {
			t.Errorf("a delayed swap took %v", got)
		}
	})
}
