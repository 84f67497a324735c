package target

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

// session is a client on all its connections. The Server's lock guards it.
type session struct {
	conns int
	left  time.Time // when the last connection went
	puts  map[uint64]*put
	done  []uint64 // puts that are over and remembered, oldest first
}

// maxDone is how many puts of a session that are over are remembered: for a
// client that asks again, and for a create that comes after its abort, because
// the client gave up the connection that it was on.
const maxDone = 256

// wanted is what a client says of a column when it begins it.
type wanted struct {
	key  remotetier.Key
	size int64
	mode remotetier.CreateMode
}

// put is a column being written by a client.
type put struct {
	wanted
	turn chan struct{} // holds a token while nobody works on the put

	// What follows belongs to who has the token.
	w    remotetier.ColumnWriter // nil: not begun, or over
	off  int64
	sums *sums
	over bool  // committed, failed or given up
	err  error // the answer to a commit, when it is over

	mu struct {
		sync.Mutex
		cut context.CancelFunc // ends the wait for bytes that is under way; nil: none
	}
}

// Join counts a connection of a client.
func (s *Server) Join(id fabric.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ss := s.mu.sessions[id]
	if ss == nil {
		ss = &session{puts: map[uint64]*put{}}
		s.mu.sessions[id] = ss
	}
	ss.conns++
}

// Leave counts it out. What the client was writing waits for it for a while.
func (s *Server) Leave(id fabric.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ss := s.mu.sessions[id]
	if ss == nil {
		return
	}
	if ss.conns--; ss.conns > 0 {
		return
	}
	if ss.left = time.Now(); len(ss.puts) == 0 {
		delete(s.mu.sessions, id)
	}
}

// sweep gives up what clients left behind, until ctx ends.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(max(s.opt.Grace/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.giveUp(func(ss *session) bool { return ss.conns <= 0 && time.Since(ss.left) >= s.opt.Grace })
		}
	}
}

// giveUp ends the sessions that are over, and their puts.
func (s *Server) giveUp(over func(*session) bool) {
	s.mu.Lock()
	var puts []*put
	for id, ss := range s.mu.sessions {
		if !over(ss) {
			continue
		}
		for _, p := range ss.puts {
			puts = append(puts, p)
		}
		delete(s.mu.sessions, id)
	}
	s.mu.Unlock()
	for _, p := range puts {
		if p.take(context.Background()) != nil {
			continue // Background does not end
		}
		open := !p.over
		_ = s.end(p, errGivenUp) // what stays in staging is swept when the directory is opened
		p.release()
		if open && s.opt.Trace.GaveUp != nil {
			s.opt.Trace.GaveUp(p.key)
		}
	}
}

var errGivenUp = fmt.Errorf("the column was given up: %w", catalog.ErrUnavailable)

// take waits for the put's turn, ending a pull that still waits for bytes:
// who comes with the same put comes because that one is lost.
func (p *put) take(ctx context.Context) error {
	for {
		p.mu.Lock()
		if p.mu.cut != nil {
			p.mu.cut()
		}
		p.mu.Unlock()
		select {
		case <-p.turn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond): // the pull may have begun just after
		}
	}
}

func (p *put) release() { p.turn <- struct{}{} }

// end closes a put's file, once, and sets what a commit is answered.
func (s *Server) end(p *put, result error) error {
	if p.over {
		return nil
	}
	p.over, p.err, p.sums = true, result, nil
	s.mu.Lock()
	s.mu.puts--
	s.mu.Unlock()
	if p.w == nil {
		return nil
	}
	err := p.w.Close()
	p.w = nil
	return err
}

