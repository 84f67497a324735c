package ckpt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// peer speaks the daemon's side of the protocol and keeps shards in files. It
// is here to misbehave in ways the real daemon cannot be made to; the real one
// is tested against in package cmd/ckpt.
type peer struct {
	t        testing.TB
	socket   string
	dir      string
	segments int   // of the arena, 2 slots each
	slot     int64 // bytes

	mu       sync.Mutex
	attempts map[string]int
	shards   map[string]*peerShard // by SetID.ShardName
	bad      []string              // shards a checked load found damaged
	asked    []wire.Message
	held     int // segments lent as held
	arena    []*os.File
	used     []bool
	freed    *sync.Cond

	// Knobs; nil means well-behaved.
	admit func(*wire.Message) error
	slotf func(n int, m *wire.Message) error // before slot n is taken
	away  bool                               // shards are not on this node

	dataset *peerDataset // nil: none
}

type peerShard struct {
	set    catalog.SetID
	rank   int
	world  int
	path   string
	whole  []byte // the remote copy
	header *shardfile.Header
	seal   *catalog.Seal
	sealed bool
}

func newPeer(t testing.TB) *peer {
	dir := t.TempDir()
	p := &peer{
		t: t, dir: dir, socket: filepath.Join(dir, "s"), segments: 4, slot: 1 << 20,
		attempts: map[string]int{}, shards: map[string]*peerShard{},
	}
	p.freed = sync.NewCond(&p.mu)
	t.Cleanup(func() { closeFiles(p.arena) }) // after serve's
	p.serve()
	return p
}

// serve listens until the test ends or the returned function is called.
func (p *peer) serve() (stop func()) {
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				p.connection(c.(*net.UnixConn))
			})
		}
	})
	stop = sync.OnceFunc(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	p.t.Cleanup(stop)
	return stop
}

func (p *peer) connection(u *net.UnixConn) {
	var magic [4]byte
	if _, err := io.ReadFull(u, magic[:]); err != nil {
		return
	}
	if string(magic[:]) != wire.Magic {
		p.http(u, io.MultiReader(bytes.NewReader(magic[:]), u))
		return
	}
	c := &peerConn{peer: p, conn: wire.Conn{U: u}, had: map[int]bool{}}
	defer c.giveBack()
	for {
		m, payload, fds, err := c.conn.Read()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.asked = append(p.asked, *m)
		p.mu.Unlock()
		err = c.handle(m, payload, fds)
		closeFiles(fds)
		if errors.Is(err, errHangUp) {
			return
		}
		if err != nil && c.conn.Write(wire.ErrorMessage(err), nil) != nil {
			return
		}
	}
}

var errHangUp = errors.New("hang up")

type peerConn struct {
	*peer
	conn  wire.Conn
	had   map[int]bool // segments this connection was given
	lent  []int
	shard *peerShard
	data  *os.File
	left  int64
	n     int
}

func (c *peerConn) giveBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.lent {
		c.used[i] = false
	}
	c.lent = nil
	c.freed.Broadcast()
	if c.data != nil {
		c.data.Close()
		c.data = nil
	}
}

func (c *peerConn) handle(m *wire.Message, payload []byte, fds []*os.File) error {
	switch m.T {
	case "hello":
		return c.conn.Write(&wire.Message{T: "welcome", Version: 1, Node: "n1", Daemon: "test", SlotSize: c.slot, SegmentSize: 2 * c.slot, MaxHeader: 100 << 20}, nil)
	case "dataset", "pack", "reader":
		return c.datasets(m, fds)
	case "save":
		return c.save(m, payload)
	case "slot":
		return c.take(m)
	case "seal":
		return c.seal()
	case "load":
		if c.dataset != nil {
			return c.datasets(m, fds)
		}
		return c.load(m, fds)
	case "lease":
		if _, err := c.find(m.Set, 0); err != nil {
			return err
		}
		return c.conn.Write(&wire.Message{T: "leased"}, nil)
	}
	return fmt.Errorf("%s: %w", m.T, catalog.ErrInvalid)
}

