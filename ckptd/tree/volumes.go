package tree

import (
	"hash/fnv"
	"sync"

	"github.com/ckptd/ckptd/fuse"
)

// A node's number is a volume and a position in it. A volume is one folder of
// runs or one set; its number is a hash of what it is, so that it is the same
// after a restart. Two volumes of one hash: the one that came second takes the
// next number that is free.
const (
	positionBits = 32
	volumeBits   = 30      // so that numbers stay below 1<<62
	firstVolume  = 1 << 10 // those below are the tree's own
	maxVolumes   = 1 << 20 // that are remembered
	volumeMask   = 1<<volumeBits - 1
)

func idOf(volume, position uint32) fuse.ID { return fuse.ID(volume)<<positionBits | fuse.ID(position) }

func splitID(id fuse.ID) (volume, position uint32) {
	return uint32(id >> positionBits), uint32(id)
}

// volumes remembers which number is which volume.
type volumes struct {
	mu struct {
		sync.Mutex
		keys    map[uint32]volume
		numbers map[volume]uint32
		order   []volume // as they came, for the oldest to go when there are too many
	}
}

func (v *volumes) init() {
	v.mu.keys, v.mu.numbers = make(map[uint32]volume), make(map[volume]uint32)
}

func hashOf(k volume) uint32 {
	h := fnv.New64a()
	h.Write([]byte{byte(k.kind)})
	h.Write([]byte(k.name))
	s := h.Sum64()
	return uint32(s^s>>volumeBits) & volumeMask
}

// number gives a volume's number, which it has from now on.
func (v *volumes) number(k volume) uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n, ok := v.mu.numbers[k]; ok {
		return n
	}
	n := hashOf(k)
	for {
		if n < firstVolume {
			n += firstVolume
		}
		if _, taken := v.mu.keys[n]; !taken {
			break
		}
		n = (n + 1) & volumeMask
	}
	if len(v.mu.order) == maxVolumes {
		old := v.mu.order[0]
		v.mu.order = v.mu.order[1:]
		delete(v.mu.keys, v.mu.numbers[old])
		delete(v.mu.numbers, old)
	}
	v.mu.keys[n], v.mu.numbers[k] = k, n
	v.mu.order = append(v.mu.order, k)
	return n
}

func (v *volumes) of(n uint32) (volume, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k, ok := v.mu.keys[n]
	return k, ok
}
