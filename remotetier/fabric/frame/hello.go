package frame

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
	version         = 1
	serverMagic     = "ckptFABR"
	clientMagic     = "ckptFABC"
	nonceSize       = 32
	ProofSize       = sha256.Size
	serverHelloSize = 48
	clientHelloSize = 96
	flagToken       = 1
	// MaxToken bounds a token, in bytes.
	MaxToken = 256
)

// NewSession gives a client's name for all its connections.
func NewSession() (s fabric.Session) {
	random(s[:])
	return s
}

// ServerHello is what a target says first.
type ServerHello struct {
	Token bool // one is wanted
	Nonce [nonceSize]byte
}

// Bytes is the hello as it travels.
func (s *ServerHello) Bytes() []byte {
	b := make([]byte, 0, serverHelloSize)
	b = append(b, serverMagic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	flags := uint16(0)
	if s.Token {
		flags = flagToken
	}
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = append(b, s.Nonce[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseServerHello(b []byte) (s ServerHello, err error) {
	flags, err := checkHello(b, serverMagic)
	if err != nil {
		return s, err
	}
	if flags&^flagToken != 0 {
		return s, Corrupt("hello with flags %#x", flags)
	}
	s.Token = flags&flagToken != 0
	copy(s.Nonce[:], b[12:])
	return s, nil
}

// ClientHello is what the client answers.
type ClientHello struct {
	Session fabric.Session
	Nonce   [nonceSize]byte
	Proof   [ProofSize]byte
}

// Bytes is the hello as it travels.
func (c *ClientHello) Bytes() []byte {
	b := make([]byte, 0, clientHelloSize)
	b = append(b, clientMagic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = append(b, c.Session[:]...)
	b = append(b, c.Nonce[:]...)
	b = append(b, c.Proof[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseClientHello(b []byte) (c ClientHello, err error) {
	flags, err := checkHello(b, clientMagic)
	if err != nil {
		return c, err
	}
	if flags != 0 {
		return c, Corrupt("hello with flags %#x", flags)
	}
	copy(c.Session[:], b[12:])
	copy(c.Nonce[:], b[28:])
	copy(c.Proof[:], b[60:])
	return c, nil
}

// checkHello checks magic, sum and version, in this order: a magic of another
// kind is another program, and a newer version need not have this sum.
func checkHello(b []byte, magic string) (flags uint16, err error) {
	if string(b[:8]) != magic {
		return 0, Corrupt("%q is no hello of ckptd; is TLS on at one end alone?", b[:8])
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return 0, fmt.Errorf("hello: %w: version %d of the protocol, this program knows %d", catalog.ErrInvalid, v, version)
	}
	at := len(b) - 4
	if crc32.Checksum(b[:at], castagnoli) != binary.LittleEndian.Uint32(b[at:]) {
		return 0, Corrupt("CRC32C of the hello")
	}
	return binary.LittleEndian.Uint16(b[10:]), nil
}

// prove gives the proof that who speaks for side knows the token.
func prove(token, side string, s *ServerHello, c *ClientHello) (p [ProofSize]byte) {
	if token == "" {
		return p
	}
	h := hmac.New(sha256.New, []byte(token))
	_, _ = io.WriteString(h, side) // a hash never fails
	_, _ = h.Write(s.Nonce[:])
	_, _ = h.Write(c.Nonce[:])
	_, _ = h.Write(c.Session[:])
	h.Sum(p[:0])
	return p
}

func random(b []byte) { _, _ = rand.Read(b) } // never fails

// Greet is the client's part of the hello. It gives the target's greeting.
func Greet(rw io.ReadWriter, session fabric.Session, token string) ([]byte, error) {
	first := make([]byte, serverHelloSize)
	if _, err := io.ReadFull(rw, first); err != nil {
		return nil, err
	}
	s, err := parseServerHello(first)
	if err != nil {
		return nil, err
	}
	if s.Token && token == "" {
		return nil, fmt.Errorf("%w: the target wants a token, give --token-file", fabric.ErrRefused)
	}
	if !s.Token && token != "" {
		return nil, fmt.Errorf("%w: the target has no token, so it cannot prove to be ours", fabric.ErrRefused)
	}
	c := ClientHello{Session: session}
	random(c.Nonce[:])
	c.Proof = prove(token, "client", &s, &c)
	if _, err := rw.Write(c.Bytes()); err != nil {
		return nil, err
	}
	h, payload, err := Read(rw, make([]byte, ScratchSize))
	if err != nil {
		return nil, err
	}
	if h.Kind != Reply || len(payload) == 0 {
		return nil, Corrupt("type %d for an answer to the hello", h.Kind)
	}
	if err := fabric.ErrorOf(payload[0], string(payload[1:])); err != nil {
		return nil, err
	}
	if len(payload) < 1+ProofSize {
		return nil, Corrupt("an answer of %d bytes to the hello", len(payload))
	}
	want := prove(token, "target", &s, &c)
	if !hmac.Equal(payload[1:1+ProofSize], want[:]) {
		return nil, fmt.Errorf("%w: the target does not know the token", fabric.ErrRefused)
	}
	return payload[1+ProofSize:], nil
}

// Welcome is the target's part of the hello, up to Answer.
func Welcome(rw io.ReadWriter, token string) (s ServerHello, c ClientHello, err error) {
	s.Token = token != ""
	random(s.Nonce[:])
	if _, err := rw.Write(s.Bytes()); err != nil {
		return s, c, err
	}
	b := make([]byte, clientHelloSize)
	if _, err := io.ReadFull(rw, b); err != nil {
		return s, c, err
	}
	if c, err = parseClientHello(b); err != nil {
		return s, c, err
	}
	if want := prove(token, "client", &s, &c); !hmac.Equal(c.Proof[:], want[:]) {
		return s, c, fmt.Errorf("%w: the token is not this target's", fabric.ErrRefused)
	}
	return s, c, nil
}

// Answer is the target's last word of the hello.
func Answer(w io.Writer, token string, s *ServerHello, c *ClientHello, greeting []byte, err error) error {
	payload := []byte{fabric.CodeOf(err)}
	if err != nil {
		payload = append(payload, Cut(err.Error())...)
	} else {
		proof := prove(token, "target", s, c)
		payload = append(append(payload, proof[:]...), greeting...)
	}
	_, werr := w.Write(Control(nil, Reply, 0, payload))
	return werr
}

// Cut bounds an error's text.
func Cut(s string) string { return s[:min(len(s), fabric.MaxErrorText)] }
