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
//  9. Bounded: a session queues no more slots than were lent to it.
package shardwriter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
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

// Spec says what is being saved.
type Spec struct {
	Info   catalog.ShardInfo
	Size   int64  // bytes of the whole shard
	Header []byte // its first bytes, put into the slots by the session
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

	queue chan piece
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		submitted int64          // bytes
		blocks    map[int64]bool // offsets submitted, so that none comes twice
		pending   map[int64]piece
		held      []Slot // written after Seal: freed when the shard is durable
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
	for range opt.Writers {
		s.wg.Go(s.write)
	}
	return s
}

// ID names the shard's set.
func (s *Session) ID() catalog.SetID { return s.spec.Info.Set }

// Submit hands over n bytes of the shard beginning at off. The slot is the
// session's until Options.Free is called with it.
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
	s.mu.Lock()
	if s.mu.sealed || s.mu.closed {
		s.mu.Unlock()
		return bad("the shard is sealed")
	}
	for b := off; b < off+n; b += catalog.BlockSize {
		if s.mu.blocks[b] {
			s.mu.Unlock()
			return bad("these bytes were submitted before")
		}
	}
	for b := off; b < off+n; b += catalog.BlockSize {
		s.mu.blocks[b] = true
	}
	s.mu.submitted += n
	p := piece{slot, off, n}
	s.mu.pending[off] = p
	err := s.mu.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if off < int64(len(s.spec.Header)) {
		err = putHeader(slot.Data[:n], s.spec.Header[off:])
	}
	s.queue <- p // also after an error, so that the slot is freed in one place
	if err != nil {
		s.mu.Lock()
		s.mu.err = errors.Join(s.mu.err, err)
		s.mu.Unlock()
	}
	return err
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
		}
		s.mu.Unlock()
		if !hold {
			s.opt.Free(p.slot)
		}
	}
}

// record is the journal's entry of a sealed shard, JSON.
type record struct {
	Version int               `json:"version"` // 1
	Info    catalog.ShardInfo `json:"info"`
	Size    int64             `json:"size"`
	Staging string            `json:"staging"`
	Pending []pendingSlot     `json:"pending"` // bytes that are in the arena alone
	CRCs    map[int]uint32    `json:"crcs"`    // of the blocks already in the staging file
}

// pendingSlot says where bytes of the shard are in the arena. It counts in
// bytes, because the next process may have slots of another size.
type pendingSlot struct {
	Seg int   `json:"seg"`
	At  int64 `json:"at"`  // in the segment
	Off int64 `json:"off"` // in the shard
	Len int64 `json:"len"`
}

// RecordName is the journal's name for a shard: short, whatever the run's name.
func RecordName(id catalog.SetID, rank int) string {
	sum := sha256.Sum256([]byte(id.ShardName(rank)))
	return hex.EncodeToString(sum[:16])
}

// Seal ends the copying. When it returns nil the shard survives the rank and,
// with a journal, the death of this process: level staged. Slots not yet
// written stay the session's until Finish.
func (s *Session) Seal(at time.Time, fence bool) error {
	what := func(err error) error {
		return fmt.Errorf("seal %v rank %d: %w", s.spec.Info.Set, s.spec.Info.Rank, err)
	}
	s.mu.Lock()
	switch {
	case s.mu.closed || s.mu.sealed:
		s.mu.Unlock()
		return what(fmt.Errorf("%w: it is sealed or given up", catalog.ErrConflict))
	case s.mu.err != nil:
		err := s.mu.err
		s.mu.Unlock()
		return what(err)
	case s.mu.submitted != s.spec.Size:
		n := s.mu.submitted
		s.mu.Unlock()
		return what(fmt.Errorf("%w: %d of %d bytes were submitted", catalog.ErrInvalid, n, s.spec.Size))
	}
	s.mu.sealed = true
	s.spec.Info.Sealed, s.spec.Info.Fence = at, fence
	rec := record{Version: 1, Info: s.spec.Info, Size: s.spec.Size, Staging: s.in.Staging(), CRCs: map[int]uint32{}}
	for _, p := range s.mu.pending {
		rec.Pending = append(rec.Pending, pendingSlot{p.slot.Seg, int64(p.slot.Index * len(p.slot.Data)), p.off, p.len})
	}
	s.mu.Unlock()
	if s.opt.Journal != nil {
		for b := range catalog.Blocks(s.spec.Size) {
			if crc, ok := s.in.Block(b); ok {
				rec.CRCs[b] = crc
			}
		}
		b, err := json.Marshal(rec)
		if err == nil {
			err = s.opt.Journal.PutRecord(RecordName(s.spec.Info.Set, s.spec.Info.Rank), b)
		}
		if err != nil {
			s.mu.Lock()
			s.mu.sealed = false // Close releases everything
			held := s.mu.held
			s.mu.held = nil
			s.mu.Unlock()
			for _, slot := range held {
				s.opt.Free(slot)
			}
			return what(err)
		}
	}
	return nil
}

// Finish waits for the writes of a sealed shard and makes it durable. All
// slots are free when it returns. After an error the shard is lost and its
// space released.
func (s *Session) Finish(ctx context.Context) (*catalog.Seal, error) {
	s.mu.Lock()
	if !s.mu.sealed || s.mu.closed {
		s.mu.Unlock()
		panic("shardwriter: Finish without Seal")
	}
	s.mu.closed = true
	s.mu.Unlock()
	close(s.queue)
	s.wg.Wait()
	defer s.release()
	info, err := json.Marshal(s.spec.Info)
	if err == nil {
		s.mu.Lock()
		err = s.mu.err
		s.mu.Unlock()
	}
	var seal *catalog.Seal
	if err == nil {
		seal, err = s.in.Commit(ctx, info)
	}
	if err != nil {
		err = fmt.Errorf("finish %v rank %d: %w", s.spec.Info.Set, s.spec.Info.Rank, err)
		if ctx.Err() != nil {
			return nil, err // shutting down: the journal lets the next process finish it
		}
		return nil, errors.Join(err, s.in.Close(), s.drop())
	}
	return seal, s.drop()
}

func (s *Session) drop() error {
	if s.opt.Journal == nil {
		return nil
	}
	return s.opt.Journal.DropRecord(RecordName(s.spec.Info.Set, s.spec.Info.Rank))
}

func (s *Session) release() {
	s.mu.Lock()
	held := s.mu.held
	s.mu.held = nil
	s.mu.Unlock()
	for _, slot := range held {
		s.opt.Free(slot)
	}
}

// Close gives up a session that was not sealed, and leaves nothing. After Seal
// it does nothing: the shard is Finish's.
func (s *Session) Close() error {
	s.mu.Lock()
	if s.mu.sealed || s.mu.closed {
		s.mu.Unlock()
		return nil
	}
	s.mu.closed = true
	s.mu.Unlock()
	close(s.queue)
	s.wg.Wait()
	return s.in.Close()
}
