package tcp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

const (
	version      = 1
	serverMagic  = "ckptFABR"
	clientMagic  = "ckptFABC"
	nonceSize    = 32
	proofSize    = sha256.Size
	serverHello  = 48
	clientHello  = 96
	flagToken    = 1
	maxTokenSize = 256
)

// serverFirst is what a target says first.
type serverFirst struct {
	token bool
	nonce [nonceSize]byte
}

func (s *serverFirst) bytes() []byte {
	b := make([]byte, 0, serverHello)
	b = append(b, serverMagic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	flags := uint16(0)
	if s.token {
		flags = flagToken
	}
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = append(b, s.nonce[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseServerFirst(b []byte) (s serverFirst, err error) {
	flags, err := checkHello(b, serverMagic)
	if err != nil {
		return s, err
	}
	if flags&^flagToken != 0 {
		return s, corrupt("hello with flags %#x", flags)
	}
	s.token = flags&flagToken != 0
	copy(s.nonce[:], b[12:])
	return s, nil
}

// clientFirst is the client's answer.
type clientFirst struct {
	session fabric.Session
	nonce   [nonceSize]byte
	proof   [proofSize]byte
}

func (c *clientFirst) bytes() []byte {
	b := make([]byte, 0, clientHello)
	b = append(b, clientMagic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = append(b, c.session[:]...)
	b = append(b, c.nonce[:]...)
	b = append(b, c.proof[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseClientFirst(b []byte) (c clientFirst, err error) {
	flags, err := checkHello(b, clientMagic)
	if err != nil {
		return c, err
	}
	if flags != 0 {
		return c, corrupt("hello with flags %#x", flags)
	}
	copy(c.session[:], b[12:])
	copy(c.nonce[:], b[28:])
	copy(c.proof[:], b[60:])
	return c, nil
}

// checkHello checks magic, sum and version, in this order: a magic of another
// kind is another program, and a newer version need not have this sum.
func checkHello(b []byte, magic string) (flags uint16, err error) {
	if string(b[:8]) != magic {
		return 0, corrupt("%q is no hello of ckptd; is TLS on at one end alone?", b[:8])
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return 0, fmt.Errorf("hello: %w: version %d of the protocol, this program knows %d", catalog.ErrInvalid, v, version)
	}
	at := len(b) - 4
	if crc32.Checksum(b[:at], castagnoli) != binary.LittleEndian.Uint32(b[at:]) {
		return 0, corrupt("CRC32C of the hello")
	}
	return binary.LittleEndian.Uint16(b[10:]), nil
}

// prove gives the proof that who speaks for side knows the token.
func prove(token, side string, s *serverFirst, c *clientFirst) (p [proofSize]byte) {
	if token == "" {
		return p
	}
	h := hmac.New(sha256.New, []byte(token))
	_, _ = io.WriteString(h, side) // a hash never fails
	_, _ = h.Write(s.nonce[:])
	_, _ = h.Write(c.nonce[:])
	_, _ = h.Write(c.session[:])
	h.Sum(p[:0])
	return p
}

func random(b []byte) { _, _ = rand.Read(b) } // never fails

// greet is the client's part of the hello. It gives the target's greeting.
func greet(rw io.ReadWriter, session fabric.Session, token string) ([]byte, error) {
	first := make([]byte, serverHello)
	if _, err := io.ReadFull(rw, first); err != nil {
		return nil, err
	}
	s, err := parseServerFirst(first)
	if err != nil {
		return nil, err
	}
	if s.token && token == "" {
		return nil, fmt.Errorf("%w: the target wants a token, give --token-file", fabric.ErrRefused)
	}
	if !s.token && token != "" {
		return nil, fmt.Errorf("%w: the target has no token, so it cannot prove to be ours", fabric.ErrRefused)
	}
	c := clientFirst{session: session}
	random(c.nonce[:])
	c.proof = prove(token, "client", &s, &c)
	if _, err := rw.Write(c.bytes()); err != nil {
		return nil, err
	}
	h, payload, err := readFrame(rw, make([]byte, scratchSize))
	if err != nil {
		return nil, err
	}
	if h.kind != frameReply || len(payload) == 0 {
		return nil, corrupt("type %d for an answer to the hello", h.kind)
	}
	if err := fabric.ErrorOf(payload[0], string(payload[1:])); err != nil {
		return nil, err
	}
	if len(payload) < 1+proofSize {
		return nil, corrupt("an answer of %d bytes to the hello", len(payload))
	}
	want := prove(token, "target", &s, &c)
	if !hmac.Equal(payload[1:1+proofSize], want[:]) {
		return nil, fmt.Errorf("%w: the target does not know the token", fabric.ErrRefused)
	}
	return payload[1+proofSize:], nil
}

// welcome is the target's part of the hello, up to the answer.
func welcome(rw io.ReadWriter, token string) (s serverFirst, c clientFirst, err error) {
	s.token = token != ""
	random(s.nonce[:])
	if _, err := rw.Write(s.bytes()); err != nil {
		return s, c, err
	}
	b := make([]byte, clientHello)
	if _, err := io.ReadFull(rw, b); err != nil {
		return s, c, err
	}
	if c, err = parseClientFirst(b); err != nil {
		return s, c, err
	}
	if want := prove(token, "client", &s, &c); !hmac.Equal(c.proof[:], want[:]) {
		return s, c, fmt.Errorf("%w: the token is not this target's", fabric.ErrRefused)
	}
	return s, c, nil
}

// answer is the target's last word of the hello.
func answer(w io.Writer, token string, s *serverFirst, c *clientFirst, greeting []byte, err error) error {
	payload := []byte{fabric.CodeOf(err)}
	if err != nil {
		payload = append(payload, cut(err.Error())...)
	} else {
		proof := prove(token, "target", s, c)
		payload = append(append(payload, proof[:]...), greeting...)
	}
	_, werr := w.Write(control(nil, frameReply, 0, payload))
	return werr
}

// cut bounds an error's text.
func cut(s string) string { return s[:min(len(s), fabric.MaxErrorText)] }
