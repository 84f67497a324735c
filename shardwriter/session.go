// Package shardwriter is the sharded-write protocol: it turns a rank's bytes,
// arriving slot by slot in shared memory, into a sealed shard.
//
// The numbers are those of the project's contract.
//
//  1. All or nothing: Close before Seal leaves nothing.
//  2. Independent of the job: once Seal returned nil, the shard can be finished
//     by this process (Finish) or, after it died, by another (Resume); the
//     rank is no longer needed.
//  7. Checked: every byte is summed as it is written (by the Ingest).
//  9. Bounded: a session queues no more slots than were lent to it, each once.
//  12. Hostile bytes are data: a record of the journal that was cut or changed is
//     catalog.ErrCorrupt, or says what a record may say.
//
// Methods of a Session may be called from several goroutines.
package shardwriter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Ingest is what a session needs of the disk: a reserved place for one blob.
type Ingest interface {
	WriteAt(p []byte, off int64) error
	Block(i int) (crc uint32, ok bool) // the checksum of a block that was written
	Staging() string
	Commit(ctx context.Context, info []byte) (*catalog.Seal, error)
	Close() error
}

// Journal keeps the records of sealed but unwritten shards where they outlive
// the process, with the slots themselves.
type Journal interface {
	PutRecord(name string, b []byte) error
	DropRecord(name string) error
}

// Slot is one unit of shared memory that a rank filled.
type Slot struct {
	Seg, Index int
	Data       []byte // the whole slot, page aligned
}

// at tells slots apart.
func (s Slot) at() [2]int { return [2]int{s.Seg, s.Index} }

// Spec says what is being saved.
type Spec struct {
	Info   catalog.ShardInfo
	Size   int64  // bytes of the whole shard
	Header []byte // its first bytes, put into the slots by the session; a raw shard has none
}

// Options tune a session; the zero value works.
type Options struct {
	Writers int        // writes in flight, default 2
	Journal Journal    // nil: a sealed shard does not survive the process
	Free    func(Slot) // told when a slot may be filled again; called from other goroutines
}

// Session takes in one shard.
type Session struct {
	spec Spec
	in   Ingest
	opt  Options

	submit sync.Mutex // held while something is queued, and while the queue ends
	queue  chan piece
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		submitted int64           // bytes
		blocks    map[int64]bool  // offsets submitted, so that none comes twice
		pending   map[int64]piece // by offset: not in the staging file yet
		busy      map[[2]int]bool // slots that are the session's
		held      []Slot          // written after Seal: freed when the shard is durable
		sealed    bool
		closed    bool
		err       error
	}
}

type piece struct {
	slot     Slot
	off, len int64
}

// maxQueue bounds a session's queue; Submit blocks beyond it. An arena of
// 8 GiB has 1,024 slots of 8 MiB.
const maxQueue = 1024

// New starts a session over a reserved ingest, which it owns from now on.
func New(spec Spec, in Ingest, opt Options) *Session {
	if opt.Writers <= 0 {
		opt.Writers = 2
	}
	if opt.Free == nil {
		opt.Free = func(Slot) {}
	}
	s := &Session{spec: spec, in: in, opt: opt, queue: make(chan piece, maxQueue)}
	s.mu.blocks = make(map[int64]bool)
	s.mu.pending = make(map[int64]piece)
	s.mu.busy = make(map[[2]int]bool)
	for range opt.Writers {
		s.wg.Go(s.write)
	}
	return s
}

// ID names the shard's set.
func (s *Session) ID() catalog.SetID { return s.spec.Info.Set }

