package shardfile

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/ckptd/ckptd/catalog"
)

const (
	// MaxHeader bounds a header's JSON, in bytes, as the safetensors crate does.
	MaxHeader = 100_000_000
	// Align is where the data of a shard written here begins: at a multiple of it.
	Align = 4096

	metadataKey = "__metadata__"
)

// Keys of ours in a header's metadata; see FORMAT.md.
const (
	KeyVersion = "ckptd.version"
	KeyPieces  = "ckptd.pieces" // never in Header.Meta: it is in the tensors
	KeyState   = "ckptd.state"
	KeyOmitted = "ckptd.omitted" // only in manifests
)

const version = "1"

// Header describes a shard file. It is not changed once made.
type Header struct {
	Tensors   []catalog.Tensor  // in the order of their data; offsets from the beginning of the file
	Meta      map[string]string // __metadata__ without KeyPieces; nil when there is none
	DataStart int64             // bytes before the data: the length of Bytes
	DataSize  int64             // bytes of all tensors
	FileSize  int64             // DataStart + DataSize

	raw   []byte
	index map[string]int // of Tensors, by name
}

// Bytes are the first DataStart bytes of the file: length, JSON and padding.
// The caller must not change them.
func (h *Header) Bytes() []byte { return h.raw }

// Tensor finds a tensor by name.
func (h *Header) Tensor(name string) (catalog.Tensor, bool) {
	i, ok := h.index[name]
	if !ok {
		return catalog.Tensor{}, false
	}
	return h.Tensors[i], true
}

// NewHeader lays out tensors in the order given (see Arrange) and encodes their
// header. KeyVersion is added to meta. What cannot be stored is ErrInvalid.
func NewHeader(tensors []Spec, meta map[string]string) (*Header, error) {
	bad := func(format string, args ...any) (*Header, error) {
		return nil, fmt.Errorf("shard header: %w: %s", catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	h := &Header{
		Tensors: make([]catalog.Tensor, len(tensors)),
		Meta:    make(map[string]string, len(meta)+1),
		index:   make(map[string]int, len(tensors)),
	}
	for k, v := range meta {
		switch {
		case k == KeyPieces || k == KeyOmitted:
			return bad("metadata key %q is reserved", k)
		case k == KeyVersion && v != version:
			return bad("metadata key %q is %q; this program writes %q", k, v, version)
		case !utf8.ValidString(k) || !utf8.ValidString(v):
			return bad("metadata %q is not UTF-8", k)
		}
		h.Meta[k] = v
	}
	h.Meta[KeyVersion] = version
	for i, s := range tensors {
		size, err := s.Size()
		if err != nil {
			return nil, fmt.Errorf("shard header: %w", err)
		}
		if _, ok := h.index[s.Name]; ok {
			return bad("two tensors are named %q", s.Name)
		}
		if size > catalog.MaxShardSize-h.DataSize {
			return bad("the tensors take more than %d bytes; use more ranks", int64(catalog.MaxShardSize))
		}
		h.index[s.Name] = i
		h.Tensors[i] = catalog.Tensor{
			Name: s.Name, DType: dtypeByName[string(s.DType)], Shape: append([]int64{}, s.Shape...), Offset: h.DataSize, Size: size,
			Global: slices.Clone(s.Global), Start: slices.Clone(s.Start),
		}
		if len(s.Global) == 0 {
			h.Tensors[i].Global, h.Tensors[i].Start = nil, nil
		}
		h.DataSize += size
	}
	if err := h.encode(); err != nil {
		return bad("%v", err)
	}
	for i := range h.Tensors {
		h.Tensors[i].Offset += h.DataStart
	}
	return h, nil
}

// encode fills raw, DataStart and FileSize. Offsets still count from the data.
func (h *Header) encode() error {
	b := make([]byte, 8, 8+Align)
	b = append(b, `{"`+metadataKey+`":{`...)
	meta := h.Meta
	if pieces := encodePieces(h.Tensors); pieces != nil {
		meta = maps.Clone(meta)
		meta[KeyPieces] = string(pieces)
	}
	for i, k := range slices.Sorted(maps.Keys(meta)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, k), ':')
		b = appendString(b, meta[k])
	}
	b = append(b, '}')
	for i := range h.Tensors {
		t := &h.Tensors[i]
		b = append(appendString(append(b, ','), t.Name), `:{"dtype":"`...)
		b = append(append(b, t.DType...), `","shape":`...)
		b = append(appendNumbers(b, t.Shape), `,"data_offsets":[`...)
		b = append(strconv.AppendInt(b, t.Offset, 10), ',')
		b = append(strconv.AppendInt(b, t.Offset+t.Size, 10), "]}"...)
		if len(b) > 8+MaxHeader {
			break
		}
	}
	b = append(b, '}')
	for len(b)%Align != 0 {
		b = append(b, ' ')
	}
	if len(b) > 8+MaxHeader {
		return fmt.Errorf("it takes more than %d bytes; store large state as U8 tensors", MaxHeader)
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-8))
	h.raw, h.DataStart = b, int64(len(b))
	h.FileSize = h.DataStart + h.DataSize
	if h.FileSize > catalog.MaxShardSize {
		return fmt.Errorf("the file takes more than %d bytes; use more ranks", int64(catalog.MaxShardSize))
	}
	return nil
}

