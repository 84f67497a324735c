package source

import "errors"

// thrift reads Thrift's compact protocol, as far as the footer of a Parquet file
// needs it: what is not asked for is skipped.
type thrift struct {
	b []byte
}

var errThrift = errors.New("its footer is broken")

// Types of the compact protocol.
const (
	thriftTrue, thriftFalse, thriftByte        = 1, 2, 3
	thriftI16, thriftI32, thriftI64            = 4, 5, 6
	thriftDouble, thriftBinary                 = 7, 8
	thriftList, thriftSet, thriftMap, thriftOf = 9, 10, 11, 12
	thriftUUID                                 = 13
	thriftDepth                                = 32
)

func (t *thrift) byte() (byte, error) {
	if len(t.b) == 0 {
		return 0, errThrift
	}
	c := t.b[0]
	t.b = t.b[1:]
	return c, nil
}

func (t *thrift) uvarint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		c, err := t.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, nil
		}
	}
	return 0, errThrift
}

// number reads a zigzag number of any width.
func (t *thrift) number() (int64, error) {
	v, err := t.uvarint()
	return int64(v>>1) ^ -int64(v&1), err
}

func (t *thrift) binary() ([]byte, error) {
	n, err := t.uvarint()
	if err != nil || n > uint64(len(t.b)) {
		return nil, errThrift
	}
	v := t.b[:n]
	t.b = t.b[n:]
	return v, nil
}

// fields reads a struct. field must read the value, or give false to have it skipped.
func (t *thrift) fields(depth int, field func(id int64, kind byte) (bool, error)) error {
	if depth > thriftDepth {
		return errThrift
	}
	id := int64(0)
	for {
		c, err := t.byte()
		if err != nil || c == 0 {
			return err
		}
		if step := int64(c >> 4); step != 0 {
			id += step
		} else if id, err = t.number(); err != nil {
			return err
		}
		done, err := field(id, c&0x0f)
		if err == nil && !done {
			err = t.skip(c&0x0f, depth+1)
		}
		if err != nil {
			return err
		}
	}
}

// list reads the head of a list: the kind of its elements, and how many.
func (t *thrift) list() (kind byte, n uint64, err error) {
	c, err := t.byte()
	if err != nil {
		return 0, 0, err
	}
	if n = uint64(c >> 4); n == 15 {
		if n, err = t.uvarint(); err != nil {
			return 0, 0, err
		}
	}
	if n > uint64(len(t.b)) { // an element takes a byte at least
		return 0, 0, errThrift
	}
	return c & 0x0f, n, nil
}

// skip reads a value that nobody wants. Booleans within a struct are in its head.
func (t *thrift) skip(kind byte, depth int) error {
	if depth > thriftDepth {
		return errThrift
	}
	drop := func(n int) error {
		if n > len(t.b) {
			return errThrift
		}
		t.b = t.b[n:]
		return nil
	}
	switch kind {
	case thriftTrue, thriftFalse:
		return nil
	case thriftByte:
		return drop(1)
	case thriftI16, thriftI32, thriftI64:
		_, err := t.uvarint()
		return err
	case thriftDouble:
		return drop(8)
	case thriftUUID:
		return drop(16)
	case thriftBinary:
		_, err := t.binary()
		return err
	case thriftList, thriftSet:
		of, n, err := t.list()
		for ; err == nil && n > 0; n-- {
			err = t.element(of, depth)
		}
		return err
	case thriftMap:
		n, err := t.uvarint()
		if err != nil || n == 0 {
			return err
		}
		kinds, err := t.byte()
		if n > uint64(len(t.b)) {
			return errThrift
		}
		for ; err == nil && n > 0; n-- {
			if err = t.element(kinds>>4, depth); err == nil {
				err = t.element(kinds&0x0f, depth)
			}
		}
		return err
	case thriftOf:
		return t.fields(depth, func(int64, byte) (bool, error) { return false, nil })
	}
	return errThrift
}

// element skips one of a list; there a boolean takes a byte.
func (t *thrift) element(kind byte, depth int) error {
	if kind == thriftTrue || kind == thriftFalse {
		kind = thriftByte
	}
	return t.skip(kind, depth+1)
}
