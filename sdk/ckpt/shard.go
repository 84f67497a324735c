package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const block = catalog.BlockSize

// maxCached bounds what a ShardReader keeps of a shard that is not on this
// node, in bytes of memory; Bytes is not counted.
const maxCached = 256 << 20

// ShardReader reads one rank's file. It opens nothing before the first read.
// Its methods may be called from any goroutine.
type ShardReader struct {
	r     *Reader
	shard *catalog.Shard
	turn  chan struct{} // holds one token: taken to open and to fetch
	st    shardState
}

// shardState is where the bytes come from.
type shardState struct {
	mu     sync.RWMutex
	opened bool
	closed bool
	file   *os.File      // the local file; nil: none
	seal   *catalog.Seal // of file; nil when checks are off
	good   []atomic.Bool // by block: checked in file
	mem    *os.File      // a memfd with the blocks in have
	have   []bool        // by block: in mem, checked by the daemon
	cached int64         // bytes of them
	maps   [][]byte      // given out by Bytes
}

var _ io.ReaderAt = (*ShardReader)(nil)

// Shard opens one rank's file. Close it after use.
func (r *Reader) Shard(rank int) (*ShardReader, error) {
	if rank < 0 || rank >= len(r.manifest.Shards) {
		return nil, fmt.Errorf("shard %d of %v, which has %d: %w", rank, r.manifest.Set, len(r.manifest.Shards), fs.ErrNotExist)
	}
	return &ShardReader{r: r, shard: &r.manifest.Shards[rank], turn: make(chan struct{}, 1)}, nil
}

// Size is the length of the file in bytes.
func (s *ShardReader) Size() int64 { return s.shard.Size }

// Close closes the file. What Bytes returned is gone with it.
func (s *ShardReader) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	if s.st.closed {
		return nil
	}
	s.st.closed = true
	for _, m := range s.st.maps {
		unix.Munmap(m)
	}
	if s.st.file != nil {
		s.st.file.Close()
	}
	if s.st.mem != nil {
		s.st.mem.Close()
	}
	return nil
}

// ReadAt reads from the file; every byte was checked.
func (s *ShardReader) ReadAt(p []byte, off int64) (int, error) {
	return s.ReadAtContext(s.r.life, p, off)
}

// maxStep bounds what one step of a read asks of the daemon, in bytes.
const maxStep = 64 << 20

// ReadAtContext is ReadAt for those who may have to stop.
func (s *ShardReader) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, catalog.ErrInvalid)
	}
	var eof error
	if off >= s.shard.Size && len(p) > 0 {
		return 0, io.EOF
	}
	if rest := s.shard.Size - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n := min(len(p)-done, int(maxStep-at%block))
		if err := s.step(ctx, p[done:done+n], at); err != nil {
			return done, fmt.Errorf("read %v rank %d at %d: %w", s.r.manifest.Set, s.shard.Rank, at, err)
		}
		done += n
	}
	return done, eof
}

