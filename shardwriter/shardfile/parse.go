package shardfile

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/ckptd/ckptd/catalog"
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("shard header: %w: %s", catalog.ErrCorrupt, fmt.Sprintf(format, args...))
}

// HeaderSize reads, from a file's first 8 bytes, how many bytes come before its
// data. size is the whole file's, in bytes.
func HeaderSize(b []byte, size int64) (int64, error) {
	if err := checkSize(size); err != nil {
		return 0, corrupt("%v", err)
	}
	if len(b) < 8 || size < 8 {
		return 0, corrupt("the file has no header")
	}
	n := binary.LittleEndian.Uint64(b)
	if n > MaxHeader {
		return 0, corrupt("its length is %d; at most %d is possible", n, MaxHeader)
	}
	if int64(n) > size-8 {
		return 0, corrupt("it should be %d bytes long, but only %d follow", n, size-8)
	}
	return 8 + int64(n), nil
}

// ParseHeader decodes the header at the beginning of b, which is a shard file
// of size bytes or a prefix of one that has the whole header (see HeaderSize).
// Every error is ErrCorrupt. The result does not refer to b.
func ParseHeader(b []byte, size int64) (*Header, error) {
	start, err := HeaderSize(b, size)
	if err != nil {
		return nil, err
	}
	if start > int64(len(b)) || int64(len(b)) > size {
		return nil, corrupt("it needs %d of a file of %d bytes; %d are given", start, size, len(b))
	}
	return parse(slices.Clone(b[:start]), size)
}

// firstRead is enough for the header of most shards, in bytes.
const firstRead = 64 << 10

// ReadHeader reads and decodes the header of a shard file of size bytes. Errors
// of r are passed on; a file shorter than size is ErrCorrupt.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if err := checkSize(size); err != nil {
		return nil, corrupt("%v", err)
	}
	raw := make([]byte, min(size, firstRead))
	if err := readFull(r, raw, 0); err != nil {
		return nil, err
	}
	start, err := HeaderSize(raw, size)
	if err != nil {
		return nil, err
	}
	// Twice as much each time: a file that is not as long as it claims costs
	// no more memory than it has bytes, and a constant.
	for have := int64(len(raw)); have < start; have = int64(len(raw)) {
		grown := make([]byte, min(start, 2*have))
		copy(grown, raw)
		if err := readFull(r, grown[have:], have); err != nil {
			return nil, err
		}
		raw = grown
	}
	return parse(slices.Clip(raw[:start]), size)
}

// readFull fills p from off; the end of the file is ErrCorrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read at %d: %w: the file ends %d bytes early", off, catalog.ErrCorrupt, len(p)-n)
	}
	return fmt.Errorf("read at %d: %w", off, err)
}

// parse decodes raw, all bytes before the data, and keeps it.
func parse(raw []byte, size int64) (*Header, error) {
	json := raw[8:]
	if len(json) == 0 || json[0] != '{' {
		return nil, corrupt("it does not begin with '{'")
	}
	if !utf8.Valid(json) {
		return nil, corrupt("it is not UTF-8")
	}
	h := &Header{DataStart: int64(len(raw)), FileSize: size, raw: raw, index: make(map[string]int), Tensors: []catalog.Tensor{}}
	h.DataSize = size - h.DataStart
	p := parser{s: scanner{b: json}, h: h}
	if err := p.header(); err != nil {
		return nil, corrupt("%v", err)
	}
	if err := h.settle(); err != nil {
		return nil, corrupt("%v", err)
	}
	if p.pieces != "" {
		if err := h.setPieces(p.pieces); err != nil {
			return nil, corrupt("%s: %v", KeyPieces, err)
		}
	}
	return h, nil
}

type parser struct {
	s       scanner
	h       *Header
	sawMeta bool
	pieces  string
	shapes  []int64 // shapes are cut from here: one allocation for many
}

func (p *parser) header() error {
	err := p.s.object(func(key []byte) error {
		if string(key) == metadataKey {
			if p.sawMeta {
				return p.s.errorf("two %s", metadataKey)
			}
			p.sawMeta = true
			return p.meta()
		}
		if _, ok := p.h.index[string(key)]; ok {
			return p.s.errorf("two tensors are named %.80q", key)
		}
		t, err := p.tensor()
		if err != nil {
			return fmt.Errorf("tensor %.80q: %w", key, err)
		}
		t.Name = string(key)
		p.h.index[t.Name] = len(p.h.Tensors)
		p.h.Tensors = append(p.h.Tensors, t)
		return nil
	})
	if err == nil && !p.s.end() {
		err = p.s.errorf("more than one value")
	}
	return err
}

