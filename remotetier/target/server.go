package target

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// ServerOptions of a Server; the zero value works.
type ServerOptions struct {
	Domain  string        // what fails together with this target; told to clients
	DiskOps int           // writes, commits and look-ups on the disk at one time; default 16
	MaxPuts int           // columns being written at one time; default 1024
	Grace   time.Duration // how long a client that is gone may come back to its columns; default 10 s
	Traffic traffic.Options
	Trace   ServerTrace
}

// ServerTrace is told what a Server met; nil fields are off.
type ServerTrace struct {
	// GaveUp: a column that was being written is gone with its client.
	GaveUp func(key remotetier.Key)
	// Failed: an answer was an error other than fs.ErrNotExist.
	Failed func(op string, err error)
}

// Stats count what a Server did since it was made.
type Stats struct {
	Conns     int   // open now
	Sessions  int   // clients known now
	Puts      int   // columns being written now
	Columns   int64 // committed
	Removed   int64 // columns asked to be removed
	BytesIn   int64 // of columns, received
	BytesOut  int64 // of columns, sent
	Checked   int64 // bytes of columns that were checked here and not sent
	Exchanges int64
	Failed    int64 // exchanges answered with an error
	Corrupt   int64 // columns refused, or found, that do not fit their own sums
	DiskErrs  int64 // operations that the disk failed, for no reason that a client gave
	Traffic   [traffic.Classes]traffic.Stats
}

// Server serves a Dir over fabrics. It is a fabric.Handler.
type Server struct {
	dir   *Dir
	opt   ServerOptions
	gate  *traffic.Gate  // for bytes of columns
	disk  *traffic.Slots // for each disk operation
	look  *traffic.Slots // a slot for each check, so that they leave buffers to others
	count struct {
		columns, removed, in, out, checked, exchanges, failed, corrupt, diskErrs atomic.Int64
	}

	mu struct {
		sync.Mutex
		sessions map[fabric.Session]*session
		puts     int // columns open
	}
}

var _ fabric.Handler = (*Server)(nil)

// NewServer makes a Server of a directory. The caller closes the Dir after
// Serve has returned.
func NewServer(dir *Dir, opt ServerOptions) (*Server, error) {
	if err := CheckDomain(opt.Domain); err != nil {
		return nil, err
	}
	if opt.DiskOps <= 0 {
		opt.DiskOps = 16
	}
	if opt.MaxPuts <= 0 {
		opt.MaxPuts = 1024
	}
	if opt.Grace <= 0 {
		opt.Grace = 10 * time.Second
	}
	s := &Server{dir: dir, opt: opt, gate: traffic.New(opt.Traffic), disk: traffic.NewSlots(opt.DiskOps), look: traffic.NewSlots(maxChecks)}
	s.mu.sessions = map[fabric.Session]*session{}
	return s, nil
}

// Serve answers the clients of all listeners until ctx ends, and then gives up
// what was being written.
func (s *Server) Serve(ctx context.Context, listeners ...fabric.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error { return l.Serve(ctx, s) })
	}
	g.Go(func() error { s.sweep(ctx); return nil })
	err := g.Wait()
	s.giveUp(func(*session) bool { return true })
	return err
}

// Stats gives the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Sessions: len(s.mu.sessions), Puts: s.mu.puts,
		Columns: s.count.columns.Load(), BytesIn: s.count.in.Load(), BytesOut: s.count.out.Load(), Checked: s.count.checked.Load(),
		Exchanges: s.count.exchanges.Load(), Failed: s.count.failed.Load(), Corrupt: s.count.corrupt.Load(),
		Removed: s.count.removed.Load(), DiskErrs: s.count.diskErrs.Load(),
		Traffic: s.gate.Stats(),
	}
	for _, ss := range s.mu.sessions {
		st.Conns += ss.conns
	}
	return st
}

// Greeting is the target's name and domain.
func (s *Server) Greeting() []byte { return greeting(s.dir.Name(), s.opt.Domain) }

var opNames = map[byte]string{
	opCreate: "create", opWrite: "write", opCommit: "commit", opAbort: "abort", opOpen: "open",
	opRead: "read", opRemove: "remove", opList: "list", opSpace: "space", opCheck: "check",
}

// serve does what the request says.
func (h *handler) serve(ctx context.Context) (reply []byte, err error) {
	switch h.op {
	case opCreate, opWrite, opCommit, opAbort:
		return nil, h.servePut(ctx)
	case opOpen:
		return h.open(ctx)
	case opRead:
		return nil, h.read(ctx)
	case opRemove:
		key := h.m.key(false)
		if err := h.m.end("remove"); err != nil {
			return nil, err
		}
		h.count.removed.Add(1)
		return nil, h.onDisk(ctx, func() error { return h.dir.Remove(ctx, key) })
	case opList:
		return h.list(ctx)
	case opCheck:
		return h.check(ctx)
	case opSpace:
		if err := h.m.end("space"); err != nil {
			return nil, err
		}
		sp, err := h.dir.Space(ctx) // no slot: it is how clients find out whether the target lives
		reply = binary.LittleEndian.AppendUint64(nil, uint64(sp.Total))
		return binary.LittleEndian.AppendUint64(reply, uint64(sp.Free)), err
	}
	return nil, fmt.Errorf("operation %d: %w: this target does not know it", h.op, catalog.ErrInvalid)
}

