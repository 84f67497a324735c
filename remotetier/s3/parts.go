package s3

import (
	"sync"

	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

// parts is the memory for parts on their way.
type parts struct {
	sync.Mutex
	left int64
	free [][]byte // of buffers given back, to be used again
}

// keptFree bounds the buffers kept for the next column.
const keptFree = 2

// first gives the buffer that every column being written has: it does not
// wait, so that columns of one blob never wait for each other.
func (p *parts) first(n int64) []byte {
	p.Lock()
	defer p.Unlock()
	return p.take(n)
}

// more gives another buffer if there is room for it.
func (p *parts) more(n int64) ([]byte, bool) {
	p.Lock()
	defer p.Unlock()
	if p.left < n {
		return nil, false
	}
	p.left -= n
	return p.take(n), true
}

func (p *parts) take(n int64) []byte {
	for i, b := range p.free {
		if int64(cap(b)) >= n {
			p.free = append(p.free[:i], p.free[i+1:]...)
			return b[:n]
		}
	}
	return make([]byte, n)
}

// done gives a buffer back; n is what more took for it, 0 of a first one.
func (p *parts) done(b []byte, n int64) {
	p.Lock()
	defer p.Unlock()
	p.left += n
	if len(p.free) < keptFree && cap(b) >= bucket.MinPart {
		p.free = append(p.free, b)
	}
}
