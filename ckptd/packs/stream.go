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

func (s *stream) close() { s.feed.close() }

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
	if off < s.off || off >= s.off+int64(len(s.buf)) {
		c := s.feed.c
		select {
		case c.memory <- struct{}{}:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		defer func() { <-c.memory }()
		at := off / chunkSize * chunkSize
		buf := s.buf[:0]
		if cap(buf) == 0 {
			buf = make([]byte, 0, chunkSize)
		}
		buf = buf[:min(chunkSize, s.feed.ref.Size-at)]
		s.buf = buf[:0] // nothing, should the read fail
		if err := s.feed.read(ctx, buf, at); err != nil {
			return 0, err
		}
		s.off, s.buf = at, buf
		c.stats.streamed.Add(int64(len(buf)))
	}
	return copy(p, s.buf[off-s.off:]), nil
}
