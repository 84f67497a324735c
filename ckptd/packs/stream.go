package packs

import (
	"context"
	"sync"
	"time"

	"github.com/ckptd/ckptd/restore"
)

// stream reads a shard for which there is no room, without keeping more of it
// than the chunk read last.
type stream struct {
	feed  *feed
	since time.Time  // when there was no room
	mu    sync.Mutex // one chunk at a time
	off   int64
	buf   []byte // the chunk at off
}

func newStream(c *Cache, ref restore.ShardRef, firstHand bool) *stream {
	return &stream{feed: newFeed(c, ref, firstHand), since: time.Now()}
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.feed.close()
}

// clear forgets the chunk; the lock is held.
func (s *stream) clear() {
	if s.buf != nil {
		s.buf = nil
		<-s.feed.c.shown
	}
}

// readAt fills p, which lies within the shard.
func (s *stream) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := s.some(ctx, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (s *stream) some(ctx context.Context, p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf != nil && off >= s.off && off < s.off+int64(len(s.buf)) {
		return copy(p, s.buf[off-s.off:]), nil
	}
	s.clear()
	c := s.feed.c
	buf, give, err := c.take(ctx, s.feed)
	if err != nil {
		return 0, err
	}
	at := off / chunkSize * chunkSize
	size := min(chunkSize, s.feed.ref.Size-at)
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	chunk := buf[:size]
	if err := s.feed.read(ctx, chunk, at); err != nil {
		give(buf)
		return 0, err
	}
	n := copy(p, chunk[off-at:])
	c.stats.streamed.Add(size)
	select {
	case c.shown <- struct{}{}: // it is kept for the next read
		s.off, s.buf = at, chunk
		give(nil)
	default:
		give(buf)
	}
	return n, nil
}
