package planes

import (
	"fmt"
	"hash/crc32"

	"github.com/ckptd/ckptd/catalog"
)

// Magic begins every container; a safetensors file never begins like it.
const Magic = "ckptPLAN"

// Encoding is what catalog.Place.Encoding says of a blob kept as a container.
const Encoding = "planes"

// Size is the raw bytes of a frame, but for the last one.
const Size = 4 << 20

const (
	footMagic  = "ckptFEND"
	version    = 1
	headSize   = 32 // bytes of the header, and of the footer
	blocksEach = Size / catalog.BlockSize
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("planes: %w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}

// index is what a container says about its frames.
type index struct {
	raw    int64    // bytes of the blob
	sizes  []uint32 // stored bytes, by frame
	sums   []uint32 // CRC32C of the stored bytes, by frame
	blocks []uint32 // CRC32C of the raw bytes, by block: the seal's
	starts []int64  // of each frame in the container, and of the index
}

// frames is how many frames so many raw bytes have.
func frames(raw int64) int { return int((raw + Size - 1) / Size) }

// rawSize is the raw bytes of frame i.
func (x *index) rawSize(i int) int { return int(min(Size, x.raw-int64(i)*Size)) }

// tailSize is the bytes of index and footer.
func tailSize(raw int64) int64 {
	return 8*int64(frames(raw)) + 4*int64(catalog.Blocks(raw)) + headSize
}

// MaxStored is the size of the largest container of so many raw bytes.
func MaxStored(raw int64) int64 { return headSize + raw + int64(frames(raw)) + tailSize(raw) }

// putHeader encodes the header.
func putHeader(raw int64) []byte {
	b := append(make([]byte, 0, headSize), Magic...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint32(b, Size)
	b = le.AppendUint64(b, uint64(raw))
	b = le.AppendUint32(b, 0)
	return le.AppendUint32(b, crc32.Checksum(b, catalog.Castagnoli))
}

// parseHeader gives the raw size; total is the container's, in bytes.
func parseHeader(b []byte, total int64) (raw int64, err error) {
	switch {
	case len(b) != headSize || string(b[:8]) != Magic:
		return 0, corrupt("no container")
	case crc32.Checksum(b[:28], catalog.Castagnoli) != le.Uint32(b[28:]):
		return 0, corrupt("the header does not fit its checksum")
	case le.Uint32(b[8:]) != version || le.Uint32(b[24:]) != 0:
		return 0, corrupt("version %d, flags %#x are unknown", le.Uint32(b[8:]), le.Uint32(b[24:]))
	case le.Uint32(b[12:]) != Size:
		return 0, corrupt("frames of %d bytes; want %d", le.Uint32(b[12:]), Size)
	}
	n := le.Uint64(b[16:])
	if n > catalog.MaxShardSize {
		return 0, corrupt("%d raw bytes; at most %d are possible", n, int64(catalog.MaxShardSize))
	}
	raw = int64(n)
	// A frame has a byte at least, so the index is never longer than the file lets expect.
	if least := headSize + int64(frames(raw)) + tailSize(raw); total < least || total > MaxStored(raw) {
		return 0, corrupt("%d bytes cannot hold %d", total, raw)
	}
	return raw, nil
}

// putTail encodes the index and the footer.
func (x *index) putTail(at int64, header []byte) []byte {
	b := make([]byte, 0, tailSize(x.raw))
	for i := range x.sizes {
		b = le.AppendUint32(b, x.sizes[i])
		b = le.AppendUint32(b, x.sums[i])
	}
	for _, c := range x.blocks {
		b = le.AppendUint32(b, c)
	}
	b = append(b, footMagic...)
	b = le.AppendUint64(b, uint64(at))
	b = le.AppendUint32(b, uint32(len(x.sizes)))
	b = le.AppendUint32(b, 0)
	b = append(b, header[28:]...)
	return le.AppendUint32(b, crc32.Checksum(b, catalog.Castagnoli))
}

// parseTail decodes index and footer, the last tailSize(raw) bytes of a
// container of total bytes.
func parseTail(b []byte, header []byte, raw, total int64) (*index, error) {
	n, blocks := frames(raw), catalog.Blocks(raw)
	if int64(len(b)) != tailSize(raw) {
		return nil, corrupt("the index has %d bytes", len(b))
	}
	foot := b[len(b)-headSize:]
	at := total - int64(len(b))
	switch {
	case string(foot[:8]) != footMagic:
		return nil, corrupt("no footer")
	case crc32.Checksum(b[:len(b)-4], catalog.Castagnoli) != le.Uint32(foot[28:]):
		return nil, corrupt("the index does not fit its checksum")
	case string(foot[24:28]) != string(header[28:]):
		return nil, corrupt("header and footer are of two containers")
	case le.Uint64(foot[8:]) != uint64(at) || le.Uint32(foot[16:]) != uint32(n) || le.Uint32(foot[20:]) != 0:
		return nil, corrupt("the footer does not fit the header")
	}
	x := &index{raw: raw, sizes: make([]uint32, n), sums: make([]uint32, n), blocks: make([]uint32, blocks), starts: make([]int64, n+1)}
	x.starts[0] = headSize
	for i := range n {
		x.sizes[i], x.sums[i] = le.Uint32(b[8*i:]), le.Uint32(b[8*i+4:])
		if s := int64(x.sizes[i]); s < 1 || s > int64(x.rawSize(i))+1 {
			return nil, corrupt("frame %d has %d bytes", i, s)
		}
		x.starts[i+1] = x.starts[i] + int64(x.sizes[i])
	}
	if x.starts[n] != at {
		return nil, corrupt("the frames have %d bytes, not %d", x.starts[n], at)
	}
	for i := range x.blocks {
		x.blocks[i] = le.Uint32(b[8*n+4*i:])
	}
	return x, nil
}

// seal is the blob's seal, as far as the container knows it.
func (x *index) seal() *catalog.Seal { return &catalog.Seal{Size: x.raw, CRCs: x.blocks} }
