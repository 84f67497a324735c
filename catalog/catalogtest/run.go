package catalogtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Run holds the driver that open gives to the contract of catalog.Driver.
// Every call of open must give an empty store.
func Run(t *testing.T, open func(t *testing.T) catalog.Driver) {
	for _, c := range []struct {
		name string
		test func(*testing.T, catalog.Driver)
	}{
		{"Swap", testSwap},
		{"Recreate", testRecreate},
		{"Invalid", testInvalid},
		{"Keys", testKeys},
		{"Prefix", testPrefix},
		{"Values", testValues},
		{"Counters", testCounters},
		{"ListWhileChanging", testListWhileChanging},
		{"ListShowsReturnedSwaps", testListShowsReturnedSwaps},
		{"Watch", testWatch},
		{"WatchResume", testWatchResume},
		{"WatchManyWriters", testWatchManyWriters},
		{"Head", testHead},
		{"HeadOfDeletion", testHeadOfDeletion},
		{"Canceled", testCanceled},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// patience bounds every wait of the suite.
const patience = 30 * time.Second

func swap(t testing.TB, d catalog.Driver, key string, rev uint64, value string) uint64 {
	t.Helper()
	next, err := d.Swap(t.Context(), key, rev, []byte(value))
	if err != nil {
		t.Fatalf("Swap(%q, %d): %v", key, rev, err)
	}
	return next
}

func remove(t testing.TB, d catalog.Driver, key string, rev uint64) uint64 {
	t.Helper()
	next, err := d.Swap(t.Context(), key, rev, nil)
	if err != nil {
		t.Fatalf("Swap(%q, %d, nil): %v", key, rev, err)
	}
	return next
}

func wantClass(t testing.TB, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: %v, want %v", what, err, class)
	}
}

func list(t testing.TB, d catalog.Driver, prefix string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	for r, err := range d.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("List(%q): %v", prefix, err)
		}
		if _, twice := got[r.Key]; twice {
			t.Errorf("List(%q) gives %q twice", prefix, r.Key)
		}
		if r.Rev == 0 || r.Value == nil {
			t.Errorf("List(%q) gives %q with revision %d, value %v", prefix, r.Key, r.Rev, r.Value)
		}
		got[r.Key] = string(r.Value)
	}
	return got
}

func testSwap(t *testing.T, d catalog.Driver) {
	ctx := t.Context()
	_, err := d.Get(ctx, "a")
	wantClass(t, "Get of a missing key", err, fs.ErrNotExist)
	_, err = d.Swap(ctx, "a", 7, []byte("x"))
	wantClass(t, "Swap of a missing key", err, catalog.ErrConflict)
	r1 := swap(t, d, "a", 0, "one")
	_, err = d.Swap(ctx, "a", 0, []byte("again"))
	wantClass(t, "second create", err, catalog.ErrConflict)
	r2 := swap(t, d, "a", r1, "two")
	if r2 <= r1 {
		t.Errorf("revision %d after %d", r2, r1)
	}
	_, err = d.Swap(ctx, "a", r1, []byte("stale"))
	wantClass(t, "stale update", err, catalog.ErrConflict)
	_, err = d.Swap(ctx, "a", r1, nil)
	wantClass(t, "stale delete", err, catalog.ErrConflict)
	r3 := swap(t, d, "b", 0, "other")
	if r3 <= r2 {
		t.Errorf("revision %d of another key after %d", r3, r2)
	}
	rec, err := d.Get(ctx, "a")
	if err != nil || rec.Key != "a" || string(rec.Value) != "two" || rec.Rev != r2 {
		t.Errorf("Get = %q %q %d, %v; want a two %d", rec.Key, rec.Value, rec.Rev, err, r2)
	}
}

func testRecreate(t *testing.T, d catalog.Driver) {
	ctx := t.Context()
	rev := uint64(0)
	for i := range 5 {
		r1 := swap(t, d, "k.x", 0, strconv.Itoa(i))
		if r1 <= rev {
			t.Fatalf("created at revision %d after %d", r1, rev)
		}
		rev = remove(t, d, "k.x", r1)
		if rev <= r1 {
			t.Fatalf("deleted at revision %d after %d", rev, r1)
		}
		_, err := d.Get(ctx, "k.x")
		wantClass(t, "Get of a deleted key", err, fs.ErrNotExist)
		_, err = d.Swap(ctx, "k.x", r1, []byte("back from the dead"))
		wantClass(t, "update of a deleted key", err, catalog.ErrConflict)
		_, err = d.Swap(ctx, "k.x", r1, nil)
		wantClass(t, "second delete", err, catalog.ErrConflict)
		if got := list(t, d, ""); len(got) != 0 {
			t.Errorf("List after delete = %v", got)
		}
	}
}

