package planes

import (
	"bytes"
	"errors"
	"sync"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/zstd"
)

// A plane of exponents has no repeats worth looking for, but few values: all
// its gain is Huffman's, and zstd's short matches make it larger and take most
// of the time (README.md has figures). So the zstd frames written here hold
// literals alone, coded by zstd's own Huffman coder. Any zstd reader reads them.

const (
	zstdMagic  = 0xFD2FB528
	zstdSingle = 0xA0       // frame descriptor: a single segment, its size in four bytes
	zstdBlock  = 128 << 10  // bytes of a block at most
	zstdHead   = 4 + 1 + 4  // magic, descriptor, size
	litHead    = 5          // literals section header with sizes of 18 bits
	rawBlock   = 0          // block types
	rleBlock   = 1          //
	compressed = 2          //
	repetitive = 4          // a plane that Huffman brings below 1/repetitive is tried with matches too
	hardly     = 1.0 / 64.0 // a smaller gain is not worth the decoding
)

// coder compresses planes. It belongs to one goroutine.
type coder struct {
	huff huff0.Scratch
	zstd *zstd.Encoder
	out  []byte // of the last plane tried with matches
}

// coders are used again: their tables take megabytes. They hold nothing else.
var coders = sync.Pool{New: func() any { return newCoder() }}

func newCoder() *coder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic("planes: " + err.Error()) // the options are constants
	}
	c := &coder{zstd: e}
	c.huff.Reuse = huff0.ReusePolicyNone
	return c
}

// append compresses a plane onto dst; ok is false, and dst as it was, when
// that saves hardly anything. Only bytes that are no numbers are searched for
// repeats from the start.
func (c *coder) append(dst, plane []byte, numbers bool) (_ []byte, ok bool) {
	was, most := len(dst), len(plane)-int(float64(len(plane))*hardly)
	if numbers {
		dst = c.literals(dst, plane)
	}
	if n := len(dst) - was; !numbers || n < len(plane)/repetitive {
		c.out = c.zstd.EncodeAll(plane, c.out[:0])
		if !numbers || len(c.out) < n {
			dst = append(dst[:was], c.out...)
		}
	}
	if len(dst)-was >= most {
		return dst[:was], false
	}
	return dst, true
}

// literals appends a zstd frame that has no matches.
func (c *coder) literals(dst, plane []byte) []byte {
	dst = le.AppendUint32(dst, zstdMagic)
	dst = append(dst, zstdSingle)
	dst = le.AppendUint32(dst, uint32(len(plane)))
	for first := true; first || len(plane) > 0; first = false {
		block := plane[:min(zstdBlock, len(plane))]
		plane = plane[len(block):]
		head := uint32(len(block))<<3 | uint32(bit(len(plane) == 0))
		out, _, err := huff0.Compress4X(block, &c.huff)
		switch {
		case errors.Is(err, huff0.ErrUseRLE):
			dst = append(put24(dst, head|rleBlock<<1), block[0])
		case err != nil || litHead+len(out)+1 >= len(block):
			dst = append(put24(dst, head|rawBlock<<1), block...)
		default:
			size := litHead + len(out) + 1
			dst = put24(dst, uint32(size)<<3|compressed<<1|uint32(bit(len(plane) == 0)))
			lit := uint64(2) | 3<<2 | uint64(len(block))<<4 | uint64(len(out))<<22 // compressed, four streams
			dst = append(dst, byte(lit), byte(lit>>8), byte(lit>>16), byte(lit>>24), byte(lit>>32))
			dst = append(append(dst, out...), 0) // no sequences
		}
	}
	return dst
}

func put24(dst []byte, v uint32) []byte { return append(dst, byte(v), byte(v>>8), byte(v>>16)) }

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// decoder is shared: DecodeAll may be called by several goroutines, and keeps
// as many sets of tables as there are processors.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(Size), zstd.WithDecoderMaxWindow(Size))
	if err != nil {
		panic("planes: " + err.Error()) // the options are constants
	}
	return d
})

// expand decodes a zstd frame to exactly all of plane.
func expand(plane, stored []byte) error {
	if len(stored) < zstdHead || !bytes.Equal(stored[:4], []byte{0x28, 0xB5, 0x2F, 0xFD}) {
		return errors.New("a plane is no zstd frame")
	}
	out, err := decoder().DecodeAll(stored, plane[:0:len(plane)])
	switch {
	case err != nil:
		return err
	case len(out) != len(plane):
		return errors.New("a plane decodes to another length")
	}
	return nil
}
