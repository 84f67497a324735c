// Package frame is what clients and targets say to each other on a connection,
// whatever carries it: the hello, and the frames. PROTOCOL.md in package fabric
// has the bytes.
//
//  1. Bytes that break a limit, a rule or their CRC are catalog.ErrCorrupt, and
//     nothing of them is used.
//  2. A head allocates nothing of what it promises beyond MaxControl bytes.
//  3. The token never travels: both sides prove that they know it.
package frame

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// Types of frames.
const (
	Request = 1
	Data    = 2
	Ping    = 3
	Credit  = 4
	Wait    = 5
	Reply   = 6
)

// Sizes, in bytes.
const (
	HeadSize   = 16
	MaxControl = fabric.MaxRequest + 1536 // payload of a frame that is not DATA
	// ScratchSize is what Read wants; larger control frames are rare, and get
	// memory of their own.
	ScratchSize = 512
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Head is the head of a frame.
type Head struct {
	Kind   byte
	Length uint32 // of the payload, in bytes
	Number uint32 // of the exchange
	crc    uint32
}

// Append appends the head of a DATA frame, or the head and payload of
// another.
func Append(b []byte, kind byte, number uint32, length int, payload ...[]byte) []byte {
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

// Control appends a frame that is not DATA.
func Control(b []byte, kind byte, number uint32, payload ...[]byte) []byte {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	return Append(b, kind, number, n, payload...)
}

// Corrupt is the error of bytes that break a rule of the protocol.
func Corrupt(format string, args ...any) error {
	return fmt.Errorf("frame: %w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}

// Read reads a control frame, or the head of a DATA frame. The payload
// may be in scratch: it is valid until the next call.
func Read(r io.Reader, scratch []byte) (h Head, payload []byte, err error) {
	b := scratch[:HeadSize]
	if _, err := io.ReadFull(r, b); err != nil {
		return h, nil, err
	}
	h = Head{Kind: b[0], Length: binary.LittleEndian.Uint32(b[4:]), Number: binary.LittleEndian.Uint32(b[8:]), crc: binary.LittleEndian.Uint32(b[12:])}
	if b[1] != 0 || b[2] != 0 || b[3] != 0 || h.Kind < Request || h.Kind > Reply {
		return h, nil, Corrupt("type %d", h.Kind)
	}
	crc := crc32.Update(0, castagnoli, b[:12])
	if h.Kind == Data {
		if crc != h.crc || h.Length == 0 || h.Length > fabric.MaxTransfer {
			return h, nil, Corrupt("the head of %d bytes of data fails its check", h.Length)
		}
		return h, nil, nil
	}
	if h.Length > MaxControl {
		return h, nil, Corrupt("%d bytes where at most %d are allowed", h.Length, MaxControl)
	}
	if int(h.Length) <= len(scratch)-HeadSize {
		payload = scratch[HeadSize:][:h.Length]
	} else {
		payload = make([]byte, h.Length)
	}
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return h, nil, err
	}
	if crc32.Update(crc, castagnoli, payload) != h.crc {
		return h, nil, Corrupt("CRC32C of type %d", h.Kind)
	}
	return h, payload, nil
}
