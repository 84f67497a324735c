package traffic

import "time"

// plan is the decisions of a Gate. It has no clock, no lock and no goroutine:
// every call says what time it is.
type plan struct {
	linger, maxWait time.Duration
	classes         [Classes]state
}

// state is one class.
type state struct {
	rate, floor bucket
	flight      int       // operations in flight
	ended       time.Time // when the last one left
	queue       []*waiter // in the order they came
}

// waiter is an operation that wants to begin.
type waiter struct {
	class Class
	bytes int64
	came  time.Time
	held  bool          // it was made to wait
	ready chan struct{} // closed when it is let in
}

// bucket gives out bytes at a rate. It may go below zero: who takes more than
// the burst waits for a full bucket, and the next for its debt.
type bucket struct {
	rate  float64 // bytes/s; 0: no limit
	burst float64 // bytes
	level float64
	at    time.Time // when level was right
}

func newBucket(rate, burst int64) bucket {
	return bucket{rate: float64(rate), burst: float64(max(burst, 1)), level: float64(max(burst, 1))}
}

// when is the first moment, not before now, at which n bytes may be taken.
func (b *bucket) when(now time.Time, n int64) time.Time {
	if b.rate <= 0 {
		return now
	}
	b.fill(now)
	short := min(float64(n), b.burst) - b.level
	if short <= 0 {
		return now
	}
	// Rounded up: a wake-up must not come a moment too early, and again.
	return now.Add(time.Duration(short/b.rate*float64(time.Second)) + time.Microsecond)
}

func (b *bucket) take(now time.Time, n int64) {
	if b.rate > 0 {
		b.fill(now)
		b.level -= float64(n)
	}
}

func (b *bucket) fill(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		if !b.at.IsZero() {
			b.level = min(b.burst, b.level+d.Seconds()*b.rate)
		}
		b.at = now
	}
}

// held says until when more urgent classes hold c back, as far as is known:
// the zero time if none does. What is in flight holds for ever.
func (p *plan) held(now time.Time, c Class) (until time.Time, forever bool) {
	for o := range p.classes[:c] {
		s := &p.classes[o]
		if s.flight > 0 {
			return time.Time{}, true
		}
		if end := s.ended.Add(p.linger); !s.ended.IsZero() && end.After(now) && end.After(until) {
			until = end
		}
	}
	return until, false
}

// due is when w may begin if nothing changes; floored says that the floor
// lets it in.
func (p *plan) due(now time.Time, w *waiter) (at time.Time, floored bool) {
	s := &p.classes[w.class]
	at = s.rate.when(now, w.bytes)
	until, forever := p.held(now, w.class)
	if until.IsZero() && !forever {
		return at, false
	}
	free := w.came.Add(p.maxWait)
	if !forever && until.Before(free) {
		free = until
	}
	if s.floor.rate > 0 {
		if f := s.floor.when(now, w.bytes); !f.After(free) {
			free, floored = f, true
		}
	}
	if free.After(at) {
		at = free
	}
	return at, floored
}

// admit lets in who may begin now, the most urgent first, and says when to ask
// again (the zero time: when something happens).
func (p *plan) admit(now time.Time) (ready []*waiter, again time.Time) {
	for c := range p.classes {
		s := &p.classes[c]
		for len(s.queue) > 0 {
			w := s.queue[0]
			at, floored := p.due(now, w)
			if at.After(now) {
				w.held = true
				if again.IsZero() || at.Before(again) {
					again = at
				}
				break
			}
			s.queue[0] = nil
			s.queue = s.queue[1:]
			s.rate.take(now, w.bytes)
			if floored {
				s.floor.take(now, w.bytes)
			}
			s.flight++
			ready = append(ready, w)
		}
	}
	return ready, again
}

func (p *plan) enter(w *waiter) {
	s := &p.classes[w.class]
	s.queue = append(s.queue, w)
}

// leave ends an operation that was let in.
func (p *plan) leave(now time.Time, c Class) {
	s := &p.classes[c]
	s.flight--
	s.ended = now
}

// cancel takes w out of its queue, if it is still there.
func (p *plan) cancel(w *waiter) bool {
	s := &p.classes[w.class]
	for i := range s.queue {
		if s.queue[i] == w {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			return true
		}
	}
	return false
}

func (p *plan) waiting() (n int) {
	for c := range p.classes {
		n += len(p.classes[c].queue)
	}
	return n
}
