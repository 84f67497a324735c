package ofi

import (
	"encoding/binary"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/frame"
)

// Sizes of the protocol, in bytes.
const (
	requestHead = 16      // of a REQUEST's payload, before its spans
	spanSize    = 20      // of a span
	replyHead   = 5       // of a REPLY's payload that says that all went well
	pieceSize   = 2 << 20 // of a client's registered memory for what is not
	maxSpans    = fabric.MaxTransfer / pieceSize
	messageSize = (frame.HeadSize + frame.MaxControl + 63) / 64 * 64 // of a receive buffer
)

// span is a piece of a client's memory, as the target names it.
type span struct {
	addr, key uint64
	len       int
}

// spans are consecutive bytes of an exchange.
type spans struct {
	list []span
	left int
}

func total(list []span) (n int) {
	for _, s := range list {
		n += s.len
	}
	return n
}

// next takes up to n bytes that lie together.
func (s *spans) next(n int) span {
	for s.list[0].len == 0 {
		s.list = s.list[1:]
	}
	first := &s.list[0]
	part := span{addr: first.addr, key: first.key, len: min(n, first.len)}
	first.addr += uint64(part.len)
	first.len -= part.len
	s.left -= part.len
	return part
}

// request is what a REQUEST holds.
type request struct {
	left    uint32 // milliseconds that the client will wait; 0: not said
	out, in []span
	body    []byte
}

// appendTo appends the payload.
func (r *request) appendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(total(r.out)))
	b = binary.LittleEndian.AppendUint32(b, uint32(total(r.in)))
	b = binary.LittleEndian.AppendUint32(b, r.left)
	b = append(b, byte(len(r.out)), byte(len(r.in)), 0, 0)
	for _, list := range [][]span{r.out, r.in} {
		for _, s := range list {
			b = binary.LittleEndian.AppendUint64(b, s.addr)
			b = binary.LittleEndian.AppendUint64(b, s.key)
			b = binary.LittleEndian.AppendUint32(b, uint32(s.len))
		}
	}
	return append(b, r.body...)
}

// parseRequest reads the payload of a REQUEST. The body is b's memory.
func parseRequest(b []byte) (r request, err error) {
	if len(b) < requestHead {
		return r, frame.Corrupt("a request of %d bytes", len(b))
	}
	out, in := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
	r.left = binary.LittleEndian.Uint32(b[8:])
	outs, ins := int(b[12]), int(b[13])
	if b[14] != 0 || b[15] != 0 || outs > maxSpans || ins > maxSpans || out > fabric.MaxTransfer || in > fabric.MaxTransfer {
		return r, frame.Corrupt("%d bytes to pull in %d spans and %d to push in %d", out, outs, in, ins)
	}
	body := requestHead + (outs+ins)*spanSize
	if len(b) < body || len(b)-body > fabric.MaxRequest {
		return r, frame.Corrupt("a request of %d bytes with %d spans", len(b), outs+ins)
	}
	r.out = parseSpans(b[requestHead:], outs)
	r.in = parseSpans(b[requestHead+outs*spanSize:], ins)
	r.body = b[body:]
	if int64(total(r.out)) != out || int64(total(r.in)) != in {
		return r, frame.Corrupt("spans of %d and %d bytes for %d to pull and %d to push", total(r.out), total(r.in), out, in)
	}
	for _, s := range append(r.out[:outs:outs], r.in...) {
		if s.len == 0 || s.addr+uint64(s.len) < s.addr {
			return r, frame.Corrupt("a span of %d bytes at %#x", s.len, s.addr)
		}
	}
	return r, nil
}

func parseSpans(b []byte, n int) []span {
	list := make([]span, n)
	for i := range list {
		at := b[i*spanSize:]
		list[i] = span{addr: binary.LittleEndian.Uint64(at), key: binary.LittleEndian.Uint64(at[8:]), len: int(binary.LittleEndian.Uint32(at[16:]))}
	}
	return list
}

// appendReply appends the payload of a REPLY.
func appendReply(b []byte, pushed int, reply []byte, err error) []byte {
	b = append(b, fabric.CodeOf(err))
	if err != nil {
		return append(b, frame.Cut(err.Error())...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(pushed))
	return append(b, reply[:min(len(reply), fabric.MaxRequest)]...)
}

// parseReply reads the payload of a REPLY into op: refused is an error of the
// protocol, op.Err what the target answered.
func parseReply(b []byte, op *fabric.Op) (refused error) {
	if len(b) == 0 || len(b) > replyHead+fabric.MaxRequest {
		return frame.Corrupt("a reply of %d bytes", len(b))
	}
	if op.Err = fabric.ErrorOf(b[0], string(b[1:])); op.Err != nil {
		return nil
	}
	if len(b) < replyHead {
		return frame.Corrupt("a reply of %d bytes", len(b))
	}
	pushed := int64(binary.LittleEndian.Uint32(b[1:]))
	if pushed > int64(len(op.In)) {
		return frame.Corrupt("%d bytes pushed, %d had room", pushed, len(op.In))
	}
	op.Reply, op.N = append([]byte(nil), b[replyHead:]...), int(pushed)
	return nil
}
