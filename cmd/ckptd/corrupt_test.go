package main

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// hint is the advice that came with an error.
func hint(err error) string {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// corruptible is one daemon with two verified sets of one rank, 2+1 columns.
func corruptible(t *testing.T) (*daemon, *ckpt.Client) {
	t.Helper()
	d := newDaemon(t, "n1")
	for i := range 3 {
		d.flags = append(d.flags, "--remote", remoteFlag(d, i))
	}
	d.start()
	c := d.dial()
	one, err := c.Attach(t.Context(), "job", "launch 1", 1)
	if err != nil {
		t.Fatal(err)
	}
	for step := range int64(2) {
		set, err := save(t.Context(), c, "job", step, one, 0, 1, 3<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := set.Wait(t.Context(), catalog.Verified); err != nil {
			t.Fatal(err)
		}
	}
	return d, c
}

// TestStoryCorruptLocal: one bad block on the disk: the load falls through to
// the targets, the copy is put aside, and `why` tells.
func TestStoryCorruptLocal(t *testing.T) {
	t.Parallel()
	d, c := corruptible(t)
	flip(t, shardFile(t, d, "job@1#1", 0), 1<<20+17)
	mustLoad(t, c, "job@1")
	if _, err := os.Stat(shardFile(t, d, "job@1#1", 0)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bad copy is still in its place: %v", err)
	}
	if text := why(t, c, "job@1"); !strings.Contains(text, "quarantined") {
		t.Errorf("why says\n%s", text)
	}
	mustLoad(t, c, "job@1") // from the targets alone
	d.kill()
	d.start()
	mustLoad(t, d.dial(), "job@1")
}

// TestStoryCorruptColumns: m columns are bad or gone: the bytes are right, and
// what is missing is named.
func TestStoryCorruptColumns(t *testing.T) {
	t.Parallel()
	d, c := corruptible(t)
	flip(t, columns(t, d, "job@1#1", 0)[0], 4096+70_000)
	if err := os.Remove(columns(t, d, "job@0#1", 0)[1]); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, c, "job@1", "remote")
	mustLoad(t, c, "job@0", "remote")
	for _, ref := range []string{"job@0", "job@1"} {
		if text := why(t, c, ref); !strings.Contains(text, "degraded read") {
			t.Errorf("why %s says\n%s", ref, text)
		}
	}
	res, err := c.Fsck(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range res.Problems {
		found = found || p.ID == "job@0#1" && strings.Contains(p.What, "1 of 3 columns are missing")
	}
	if !found {
		t.Errorf("fsck says %+v", res.Problems)
	}
}

// TestStoryNoGoodCopy: both copies of a set are bad: the load fails and offers
// the next older one, which loads.
func TestStoryNoGoodCopy(t *testing.T) {
	t.Parallel()
	d, c := corruptible(t)
	flip(t, shardFile(t, d, "job@1#1", 0), 1<<20+17)
	for _, col := range columns(t, d, "job@1#1", 0)[:2] { // more than m
		if err := os.Remove(col); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := short(t)
	defer cancel()
	err := load(ctx, c, "job@latest")
	if err == nil || !strings.Contains(hint(err), "job@0#1") {
		t.Fatalf("load: %v, hint %q; want job@0#1 offered", err, hint(err))
	}
	if text := why(t, c, "job@1"); !strings.Contains(text, "older: job@0#1") {
		t.Errorf("why says\n%s", text)
	}
	mustLoad(t, c, "job@0")
}