// Submit hands over n bytes of the shard beginning at off. The slot is the
// session's until Options.Free is called with it, once; after an error it is
// still the caller's.
func (s *Session) Submit(slot Slot, off, n int64) error {
	size := int64(len(slot.Data))
	bad := func(why string) error {
		return fmt.Errorf("slot at %d of %v rank %d: %w: %s", off, s.spec.Info.Set, s.spec.Info.Rank, catalog.ErrInvalid, why)
	}
	switch {
	case off < 0 || off >= s.spec.Size || off%catalog.BlockSize != 0:
		return bad("the offset is outside the shard or not a multiple of 1 MiB")
	case n <= 0 || n > size || off+n > s.spec.Size:
		return bad("the length is outside the slot or the shard")
	case n%catalog.BlockSize != 0 && off+n != s.spec.Size:
		return bad("only the last slot may be short")
	}
	s.submit.Lock()
	defer s.submit.Unlock()
	if why, err := s.take(slot, off, n); why != "" {
		return bad(why)
	} else if err != nil {
		return err
	}
	if off < int64(len(s.spec.Header)) {
		if err := putHeader(slot.Data[:n], s.spec.Header[off:]); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.mu.err = errors.Join(s.mu.err, err)
			delete(s.mu.busy, slot.at())
			return err
		}
	}
	s.queue <- piece{slot, off, n}
	return nil
}

// take notes a slot that is submitted, or says why it is refused, or what
// ended the session before.
func (s *Session) take(slot Slot, off, n int64) (why string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.sealed || s.mu.closed:
		return "the shard is sealed", nil
	case s.mu.err != nil:
		return "", s.mu.err
	case s.mu.busy[slot.at()]:
		return "the slot is still being written; wait until it is free", nil
	}
	for b := off; b < off+n; b += catalog.BlockSize {
		if s.mu.blocks[b] {
			return "these bytes were submitted before", nil
		}
	}
	for b := off; b < off+n; b += catalog.BlockSize {
		s.mu.blocks[b] = true
	}
	s.mu.submitted += n
	s.mu.busy[slot.at()] = true
	s.mu.pending[off] = piece{slot, off, n}
	return "", nil
}

// putHeader copies into memory that a client can pull away by cutting its file.
func putHeader(dst, header []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
			err = fmt.Errorf("header: %w: the slot's memory is gone", catalog.ErrInvalid)
		}
	}()
	copy(dst, header)
	return nil
}

func (s *Session) write() {
	for p := range s.queue {
		s.mu.Lock()
		failed := s.mu.err != nil || s.mu.closed && !s.mu.sealed
		s.mu.Unlock()
		var err error
		if !failed {
			err = s.in.WriteAt(p.slot.Data[:p.len], p.off)
		}
		s.mu.Lock()
		if err != nil && s.mu.err == nil {
			s.mu.err = err
		}
		if s.mu.err == nil {
			delete(s.mu.pending, p.off)
		}
		hold := s.mu.sealed
		if hold {
			s.mu.held = append(s.mu.held, p.slot)
		} else {
			delete(s.mu.busy, p.slot.at())
		}
		s.mu.Unlock()
		if !hold {
			s.opt.Free(p.slot)
		}
	}
}

// AddMeta adds strings about a raw shard, before Seal: some, as a hash of its
// bytes, are known only when all were read.
func (s *Session) AddMeta(meta map[string]string) error {
	if len(meta) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.sealed || s.mu.closed {
		return fmt.Errorf("meta of %v: %w: it is sealed or given up", s.spec.Info.Set, catalog.ErrConflict)
	}
	info := s.spec.Info
	if info.Meta = maps.Clone(info.Meta); info.Meta == nil {
		info.Meta = make(map[string]string, len(meta))
	}
	maps.Copy(info.Meta, meta)
	if err := info.Check(); err != nil {
		return fmt.Errorf("meta of %v: %w", info.Set, err)
	}
	s.spec.Info = info
	return nil
}

// Seal ends the copying. When it returns nil the shard survives the rank and,
// with a journal, the death of this process: level staged. Slots not yet
// written stay the session's until Finish. After an error call Close.
func (s *Session) Seal(at time.Time, fence bool) error {
	if err := s.seal(at, fence); err != nil {
		return fmt.Errorf("seal %v rank %d: %w", s.spec.Info.Set, s.spec.Info.Rank, err)
	}
	return nil
}

