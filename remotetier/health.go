package remotetier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// health is what a Tier itself has met of a target: up, suspect after an
// error, down after several in a row or some time of nothing else, and up
// again when it does what it failed at. It is a pure state machine; watch.go
// feeds it.
type health struct {
	fails   int       // in a row
	first   time.Time // of these
	last    time.Time // the same
	tried   time.Time // when an operation last ended
	owed    opKind    // what it must do to make up for these
	again   int       // times that it failed again after retryAfter had been its only excuse
	excused bool      // retryAfter was
	err     error     // of the last failure; nil: there is none to speak of
	errors  int64     // all
	latency time.Duration
	short   int64 // bytes of the column it had no room for; 0: it had
}

// opKind is kinds of operations.
type opKind uint8

const (
	answers opKind = 1 << iota // Space, List, Open, Remove
	reads
	begins  // Create
	writes  // Write
	commits // Commit
)

// shows is what a success makes up for. A write that failed needs a whole
// column: a target may take most of one and fail again, at the cost of another
// pass over somebody's source.
func (k opKind) shows() opKind {
	switch k {
	case reads:
		return answers | reads
	case begins, writes:
		return answers | begins
	case commits:
		return answers | begins | writes | commits
	}
	return answers
}

const (
	downErrors   = 5                // in a row make a target down,
	downTime     = 30 * time.Second // or errors for this long and no success
	retryAfter   = 30 * time.Second // then a target that answers, and whose disk failed, is tried again; doubled each time it fails again,
	retryDoubles = 5                // this often
	probeEvery   = 10 * time.Second // a Put asks a target that is down how it is
	latencyShare = 8                // of the mean that the newest answer is
)

// errLimit is, beside errSilent, the cause of a context that met a time limit
// of the Tier's own: to have met it is the target's fault.
var errLimit = errors.New("time limit")

// ours says whether a context ended by a limit of the Tier's own.
func ours(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return cause == errLimit || cause == errSilent
}

// ill says whether an error is one of the target, rather than of what it was
// asked.
func ill(err error) bool {
	switch {
	case err == nil:
		return false
	case errors.Is(err, catalog.ErrUnavailable):
		return true
	case errors.Is(err, io.EOF), errors.Is(err, fs.ErrClosed), errors.Is(err, errForeign), errors.Is(err, context.Canceled):
		return false
	}
	return catalog.ClassOf(err) == nil // EIO, and what a driver has no class for
}

// ok notes an operation that did what it should, or was refused for a reason.
func (h *health) ok(kind opKind, now time.Time) {
	h.tried = now
	if kind == commits {
		h.again, h.excused = 0, false
	}
	if h.fails == 0 {
		return
	}
	if h.owed &^= kind.shows(); h.owed != 0 {
		if now.Sub(h.last) < retryAfter<<min(h.again, retryDoubles) {
			return
		}
		h.excused = true
	}
	h.fails, h.owed, h.err = 0, 0, nil
}

// fail notes one that the target failed.
func (h *health) fail(kind opKind, err error, now time.Time) {
	if h.fails == 0 {
		h.first = now
	}
	if h.excused {
		h.again++
		h.excused = false
	}
	h.fails++
	h.errors++
	h.last, h.tried, h.err = now, now, err
	h.owed |= kind
}

// answered notes how long a small operation took.
func (h *health) answered(took time.Duration) {
	if h.latency == 0 {
		h.latency = took
		return
	}
	h.latency += (took - h.latency) / latencyShare
}

// noRoom notes that a column of that many bytes did not fit.
func (h *health) noRoom(size int64) { h.short = max(size, 1) }

// room notes how much is free.
func (h *health) room(free int64) {
	if free >= h.short {
		h.short = 0
	}
}

// state is what the target's operations show.
func (h *health) state() catalog.TargetState {
	switch {
	case h.fails == 0:
		return catalog.TargetUp
	case h.fails >= downErrors, h.fails > 1 && h.last.Sub(h.first) >= downTime:
		return catalog.TargetDown
	}
	return catalog.TargetSuspect
}

// rests says whether a target that is down need not be asked again yet.
func (h *health) rests(now time.Time) bool {
	return h.state() == catalog.TargetDown && now.Sub(h.tried) < probeEvery
}

// worse puts together what the cluster says of a target and what was met of
// it: the worse of both, except that what somebody ordered is neither's to say.
func worse(ordered, met catalog.TargetState) catalog.TargetState {
	if ordered = ordered.OrUp(); !ordered.Kept() && doubt(met) > doubt(ordered) {
		return met
	}
	return ordered
}

// How much a reader doubts a target: the higher, the later it asks there.
const (
	doubtNone = iota
	doubtSuspect
	doubtDown
	doubtMissing // nobody of that name is a target
)

func doubt(s catalog.TargetState) int {
	switch s {
	case catalog.TargetSuspect:
		return doubtSuspect
	case catalog.TargetDown:
		return doubtDown
	}
	return doubtNone
}

// why is the error of a target that is not asked because it is down.
func (h *health) why() error {
	return fmt.Errorf("%w: it failed %d times in a row, the last time: %w", catalog.ErrUnavailable, h.fails, plain{h.err})
}
