package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// Magic opens a session on the socket.
const Magic = "CKP1"

// Limits of a frame.
const (
	MaxJSON    = 1 << 20
	MaxPayload = 100<<20 + 8 + 4096
	MaxFDs     = 64
	MaxRanges  = 4096
)

// Message is any message of a session; T says which fields count. The meaning
// of each is in PROTOCOL.md.
type Message struct {
	T       string `json:"t"`
	Version int    `json:"version,omitempty"`
	Client  string `json:"client,omitempty"`
	Node    string `json:"node,omitempty"`
	Daemon  string `json:"daemon,omitempty"`

	SlotSize    int64 `json:"slot_size,omitempty"`
	SegmentSize int64 `json:"segment_size,omitempty"`
	MaxHeader   int64 `json:"max_header,omitempty"`

	Run     string             `json:"run,omitempty"`
	Step    int64              `json:"step,omitempty"`
	Attempt int                `json:"attempt,omitempty"`
	Rank    int                `json:"rank,omitempty"`
	World   int                `json:"world,omitempty"`
	Size    int64              `json:"size,omitempty"`
	Metrics map[string]float64 `json:"metrics,omitempty"`
	Raw     bool               `json:"raw,omitempty"`
	File    string             `json:"file,omitempty"`
	Meta    map[string]string  `json:"meta,omitempty"`
	Set     string             `json:"set,omitempty"`
	Level   string             `json:"level,omitempty"`

	Segments []Segment `json:"segments,omitempty"`
	Seg      int       `json:"seg,omitempty"`
	Slot     int       `json:"slot,omitempty"`
	Off      int64     `json:"off,omitempty"`
	Len      int64     `json:"len,omitempty"`

	Ranges   [][2]int64 `json:"ranges,omitempty"`
	NoCheck  bool       `json:"no_check,omitempty"`
	Seal     bool       `json:"seal,omitempty"`
	From     string     `json:"from,omitempty"`
	Filled   int64      `json:"filled,omitempty"`
	Degraded []string   `json:"degraded,omitempty"`
	Seconds  int        `json:"seconds,omitempty"`

	Ref       string `json:"ref,omitempty"`
	Pack      int    `json:"pack,omitempty"`
	Complete  bool   `json:"complete,omitempty"`
	ID        string `json:"id,omitempty"`
	Order     *Order `json:"order,omitempty"`
	At        int64  `json:"at,omitempty"`
	Ahead     int    `json:"ahead,omitempty"`
	Lookahead int64  `json:"lookahead,omitempty"`
	Retries   int    `json:"retries,omitempty"`
	Cache     *Cache `json:"cache,omitempty"`

	FDs int `json:"fds,omitempty"`

	Code string `json:"code,omitempty"`
	Text string `json:"message,omitempty"`
	Hint string `json:"hint,omitempty"`
}

// Segment is one piece of shared memory in a lend message.
type Segment struct {
	ID   int    `json:"id"`
	Gen  uint64 `json:"gen"`
	Size int64  `json:"size"`
	Held bool   `json:"held,omitempty"`
}

// Err is the error an error message carries, or nil.
func (m *Message) Err() error {
	if m.T != "error" {
		return nil
	}
	return &Error{Code: m.Code, Message: m.Text, Hint: m.Hint}
}

// ErrorMessage is the message that tells the peer of err.
func ErrorMessage(err error) *Message {
	e := ErrorOf(err)
	return &Message{T: "error", Code: e.Code, Text: e.Message, Hint: e.Hint}
}

// Conn reads and writes frames. One goroutine may read while one writes.
type Conn struct{ U *net.UnixConn }