// step reads from the file where its blocks are good, else has the daemon
// bring them.
func (s *ShardReader) step(ctx context.Context, p []byte, off int64) error {
	from, to := off/block, (off+int64(len(p))+block-1)/block
	if err := s.open(ctx, from, to); err != nil {
		return err
	}
	if done, err := s.quick(p, off, from, to); done || err != nil {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	if err := s.fetch(ctx, from, to); err != nil {
		return err
	}
	// Whoever has the turn decides what is dropped from mem, so it is still there.
	return readFull(s.st.mem, p, off)
}

// take waits for the turn.
func (s *ShardReader) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quick reads what is at hand and good.
func (s *ShardReader) quick(p []byte, off, from, to int64) (done bool, err error) {
	s.st.mu.RLock()
	defer s.st.mu.RUnlock()
	switch {
	case s.st.closed:
		return false, fs.ErrClosed
	case s.st.all(from, to):
		return true, readFull(s.st.mem, p, off)
	case s.st.file == nil:
		return false, nil
	}
	err = s.st.readFile(p, off)
	if err != nil && s.r.opt.from != "local" && damaged(err) {
		return false, nil
	}
	return true, err
}

// damaged reports whether another copy may help.
func damaged(err error) bool {
	var p *fs.PathError
	return errors.Is(err, catalog.ErrCorrupt) || errors.As(err, &p) || errors.Is(err, io.ErrUnexpectedEOF)
}

// all reports whether every block is in mem.
func (st *shardState) all(from, to int64) bool {
	for i := from; i < to; i++ {
		if !st.have[i] {
			return false
		}
	}
	return true
}

// open makes the first request: either the file is here, or the blocks come.
func (s *ShardReader) open(ctx context.Context, from, to int64) error {
	s.st.mu.RLock()
	opened := s.st.opened
	s.st.mu.RUnlock()
	if opened {
		return nil
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	if s.st.opened { // written with the turn taken
		return nil
	}
	if s.st.closed {
		return fs.ErrClosed
	}
	mem, err := newMemory(s.shard.Size)
	if err != nil {
		return err
	}
	l, err := s.r.load(ctx, s.shard.Rank, [][2]int64{s.span(from, to)}, mem, wire.Message{NoCheck: true, Seal: true, From: s.r.opt.from})
	if err != nil {
		mem.Close()
		return err
	}
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	blocks := catalog.Blocks(s.shard.Size)
	s.st.opened = true
	s.st.mem, s.st.have = mem, make([]bool, blocks)
	switch {
	case l.file == nil:
		s.st.keep(from, to, s.span(from, to)[1])
	case l.seal == nil && !s.r.opt.noCheck:
		l.file.Close() // nothing to check against: the daemon brings every block, checked
	default:
		s.st.file, s.st.good = l.file, make([]atomic.Bool, blocks)
		if !s.r.opt.noCheck {
			s.st.seal = l.seal
		}
	}
	return nil
}

func (st *shardState) keep(from, to, size int64) {
	for i := from; i < to; i++ {
		st.have[i] = true
	}
	st.cached += size
}

func (s *ShardReader) span(from, to int64) [2]int64 {
	return [2]int64{from * block, min(to*block, s.shard.Size) - from*block}
}

// fetch has the daemon bring blocks into mem, checked. Being asked for a block
// with its check on, the daemon finds a bad local copy itself and quarantines
// it. The caller has the turn.
func (s *ShardReader) fetch(ctx context.Context, from, to int64) error {
	if s.st.closed {
		return fs.ErrClosed
	}
	size := s.span(from, to)[1]
	if s.st.cached+size > maxCached {
		s.st.mu.Lock()
		clear(s.st.have)
		s.st.cached = 0
		err := dropMemory(s.st.mem, 0, s.shard.Size)
		s.st.mu.Unlock()
		if err != nil {
			return err
		}
	}
	var ranges [][2]int64
	for i := from; i < to; i++ {
		if n := len(ranges); s.st.have[i] {
			continue
		} else if n > 0 && ranges[n-1][0]+ranges[n-1][1] == i*block {
			ranges[n-1][1] += s.span(i, i+1)[1]
		} else {
			ranges = append(ranges, s.span(i, i+1))
		}
	}
	if len(ranges) > 0 {
		if err := s.r.bring(ctx, s.shard.Rank, ranges, s.st.mem, 0); err != nil {
			return err
		}
	}
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	s.st.keep(from, to, size)
	return nil
}

// bring fills mem, which begins at byte base of the shard, with ranges that
// begin at blocks, from any tier allowed.
func (r *Reader) bring(ctx context.Context, rank int, ranges [][2]int64, mem *os.File, base int64) error {
	tiers := []string{"", "remote", "peer"}
	if r.opt.from != "" {
		tiers = []string{r.opt.from}
	}
	var errs []error
	for _, tier := range tiers {
		l, err := r.load(ctx, rank, ranges, mem, wire.Message{From: tier, Off: base, Seal: true, NoCheck: r.opt.noCheck})
		if err == nil && l.file != nil {
			err = l.copyTo(mem, base, ranges, r.opt.noCheck)
			l.file.Close()
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// copyTo brings ranges of a local file into mem, checked here once more: we
// only ask for what did not pass a check before.
func (l *loaded) copyTo(mem *os.File, base int64, ranges [][2]int64, noCheck bool) error {
	st := &shardState{file: l.file}
	if !noCheck {
		if l.seal == nil {
			return fmt.Errorf("%w: a file without its seal", catalog.ErrCorrupt)
		}
		st.seal, st.good = l.seal, make([]atomic.Bool, len(l.seal.CRCs))
	}
	buf := make([]byte, block)
	for _, rg := range ranges {
		for off, end := rg[0], rg[0]+rg[1]; off < end; off += block {
			p := buf[:min(block, end-off)]
			if err := st.readFile(p, off); err != nil {
				return err
			}
			if _, err := mem.WriteAt(p, off-base); err != nil {
				return err
			}
		}
	}
	return nil
}

// readFile reads from the local file and checks the blocks it touches. Part of
// a block is read alone only when the block was checked before.
func (st *shardState) readFile(p []byte, off int64) error {
	if st.seal == nil {
		return readFull(st.file, p, off)
	}
	var scratch []byte
	for len(p) > 0 {
		i := off / block
		size := min(block, st.seal.Size-i*block)
		within := off - i*block
		n := min(size-within, int64(len(p)))
		switch {
		case n == size: // the whole block
			if err := readFull(st.file, p[:n], off); err != nil {
				return err
			}
			if err := st.seal.CheckBlock(int(i), p[:n]); err != nil {
				return err
			}
		case st.good[i].Load():
			if err := readFull(st.file, p[:n], off); err != nil {
				return err
			}
		default:
			if scratch == nil {
				scratch = make([]byte, block)
			}
			if err := readFull(st.file, scratch[:size], i*block); err != nil {
				return err
			}
			if err := st.seal.CheckBlock(int(i), scratch[:size]); err != nil {
				return err
			}
			st.good[i].Store(true)
			copy(p[:n], scratch[within:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

func readFull(f *os.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
