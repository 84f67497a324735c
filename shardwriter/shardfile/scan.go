package shardfile

import (
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of values a scanner skips.
const maxDepth = 64

// scanner reads JSON strictly, in one pass, straight from the bytes. They must
// be valid UTF-8 as a whole. Its errors have no class; callers add ErrCorrupt.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) errorf(format string, args ...any) error {
	return fmt.Errorf("JSON at byte %d: %s", s.i, fmt.Sprintf(format, args...))
}

// next skips white space and gives the byte that follows; 0 at the end.
func (s *scanner) next() byte {
	for ; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; c {
		case ' ', '\n', '\t', '\r':
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	if s.next() != c || s.i >= len(s.b) {
		return s.errorf("want %q", c)
	}
	s.i++
	return nil
}

// end reports whether only white space is left.
func (s *scanner) end() bool { s.next(); return s.i >= len(s.b) }

// list reads "open item , item close", calling item at the start of each.
func (s *scanner) list(open, close byte, item func() error) error {
	if err := s.expect(open); err != nil {
		return err
	}
	if s.next() == close {
		s.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch c := s.next(); {
		case c == ',':
			s.i++
		case c == close:
			s.i++
			return nil
		default:
			return s.errorf("want ',' or %q", close)
		}
	}
}

// object reads an object, calling value at the start of each key's value. The
// key lives only as long as the call.
func (s *scanner) object(value func(key []byte) error) error {
	return s.list('{', '}', func() error {
		key, err := s.str()
		if err != nil {
			return err
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		return value(key)
	})
}

var errSurrogate = errors.New("lone surrogate")

// str reads a string. Without escapes the result is a part of the input.
func (s *scanner) str() ([]byte, error) {
	if err := s.expect('"'); err != nil {
		return nil, err
	}
	start := s.i
	for ; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[start : s.i-1], nil
		case c == '\\':
			return s.escaped(append([]byte(nil), s.b[start:s.i]...))
		case c < 0x20:
			return nil, s.errorf("control character in a string")
		}
	}
	return nil, s.errorf("string without end")
}

// escaped goes on with a string from its first backslash.
func (s *scanner) escaped(out []byte) ([]byte, error) {
	for s.i < len(s.b) {
		c := s.b[s.i]
		s.i++
		switch {
		case c == '"':
			return out, nil
		case c < 0x20:
			return nil, s.errorf("control character in a string")
		case c != '\\':
			out = append(out, c)
			continue
		}
		if s.i >= len(s.b) {
			break
		}
		c = s.b[s.i]
		s.i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, err := s.unicode()
			if err != nil {
				return nil, s.errorf("%v", err)
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, s.errorf("unknown escape")
		}
	}
	return nil, s.errorf("string without end")
}

// unicode reads what follows \u, with the second half of a surrogate pair.
func (s *scanner) unicode() (rune, error) {
	r, err := s.hex4()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if s.i+2 > len(s.b) || s.b[s.i] != '\\' || s.b[s.i+1] != 'u' {
		return 0, errSurrogate
	}
	s.i += 2
	low, err := s.hex4()
	if err != nil {
		return 0, err
	}
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, errSurrogate
	}
	return r, nil
}

func (s *scanner) hex4() (rune, error) {
	if s.i+4 > len(s.b) {
		return 0, errors.New("short escape")
	}
	var r rune
	for _, c := range s.b[s.i : s.i+4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, errors.New("bad escape")
		}
	}
	s.i += 4
	return r, nil
}

// number reads a natural number below 2^63: digits, no sign, fraction,
// exponent or leading zero.
func (s *scanner) number() (int64, error) {
	s.next()
	start := s.i
	var n uint64
	for ; s.i < len(s.b); s.i++ {
		c := s.b[s.i] - '0'
		if c > 9 {
			break
		}
		if n > (1<<63-1-uint64(c))/10 {
			return 0, s.errorf("number too large")
		}
		n = n*10 + uint64(c)
	}
	switch {
	case s.i == start:
		return 0, s.errorf("want a number")
	case s.b[start] == '0' && s.i > start+1:
		return 0, s.errorf("leading zero")
	}
	return int64(n), nil
}

// numbers appends a list of natural numbers to dst, at most limit.
func (s *scanner) numbers(dst []int64, limit int) ([]int64, error) {
	err := s.list('[', ']', func() error {
		n, err := s.number()
		if err != nil {
			return err
		}
		if len(dst) == limit {
			return s.errorf("more than %d numbers", limit)
		}
		dst = append(dst, n)
		return nil
	})
	return dst, err
}

// skip reads any value and forgets it.
func (s *scanner) skip(depth int) error {
	if depth > maxDepth {
		return s.errorf("nested deeper than %d", maxDepth)
	}
	switch c := s.next(); {
	case c == '{':
		return s.object(func([]byte) error { return s.skip(depth + 1) })
	case c == '[':
		return s.list('[', ']', func() error { return s.skip(depth + 1) })
	case c == '"':
		_, err := s.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		return s.skipNumber()
	}
	for _, word := range [...]string{"null", "true", "false"} {
		if s.word(word) {
			return nil
		}
	}
	return s.errorf("want a value")
}

// word reads a literal if it comes next.
func (s *scanner) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

// skipNumber reads a number of JSON's full grammar.
func (s *scanner) skipNumber() error {
	digits := func() bool {
		start := s.i
		for s.i < len(s.b) && s.b[s.i]-'0' <= 9 {
			s.i++
		}
		return s.i > start
	}
	s.word("-")
	start := s.i
	if !digits() || s.b[start] == '0' && s.i > start+1 {
		return s.errorf("bad number")
	}
	if s.word(".") && !digits() {
		return s.errorf("bad number")
	}
	if s.word("e") || s.word("E") {
		if !s.word("+") {
			s.word("-")
		}
		if !digits() {
			return s.errorf("bad number")
		}
	}
	return nil
}
