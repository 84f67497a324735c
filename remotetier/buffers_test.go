package remotetier

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestMappedIsToldOfLargeBuffers: who registers memory hears of each mapping
// once, and again before it goes.
func TestMappedIsToldOfLargeBuffers(t *testing.T) {
	var mapped, unmapped atomic.Int64
	b := newBuffers(64<<20, func(mem []byte) func() {
		mapped.Add(int64(len(mem)))
		mem[0], mem[len(mem)-1] = 1, 1
		return func() { unmapped.Add(int64(len(mem))) }
	})
	for range 3 { // the pieces come back from the pool
		l, err := b.take(t.Context(), 3, 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		l.done()
		small, err := b.take(t.Context(), 1, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		small.done()
	}
	// The pool may drop some at any time, and the race detector has it do so.
	if n := mapped.Load(); n < 3*4<<20 || n%(4<<20) != 0 {
		t.Errorf("Mapped was told of %d bytes", n)
	}
	for deadline := time.Now().Add(30 * time.Second); unmapped.Load() < mapped.Load(); {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes mapped, %d unmapped", mapped.Load(), unmapped.Load())
		}
		runtime.GC() // a pool keeps what it has for two of them
	}
}

// TestMap: memory of the caller goes the same way, where somebody listens.
func TestMap(t *testing.T) {
	mem, unmapped := make([]byte, 4096), false
	heard := New(nil, Options{Mapped: func(got []byte) func() {
		if &got[0] != &mem[0] || len(got) != len(mem) {
			t.Errorf("Mapped was told of %d bytes", len(got))
		}
		return func() { unmapped = true }
	}})
	if heard.Map(mem)(); !unmapped {
		t.Error("nobody was told that the memory goes")
	}
	New(nil, Options{}).Map(mem)()
	New(nil, Options{Mapped: func([]byte) func() { return nil }}).Map(mem)()
}