// encodePieces gives the value of KeyPieces; nil without pieces.
func encodePieces(tensors []catalog.Tensor) []byte {
	var b []byte
	for i := range tensors {
		t := &tensors[i]
		if len(t.Global) == 0 {
			continue
		}
		sep := byte(',')
		if b == nil {
			sep = '{'
		}
		b = append(appendString(append(b, sep), t.Name), `:{"global":`...)
		b = append(appendNumbers(b, t.Global), `,"start":`...)
		b = append(appendNumbers(b, t.Start), '}')
	}
	if b != nil {
		b = append(b, '}')
	}
	return b
}

func appendNumbers(b []byte, list []int64) []byte {
	b = append(b, '[')
	for i, n := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	return append(b, ']')
}

func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		if c < 0x20 {
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		} else {
			b = append(b, '\\', c)
		}
		start = i + 1
	}
	return append(append(b, s[start:]...), '"')
}

// ShardOf is the shard's entry in a manifest. It shares h's tensors. Metadata
// beyond MaxManifestMeta is left out, largest values first, and named in KeyOmitted.
func ShardOf(h *Header, rank int, node string, seal *catalog.Seal) catalog.Shard {
	return catalog.Shard{
		Rank: rank, Node: node, Size: seal.Size, Root: seal.Root(),
		Header: h.DataStart, Meta: manifestMeta(h.Meta), Tensors: h.Tensors,
	}
}

// MaxManifestMeta bounds the metadata of one shard in a manifest, in bytes of
// keys and values.
const MaxManifestMeta = 1 << 20

func manifestMeta(meta map[string]string) map[string]string {
	total := 0
	for k, v := range meta {
		total += len(k) + len(v)
	}
	if total <= MaxManifestMeta {
		return meta
	}
	keys := slices.SortedFunc(maps.Keys(meta), func(a, b string) int {
		if d := len(a) + len(meta[a]) - len(b) - len(meta[b]); d != 0 {
			return d
		}
		if a < b {
			return -1
		}
		return 1
	})
	// The list of omitted keys has room of its own, so it is complete except
	// for keys that are themselves monstrous; then it is null.
	kept, omitted, sum := make(map[string]string), []byte{'['}, 0
	for i, k := range keys {
		if sum += len(k) + len(meta[k]); sum <= MaxManifestMeta {
			kept[k] = meta[k]
			continue
		}
		for j, k := range slices.Sorted(slices.Values(keys[i:])) {
			if j > 0 {
				omitted = append(omitted, ',')
			}
			omitted = appendString(omitted, k)
		}
		break
	}
	if omitted = append(omitted, ']'); len(omitted) > MaxManifestMeta {
		omitted = []byte("null")
	}
	kept[KeyOmitted] = string(omitted)
	return kept
}

// checkSize keeps arithmetic on a file's size away from overflow.
func checkSize(size int64) error {
	if size < 0 || size > catalog.MaxShardSize {
		return fmt.Errorf("a file of %d bytes; at most %d are possible", size, int64(catalog.MaxShardSize))
	}
	return nil
}
