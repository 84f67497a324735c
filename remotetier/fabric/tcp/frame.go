package tcp

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// Frame types.
const (
	frameRequest = 1
	frameData    = 2
	framePing    = 3
	frameCredit  = 4
	frameWait    = 5
	frameReply   = 6
)

const (
	headSize    = 16
	requestHead = 12                     // of a REQUEST's payload, before the request
	maxControl  = fabric.MaxRequest + 64 // payload of a frame that is not DATA
	maxPush     = 1 << 20                // payload of a target's DATA frame
	maxAhead    = fabric.MaxRequest      // bytes of requests sent before their turn
	scratchSize = 512                    // larger control frames are rare, and get memory of their own
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is the head of a frame.
type head struct {
	kind   byte
	length uint32
	number uint32
	crc    uint32
}

// appendFrame appends the head of a DATA frame, or the head and payload of
// another.
func appendFrame(b []byte, kind byte, number uint32, length int, payload ...[]byte) []byte {
	at := len(b)
	b = append(b, kind, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	b = binary.LittleEndian.AppendUint32(b, number)
	crc := crc32.Update(0, castagnoli, b[at:])
	for _, p := range payload {
		crc = crc32.Update(crc, castagnoli, p)
	}
	b = binary.LittleEndian.AppendUint32(b, crc)
	for _, p := range payload {
		b = append(b, p...)
	}
	return b
}

// control appends a frame that is not DATA.
func control(b []byte, kind byte, number uint32, payload ...[]byte) []byte {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	return appendFrame(b, kind, number, n, payload...)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("frame: %w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}

// readFrame reads a control frame, or the head of a DATA frame. The payload
// may be in scratch: it is valid until the next call.
func readFrame(r io.Reader, scratch []byte) (h head, payload []byte, err error) {
	b := scratch[:headSize]
	if _, err := io.ReadFull(r, b); err != nil {
		return h, nil, err
	}
	h = head{kind: b[0], length: binary.LittleEndian.Uint32(b[4:]), number: binary.LittleEndian.Uint32(b[8:]), crc: binary.LittleEndian.Uint32(b[12:])}
	if b[1] != 0 || b[2] != 0 || b[3] != 0 || h.kind < frameRequest || h.kind > frameReply {
		return h, nil, corrupt("type %d", h.kind)
	}
	crc := crc32.Update(0, castagnoli, b[:12])
	if h.kind == frameData {
		if crc != h.crc || h.length == 0 || h.length > fabric.MaxTransfer {
			return h, nil, corrupt("the head of %d bytes of data fails its check", h.length)
		}
		return h, nil, nil
	}
	if h.length > maxControl {
		return h, nil, corrupt("%d bytes where at most %d are allowed", h.length, maxControl)
	}
	if int(h.length) <= len(scratch)-headSize {
		payload = scratch[headSize:][:h.length]
	} else {
		payload = make([]byte, h.length)
	}
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return h, nil, err
	}
	if crc32.Update(crc, castagnoli, payload) != h.crc {
		return h, nil, corrupt("CRC32C of type %d", h.kind)
	}
	return h, payload, nil
}
