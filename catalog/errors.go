package catalog

import (
	"errors"
	"io/fs"
)

// The error classes of ckptd. Every layer wraps one of them with the path of
// verbs that led there; callers use errors.Is. A missing thing is
// fs.ErrNotExist and a taken name is fs.ErrExist.
var (
	// ErrInvalid: the caller asked for something that can never work; the text says what to change.
	ErrInvalid = errors.New("invalid argument")
	// ErrCorrupt: stored or received bytes fail their checksum or their format.
	ErrCorrupt = errors.New("corrupt data")
	// ErrNoSpace: the bytes do not fit; the text says how much is short.
	ErrNoSpace = errors.New("not enough space")
	// ErrFenced: a newer attempt of the run has attached; this writer is stale.
	ErrFenced = errors.New("fenced by a newer attempt")
	// ErrConflict: somebody else changed the record first, or its state forbids the change.
	ErrConflict = errors.New("conflict")
	// ErrIncomplete: the set exists, but not at the level asked for (yet).
	ErrIncomplete = errors.New("not yet at the level asked for")
	// ErrUnavailable: a service or node needed for this cannot be reached; trying again may help.
	ErrUnavailable = errors.New("unavailable")
)

// Classes lists every class an edge (errno, HTTP status, exit code, exception)
// must map, most specific first. A test of each edge walks it.
var Classes = []error{
	ErrInvalid, ErrCorrupt, ErrNoSpace, ErrFenced, ErrConflict, ErrIncomplete, ErrUnavailable,
	fs.ErrNotExist, fs.ErrExist,
}

// ClassOf returns the class err belongs to, or nil when it has none.
func ClassOf(err error) error {
	for _, class := range Classes {
		if errors.Is(err, class) {
			return class
		}
	}
	return nil
}
