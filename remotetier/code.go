package remotetier

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/reedsolomon"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// code computes parity. For k = 1 it copies, and for m = 0 it has nothing to do.
type code struct {
	k, m int
	rs   reedsolomon.Encoder // nil for k = 1 or m = 0
}

var codes struct {
	sync.Mutex
	m map[[2]int]*code // by (k, m): at most MaxK × (MaxM+1)
}

// codeOf gives the code of a valid layout; its matrices are computed once.
func codeOf(l stripe.Layout) *code {
	codes.Lock()
	defer codes.Unlock()
	key := [2]int{l.K, l.M}
	if c := codes.m[key]; c != nil {
		return c
	}
	c := &code{k: l.K, m: l.M}
	if l.K > 1 && l.M > 0 {
		// One goroutine: the parallelism is over stripes and blobs, and a
		// hand-over costs more than 1 MiB takes to code.
		// A single parity is the xor of the data, which costs least; see xorSum.
		rs, err := reedsolomon.New(l.K, l.M, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithFastOneParityMatrix())
		if err != nil {
			panic("remotetier: layout " + l.String() + ": " + err.Error()) // the layout was checked
		}
		c.rs = rs
	}
	if codes.m == nil {
		codes.m = map[[2]int]*code{}
	}
	codes.m[key] = c
	return c
}

// encode fills units[k:] from units[:k]; all have the same length. For k = 1
// it does nothing: whoever has the data has the copies.
func (c *code) encode(units [][]byte) error {
	if c.rs == nil {
		return nil
	}
	return c.rs.Encode(units)
}

// verify reports whether parity fits data.
func (c *code) verify(units [][]byte) (bool, error) {
	if c.rs != nil {
		return c.rs.Verify(units)
	}
	for i := c.k; i < c.k+c.m; i++ {
		if !bytes.Equal(units[0], units[i]) {
			return false, nil
		}
	}
	return true, nil
}

// rebuild computes the units named by want from any k others; a unit that is
// not there has length 0, and a wanted one the capacity to hold it.
func (c *code) rebuild(units [][]byte, want []int) error {
	if c.rs == nil {
		have := slices.IndexFunc(units, func(u []byte) bool { return len(u) > 0 })
		if have < 0 || c.k > 1 {
			return fmt.Errorf("rebuild: %w: no copy is there", catalog.ErrCorrupt)
		}
		for _, i := range want { // k = 1: any copy will do
			if len(units[i]) == 0 {
				units[i] = append(units[i][:0], units[have]...)
			}
		}
		return nil
	}
	required := make([]bool, len(units))
	for _, i := range want {
		required[i] = true
	}
	return c.rs.ReconstructSome(units, required)
}
