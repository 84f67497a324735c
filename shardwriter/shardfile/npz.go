package shardfile

import (
	"archive/zip"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ckptd/ckptd/catalog"
)

const (
	// MaxNPZMembers bounds the arrays of an .npz file.
	MaxNPZMembers = 1 << 20
	maxNPYHeader  = 64 << 10 // bytes; numpy itself refuses more than 10,000 by default
)

// npyTypes maps numpy's type strings to dtypes. One-byte types have no byte order.
var npyTypes = map[string]catalog.DType{
	"|b1": "BOOL", "|u1": "U8", "|i1": "I8",
	"<u2": "U16", "<i2": "I16", "<f2": "F16",
	"<u4": "U32", "<i4": "I32", "<f4": "F32",
	"<u8": "U64", "<i8": "I64", "<f8": "F64", "<c8": "C64",
}

// NPZ is an open .npz file, as numpy.savez and savez_compressed write them.
// Close it after use.
type NPZ struct {
	Specs []Spec // the arrays, in an order fit for NewHeader (see Arrange)

	file    *os.File
	members map[string]npyMember // by array name
}

// archive keeps archive/zip from reading at offsets that a broken directory gives.
type archive struct{ *os.File }

func (a archive) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: an array begins before the file", catalog.ErrCorrupt)
	}
	return a.File.ReadAt(p, off)
}

type npyMember struct {
	file *zip.File
	skip int64 // bytes before the data
}

// OpenNPZ opens an .npz file and reads the headers of its arrays. A file that
// breaks its format is ErrCorrupt; an array that would need a conversion
// (big-endian, Fortran order, objects, strings, complex128 …) is ErrInvalid.
func OpenNPZ(path string) (*NPZ, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names the path
	}
	z := &NPZ{file: f, members: make(map[string]npyMember)}
	if err := z.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	Arrange(z.Specs)
	return z, nil
}

// zipError gives the errors of archive/zip their class.
func zipError(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, zip.ErrFormat), errors.Is(err, zip.ErrChecksum), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, zip.ErrInsecurePath), errors.As(err, new(flate.CorruptInputError)):
		return fmt.Errorf("%w: %w", catalog.ErrCorrupt, err)
	case errors.Is(err, zip.ErrAlgorithm):
		return fmt.Errorf("%w: %w", catalog.ErrInvalid, err)
	}
	return err
}

func (z *NPZ) read() error {
	info, err := z.file.Stat()
	if err != nil {
		return err
	}
	zr, err := zip.NewReader(archive{z.file}, info.Size())
	if err != nil {
		return zipError(err)
	}
	if len(zr.File) > MaxNPZMembers {
		return fmt.Errorf("%w: more than %d arrays", catalog.ErrInvalid, MaxNPZMembers)
	}
	for _, f := range zr.File {
		name, ok := strings.CutSuffix(f.Name, ".npy")
		if !ok {
			return fmt.Errorf("member %q: %w: not an array; an .npz file holds .npy members", f.Name, catalog.ErrInvalid)
		}
		if _, ok := z.members[name]; ok {
			return fmt.Errorf("array %q: %w: there are two of that name", name, catalog.ErrInvalid)
		}
		spec, skip, err := readMember(f)
		if err != nil {
			return fmt.Errorf("array %q: %w", name, err)
		}
		spec.Name = name
		size, err := spec.Size()
		if err != nil {
			return err
		}
		if f.UncompressedSize64 != uint64(skip+size) {
			return fmt.Errorf("array %q: %w: %d bytes, but its header says %d", name, catalog.ErrCorrupt, f.UncompressedSize64, skip+size)
		}
		z.members[name] = npyMember{f, skip}
		z.Specs = append(z.Specs, spec)
	}
	return nil
}

func readMember(f *zip.File) (Spec, int64, error) {
	r, err := f.Open()
	if err != nil {
		return Spec{}, 0, npyError(err)
	}
	defer r.Close()
	return readNPY(r)
}

// Open gives the data of array i of Specs; it is the next of Encode. The reader
// is an io.ReadCloser, and gives ErrCorrupt in place of io.EOF when the bytes
// fail the archive's checksum.
func (z *NPZ) Open(i int) (io.Reader, error) {
	if i < 0 || i >= len(z.Specs) {
		return nil, fmt.Errorf("array %d of %d: %w", i, len(z.Specs), catalog.ErrInvalid)
	}
	name := z.Specs[i].Name
	m := z.members[name]
	r, err := m.file.Open()
	if err != nil {
		return nil, fmt.Errorf("array %q: %w", name, npyError(err))
	}
	if _, err := io.CopyN(io.Discard, r, m.skip); err != nil {
		r.Close()
		return nil, fmt.Errorf("array %q: %w", name, npyError(err))
	}
	return npyData{r}, nil
}

type npyData struct{ io.ReadCloser }

func (d npyData) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	return n, zipError(err)
}

// Close closes the file.
func (z *NPZ) Close() error { return z.file.Close() }