func testInvalid(t *testing.T, d catalog.Driver) {
	ctx := t.Context()
	for _, key := range []string{"", ".", "a.", ".a", "a..b", "a b", "a*", ">", "a.>", "a\x00", "ä", "a\n", "$x", "a:b", strings.Repeat("k", catalog.MaxKey+1)} {
		_, err := d.Swap(ctx, key, 0, []byte("x"))
		wantClass(t, fmt.Sprintf("Swap of key %.20q", key), err, catalog.ErrInvalid)
		_, err = d.Get(ctx, key)
		wantClass(t, fmt.Sprintf("Get of key %.20q", key), err, catalog.ErrInvalid)
		if key == "" {
			continue
		}
		_, err = d.Head(ctx, key)
		wantClass(t, fmt.Sprintf("Head of %.20q", key), err, catalog.ErrInvalid)
		err = nil
		for _, err = range d.List(ctx, key) {
		}
		wantClass(t, fmt.Sprintf("List of %.20q", key), err, catalog.ErrInvalid)
		err = nil
		for _, err = range d.Watch(ctx, key) {
		}
		wantClass(t, fmt.Sprintf("Watch of %.20q", key), err, catalog.ErrInvalid)
	}
	_, err := d.Swap(ctx, "big", 0, make([]byte, catalog.MaxRecord+1))
	wantClass(t, "Swap of a record that is too large", err, catalog.ErrInvalid)
	_, err = d.Swap(ctx, "none", 0, nil)
	wantClass(t, "Swap that deletes nothing", err, catalog.ErrInvalid)
	if got := list(t, d, ""); len(got) != 0 {
		t.Errorf("refused swaps left %v", slices.Collect(maps.Keys(got)))
	}
}

func testKeys(t *testing.T, d catalog.Driver) {
	keys := []string{"a", "A", "0", "-", "_", "=", "/", "//", "a/b", "a.b", "a.B", "=.=.=", "-.-", "x_y-z=/0.9",
		strings.Repeat("t.", 15) + "t", strings.Repeat("k", 600), strings.Repeat("=2E", 600) + "." + strings.Repeat("n", catalog.MaxKey-1801)}
	for _, k := range keys {
		swap(t, d, k, 0, "of "+k)
	}
	got := list(t, d, "")
	for _, k := range keys {
		r, err := d.Get(t.Context(), k)
		if err != nil || r.Key != k || string(r.Value) != "of "+k || got[k] != "of "+k {
			t.Errorf("key %.20q: Get %.20q %.20q, %v; List %.20q", k, r.Key, r.Value, err, got[k])
		}
	}
	if len(got) != len(keys) {
		t.Errorf("List gives %d records, want %d", len(got), len(keys))
	}
}

func testPrefix(t *testing.T, d catalog.Driver) {
	for _, k := range []string{"set", "set.a", "set.a.b", "set.a.b.c", "set.ab", "set.A", "sets.a", "other.set.a"} {
		swap(t, d, k, 0, "x")
	}
	for prefix, want := range map[string][]string{
		"set.a":   {"set.a", "set.a.b", "set.a.b.c"},
		"set.a.b": {"set.a.b", "set.a.b.c"},
		"set":     {"set", "set.A", "set.a", "set.a.b", "set.a.b.c", "set.ab"},
		"se":      {},
		"other":   {"other.set.a"},
		"nothing": {},
	} {
		if got := slices.Sorted(maps.Keys(list(t, d, prefix))); !slices.Equal(got, want) {
			t.Errorf("List(%q) = %v, want %v", prefix, got, want)
		}
	}
	if got := list(t, d, ""); len(got) != 8 {
		t.Errorf(`List("") = %v, want all 8`, got)
	}
}