func (s *Session) seal(at time.Time, fence bool) error {
	s.submit.Lock()
	defer s.submit.Unlock()
	s.mu.Lock()
	switch {
	case s.mu.closed || s.mu.sealed:
		s.mu.Unlock()
		return fmt.Errorf("%w: it is sealed or given up", catalog.ErrConflict)
	case s.mu.err != nil:
		err := s.mu.err
		s.mu.Unlock()
		return err
	case s.mu.submitted != s.spec.Size:
		n := s.mu.submitted
		s.mu.Unlock()
		return fmt.Errorf("%w: %d of %d bytes were submitted", catalog.ErrInvalid, n, s.spec.Size)
	}
	s.mu.sealed = true // from here on written slots are held: the record may name them
	s.spec.Info.Sealed, s.spec.Info.Fence = at, fence
	pending := slices.Collect(maps.Values(s.mu.pending))
	s.mu.Unlock()
	if s.opt.Journal == nil {
		return nil
	}
	b, err := s.record(pending)
	if err == nil {
		err = s.opt.Journal.PutRecord(s.name(), b)
	}
	if err != nil {
		s.mu.Lock()
		s.mu.sealed = false // Close gives up what is left
		s.mu.Unlock()
		s.release()
		// Half a failure may have left the record; nobody must finish this shard.
		return errors.Join(err, s.drop())
	}
	return nil
}

// Finish waits for the writes of a sealed shard and makes it durable. All
// slots are free when it returns. After an error the shard is lost and its
// space released; only if ctx ended and there is a journal, everything stays
// for the next process: the record, the staging file, and no slot is freed.
func (s *Session) Finish(ctx context.Context) (*catalog.Seal, error) {
	if !s.end(true) {
		panic("shardwriter: Finish without Seal")
	}
	seal, err := s.commit(ctx)
	if err == nil {
		s.release()
		// A record that cannot be removed does no harm: the next process sees that
		// the shard is there. An error here would say that the shard is lost.
		_ = s.drop()
		return seal, nil
	}
	err = fmt.Errorf("finish %v rank %d: %w", s.spec.Info.Set, s.spec.Info.Rank, err)
	if ctx.Err() != nil && s.opt.Journal != nil {
		if d, ok := s.in.(interface{ Detach() error }); ok {
			err = errors.Join(err, d.Detach())
		}
		return nil, err
	}
	// The record goes first: without its file it could only be misread.
	err = errors.Join(err, s.drop(), s.in.Close())
	s.release()
	return nil, err
}

func (s *Session) commit(ctx context.Context) (*catalog.Seal, error) {
	s.mu.Lock()
	err := s.mu.err
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	info, err := json.Marshal(s.spec.Info)
	if err != nil {
		return nil, err
	}
	return s.in.Commit(ctx, info)
}

func (s *Session) name() string { return RecordName(s.spec.Info.Set, s.spec.Info.Rank) }

func (s *Session) drop() error {
	if s.opt.Journal == nil {
		return nil
	}
	return s.opt.Journal.DropRecord(s.name())
}

// release frees the slots that were held since Seal.
func (s *Session) release() {
	s.mu.Lock()
	held := s.mu.held
	s.mu.held = nil
	for _, slot := range held {
		delete(s.mu.busy, slot.at())
	}
	s.mu.Unlock()
	for _, slot := range held {
		s.opt.Free(slot)
	}
}

// Close gives up a session that was not sealed, and leaves nothing; all slots
// are free when it returns. After Seal it does nothing: the shard is Finish's.
func (s *Session) Close() error {
	if !s.end(false) {
		return nil
	}
	return s.in.Close()
}

// end closes a session that is sealed or not, as asked, and waits for its
// writers; false says that it is in another state.
func (s *Session) end(sealed bool) bool {
	s.submit.Lock()
	s.mu.Lock()
	ok := s.mu.sealed == sealed && !s.mu.closed
	s.mu.closed = s.mu.closed || ok
	s.mu.Unlock()
	if ok {
		close(s.queue)
	}
	s.submit.Unlock()
	if ok {
		s.wg.Wait()
	}
	return ok
}