// readNPY reads an .npy header: magic, version, length, a Python dict. It gives
// the array without its name, and the number of bytes read.
func readNPY(r io.Reader) (Spec, int64, error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:10]); err != nil {
		return Spec{}, 0, npyError(err)
	}
	if string(b[:6]) != "\x93NUMPY" {
		return Spec{}, 0, fmt.Errorf("%w: not an .npy array", catalog.ErrCorrupt)
	}
	skip, n := int64(10), int64(binary.LittleEndian.Uint16(b[8:]))
	switch major := b[6]; major {
	case 1:
	case 2, 3:
		if _, err := io.ReadFull(r, b[10:]); err != nil {
			return Spec{}, 0, npyError(err)
		}
		skip, n = 12, int64(binary.LittleEndian.Uint32(b[8:]))
	default:
		return Spec{}, 0, fmt.Errorf("%w: version %d of the .npy format is unknown", catalog.ErrCorrupt, major)
	}
	if n > maxNPYHeader {
		return Spec{}, 0, fmt.Errorf("%w: a header of %d bytes; at most %d are read", catalog.ErrInvalid, n, maxNPYHeader)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return Spec{}, 0, npyError(err)
	}
	spec, err := parseNPY(string(text))
	return spec, skip + n, err
}

// npyError is zipError where the end of the input comes too early.
func npyError(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return zipError(err)
}

// parseNPY reads {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
func parseNPY(text string) (spec Spec, err error) {
	bad := func(why string) (Spec, error) {
		return Spec{}, fmt.Errorf("%w: .npy header %.200q: %s", catalog.ErrCorrupt, text, why)
	}
	refuse := func(format string, args ...any) (Spec, error) {
		return Spec{}, fmt.Errorf("%w: %s", catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if !utf8.ValidString(text) {
		return bad("not UTF-8")
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(text), "{")
	if ok {
		body, ok = strings.CutSuffix(body, "}")
	}
	if !ok {
		return bad("not a dict")
	}
	var descr, fortran, shape string
	for body = strings.TrimSpace(body); body != ""; {
		key, rest, ok := pyString(body)
		if !ok {
			return bad("a key is not a string")
		}
		if rest, ok = strings.CutPrefix(strings.TrimSpace(rest), ":"); !ok {
			return bad("want ':'")
		}
		value, rest := pyValue(strings.TrimSpace(rest))
		switch key {
		case "descr":
			descr = value
		case "fortran_order":
			fortran = value
		case "shape":
			shape = value
		default:
			return bad("an unknown key")
		}
		body = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rest), ","))
	}
	name, rest, ok := pyString(descr)
	switch {
	case descr == "" || fortran == "" || shape == "":
		return bad("descr, fortran_order or shape is missing")
	case strings.HasPrefix(descr, "["):
		return refuse("a structured array cannot be a tensor; save its fields one by one")
	case !ok || rest != "":
		return bad("descr is not a string")
	}
	if spec.Shape, ok = pyTuple(shape); !ok {
		return bad("shape is not a tuple of numbers")
	}
	if fortran != "True" && fortran != "False" {
		return bad("fortran_order is not a bool")
	}
	if spec.DType, ok = npyTypes[name]; !ok {
		if strings.HasPrefix(name, ">") {
			return refuse("type %.20q is big-endian; convert it with a.astype(a.dtype.newbyteorder('<'))", name)
		}
		return refuse("numpy type %.20q has no tensor dtype (arrays of objects and strings are not read; for bfloat16 use .safetensors)", name)
	}
	// The order of at most one dimension longer than 1 makes no difference.
	if long := slices.DeleteFunc(slices.Clone(spec.Shape), func(n int64) bool { return n == 1 }); fortran == "True" && len(long) > 1 {
		return refuse("the array is in Fortran order; convert it with numpy.ascontiguousarray")
	}
	return spec, nil
}

// pyString cuts a quoted string without escapes from the front of s.
func pyString(s string) (value, rest string, ok bool) {
	if s == "" || s[0] != '\'' && s[0] != '"' {
		return "", s, false
	}
	value, rest, ok = strings.Cut(s[1:], s[:1])
	return value, rest, ok && !strings.Contains(value, `\`)
}

// pyValue cuts a string, a flat bracketed list, or a word from the front of s.
func pyValue(s string) (value, rest string) {
	end := strings.IndexByte(s, ',')
	switch {
	case s == "":
		return "", ""
	case s[0] == '\'' || s[0] == '"':
		if i := strings.IndexByte(s[1:], s[0]); i >= 0 {
			return s[:i+2], s[i+2:]
		}
	case s[0] == '(':
		end = strings.IndexByte(s, ')') + 1
	case s[0] == '[': // a structured dtype, refused as a whole
		end = strings.LastIndexByte(s, ']') + 1
	}
	if end <= 0 {
		return strings.TrimSpace(s), ""
	}
	return strings.TrimSpace(s[:end]), s[end:]
}

// pyTuple reads (), (3,) or (3, 4).
func pyTuple(s string) ([]int64, bool) {
	if len(s) < 2 || s[0] != '(' || s[len(s)-1] != ')' {
		return nil, false
	}
	list := []int64{}
	s = strings.TrimSuffix(strings.TrimSpace(s[1:len(s)-1]), ",")
	if s == "" {
		return list, true
	}
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(part), 10, 64)
		if err != nil || n < 0 || len(list) == MaxDims {
			return nil, false
		}
		list = append(list, n)
	}
	return list, true
}