func (p *parser) meta() error {
	if p.s.next() == 'n' && p.s.word("null") {
		return nil
	}
	m := make(map[string]string)
	err := p.s.object(func(key []byte) error {
		if _, ok := m[string(key)]; ok {
			return p.s.errorf("two values of %.80q", key)
		}
		k := string(key)
		v, err := p.s.str()
		if err != nil {
			return err
		}
		m[k] = string(v)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", metadataKey, err)
	}
	if v, ok := m[KeyVersion]; ok && v != version {
		return fmt.Errorf("%s %.40q is unknown", KeyVersion, v)
	}
	if _, ok := m[KeyOmitted]; ok {
		return fmt.Errorf("%s belongs in manifests", KeyOmitted)
	}
	if v, ok := m[KeyPieces]; ok {
		if v == "" {
			return fmt.Errorf("%s is empty", KeyPieces)
		}
		p.pieces = v
		delete(m, KeyPieces)
	}
	p.h.Meta = m
	return nil
}

// tensor reads a tensor's description. Offset still counts from the data.
func (p *parser) tensor() (t catalog.Tensor, err error) {
	var sawType, sawShape, sawOffsets bool
	once := func(saw *bool, name string) error {
		if *saw {
			return p.s.errorf("two %s", name)
		}
		*saw = true
		return nil
	}
	err = p.s.object(func(key []byte) error {
		switch string(key) {
		case "dtype":
			if err := once(&sawType, "dtype"); err != nil {
				return err
			}
			name, err := p.s.str()
			if err != nil {
				return err
			}
			if t.DType = dtypeByName[string(name)]; t.DType == "" {
				return p.s.errorf("unknown dtype %.40q; known are %s", name, knownDTypes())
			}
		case "shape":
			if err := once(&sawShape, "shape"); err != nil {
				return err
			}
			return p.shape(&t)
		case "data_offsets":
			if err := once(&sawOffsets, "data_offsets"); err != nil {
				return err
			}
			var two [2]int64
			offsets, err := p.s.numbers(two[:0], 2)
			if err != nil {
				return err
			}
			if len(offsets) != 2 || offsets[1] < offsets[0] || offsets[1] > p.h.DataSize {
				return p.s.errorf("bad data_offsets %v in %d bytes of data", offsets, p.h.DataSize)
			}
			t.Offset, t.Size = offsets[0], offsets[1]-offsets[0]
		default:
			return p.s.skip(0)
		}
		return nil
	})
	if err == nil && !(sawType && sawShape && sawOffsets) {
		err = errors.New("dtype, shape or data_offsets is missing")
	}
	return t, err
}

func (p *parser) shape(t *catalog.Tensor) error {
	const page = 1024
	if cap(p.shapes)-len(p.shapes) < MaxDims {
		p.shapes = make([]int64, 0, page)
	}
	from := len(p.shapes)
	list, err := p.s.numbers(p.shapes[from:from], MaxDims)
	if err != nil {
		return err
	}
	p.shapes = p.shapes[:from+len(list)]
	t.Shape = slices.Clip(list)
	return nil
}

// settle sorts the tensors by their data and checks that they cover it.
func (h *Header) settle() error {
	order := func(a, b catalog.Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size))
	}
	if !slices.IsSortedFunc(h.Tensors, order) {
		slices.SortStableFunc(h.Tensors, order)
		for i := range h.Tensors {
			h.index[h.Tensors[i].Name] = i
		}
	}
	h.Tensors = slices.Clip(h.Tensors)
	var end int64
	for i := range h.Tensors {
		t := &h.Tensors[i]
		if t.Offset != end {
			return fmt.Errorf("tensor %.80q begins at %d of the data, the one before it ends at %d", t.Name, t.Offset, end)
		}
		size, err := sizeOf(t.DType, t.Shape)
		if err != nil {
			return fmt.Errorf("tensor %.80q: %w", t.Name, err)
		}
		if size != t.Size {
			return fmt.Errorf("tensor %.80q: %d bytes of data for a shape and dtype of %d", t.Name, t.Size, size)
		}
		end += size
		t.Offset += h.DataStart
	}
	if end != h.DataSize {
		return fmt.Errorf("the tensors take %d bytes, but %d follow the header", end, h.DataSize)
	}
	return nil
}

// setPieces gives the tensors their Global and Start.
func (h *Header) setPieces(json string) error {
	s := scanner{b: []byte(json)}
	err := s.object(func(key []byte) error {
		i, ok := h.index[string(key)]
		if !ok {
			return fmt.Errorf("no tensor is named %.80q", key)
		}
		t := &h.Tensors[i]
		if t.Global != nil {
			return fmt.Errorf("two pieces are named %.80q", key)
		}
		err := s.object(func(key []byte) (err error) {
			switch {
			case string(key) == "global" && t.Global == nil:
				t.Global, err = s.numbers(nil, MaxDims)
			case string(key) == "start" && t.Start == nil:
				t.Start, err = s.numbers(nil, MaxDims)
			default:
				err = fmt.Errorf("unknown or repeated key %.40q", key)
			}
			return err
		})
		if err == nil && (len(t.Global) == 0 || len(t.Start) == 0) {
			err = errors.New("global or start is missing")
		}
		if err == nil {
			err = checkPiece(t.DType, t.Shape, t.Global, t.Start)
		}
		if err != nil {
			return fmt.Errorf("tensor %.80q: %w", t.Name, err)
		}
		return nil
	})
	if err == nil && !s.end() {
		err = errors.New("more than one value")
	}
	return err
}
