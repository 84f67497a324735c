package fuse

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
)

func TestHabits(t *testing.T) {
	var h habits
	h.looked(7) // of a thread that never listed
	if h.begins(7) || h.asks(7) {
		t.Error("attributes for a thread that asked for none")
	}
	for range lookupsTell - 1 {
		h.looked(7)
	}
	if h.begins(7) {
		t.Error("attributes after a few lookups")
	}
	for range lookupsTell {
		h.looked(7)
	}
	if !h.asks(7) || h.asks(8) {
		t.Error("the listing under way is told no attributes, or that of another thread is")
	}
	listings := 0
	for h.begins(7) {
		listings++
	}
	if want := habitListing - 1; listings != want {
		t.Errorf("%d listings with attributes, want %d", listings, want)
	}
	for i := range uint32(3 * habitThreads) {
		h.begins(1000 + i)
	}
	if n := len(h.mu.of); n != habitThreads {
		t.Errorf("%d threads are remembered, want %d", n, habitThreads)
	}
}

// lookedUp counts the lookups of a tree.
type lookedUp struct {
	*memTree
	n atomic.Int64
}

func (l *lookedUp) Lookup(ctx context.Context, parent ID, name []byte) (Entry, error) {
	l.n.Add(1)
	return l.memTree.Lookup(ctx, parent, name)
}

// TestListingAttributes: who lists names costs no lookups and gets no inodes; who
// then asks for attributes gets them with the next listing, not one by one.
func TestListingAttributes(t *testing.T) {
	runtime.LockOSThread() // the kernel tells threads apart
	defer runtime.UnlockOSThread()
	tree := &lookedUp{memTree: newMemTree()}
	tree.wide = 20_000
	m := mounted(t, tree, Options{})
	dir := filepath.Join(m.Dir(), "wide")
	list := func() {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if names, err := f.Readdirnames(-1); err != nil || len(names) != tree.wide {
			t.Fatalf("%d names, %v; want %d", len(names), err, tree.wide)
		}
	}
	ask := func(n int) (lookups int64) {
		before := tree.n.Load()
		for i := range n {
			if st, err := os.Lstat(filepath.Join(dir, fmt.Sprint(i))); err != nil || st.Size() != int64(i) {
				t.Fatalf("%d: %v, %v", i, st, err)
			}
		}
		return tree.n.Load() - before
	}
	list()
	if n := ask(lookupsTell + 10); n != lookupsTell+10 {
		t.Errorf("%d lookups of %d files whose names were listed", n, lookupsTell+10)
	}
	list()
	if n := ask(tree.wide); n > int64(tree.wide)/10 { // the kernel may forget some
		t.Errorf("%d lookups of %d files whose attributes were listed", n, tree.wide)
	}
}