// set changes the peer while it runs.
func (p *peer) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (c *peerConn) save(m *wire.Message, payload []byte) error {
	c.mu.Lock()
	admit := c.admit
	c.mu.Unlock()
	if admit != nil {
		if err := admit(m); err != nil {
			return err
		}
	}
	h, err := shardfile.ParseHeader(payload, m.Size)
	if err != nil {
		return err
	}
	id := catalog.SetID{Run: catalog.Run(m.Run), Step: m.Step, Attempt: m.Attempt}
	s := &peerShard{set: id, rank: m.Rank, world: m.World, path: filepath.Join(c.dir, fmt.Sprintf("%d-%d-%d", m.Step, m.Attempt, m.Rank)), header: h}
	c.mu.Lock()
	if old := c.shards[id.ShardName(m.Rank)]; old != nil && old.sealed {
		c.mu.Unlock()
		return fmt.Errorf("save %v: %w", id, fs.ErrExist)
	}
	c.mu.Unlock()
	if c.data, err = os.Create(s.path); err != nil {
		return err
	}
	c.data.WriteAt(payload, 0)
	c.shard, c.left, c.n = s, m.Size, 0
	if err := c.conn.Write(&wire.Message{T: "admitted", Set: id.String()}, nil); err != nil {
		return errHangUp
	}
	return c.lend()
}

func (c *peerConn) lend() error {
	c.mu.Lock()
	for c.arena == nil || len(c.lent) == 0 {
		if c.arena == nil {
			for i := range c.segments {
				fd, _ := unix.MemfdCreate(fmt.Sprint("seg", i), unix.MFD_CLOEXEC)
				f := os.NewFile(uintptr(fd), "seg")
				f.Truncate(2 * c.slot)
				c.arena = append(c.arena, f)
			}
			c.used = make([]bool, c.segments)
		}
		for i := range c.used {
			if !c.used[i] && len(c.lent) < max(1, c.segments/2) {
				c.used[i] = true
				c.lent = append(c.lent, i)
			}
		}
		if len(c.lent) == 0 {
			c.freed.Wait()
		}
	}
	m := &wire.Message{T: "lend"}
	var fds []*os.File
	for _, i := range c.lent {
		m.Segments = append(m.Segments, wire.Segment{ID: i, Gen: 7, Size: 2 * c.slot, Held: c.had[i]})
		if c.had[i] {
			c.held++
		} else {
			fds = append(fds, c.arena[i])
		}
		c.had[i] = true
	}
	c.mu.Unlock()
	return c.conn.Write(m, nil, fds...)
}

func (c *peerConn) take(m *wire.Message) error {
	c.mu.Lock()
	slotf := c.slotf
	c.mu.Unlock()
	if slotf != nil {
		if err := slotf(c.n, m); err != nil {
			return err
		}
	}
	c.n++
	buf := make([]byte, m.Len)
	if _, err := c.arena[m.Seg].ReadAt(buf, int64(m.Slot)*c.slot); err != nil {
		return err
	}
	skip := min(max(c.shard.header.DataStart-m.Off, 0), m.Len)
	if _, err := c.data.WriteAt(buf[skip:], m.Off+skip); err != nil {
		return err
	}
	c.left -= m.Len
	return c.conn.Write(&wire.Message{T: "free", Seg: m.Seg, Slot: m.Slot}, nil)
}

func (c *peerConn) seal() error {
	if c.left != 0 {
		return fmt.Errorf("seal: %w: %d bytes are missing", catalog.ErrInvalid, c.left)
	}
	s := c.shard
	s.whole, _ = os.ReadFile(s.path)
	var err error
	if s.seal, err = shardfile.SealOf(bytes.NewReader(s.whole), int64(len(s.whole)), s.set.ShardName(s.rank)); err != nil {
		return err
	}
	s.sealed = true
	c.giveBack()
	c.mu.Lock()
	c.shards[s.set.ShardName(s.rank)] = s
	c.mu.Unlock()
	return c.conn.Write(&wire.Message{T: "sealed", Set: s.set.String(), Level: "staged"}, nil)
}

func (p *peer) find(set string, rank int) (*peerShard, error) {
	id, err := parseID(set)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shards[id.ShardName(rank)]
	if s == nil {
		return nil, fmt.Errorf("%s rank %d: %w", set, rank, fs.ErrNotExist)
	}
	return s, nil
}