// servePut does what belongs to a column being written.
func (h *handler) servePut(ctx context.Context) error {
	id := h.m.u64()
	switch h.op {
	case opCreate:
		size, key := h.m.size(), h.m.key(false)
		mode := remotetier.CreateMode(h.m.u8())
		if err := errors.Join(h.m.end("create"), mode.Check()); err != nil {
			return err
		}
		return h.create(ctx, id, wanted{key, size, mode})
	case opWrite:
		off := h.m.size()
		if err := h.m.end("write"); err != nil {
			return err
		}
		return h.withPut(ctx, id, func(p *put) error { return h.write(ctx, p, off) })
	case opCommit:
		if err := h.m.end("commit"); err != nil {
			return err
		}
		return h.commit(ctx, id)
	}
	if err := h.m.end("abort"); err != nil {
		return err
	}
	return h.abort(ctx, id)
}

// create begins a column, once.
func (h *handler) create(ctx context.Context, id uint64, want wanted) error {
	p, isNew, err := h.enter(id, want)
	if err != nil {
		return err
	}
	if !isNew {
		if err := p.take(ctx); err != nil {
			return err
		}
		defer p.release()
		if p.over {
			return p.err
		}
		return nil
	}
	defer p.release() // it was made taken
	err = h.onDisk(ctx, func() (err error) {
		p.w, err = h.dir.Create(ctx, p.key, p.size, p.mode)
		return err
	})
	if err != nil {
		_ = h.end(p, err) // nothing was begun
		h.forget(id)
	}
	return err
}

// enter finds a put, or makes one that is taken.
func (h *handler) enter(id uint64, want wanted) (p *put, isNew bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ss := h.mu.sessions[h.session]
	switch {
	case ss == nil:
		return nil, false, errGivenUp
	case ss.puts[id] != nil:
		if p = ss.puts[id]; p.wanted == (wanted{}) {
			return nil, false, errGivenUp // before it was begun
		}
		if p.wanted != want {
			return nil, false, fmt.Errorf("create %v: %w: the put is of %v", want.key, catalog.ErrInvalid, p.key)
		}
		return p, false, nil
	case h.mu.puts >= h.opt.MaxPuts || len(ss.puts) >= h.opt.MaxPuts+maxDone:
		return nil, false, fmt.Errorf("create %v: %w: %d columns are being written", want.key, catalog.ErrUnavailable, h.mu.puts)
	}
	p = &put{wanted: want, turn: make(chan struct{}, 1), sums: new(sums)}
	p.sums.size = want.size
	ss.puts[id] = p
	h.mu.puts++
	return p, true, nil
}

func (h *handler) forget(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ss := h.mu.sessions[h.session]; ss != nil {
		delete(ss.puts, id)
	}
}

func (h *handler) find(id uint64) *put {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ss := h.mu.sessions[h.session]; ss != nil {
		return ss.puts[id]
	}
	return nil
}

