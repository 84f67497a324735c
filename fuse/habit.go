package fuse

import "sync"

// A listing with attributes makes an inode in the kernel for every name: three
// times the work of names alone, and about a kilobyte each, for nothing where
// nobody asks. Without them each file that is asked for costs a lookup. So a
// thread is told names until it is seen to look up the files of what it lists;
// then attributes come with its next listings.
const (
	lookupsTell  = 16  // files looked up since a listing began
	habitListing = 256 // listings with attributes, after which it is looked at anew
	habitThreads = 256 // remembered, the last ones that listed
)

// habits are what threads are used to do, by the number the kernel gives them.
type habits struct {
	mu struct {
		sync.Mutex
		of    map[uint32]*habit
		order [habitThreads]uint32 // as they came
		next  int                  // the oldest in order
	}
}

type habit struct {
	looked int // files, since a listing began
	asks   int // listings that attributes still come with
}

// begins notes that a thread begins a listing, and says whether it is to get
// attributes.
func (h *habits) begins(thread uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.mu.of[thread]
	if t == nil {
		if h.mu.of == nil {
			h.mu.of = make(map[uint32]*habit)
		}
		if len(h.mu.of) == habitThreads {
			delete(h.mu.of, h.mu.order[h.mu.next])
		}
		t = new(habit)
		h.mu.of[thread] = t
		h.mu.order[h.mu.next] = thread
		h.mu.next = (h.mu.next + 1) % habitThreads
	}
	t.looked = 0
	if t.asks > 0 {
		t.asks--
	}
	return t.asks > 0
}

// asks says whether a listing under way is to have attributes.
func (h *habits) asks(thread uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.mu.of[thread]
	return t != nil && t.asks > 0
}

// looked notes that a thread looked up a file.
func (h *habits) looked(thread uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.mu.of[thread]; t != nil {
		if t.looked++; t.looked >= lookupsTell {
			t.looked, t.asks = 0, habitListing
		}
	}
}
