package tree

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestBlocks(t *testing.T) {
	c := NewBlocks(30)
	var fetched atomic.Int64
	get := func(i int64) {
		t.Helper()
		b, err := c.Get(t.Context(), BlockKey{"f", i}, func(context.Context) ([]byte, error) {
			fetched.Add(1)
			return make([]byte, 10), nil
		})
		if err != nil || len(b) != 10 {
			t.Fatalf("block %d = %d bytes, %v", i, len(b), err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { get(0) })
	}
	wg.Wait()
	if n := fetched.Load(); n != 1 {
		t.Errorf("8 who want one block fetched it %d times, want once", n)
	}
	for i := range int64(10) {
		get(i)
		get(0) // used all the time: it stays
	}
	if n := fetched.Load(); n != 10 {
		t.Errorf("%d fetches, want 10: the block in use was let go", n)
	}
	if c.mu.bytes > 30 || len(c.mu.of) > 3 || c.mu.recent.Len() != len(c.mu.of) {
		t.Errorf("%d bytes in %d blocks are kept, want at most 30", c.mu.bytes, len(c.mu.of))
	}
	broken := errors.New("broken")
	if _, err := c.Get(t.Context(), BlockKey{"g", 1}, func(context.Context) ([]byte, error) { return nil, broken }); err != broken {
		t.Errorf("a fetch that failed: %v", err)
	}
	c.Drop("f")
	if c.mu.bytes != 0 || len(c.mu.of) != 0 || c.mu.recent.Len() != 0 {
		t.Errorf("%d bytes of %d blocks are left of files that are closed", c.mu.bytes, len(c.mu.of))
	}
}