// handler is one exchange with the server it belongs to.
type handler struct {
	*Server
	session fabric.Session
	x       fabric.Exchange
	op      byte
	class   traffic.Class
	m       *message
}

// Answer answers one exchange of a client.
func (s *Server) Answer(ctx context.Context, id fabric.Session, x fabric.Exchange) ([]byte, error) {
	h := &handler{Server: s, session: id, x: x, m: &message{b: x.Request()}}
	h.op, h.class = h.m.u8(), traffic.Class(h.m.u8())
	s.count.exchanges.Add(1)
	reply, err := h.classed(ctx)
	if err != nil {
		s.count.failed.Add(1)
		if f := s.opt.Trace.Failed; f != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			f(opNames[h.op], err)
		}
	}
	return reply, err
}

// classed serves for the class that the client said, or the usual one.
func (h *handler) classed(ctx context.Context) ([]byte, error) {
	if int(h.class) >= traffic.Classes {
		return nil, fmt.Errorf("%v: %w: this target does not know it", h.class, catalog.ErrInvalid)
	}
	usual := traffic.Drain
	switch h.op {
	case opOpen, opRead:
		usual = traffic.Restore
	case opCheck:
		usual = traffic.Scrub
	}
	h.class = h.class.Or(usual)
	return h.serve(traffic.WithClass(ctx, h.class))
}

// onDisk does f when there is a slot for it.
func (s *Server) onDisk(ctx context.Context, f func() error) error {
	if err := s.disk.Take(ctx); err != nil {
		return err
	}
	defer s.disk.Give()
	err := f()
	if err != nil && ctx.Err() == nil && catalog.ClassOf(err) == nil {
		s.count.diskErrs.Add(1)
	}
	return err
}

// open tells the size of a column, and sends its first and last page: that is
// what every reader wants next.
func (h *handler) open(ctx context.Context) (reply []byte, err error) {
	key := h.m.key(false)
	if err := h.m.end("open"); err != nil {
		return nil, err
	}
	err = h.withFile(ctx, key, func(f fabric.File, size int64) error {
		reply = binary.LittleEndian.AppendUint64(nil, uint64(size))
		if h.x.In() != 2*pageSize || size < 2*pageSize {
			return nil
		}
		if err := h.x.PushFile(ctx, f, 0, pageSize); err != nil {
			return err
		}
		h.count.out.Add(2 * pageSize)
		return h.x.PushFile(ctx, f, size-pageSize, pageSize)
	})
	return reply, err
}

// read sends a range of a column.
func (h *handler) read(ctx context.Context) error {
	off, key := h.m.size(), h.m.key(false)
	if err := h.m.end("read"); err != nil {
		return err
	}
	return h.withFile(ctx, key, func(f fabric.File, size int64) error {
		n := min(int64(h.x.In()), max(0, size-off))
		h.count.out.Add(n)
		return h.x.PushFile(ctx, f, off, n)
	})
}

// withFile opens a column, through the page cache, for f, when it is the turn of its class.
func (h *handler) withFile(ctx context.Context, key remotetier.Key, f func(fabric.File, int64) error) error {
	leave, err := h.gate.Enter(ctx, h.class, int64(h.x.In()))
	if err != nil {
		return err
	}
	defer leave()
	var file fabric.File
	var size int64
	var done func() error
	if err := h.onDisk(ctx, func() (err error) {
		file, size, done, err = h.dir.file(key)
		return err
	}); err != nil {
		return err
	}
	err = f(file, size)
	return errors.Join(err, done())
}

// list sends as many entries as fit.
func (h *handler) list(ctx context.Context) ([]byte, error) {
	after, prefix := h.m.key(true), h.m.string()
	if err := h.m.end("list"); err != nil {
		return nil, err
	}
	buf, err := h.x.Buffer(ctx)
	if err != nil {
		return nil, err
	}
	defer buf.Release()
	room := min(h.x.In(), len(buf.Bytes))
	page, last := &message{b: buf.Bytes[:0]}, byte(1)
	err = h.onDisk(ctx, func() error {
		for e, err := range h.dir.list(ctx, prefix, after) {
			if err != nil {
				return err
			}
			if len(page.b)+entrySize(e) > room {
				last = 0
				return nil
			}
			page.putU64(uint64(e.Size)).putKey(e.Key)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if last == 0 && len(page.b) == 0 {
		return nil, fmt.Errorf("list: %w: no entry fits %d bytes", catalog.ErrInvalid, room)
	}
	return []byte{last}, h.x.Push(ctx, page.b)
}

// entrySize is the size of an entry in a listing, in bytes.
func entrySize(e remotetier.Entry) int { return 8 + 2 + len(e.Key.Blob) + 8 + 1 }
