package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	copiers      = 2       // goroutines that fill slots; memory is the limit, not their number
	parallelFrom = 4 << 20 // bytes from which more than one is worth it
)

// source is where a tensor's bytes come from; exactly one is set.
type source struct {
	bytes  []byte
	at     io.ReaderAt
	stream io.Reader
}

// read fills p with the bytes at off of tensor t.
func (s *source) read(t *catalog.Tensor, p []byte, off int64) error {
	var n int
	var err error
	switch {
	case s.bytes != nil:
		copy(p, s.bytes[off:])
		return nil
	case s.at != nil:
		n, err = s.at.ReadAt(p, off)
	default:
		n, err = io.ReadFull(s.stream, p) // one copier, so in order
	}
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("tensor %q: %w: its data ends at byte %d of %d", t.Name, catalog.ErrInvalid, off+int64(n), t.Size)
	}
	return fmt.Errorf("tensor %q: %w", t.Name, err)
}

// copier fills the slots the daemon lends with a shard's bytes, submits them,
// and seals.
type copier struct {
	c      *Client
	ses    *session
	parts  []part
	header int64                    // bytes of the header: the daemon has them
	size   int64                    // bytes of the file
	meta   func() map[string]string // told with the seal, after the last byte

	free chan slotRef
	next atomic.Int64 // chunk to be copied
}

// run returns the level the daemon promised.
func (cp *copier) run(ctx context.Context) (level catalog.Level, err error) {
	slot := cp.ses.welcome.SlotSize
	chunks := (cp.size + slot - 1) / slot
	workers := copiers
	if cp.size < parallelFrom {
		workers = 1
	}
	for i := range cp.parts {
		if cp.parts[i].data.stream != nil {
			workers = 1
		}
	}
	cp.free = make(chan slotRef, 64)
	err = cp.ses.during(ctx, func() (err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		full, done := make(chan struct{}), make(chan struct{})
		var filled error
		go func() {
			defer close(done)
			filled = cp.fillAll(ctx, workers, chunks)
			close(full)
			if filled == nil {
				filled = cp.c.send(cp.ses, &wire.Message{T: "seal", Meta: cp.meta()}, nil)
			}
			if filled != nil && !isBroken(filled) {
				cp.ses.conn.U.Close() // our own failure: stop listening
			}
		}()
		level, err = cp.listen(ctx, full)
		cancel()
		<-done
		// What the daemon said explains more than a pipe that broke under us.
		if err != nil && isBroken(err) && filled != nil && !isBroken(filled) {
			return filled
		}
		return err
	})
	return level, err
}

// fillAll copies and submits every chunk.
func (cp *copier) fillAll(ctx context.Context, workers int, chunks int64) error {
	group, ctx := errgroup.WithContext(ctx)
	for range min(int64(workers), chunks) {
		group.Go(func() error { return cp.fill(ctx, chunks) })
	}
	return group.Wait()
}

// fill takes chunks until none is left.
func (cp *copier) fill(ctx context.Context, chunks int64) error {
	slotSize := cp.ses.welcome.SlotSize
	for {
		var ref slotRef
		if cp.next.Load() >= chunks {
			return nil
		}
		select {
		case ref = <-cp.free:
		case <-ctx.Done():
			return broken{ctx.Err()}
		}
		i := cp.next.Add(1) - 1
		if i >= chunks {
			return nil
		}
		off := i * slotSize
		n := min(slotSize, cp.size-off)
		if err := cp.copyRange(ref.bytes(slotSize)[:n], off); err != nil {
			return err
		}
		cp.ses.write.Lock()
		ref.seg.busy[ref.slot] = true
		cp.ses.write.Unlock()
		if err := cp.c.send(cp.ses, &wire.Message{T: "slot", Seg: ref.seg.id, Slot: ref.slot, Off: off, Len: n}, nil); err != nil {
			return err
		}
	}
}

// copyRange fills p with the file's bytes from off on, but for the header's.
func (cp *copier) copyRange(p []byte, off int64) error {
	if skip := cp.header - off; skip > 0 {
		skip = min(skip, int64(len(p)))
		p, off = p[skip:], off+skip
	}
	i := sort.Search(len(cp.parts), func(i int) bool { return cp.parts[i].Offset+cp.parts[i].Size > off })
	for ; len(p) > 0; i++ {
		part := &cp.parts[i]
		if part.Size == 0 {
			continue
		}
		from := off - part.Offset
		n := min(int64(len(p)), part.Size-from)
		if err := part.data.read(&part.Tensor, p[:n], from); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// listen hears the daemon until it has sealed.
func (cp *copier) listen(ctx context.Context, full <-chan struct{}) (catalog.Level, error) {
	give := func(slots ...slotRef) error {
		for _, s := range slots {
			select {
			case cp.free <- s:
			case <-full: // nobody needs it any more
				return nil
			case <-ctx.Done():
				return broken{ctx.Err()}
			}
		}
		return nil
	}
	for {
		a, err := cp.c.receive(cp.ses)
		if err != nil {
			return 0, err
		}
		switch a.m.T {
		case "lend":
			var slots []slotRef
			if slots, err = cp.ses.lend(a.m, a.fds); err == nil {
				err = give(slots...)
			}
		case "free":
			closeFiles(a.fds)
			cp.ses.write.Lock()
			ref, ok := cp.ses.freed(a.m)
			cp.ses.write.Unlock()
			if ok {
				err = give(ref)
			}
		case "sealed":
			closeFiles(a.fds)
			select {
			case <-full:
			default:
				return 0, fmt.Errorf("%w: sealed before the last byte", catalog.ErrUnavailable)
			}
			cp.ses.returned()
			return catalog.ParseLevel(a.m.Level)
		default:
			closeFiles(a.fds)
			err = fmt.Errorf("save: %w: answered by %q", catalog.ErrUnavailable, a.m.T)
		}
		if err != nil {
			return 0, err
		}
	}
}