// seen is a copy of what find gives, and whether shards are away.
func (p *peer) seen(set string, rank int) (*peerShard, bool, error) {
	s, err := p.find(set, rank)
	if err != nil {
		return nil, false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c, seal := *s, *s.seal
	c.seal = &seal
	return &c, p.away, nil
}

func (c *peerConn) load(m *wire.Message, fds []*os.File) error {
	s, away, err := c.seen(m.Set, m.Rank)
	if err != nil {
		return err
	}
	ranges := m.Ranges
	if ranges == nil {
		ranges = [][2]int64{{0, s.seal.Size}}
	}
	var payload []byte
	if m.Seal {
		payload = s.seal.Marshal()
	}
	if !away && m.From != "remote" && m.From != "peer" {
		f, err := os.Open(s.path)
		if err != nil {
			return err
		}
		defer f.Close()
		if m.NoCheck || shardfile.Verify(f, s.seal) == nil {
			return c.conn.Write(&wire.Message{T: "loaded", From: "local", Size: s.seal.Size}, payload, f)
		}
		c.mu.Lock()
		c.bad = append(c.bad, s.set.ShardName(s.rank))
		c.mu.Unlock()
	}
	if m.From == "local" || s.whole == nil || len(fds) != 1 {
		return fmt.Errorf("no good copy: %w", catalog.ErrCorrupt)
	}
	for _, r := range ranges {
		if _, err := fds[0].WriteAt(s.whole[r[0]:r[0]+r[1]], r[0]-m.Off); err != nil {
			return err
		}
	}
	return c.conn.Write(&wire.Message{T: "loaded", From: "remote", Size: s.seal.Size, Degraded: []string{"t1"}}, payload)
}

// http answers requests one after the other.
func (p *peer) http(w io.Writer, r io.Reader) {
	in := bufio.NewReader(r)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		v, raw, err := p.answer(req, body)
		status, head := 200, http.Header{}
		if err != nil {
			e := wire.ErrorOf(err)
			status, v = e.Status(), map[string]any{"error": e}
		}
		if raw == nil {
			raw, _ = json.Marshal(v)
		}
		resp := http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: head, Body: io.NopCloser(bytes.NewReader(raw)), ContentLength: int64(len(raw))}
		if resp.Write(w) != nil {
			return
		}
	}
}

func (p *peer) answer(req *http.Request, body []byte) (any, []byte, error) {
	switch req.URL.Path {
	case "/v1/attach":
		var a wire.AttachRequest
		json.Unmarshal(body, &a)
		p.mu.Lock()
		defer p.mu.Unlock()
		if _, ok := p.attempts[a.Launch]; !ok {
			p.attempts[a.Launch] = len(p.attempts) + 1
		}
		return wire.AttachReply{Attempt: p.attempts[a.Launch]}, nil, nil
	case "/v1/set", "/v1/manifest":
		m, root, err := p.manifest(req.URL.Query().Get("ref"))
		if err != nil {
			return nil, nil, err
		}
		if req.URL.Path == "/v1/manifest" {
			return nil, m, nil
		}
		var man catalog.Manifest
		json.Unmarshal(m, &man)
		return wire.SetDetail{Set: wire.Set{ID: man.Set.String(), State: catalog.Committed, Level: catalog.Remote, Manifest: root}}, nil, nil
	case "/v1/wait":
		return nil, nil, fmt.Errorf("wait: %w", catalog.ErrIncomplete)
	case "/v1/verify":
		return nil, []byte("{\"progress\":{\"what\":\"a\",\"done\":1}}\n\n{\"progress\":{\"done\":2}}\n{\"result\":{\"sets\":3}}\n"), nil
	case "/v1/catalog/fsck":
		return nil, []byte("{\"progress\":{\"done\":1}}\n{\"error\":{\"code\":\"corrupt\",\"message\":\"x\"}}\n"), nil
	case "/v1/catalog/rebuild":
		return nil, []byte("{\"progress\":{\"done\":1}}\n"), nil
	case "/v1/watch":
		return nil, []byte("{\"id\":\"a@1#1\"}\n{\"result\":{\"id\":\"a@2#1\"}}\n{\"id\":\"a@3#1\"}\n"), nil
	}
	return nil, nil, fmt.Errorf("%s: %w", req.URL.Path, fs.ErrNotExist)
}

func (p *peer) manifest(refText string) ([]byte, catalog.Digest, error) {
	ref, err := catalog.ParseRef(refText)
	if err != nil {
		return nil, catalog.Digest{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *peerShard
	for _, s := range p.shards {
		if s.set.Run == ref.Run && (ref.Step == catalog.Latest || ref.Step == s.set.Step) && (best == nil || best.set.Compare(s.set) < 0) {
			best = s
		}
	}
	if best == nil {
		return nil, catalog.Digest{}, fmt.Errorf("%v: %w", ref, fs.ErrNotExist)
	}
	m := &catalog.Manifest{Version: 1, Set: best.set, World: best.world}
	for rank := range best.world {
		s := p.shards[best.set.ShardName(rank)]
		if s == nil {
			return nil, catalog.Digest{}, fmt.Errorf("%v rank %d: %w", ref, rank, catalog.ErrIncomplete)
		}
		m.Shards = append(m.Shards, shardfile.ShardOf(s.header, rank, "n1", s.seal))
	}
	b, _, err := m.Marshal()
	return b, sha256.Sum256(b), err
}

// dial connects a client to the peer.
func (p *peer) dial() *Client {
	c, err := Dial(context.Background(), p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}
