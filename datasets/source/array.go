package source

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", catalog.ErrInvalid, fmt.Sprintf(format, args...))
}

// readFull fills p from off; the end of the file is ErrCorrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return corrupt("it ends at %d, where %d bytes more belong", off+int64(n), len(p)-n)
	}
	return err
}

// failed is a sequence that is one error.
func failed(err error) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) { yield(Range{}, err) }
}

// safetensorsRecords gives every tensor that has bytes, in the order of the file.
func safetensorsRecords(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
	h, err := shardfile.ReadHeader(r, size)
	if err != nil {
		return failed(err)
	}
	return func(yield func(Range, error) bool) {
		byOffset := slices.Clone(h.Tensors)
		slices.SortStableFunc(byOffset, func(a, b catalog.Tensor) int { return cmp.Compare(a.Offset, b.Offset) })
		for _, t := range byOffset {
			if t.Size > 0 && !yield(Range{t.Offset, t.Size}, nil) {
				return
			}
		}
	}
}

const maxNPYHeader = 64 << 10 // bytes

// npyHeader is what numpy writes before an array.
type npyHeader struct {
	descr string
	shape []int64
	start int64 // of the data
	item  int64 // bytes of an element
}

// npyRecords gives every row of the first axis.
func (t *tree) npyRecords(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
	h, err := readNPY(r, size)
	if err != nil {
		return failed(fmt.Errorf(".npy: %w", err))
	}
	if len(h.shape) == 0 {
		return failed(fmt.Errorf(".npy: %w", invalid("the array has no axis, so it has no rows; import it with --format tree")))
	}
	row, rows := h.item, h.shape[0]
	for _, n := range h.shape[1:] {
		row *= n // bounded with the size by readNPY
	}
	if row == 0 && rows > 0 {
		return failed(fmt.Errorf(".npy: %w", invalid("its rows have no bytes")))
	}
	t.kinds.add(fmt.Sprint(h.descr, h.shape[1:]), Row{DType: h.descr, Shape: h.shape[1:]})
	return func(yield func(Range, error) bool) {
		for i := range rows {
			if !yield(Range{h.start + i*row, row}, nil) {
				return
			}
		}
	}
}

func readNPY(r io.ReaderAt, size int64) (npyHeader, error) {
	var h npyHeader
	pre := make([]byte, min(12, size))
	if err := readFull(r, pre, 0); err != nil {
		return h, err
	}
	if len(pre) < 10 || string(pre[:6]) != "\x93NUMPY" {
		return h, corrupt("it does not begin as numpy writes it")
	}
	var length int64
	switch {
	case pre[6] == 1:
		h.start, length = 10, int64(binary.LittleEndian.Uint16(pre[8:]))
	case pre[6] <= 3 && len(pre) == 12:
		h.start, length = 12, int64(binary.LittleEndian.Uint32(pre[8:]))
	default:
		return h, corrupt("version %d", pre[6])
	}
	if length > maxNPYHeader || h.start+length > size {
		return h, corrupt("a header of %d bytes in a file of %d", length, size)
	}
	text := make([]byte, length)
	if err := readFull(r, text, h.start); err != nil {
		return h, err
	}
	h.start += length
	p := pyDict{s: string(text)}
	if err := p.parse(); err != nil {
		return h, err
	}
	var err error
	if h.descr, h.shape = p.descr, p.shape; p.fortran && len(h.shape) > 1 {
		return h, invalid("Fortran order: its rows are not contiguous; save numpy.ascontiguousarray of it, or import with --format tree")
	}
	if h.item, err = itemSize(h.descr); err != nil {
		return h, err
	}
	total := h.item
	for _, n := range h.shape {
		if n > 0 && total > size/n {
			return h, corrupt("shape %v of %s does not fit into %d bytes", h.shape, h.descr, size)
		}
		total *= n
	}
	if h.start+total != size {
		return h, corrupt("shape %v of %s takes %d bytes, %d are there", h.shape, h.descr, total, size-h.start)
	}
	return h, nil
}

// itemSize reads the size out of a type string such as "<f4", "|S10" or "<U3".
func itemSize(descr string) (int64, error) {
	if len(descr) < 3 || strings.IndexByte("<>|=", descr[0]) < 0 {
		return 0, invalid("dtype %.80q has no fixed size that is known; import with --format tree", descr)
	}
	digits, _, _ := strings.Cut(descr[2:], "[") // datetime64 has its unit there
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n < 1 || n > 1<<20 {
		return 0, invalid("dtype %.80q has no fixed size that is known; import with --format tree", descr)
	}
	switch descr[1] {
	case 'b', 'i', 'u', 'f', 'c', 'S', 'V', 'M', 'm', 'a':
		return n, nil
	case 'U':
		return 4 * n, nil
	}
	return 0, invalid("dtype %.80q: objects are pointers; import with --format tree", descr)
}

// pyDict reads the literal that is a .npy header: three keys, in any order.
type pyDict struct {
	s       string
	descr   string
	shape   []int64
	fortran bool
	got     int
}

func (p *pyDict) skip() { p.s = strings.TrimLeft(p.s, " \t\n\r") }

func (p *pyDict) take(prefix string) bool {
	p.skip()
	rest, ok := strings.CutPrefix(p.s, prefix)
	if ok {
		p.s = rest
	}
	return ok
}

func (p *pyDict) str() (string, bool) {
	p.skip()
	if p.s == "" || p.s[0] != '\'' && p.s[0] != '"' {
		return "", false
	}
	end := strings.IndexByte(p.s[1:], p.s[0])
	if end < 0 || strings.IndexByte(p.s[1:1+end], '\\') >= 0 {
		return "", false
	}
	v := p.s[1 : 1+end]
	p.s = p.s[end+2:]
	return v, true
}

func (p *pyDict) tuple() bool {
	if !p.take("(") {
		return false
	}
	p.shape = []int64{}
	for !p.take(")") {
		p.skip()
		end := 0
		for end < len(p.s) && p.s[end] >= '0' && p.s[end] <= '9' {
			end++
		}
		n, err := strconv.ParseInt(p.s[:end], 10, 64)
		if err != nil || len(p.shape) == 32 {
			return false
		}
		p.s = p.s[end:]
		p.take("L") // Python 2 wrote so
		p.shape = append(p.shape, n)
		if !p.take(",") && !strings.HasPrefix(p.s, ")") {
			return false
		}
	}
	return true
}

func (p *pyDict) parse() error {
	bad := corrupt("the header is no dictionary of descr, fortran_order and shape")
	if !p.take("{") {
		return bad
	}
	for !p.take("}") {
		key, ok := p.str()
		if !ok || !p.take(":") {
			return bad
		}
		switch key {
		case "descr":
			if p.skip(); strings.HasPrefix(p.s, "[") {
				return invalid("a structured dtype; import with --format tree")
			}
			p.descr, ok = p.str()
		case "fortran_order":
			if p.fortran = p.take("True"); !p.fortran {
				ok = p.take("False")
			}
		case "shape":
			ok = p.tuple()
		default:
			return bad
		}
		if !ok {
			return bad
		}
		p.got++
		if !p.take(",") && !strings.HasPrefix(strings.TrimLeft(p.s, " "), "}") {
			return bad
		}
	}
	if p.got != 3 || p.shape == nil || p.descr == "" {
		return bad
	}
	return nil
}
