package target

import (
	"encoding/binary"
	"fmt"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// Operations of the protocol; PROTOCOL.md in package fabric has them.
const (
	opCreate = 1
	opWrite  = 2
	opCommit = 3
	opAbort  = 4
	opOpen   = 5
	opRead   = 6
	opRemove = 7
	opList   = 8
	opSpace  = 9
	opCheck  = 10
)

const (
	pageSize  = 4096
	maxDomain = 64
)

// message builds and takes apart requests and replies. A message that is too
// short, or says what cannot be, is bad from then on.
type message struct {
	b   []byte
	bad bool
}

// newMessage begins a request: its class is put in when it is sent.
func newMessage(op byte) *message { return &message{b: []byte{op, byte(traffic.Unset)}} }

func (m *message) putU8(v byte) *message {
	m.b = append(m.b, v)
	return m
}

func (m *message) putU64(v uint64) *message {
	m.b = binary.LittleEndian.AppendUint64(m.b, v)
	return m
}

func (m *message) putString(s string) *message {
	m.b = binary.LittleEndian.AppendUint16(m.b, uint16(len(s)))
	m.b = append(m.b, s...)
	return m
}

func (m *message) putKey(k remotetier.Key) *message {
	return m.putString(k.Blob).putU64(k.Generation).putU8(byte(k.Column))
}

func (m *message) take(n int) []byte {
	if m.bad || len(m.b) < n {
		m.bad = true
		return make([]byte, n)
	}
	p := m.b[:n]
	m.b = m.b[n:]
	return p
}

func (m *message) u8() byte    { return m.take(1)[0] }
func (m *message) u64() uint64 { return binary.LittleEndian.Uint64(m.take(8)) }

func (m *message) size() int64 {
	v := m.u64()
	if v > 1<<62 {
		m.bad = true
		return 0
	}
	return int64(v)
}

func (m *message) string() string {
	n := int(binary.LittleEndian.Uint16(m.take(2)))
	if n > remotetier.MaxBlobName {
		m.bad = true
		return ""
	}
	return string(m.take(n))
}

// key reads a key; the empty one is allowed where none says so.
func (m *message) key(none bool) remotetier.Key {
	k := remotetier.Key{Blob: m.string()}
	k.Generation = m.u64()
	k.Column = int(m.u8())
	if !m.bad && !(none && k == remotetier.Key{}) && k.Check() != nil {
		m.bad = true
	}
	return k
}

// end says whether that was a good message, and all of it.
func (m *message) end(what string) error {
	if m.bad || len(m.b) > 0 {
		return fmt.Errorf("%s: %w: the message is not understood", what, catalog.ErrCorrupt)
	}
	return nil
}

// greeting is what a target is called.
func greeting(name, domain string) []byte {
	b := append([]byte{byte(len(name))}, name...)
	return append(append(b, byte(len(domain))), domain...)
}

func parseGreeting(b []byte) (name, domain string, err error) {
	m := &message{b: b}
	name = string(m.take(int(m.u8())))
	domain = string(m.take(int(m.u8())))
	if m.bad = m.bad || remotetier.CheckTargetName(name) != nil || CheckDomain(domain) != nil; m.bad {
		return "", "", m.end("greeting")
	}
	return name, domain, m.end("greeting")
}

// CheckDomain reports what is wrong with the name of a failure domain.
func CheckDomain(d string) error {
	if d == "" {
		return nil
	}
	if len(d) > maxDomain || remotetier.CheckTargetName(d) != nil {
		return fmt.Errorf("domain %.80q: %w: want at most %d letters, digits and any of -_.:@/", d, catalog.ErrInvalid, maxDomain)
	}
	return nil
}
