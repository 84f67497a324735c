package datasets

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

func TestWaiting(t *testing.T) {
	away, full := fmt.Errorf("dial: %w", catalog.ErrUnavailable), fmt.Errorf("reserve: %w", catalog.ErrNoSpace)
	type step struct {
		at   int // seconds
		err  error
		left *Leaving
		give bool
	}
	some := func(n int64) *Leaving { return &Leaving{Bytes: n, Shards: 1} }
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"a daemon that is away for too long", []step{{0, away, nil, false}, {30, away, nil, false}, {61, away, nil, true}}},
		{"other errors", []step{{0, fmt.Errorf("x: %w", catalog.ErrInvalid), nil, true}}},
		{"full, and the drain makes room", []step{{0, full, some(9), false}, {50, full, some(7), false}, {100, full, some(5), false}, {150, full, some(5), false}, {161, full, some(5), true}}},
		{"full, and nothing will leave", []step{{0, full, &Leaving{}, false}, {1, full, &Leaving{}, true}}},
		{"full, and nobody knows what will leave", []step{{0, full, nil, true}}},
		{"full, all left, one more try", []step{{0, full, some(3), false}, {1, full, &Leaving{}, false}, {2, full, &Leaving{}, true}}},
		{"away while it drains", []step{{0, full, some(3), false}, {20, away, nil, false}, {21, full, some(2), false}}},
	} {
		w := waiting{patience: time.Minute}
		begin := time.Unix(1e9, 0)
		for i, s := range c.steps {
			pause, err := w.next(begin.Add(time.Duration(s.at)*time.Second), s.err, s.left)
			if (err != nil) != s.give || s.give && !errors.Is(err, s.err) || !s.give && (pause <= 0 || pause > longest) {
				t.Errorf("%s: step %d: %v, %v; want give up %v", c.name, i, pause, err, s.give)
			}
		}
	}
}