func testValues(t *testing.T, d catalog.Driver) {
	big := bytes.Repeat([]byte("0123456789abcdef"), catalog.MaxRecord/16)
	for key, value := range map[string][]byte{"empty": {}, "zero": {0}, "binary": {0xff, 0, '\r', '\n', 0x80}, "big": big} {
		rev, err := d.Swap(t.Context(), key, 0, value)
		if err != nil {
			t.Fatalf("Swap of %s: %v", key, err)
		}
		r, err := d.Get(t.Context(), key)
		if err != nil || r.Value == nil || !bytes.Equal(r.Value, value) || r.Rev != rev {
			t.Errorf("Get of %s: %d bytes at %d, %v; want %d at %d", key, len(r.Value), r.Rev, err, len(value), rev)
		}
	}
	got := list(t, d, "")
	if v, ok := got["empty"]; !ok || v != "" || got["big"] != string(big) {
		t.Errorf("List does not give the values that were written")
	}
	mine := []byte("before")
	if _, err := d.Swap(t.Context(), "mine", 0, mine); err != nil {
		t.Fatal(err)
	}
	copy(mine, "after!")
	if r, err := d.Get(t.Context(), "mine"); err != nil || string(r.Value) != "before" {
		t.Errorf("the caller's buffer is part of the store: %q, %v", r.Value, err)
	}
}

// testCounters: compare-and-swap from 16 goroutines loses nothing, and
// revisions grow over all keys.
func testCounters(t *testing.T, d catalog.Driver) {
	const writers, each = 16, 10
	swap(t, d, "count", 0, "0")
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			ctx, last := t.Context(), uint64(0)
			for done := 0; done < each; {
				r, err := d.Get(ctx, "count")
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				n, err := strconv.Atoi(string(r.Value))
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				rev, err := d.Swap(ctx, "count", r.Rev, []byte(strconv.Itoa(n+1)))
				switch {
				case errors.Is(err, catalog.ErrConflict):
					continue
				case err != nil:
					t.Errorf("writer %d: %v", w, err)
					return
				case rev <= last || rev <= r.Rev:
					t.Errorf("writer %d: revision %d after %d and %d", w, rev, last, r.Rev)
				}
				last = rev
				done++
			}
		})
	}
	wg.Wait()
	if r, err := d.Get(t.Context(), "count"); err != nil || string(r.Value) != strconv.Itoa(writers*each) {
		t.Errorf("the counter is %s, %v; want %d", r.Value, err, writers*each)
	}
}

// testListWhileChanging: what exists throughout is listed, once, whatever else happens.
func testListWhileChanging(t *testing.T, d catalog.Driver) {
	for i := range 50 {
		swap(t, d, fmt.Sprintf("still.%d", i), 0, "x")
	}
	moving := swap(t, d, "still.moving", 0, "0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			var err error
			if moving, err = d.Swap(t.Context(), "still.moving", moving, []byte(strconv.Itoa(i))); err != nil {
				t.Errorf("Swap: %v", err)
				return
			}
			key := fmt.Sprintf("still.come.%d", i%7)
			rev, err := d.Swap(t.Context(), key, 0, []byte("x"))
			if err == nil {
				_, err = d.Swap(t.Context(), key, rev, nil)
			}
			if err != nil {
				t.Errorf("Swap: %v", err)
				return
			}
		}
	})
	for range 20 {
		got := list(t, d, "still")
		for i := range 50 {
			if _, ok := got[fmt.Sprintf("still.%d", i)]; !ok {
				t.Errorf("still.%d is not listed", i)
			}
		}
		if _, ok := got["still.moving"]; !ok {
			t.Errorf("a record that is updated all the time is not listed")
		}
	}
	close(stop)
	wg.Wait()
}

func testListShowsReturnedSwaps(t *testing.T, d catalog.Driver) {
	want := make(map[string]string)
	for i := range 20 {
		key, value := fmt.Sprintf("p.%d", i), strconv.Itoa(i)
		rev := swap(t, d, key, 0, value)
		want[key] = value
		if i%3 == 0 {
			remove(t, d, key, rev)
			delete(want, key)
		}
		if got := list(t, d, "p"); !maps.Equal(got, want) {
			t.Fatalf("after %d swaps List = %v, want %v", i, got, want)
		}
	}
}

func testCanceled(t *testing.T, d catalog.Driver) {
	rev := swap(t, d, "a", 0, "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	_, err := d.Get(ctx, "a")
	wantClass(t, "Get", err, context.Canceled)
	_, err = d.Swap(ctx, "a", rev, []byte("y"))
	wantClass(t, "Swap", err, context.Canceled)
	_, err = d.Head(ctx, "a")
	wantClass(t, "Head", err, context.Canceled)
	err = nil
	for _, err = range d.List(ctx, "a") {
	}
	wantClass(t, "List", err, context.Canceled)
	for range d.Watch(ctx, "a") {
	}
	// A running watch ends soon after its context.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	for c, err := range d.Watch(ctx, "a") {
		if err != nil {
			t.Fatalf("Watch: %v", err)
		}
		if c.Synced {
			cancel()
		}
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("canceled calls took %v", took)
	}
}
