package natscatalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"
)

// heads remembers, for a few prefixes, how far their heads are known. To find
// the last message under a prefix the server walks over all its keys; to find
// the next one after a known head it looks only at what is new.
type heads struct {
	mu struct {
		sync.Mutex
		known map[string]known // by prefix; at most maxHeads
	}
}

type known struct {
	head  uint64    // the last message under the prefix
	upto  uint64    // no message under the prefix lies in (head, upto]
	until time.Time // zero: holds for ever; a marker may expire, so it holds for markerHold
}

// holds says how long a head is good for.
func holds(marker bool) (until time.Time) {
	if marker {
		until = time.Now().Add(markerHold)
	}
	return until
}

const (
	maxHeads = 64
	maxSteps = 8 // new messages that Head follows one by one before it asks for the last

	markerHold = time.Second
)

func (h *heads) get(prefix string) (known, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k, ok := h.mu.known[prefix]
	return k, ok && (k.until.IsZero() || time.Now().Before(k.until))
}

// put remembers k unless something newer is known.
func (h *heads) put(prefix string, k known) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.mu.known) >= maxHeads {
		clear(h.mu.known)
	}
	if h.mu.known == nil {
		h.mu.known = make(map[string]known)
	}
	if k.upto >= h.mu.known[prefix].upto {
		h.mu.known[prefix] = k
	}
}

func (h *heads) forget(prefix string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mu.known, prefix)
}

// Head implements catalog.Driver; the stream's leader answers.
func (d *Driver) Head(ctx context.Context, prefix string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opt.Timeout)
	defer cancel()
	rev, err := d.head(ctx, prefix)
	if err != nil {
		return 0, fmt.Errorf("head of %s: %w", prefix, err)
	}
	return rev, nil
}

func (d *Driver) head(ctx context.Context, prefix string) (uint64, error) {
	filters, err := d.filters(prefix)
	if err != nil {
		return 0, err
	}
	last, err := d.load(ctx, loadRequest{Last: ">"}) // the server knows this one without looking
	switch {
	case errors.Is(err, fs.ErrNotExist): // empty, or its last message was a marker that expired
	case err != nil:
		return 0, err
	case prefix == "" || last.subj == filters[0] || strings.HasPrefix(last.subj, filters[0]+"."):
		if prefix != "" {
			d.heads.put(prefix, known{last.seq, last.seq, holds(last.marker)})
		}
		return last.seq, nil
	}
	if k, ok := d.heads.get(prefix); ok && last.seq > 0 && last.seq >= k.upto {
		if last.seq == k.upto {
			return k.head, nil
		}
		if k, ok, err := d.advance(ctx, filters, k, last.seq); err != nil {
			return 0, err
		} else if ok {
			d.heads.put(prefix, k)
			return k.head, nil
		}
	}
	return d.lookup(ctx, prefix, filters, last.seq)
}

// advance follows the messages after k one by one up to the stream's end; not
// ok when they are many.
func (d *Driver) advance(ctx context.Context, filters []string, k known, end uint64) (known, bool, error) {
	for range maxSteps {
		var next message
		for _, f := range filters {
			m, err := d.load(ctx, loadRequest{Seq: k.upto + 1, Next: f})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return k, false, err
			}
			if err == nil && (next.seq == 0 || m.seq < next.seq) {
				next = m
			}
		}
		if next.seq == 0 {
			k.upto = max(k.upto, end)
			return k, true, nil
		}
		k = known{next.seq, next.seq, holds(next.marker)}
	}
	return k, false, nil
}

// lookup asks for the last message under the prefix.
func (d *Driver) lookup(ctx context.Context, prefix string, filters []string, end uint64) (uint64, error) {
	var last message
	for _, f := range filters {
		m, err := d.load(ctx, loadRequest{Last: f})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if err == nil && m.seq > last.seq {
			last = m
		}
	}
	if last.seq == 0 {
		d.heads.forget(prefix)
	} else {
		d.heads.put(prefix, known{last.seq, max(last.seq, end), holds(last.marker)})
	}
	return last.seq, nil
}
