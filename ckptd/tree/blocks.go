package tree

import (
	"container/list"
	"context"
	"sync"
)

// Blocks keeps pieces of files that are read through the daemon for a while:
// the kernel asks for less at a time than a source gives well. Several who want
// one piece wait for one fetch. Its memory is bounded by most, and by what is
// being fetched.
type Blocks struct {
	most int64 // bytes

	mu struct {
		sync.Mutex
		of     map[BlockKey]*list.Element
		recent *list.List // of *block; the front was used last
		bytes  int64
	}
}

// BlockKey names a piece. File is anything that can be compared.
type BlockKey struct {
	File   any
	Number int64
}

type block struct {
	key  BlockKey
	done chan struct{} // closed when b and err are there
	b    []byte
	err  error
}

// NewBlocks keeps up to most bytes.
func NewBlocks(most int64) *Blocks {
	c := &Blocks{most: most}
	c.mu.of, c.mu.recent = make(map[BlockKey]*list.Element), list.New()
	return c
}

// Get gives a piece, which nobody may change, by fetch if it is not here. An
// error is not kept; who waited for a fetch that failed fetches himself.
func (c *Blocks) Get(ctx context.Context, key BlockKey, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	for {
		c.mu.Lock()
		e := c.mu.of[key]
		if e == nil {
			bl := &block{key: key, done: make(chan struct{})}
			e = c.mu.recent.PushFront(bl)
			c.mu.of[key] = e
			c.mu.Unlock()
			bl.b, bl.err = fetch(ctx)
			c.mu.Lock()
			close(bl.done)
			if c.mu.of[key] == e { // nobody dropped it meanwhile
				if bl.err != nil {
					c.remove(e)
				} else {
					c.mu.bytes += int64(len(bl.b))
					c.trim()
				}
			}
			c.mu.Unlock()
			return bl.b, bl.err
		}
		c.mu.recent.MoveToFront(e)
		c.mu.Unlock()
		bl := e.Value.(*block)
		select {
		case <-bl.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if bl.err == nil {
			return bl.b, nil
		}
	}
}

// remove is called with the lock held.
func (c *Blocks) remove(e *list.Element) {
	bl := c.mu.recent.Remove(e).(*block)
	delete(c.mu.of, bl.key)
}

// trim lets go of what was used longest ago; the lock is held.
func (c *Blocks) trim() {
	for e := c.mu.recent.Back(); e != nil && c.mu.bytes > c.most; {
		prev := e.Prev()
		bl := e.Value.(*block)
		select {
		case <-bl.done:
			c.mu.bytes -= int64(len(bl.b))
			c.remove(e)
		default: // on its way
		}
		e = prev
	}
}

// Drop forgets the pieces of a file.
func (c *Blocks) Drop(file any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.mu.recent.Front(); e != nil; {
		next := e.Next()
		if bl := e.Value.(*block); bl.key.File == file {
			select {
			case <-bl.done:
				c.mu.bytes -= int64(len(bl.b))
			default:
			}
			c.remove(e)
		}
		e = next
	}
}
