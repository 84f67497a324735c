package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/ckptd/ckptd/catalog"
)

// ErrUnauthorized: the peer's user or token is not allowed.
var ErrUnauthorized = errors.New("unauthorized")

// codes is the one table from classes to codes and HTTP statuses.
var codes = []struct {
	class  error
	code   string
	status int
}{
	{catalog.ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrUnauthorized, "unauthorized", http.StatusUnauthorized},
	{catalog.ErrCorrupt, "corrupt", http.StatusUnprocessableEntity},
	{catalog.ErrNoSpace, "no_space", http.StatusInsufficientStorage},
	{catalog.ErrFenced, "fenced", http.StatusConflict},
	{catalog.ErrConflict, "conflict", http.StatusConflict},
	{catalog.ErrIncomplete, "incomplete", http.StatusTooEarly},
	{catalog.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	{fs.ErrNotExist, "not_found", http.StatusNotFound},
	{fs.ErrExist, "exists", http.StatusConflict},
}

// Error is an error on the wire.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do next
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the class, so that errors.Is works on the far side.
func (e *Error) Unwrap() error {
	for _, c := range codes {
		if c.code == e.Code {
			return c.class
		}
	}
	return nil
}

// Status is the HTTP status of the error's code.
func (e *Error) Status() int {
	for _, c := range codes {
		if c.code == e.Code {
			return c.status
		}
	}
	return http.StatusInternalServerError
}

// ErrorOf prepares err for the wire. It returns nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	out := &Error{Code: "internal", Message: err.Error()}
	for _, c := range codes {
		if errors.Is(err, c.class) {
			out.Code = c.code
			break
		}
	}
	var far *Error // came over the wire itself
	var near hinted
	if errors.As(err, &far) {
		out.Hint = far.Hint
	}
	if errors.As(err, &near) {
		out.Hint = near.hint
	}
	return out
}

// hinted is an error that says what to do next.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// WithHint adds advice to err; it is shown to people, never matched.
func WithHint(err error, format string, args ...any) error {
	return hinted{err, fmt.Sprintf(format, args...)}
}