// withPut does f when it is the put's turn.
func (h *handler) withPut(ctx context.Context, id uint64, f func(*put) error) error {
	p := h.find(id)
	if p == nil {
		return errGivenUp
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.release()
	return f(p)
}

// write pulls the client's bytes, a Buffer at a time, and appends them.
func (h *handler) write(ctx context.Context, p *put, off int64) error {
	n := int64(h.x.Out())
	switch {
	case p.over:
		if p.err != nil {
			return p.err
		}
		return fmt.Errorf("write %v: %w: it is committed", p.key, catalog.ErrInvalid)
	case off+n <= p.off:
		return nil // the reply was lost
	case off > p.off || n > p.size-off:
		return fmt.Errorf("write %v: %w: %d bytes at %d, where %d of %d are written", p.key, catalog.ErrInvalid, n, off, p.off, p.size)
	}
	leave, err := h.turn(ctx, p, n)
	if err != nil {
		return err
	}
	defer leave()
	for h.x.Out() > 0 {
		took, err := h.piece(ctx, p, off)
		if err != nil {
			return err
		}
		off += took
	}
	return nil
}

// piece pulls one Buffer's worth and writes what of it is new.
func (h *handler) piece(ctx context.Context, p *put, off int64) (int64, error) {
	buf, b, err := h.pull(ctx, p)
	if err != nil {
		return 0, err
	}
	defer buf.Release()
	fresh := b[min(p.off-off, int64(len(b))):]
	if len(fresh) == 0 {
		return int64(len(b)), nil
	}
	err = h.onDisk(ctx, func() error { return p.w.Write(ctx, fresh) })
	if err != nil {
		if ctx.Err() == nil {
			_ = h.end(p, err) // how much is on the disk is not known
		}
		return 0, err
	}
	p.off += int64(len(fresh))
	p.sums.add(fresh)
	h.count.in.Add(int64(len(fresh)))
	return int64(len(b)), nil
}

// lost ends ctx when another exchange of the same put comes: who waits, or
// pulls, for a client that is not there any more gives way. done is called
// before anything reaches the file.
func (p *put) lost(ctx context.Context) (_ context.Context, done func()) {
	ctx, cut := context.WithCancel(ctx)
	p.mu.Lock()
	p.mu.cut = cut
	p.mu.Unlock()
	return ctx, func() {
		cut()
		p.mu.Lock()
		p.mu.cut = nil
		p.mu.Unlock()
	}
}

// turn waits until it is the turn of the exchange's class.
func (h *handler) turn(ctx context.Context, p *put, n int64) (leave func(), err error) {
	ctx, done := p.lost(ctx)
	defer done()
	return h.gate.Enter(ctx, h.class, n)
}

// pull waits for a Buffer and fills it.
func (h *handler) pull(ctx context.Context, p *put) (*fabric.Buffer, []byte, error) {
	ctx, done := p.lost(ctx)
	defer done()
	buf, err := h.x.Buffer(ctx)
	if err != nil {
		return nil, nil, err
	}
	b := buf.Bytes[:min(len(buf.Bytes), h.x.Out())]
	if err := h.x.Pull(ctx, b); err != nil {
		buf.Release()
		return nil, nil, err
	}
	return buf, b, nil
}

// commit makes a column durable and visible, once.
func (h *handler) commit(ctx context.Context, id uint64) error {
	return h.withPut(ctx, id, func(p *put) error {
		if p.over {
			return p.err
		}
		if p.off == p.size {
			if err := p.sums.check(); err != nil {
				h.count.corrupt.Add(1)
				err = fmt.Errorf("commit %v: %w", p.key, err)
				return errors.Join(err, h.end(p, err))
			}
		}
		tried := false
		err := h.onDisk(ctx, func() error {
			tried = true
			return p.w.Commit(context.WithoutCancel(ctx)) // half a commit helps nobody
		})
		if !tried {
			return err // no slot in time
		}
		if err == nil {
			h.count.columns.Add(1)
		}
		_ = h.end(p, err) // after Commit it does nothing
		if err == nil {
			h.remember(id, p)
		}
		return err
	})
}

// remember keeps a put that is over, and forgets the oldest of too many.
func (h *handler) remember(id uint64, p *put) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ss := h.mu.sessions[h.session]
	if ss == nil || slices.Contains(ss.done, id) {
		return
	}
	ss.puts[id] = p
	ss.forgetOldest(id)
}

// abort gives up what was not committed, or what is still to come.
func (h *handler) abort(ctx context.Context, id uint64) error {
	p, ok := h.findOrRefuse(id)
	if !ok {
		return nil
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.release()
	if p.over && p.err == nil {
		return nil // committed, and remembered
	}
	err := h.end(p, errGivenUp)
	h.remember(id, p)
	return err
}

// findOrRefuse finds a put; one that is not there will not be begun any more.
func (h *handler) findOrRefuse(id uint64) (p *put, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ss := h.mu.sessions[h.session]
	if ss == nil {
		return nil, false
	}
	if p = ss.puts[id]; p != nil {
		return p, true
	}
	p = &put{turn: make(chan struct{}, 1), over: true, err: errGivenUp}
	p.release()
	ss.puts[id] = p
	ss.forgetOldest(id)
	return nil, false
}

// forgetOldest counts a put among those that are over.
func (ss *session) forgetOldest(id uint64) {
	if ss.done = append(ss.done, id); len(ss.done) > maxDone {
		delete(ss.puts, ss.done[0])
		ss.done = append(ss.done[:0], ss.done[1:]...)
	}
}
