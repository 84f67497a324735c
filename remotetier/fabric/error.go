package fabric

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Codes of answers on the wire; PROTOCOL.md has them.
const (
	CodeDone    = 0
	CodeRefused = 10
	codeOther   = 255
)

// ErrRefused: the target does not know the token, or is not the one expected.
// It is met as catalog.ErrUnavailable too: other connections may fare better.
var ErrRefused = fmt.Errorf("refused: %w", catalog.ErrUnavailable)

// codes is the one table from classes to codes.
var codes = []struct {
	class error
	code  byte
}{
	{ErrRefused, CodeRefused},
	{catalog.ErrInvalid, 1},
	{catalog.ErrCorrupt, 2},
	{catalog.ErrNoSpace, 3},
	{catalog.ErrFenced, 4},
	{catalog.ErrConflict, 5},
	{catalog.ErrIncomplete, 6},
	{catalog.ErrUnavailable, 7},
	{fs.ErrNotExist, 8},
	{fs.ErrExist, 9},
	// A target that gave up says nothing about the client's own context.
	{context.Canceled, 7},
	{context.DeadlineExceeded, 7},
}

// MaxErrorText bounds an error's text on the wire, in bytes.
const MaxErrorText = 1024

// CodeOf gives the code of err; CodeDone for nil.
func CodeOf(err error) byte {
	if err == nil {
		return CodeDone
	}
	for _, c := range codes {
		if errors.Is(err, c.class) {
			return c.code
		}
	}
	return codeOther
}

// farError is what a target answered.
type farError struct {
	class error // nil: none
	text  string
}

func (e *farError) Error() string { return e.text }
func (e *farError) Unwrap() error { return e.class }

// ErrorOf gives the error of a code and its text, nil for CodeDone. The text
// is the other side's: what is not printable in it is taken out.
func ErrorOf(code byte, text string) error {
	if code == CodeDone {
		return nil
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, text[:min(len(text), MaxErrorText)])
	e := &farError{text: text}
	for _, c := range codes {
		if c.code == code {
			e.class = c.class
			break
		}
	}
	if e.text == "" {
		e.text = fmt.Sprintf("the target answered with code %d", code)
	}
	return e
}
