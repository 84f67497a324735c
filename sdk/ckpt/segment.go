package ckpt

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// segment is a piece of the daemon's shared memory, mapped for as long as the
// session lives, so that the next save finds its pages in place.
type segment struct {
	id   int
	gen  uint64
	mem  []byte
	busy []bool // by slot: submitted and not yet freed
	lent bool   // in the save that runs
}

// slotRef names a slot that may be filled.
type slotRef struct {
	seg  *segment
	slot int
}

func (r slotRef) bytes(slotSize int64) []byte {
	return r.seg.mem[int64(r.slot)*slotSize:][:slotSize:slotSize]
}

// lend maps what a lend message brings and gives its slots. It closes fds.
func (s *session) lend(m *wire.Message, fds []*os.File) ([]slotRef, error) {
	defer closeFiles(fds)
	var slots []slotRef
	next := 0
	for _, l := range m.Segments {
		g := s.segs[l.ID]
		switch {
		case l.Held:
			if g == nil || g.gen != l.Gen || int64(len(g.mem)) != l.Size {
				return nil, fmt.Errorf("lend: %w: segment %d is not mapped here", catalog.ErrUnavailable, l.ID)
			}
		case next >= len(fds):
			return nil, fmt.Errorf("lend: %w: segment %d without a descriptor", catalog.ErrUnavailable, l.ID)
		default:
			mem, err := mapSegment(fds[next], l.Size, s.welcome.SlotSize)
			if err != nil {
				return nil, fmt.Errorf("lend segment %d: %w", l.ID, err)
			}
			next++
			if g != nil {
				unix.Munmap(g.mem)
			}
			g = &segment{id: l.ID, gen: l.Gen, mem: mem}
			s.segs[l.ID] = g
		}
		if g.lent {
			return nil, fmt.Errorf("lend: %w: segment %d was lent twice", catalog.ErrUnavailable, l.ID)
		}
		g.lent = true
		g.busy = make([]bool, l.Size/s.welcome.SlotSize)
		for i := range g.busy {
			slots = append(slots, slotRef{g, i})
		}
	}
	return slots, nil
}

// freed is the slot of a free message; false when it is of the save before,
// whose slots the daemon frees as it writes them, and which it took back with
// its answer to seal.
func (s *session) freed(m *wire.Message) (slotRef, bool) {
	g := s.segs[m.Seg]
	if g == nil || !g.lent || m.Slot < 0 || m.Slot >= len(g.busy) || !g.busy[m.Slot] {
		return slotRef{}, false
	}
	g.busy[m.Slot] = false
	return slotRef{g, m.Slot}, true
}

// returned notes that the daemon took everything back.
func (s *session) returned() {
	for _, g := range s.segs {
		g.lent = false
	}
}

func mapSegment(f *os.File, size, slot int64) ([]byte, error) {
	if size < slot || size > maxSegment || size%slot != 0 {
		return nil, fmt.Errorf("%w: %d bytes in slots of %d", catalog.ErrUnavailable, size, slot)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < size { // touching the rest would kill the process
		return nil, fmt.Errorf("%w: it is %d bytes, not %d", catalog.ErrUnavailable, info.Size(), size)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return mem, nil
}
