package remotetier_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// TestHealthIsAStateMachine: small letters are failures (a to answer, r to
// read, b to begin a column, w to write, c to commit), capitals successes, a
// digit is that many times 10 s.
func TestHealthIsAStateMachine(t *testing.T) {
	kinds := map[string]remotetier.OpKind{"a": remotetier.Answers, "r": remotetier.Reads, "b": remotetier.Begins, "w": remotetier.Writes, "c": remotetier.Commits}
	for _, c := range []struct {
		story string
		want  catalog.TargetState
	}{
		{"", catalog.TargetUp},
		{"A R B W C", catalog.TargetUp},
		{"a", catalog.TargetSuspect},
		{"w", catalog.TargetSuspect},
		{"a A", catalog.TargetUp},
		{"a R", catalog.TargetUp},
		{"a C", catalog.TargetUp},
		{"r A", catalog.TargetSuspect}, // it answers, and its disk has shown nothing
		{"r R", catalog.TargetUp},
		{"r C", catalog.TargetSuspect},
		{"b B", catalog.TargetUp},
		{"w A R B W", catalog.TargetSuspect}, // it takes a part of a column, as it did before
		{"w C", catalog.TargetUp},
		{"c B W", catalog.TargetSuspect},
		{"c C", catalog.TargetUp},
		{"w a A", catalog.TargetSuspect},
		{"w r C", catalog.TargetSuspect},
		{"w r C R", catalog.TargetUp},
		{"w 3 A", catalog.TargetUp}, // tried again after a while
		{"w 3 A w 3 A", catalog.TargetSuspect},
		{"w 3 A w 6 A", catalog.TargetUp}, // a longer while
		{"w 3 A w 6 A w 9 A", catalog.TargetSuspect},
		{"w 3 A w 6 A w 9 3 A", catalog.TargetUp},
		{"w 3 A C w 3 A", catalog.TargetUp}, // it had shown what it can
		{"a a a a", catalog.TargetSuspect},
		{"a a a a a", catalog.TargetDown},
		{"a a A a a a", catalog.TargetSuspect},
		{"w A w A w A w A w", catalog.TargetDown}, // answers do not make up for it
		{"w A w A w A w A w A", catalog.TargetDown},
		{"w A w A w A w A w 3 A", catalog.TargetUp},
		{"a 3 a", catalog.TargetDown}, // nothing but errors for 30 s
		{"a 2 a", catalog.TargetSuspect},
		{"a 9 9", catalog.TargetSuspect}, // one error, and nobody asked since
		{"a 3 a A", catalog.TargetUp},    // a probe
		{"a 3 a A a", catalog.TargetSuspect},
	} {
		var h remotetier.Health
		now := time.Unix(0, 0)
		for _, step := range strings.Fields(c.story) {
			kind := kinds[strings.ToLower(step)]
			switch {
			case kind == 0:
				now = now.Add(time.Duration(step[0]-'0') * 10 * time.Second)
			case step == strings.ToLower(step):
				h.Fail(kind, errDisk, now)
			default:
				h.OK(kind, now)
			}
		}
		if got := h.State(); got != c.want {
			t.Errorf("%q ends %s, want %s", c.story, got, c.want)
		}
		if rests := h.Rests(now); rests != (c.want == catalog.TargetDown) {
			t.Errorf("%q: rests = %v", c.story, rests)
		}
		if h.Rests(now.Add(10 * time.Second)) {
			t.Errorf("%q: rests 10 s later", c.story)
		}
	}
}

func TestWhichErrorsAreTheTargets(t *testing.T) {
	for err, want := range map[error]bool{
		nil:                             false,
		syscall.EIO:                     true,
		errors.New("cut"):               true,
		catalog.ErrUnavailable:          true,
		context.DeadlineExceeded:        true,
		context.Canceled:                false,
		io.EOF:                          false,
		io.ErrUnexpectedEOF:             true,
		fs.ErrNotExist:                  false,
		fs.ErrExist:                     false,
		fs.ErrClosed:                    false,
		catalog.ErrCorrupt:              false,
		catalog.ErrNoSpace:              false,
		catalog.ErrInvalid:              false,
		catalog.ErrConflict:             false,
		&fs.PathError{Err: syscall.EIO}: true,
	} {
		if err != nil {
			err = fmt.Errorf("read: %w", err)
		}
		if got := remotetier.Ill(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
	both := fmt.Errorf("%w: %w", catalog.ErrUnavailable, fs.ErrNotExist)
	if !remotetier.Ill(both) {
		t.Error("unavailable, because something is not there, is the target's")
	}
}

func TestWorseOfWhatIsSaidAndWhatIsMet(t *testing.T) {
	const up, suspect, down, draining, drained = catalog.TargetUp, catalog.TargetSuspect, catalog.TargetDown, catalog.TargetDraining, catalog.TargetDrained
	for _, c := range [][3]catalog.TargetState{
		{"", up, up}, {up, up, up}, {up, suspect, suspect}, {up, down, down}, {suspect, up, suspect}, {suspect, down, down}, {down, up, down},
		{down, suspect, down}, {draining, up, draining}, {draining, down, draining}, {drained, down, drained},
	} {
		if got := remotetier.Worse(c[0], c[1]); got != c[2] {
			t.Errorf("Worse(%q, %q) = %s, want %s", c[0], c[1], got, c[2])
		}
	}
}