// Write sends one frame; fds stay the caller's.
func (c *Conn) Write(m *Message, payload []byte, fds ...*os.File) error {
	m.FDs = len(fds)
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("frame %s: %w", m.T, err)
	}
	if len(body) > MaxJSON || len(payload) > MaxPayload || len(fds) > MaxFDs {
		return fmt.Errorf("frame %s of %d+%d bytes and %d descriptors: %w: over the protocol's limit", m.T, len(body), len(payload), len(fds), catalog.ErrInvalid)
	}
	head := make([]byte, 8, 8+len(body))
	binary.LittleEndian.PutUint32(head, uint32(len(body)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(payload)))
	head = append(head, body...)
	if len(fds) > 0 {
		nums := make([]int, len(fds))
		for i, f := range fds {
			nums[i] = int(f.Fd())
		}
		n, _, err := c.U.WriteMsgUnix(head, unix.UnixRights(nums...), nil)
		if err != nil {
			return fmt.Errorf("frame %s: %w", m.T, err)
		}
		head = head[n:]
	}
	bufs := net.Buffers{head, payload}
	if _, err := bufs.WriteTo(c.U); err != nil {
		return fmt.Errorf("frame %s: %w", m.T, err)
	}
	return nil
}

// Read receives one frame. The descriptors are the caller's to close. io.EOF
// means the peer left between frames, io.ErrUnexpectedEOF within one.
func (c *Conn) Read() (m *Message, payload []byte, fds []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	var head [8]byte
	oob := make([]byte, unix.CmsgSpace(4*MaxFDs))
	for got := 0; got < len(head); {
		n, oobn, flags, _, err := c.U.ReadMsgUnix(head[got:], oob)
		more, perr := parseFDs(oob[:oobn])
		fds = append(fds, more...)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, fds, err
		}
		if perr != nil || flags&unix.MSG_CTRUNC != 0 || len(fds) > MaxFDs {
			return nil, nil, fds, fmt.Errorf("frame: %w: too many or damaged descriptors", catalog.ErrInvalid)
		}
		if n == 0 {
			if got == 0 {
				return nil, nil, fds, io.EOF
			}
			return nil, nil, fds, io.ErrUnexpectedEOF
		}
		got += n
	}
	nj, np := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if nj > MaxJSON || np > MaxPayload {
		return nil, nil, fds, fmt.Errorf("frame of %d+%d bytes: %w: over the protocol's limit", nj, np, catalog.ErrInvalid)
	}
	body, err := c.readN(int64(nj))
	if err != nil {
		return nil, nil, fds, fmt.Errorf("frame: %w", err)
	}
	m = new(Message)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, nil, fds, fmt.Errorf("frame: %w: %v", catalog.ErrInvalid, err)
	}
	if m.FDs != len(fds) {
		return nil, nil, fds, fmt.Errorf("frame %s: %w: %d descriptors announced, %d came", m.T, catalog.ErrInvalid, m.FDs, len(fds))
	}
	if np > 0 {
		if payload, err = c.readN(int64(np)); err != nil {
			return nil, nil, fds, fmt.Errorf("frame %s: %w", m.T, err)
		}
	}
	return m, payload, fds, nil
}

// readN reads exactly n bytes into memory that grows with what arrives, so
// that a claim alone allocates nothing. A peer that leaves within a frame is
// io.ErrUnexpectedEOF, never io.EOF.
func (c *Conn) readN(n int64) ([]byte, error) {
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, c.U, n); err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func parseFDs(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []*os.File
	for _, msg := range msgs {
		nums, err := unix.ParseUnixRights(&msg)
		if err != nil {
			return fds, err
		}
		for _, n := range nums {
			unix.CloseOnExec(n)
			fds = append(fds, os.NewFile(uintptr(n), "passed"))
		}
	}
	return fds, nil
}

func closeAll(fds []*os.File) {
	for _, f := range fds {
		f.Close()
	}
}

// RefuseConn answers a connection of either half, before its first bytes were
// read, with an error that both understand well enough, and leaves closing to
// the caller.
func RefuseConn(c *net.UnixConn, err error) {
	// A session's client reads frames, an HTTP client reads HTTP; which one it
	// is shows only in bytes that a stranger need not send. The frame is given
	// to all: to an HTTP client it is a malformed answer that carries the text.
	conn := Conn{U: c}
	_ = conn.Write(ErrorMessage(err), nil)
}
