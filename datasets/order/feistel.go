package order

import "math/bits"

const rounds = 8

// permutation is P of ORDER.md: n numbers, by a Feistel network over the
// smallest power of two that holds them, and cycle walking.
type permutation struct {
	n           uint64
	left, right uint   // bits of the halves; left is the longer one
	mask        uint64 // of the right half
	key         [rounds]uint64
}

func newPermutation(n uint64, key [rounds]uint64, tweak uint64) permutation {
	p := permutation{n: n, key: key}
	for i := range p.key {
		p.key[i] ^= tweak
	}
	p.fit()
	return p
}

// fit sets the halves for n.
func (p *permutation) fit() {
	var w uint
	if p.n > 1 {
		w = uint(bits.Len64(p.n - 1))
	}
	p.right = w / 2
	p.left = w - p.right
	p.mask = 1<<p.right - 1
}

// scramble is the round function F.
func scramble(v, key uint64) uint64 {
	z := v ^ key
	z = (z ^ z>>32) * 0x9e6c63d0876a9a47
	z = (z ^ z>>29) * 0xd1342543de82ef95
	return z ^ z>>32
}

// tweak is T: what tells the permutation of block j from that of another.
func tweak(j uint64) uint64 { return scramble(j+1, 0x6a09e667f3bcc908) }

func (p *permutation) at(x uint64) uint64 {
	if p.n <= 1 {
		return x
	}
	for {
		l, r := x>>p.right, x&p.mask
		// A shift by 64 gives 0 in Go: with right = 0 the odd rounds change nothing.
		for i := 0; i < rounds; i += 2 {
			l ^= scramble(r, p.key[i]) >> (64 - p.left)
			r ^= scramble(l, p.key[i+1]) >> (64 - p.right)
		}
		if x = l<<p.right | r; x < p.n {
			return x
		}
	}
}

func (p *permutation) find(x uint64) uint64 {
	if p.n <= 1 {
		return x
	}
	for {
		l, r := x>>p.right, x&p.mask
		for i := rounds - 2; i >= 0; i -= 2 {
			r ^= scramble(l, p.key[i+1]) >> (64 - p.right)
			l ^= scramble(r, p.key[i]) >> (64 - p.left)
		}
		if x = l<<p.right | r; x < p.n {
			return x
		}
	}
}
