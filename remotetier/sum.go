package remotetier

import (
	"context"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// sum checks, hashes and codes the batches and hands them to every column.
func (p *pass) sum(ctx context.Context, filled <-chan *batch, columns []chan *batch) error {
	var check *sealCheck
	if p.seal != nil {
		check = &sealCheck{seal: p.seal}
	}
	hash, code := blake3.New(), codeOf(p.layout)
	if !p.again {
		p.sums = make([][]uint32, p.layout.Columns())
		for i := range p.sums {
			p.sums[i] = make([]uint32, 0, stripe.Blocks(p.column))
		}
	}
	for {
		b, err := next(ctx, filled)
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		for s := range b.stripes {
			var err error
			if p.again {
				err = p.sameStripe(b, s, code)
			} else {
				err = p.sumStripe(b, s, hash, check, code)
			}
			if err != nil {
				return err
			}
		}
		b.writers.Store(int32(len(columns)))
		for _, c := range columns {
			c <- b // has room for the whole ring
		}
	}
	if !p.again {
		hash.Sum(p.content[:0])
		for i := range p.sums {
			if p.layout.K == 1 {
				p.sums[i] = p.sums[0]
			}
		}
		p.summed = true
	}
	for _, c := range columns {
		close(c)
	}
	return nil
}

// sumStripe does the s-th stripe of b. Each data byte is brought into the
// cache once for both its checksum and its hash, in the blob's order.
func (p *pass) sumStripe(b *batch, s int64, hash *blake3.Hasher, check *sealCheck, code *code) error {
	l := p.layout
	u := l.UnitOf(p.size, b.first+s)
	units := make([][]byte, l.Columns())
	for i := range units {
		units[i] = b.cols[i][s*l.Unit:][:u]
	}
	left := p.size - (b.first+s)*l.Width() // bytes of the blob from here
	whole := left >= l.Width()
	for i, unit := range units[:l.K] {
		for len(unit) > 0 {
			block := unit[:min(stripe.Block, len(unit))]
			unit = unit[len(block):]
			valid := block[:max(0, min(int64(len(block)), left))] // padding follows the blob's end
			left -= int64(len(valid))
			_, _ = hash.Write(valid) // never fails; slower than memory, so it goes first
			crc := crcOf(block)
			p.sums[i] = append(p.sums[i], crc)
			var err error
			if whole {
				err = check.block(crc)
			} else { // its blocks are not aligned with the seal's
				err = check.bytes(valid)
			}
			if err != nil {
				return err
			}
		}
	}
	return p.code(units, code)
}

// code computes the parity units of a stripe and sums them, a block of each at
// a time, while it is in the cache. The sums of a single parity follow from
// those of the data.
func (p *pass) code(units [][]byte, code *code) error {
	if p.layout.K == 1 || p.layout.M == 0 {
		return nil // copies have the sums of what they are copies of
	}
	k := p.layout.K
	if p.layout.M == 1 {
		if err := code.encode(units); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		crcs := make([]uint32, k)
		for at := 0; at < len(units[0]); at += stripe.Block {
			block := len(p.sums[k])
			for i := range crcs {
				crcs[i] = p.sums[i][block]
			}
			p.sums[k] = append(p.sums[k], xorSum(crcs, min(stripe.Block, len(units[0])-at)))
		}
		return nil
	}
	rows := make([][]byte, len(units))
	for at := 0; at < len(units[0]); at += stripe.Block {
		for i, unit := range units {
			rows[i] = unit[at:min(at+stripe.Block, len(unit))]
		}
		if err := code.encode(rows); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		for i, row := range rows[k:] {
			p.sums[k+i] = append(p.sums[k+i], crcOf(row))
		}
	}
	return nil
}

// sameStripe codes the s-th stripe of b as far as it is wanted, and holds it
// against the sums of the pass before.
func (p *pass) sameStripe(b *batch, s int64, code *code) error {
	l := p.layout
	u := l.UnitOf(p.size, b.first+s)
	units, parity := make([][]byte, l.Columns()), []int(nil)
	for c := range units {
		if b.cols[c] != nil {
			units[c] = b.cols[c][s*l.Unit:][:u]
		}
		if c >= l.K && l.K > 1 {
			if units[c] = units[c][:0]; slices.Contains(p.want, c) {
				parity = append(parity, c)
			}
		}
	}
	if len(parity) > 0 {
		if err := code.rebuild(units, parity); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
	}
	for _, c := range p.want {
		block := (b.first + s) * l.Unit / stripe.Block
		for part := range slices.Chunk(units[c], stripe.Block) {
			if crcOf(part) != p.sums[c][block] {
				return fmt.Errorf("read the source again: %w: block %d of column %d is not what it was", catalog.ErrCorrupt, block, c)
			}
			block++
		}
	}
	return nil
}
