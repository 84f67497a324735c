package traffic

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Line is who waits for something of which there are few: the most urgent class
// first, within it who came first, and before all of them who has waited
// for long. The zero value is empty. The lock of what is waited for guards it.
type Line[T any] struct{ list []place[T] }

type place[T any] struct {
	who   T
	class Class
	came  time.Time
}

// Join puts who at its place. now does not go back from call to call.
func (l *Line[T]) Join(now time.Time, c Class, who T) {
	i := len(l.list)
	for i > 0 && l.list[i-1].class > c {
		i--
	}
	l.list = slices.Insert(l.list, i, place[T]{who, c, now})
}

// Next takes out whose turn it is.
func (l *Line[T]) Next(now time.Time) (who T, ok bool) {
	if len(l.list) == 0 {
		return who, false
	}
	next := 0
	for i, p := range l.list {
		if now.Sub(p.came) >= defaultMaxWait && p.came.Before(l.list[next].came) {
			next = i
		}
	}
	who = l.list[next].who
	l.list = slices.Delete(l.list, next, next+1)
	return who, true
}

// Leave takes out the first that is says is the one, and reports whether it was there.
func (l *Line[T]) Leave(is func(T) bool) bool {
	i := slices.IndexFunc(l.list, func(p place[T]) bool { return is(p.who) })
	if i >= 0 {
		l.list = slices.Delete(l.list, i, i+1)
	}
	return i >= 0
}

// Len is how many wait.
func (l *Line[T]) Len() int { return len(l.list) }

// Slots is a number of places to work in, given out by class.
type Slots struct {
	mu struct {
		sync.Mutex
		free int
		line Line[chan struct{}]
	}
}

// NewSlots makes n of them.
func NewSlots(n int) *Slots {
	s := &Slots{}
	s.mu.free = n
	return s
}

// Take waits for a slot for the context's class. The caller gives it back.
func (s *Slots) Take(ctx context.Context) error {
	s.mu.Lock()
	if s.mu.free > 0 {
		s.mu.free--
		s.mu.Unlock()
		return nil
	}
	ready := make(chan struct{})
	s.mu.line.Join(time.Now(), ClassOf(ctx), ready)
	s.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	gone := s.mu.line.Leave(func(c chan struct{}) bool { return c == ready })
	s.mu.Unlock()
	if !gone { // it came in the same moment
		s.Give()
	}
	return ctx.Err()
}

// Give gives a slot back, to who is next.
func (s *Slots) Give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ready, ok := s.mu.line.Next(time.Now()); ok {
		close(ready)
		return
	}
	s.mu.free++
}
