package ckpt

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/ckptd/ckptd/catalog"
)

const (
	dataAlign = 4096 // where the data of a shard begins: at a multiple of it
	keyPieces = "ckptd.pieces"
)

// part is one tensor of a save: what it is, and where its bytes come from.
type part struct {
	catalog.Tensor // Offset counts from the data until the header is made
	data           source
}

type piece struct {
	Global []int64 `json:"global"`
	Start  []int64 `json:"start"`
}

type entry struct {
	DType   catalog.DType `json:"dtype"`
	Shape   []int64       `json:"shape"`
	Offsets [2]int64      `json:"data_offsets"`
}

// layout orders the parts, gives each its offset in the file, and encodes the
// header, which FORMAT.md of package shardfile describes. Wider elements come
// first, so that each tensor begins at a multiple of its own width.
func layout(parts []part, meta map[string]string) (header []byte, size int64, err error) {
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(alignBits(b.DType), alignBits(a.DType)) })
	all := map[string]string{"ckptd.version": "1"}
	maps.Copy(all, meta)
	pieces := make(map[string]piece)
	for i := range parts {
		t := &parts[i].Tensor
		if len(t.Global) > 0 {
			pieces[t.Name] = piece{t.Global, t.Start}
		}
		t.Offset = size
		size += t.Size
	}
	if len(pieces) > 0 {
		b, err := json.Marshal(pieces)
		if err != nil {
			return nil, 0, err
		}
		all[keyPieces] = string(b)
	}
	b := append(make([]byte, 8, dataAlign), `{"__metadata__":`...)
	if b, err = appendJSON(b, all); err != nil {
		return nil, 0, err
	}
	for i := range parts {
		t := &parts[i].Tensor
		b, _ = appendJSON(append(b, ','), t.Name)
		if b, err = appendJSON(append(b, ':'), entry{t.DType, t.Shape, [2]int64{t.Offset, t.Offset + t.Size}}); err != nil {
			return nil, 0, err
		}
	}
	b = append(b, '}')
	for len(b)%dataAlign != 0 {
		b = append(b, ' ')
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-8))
	for i := range parts {
		parts[i].Offset += int64(len(b))
	}
	return b, int64(len(b)) + size, nil
}

func appendJSON(b []byte, v any) ([]byte, error) {
	add, err := json.Marshal(v)
	return append(b, add...), err
}

// alignBits is a dtype's width as far as it matters for alignment.
func alignBits(d catalog.DType) int64 {
	if b := d.Bits(); b >= 8 {
		return b
	}
	return 4
}

// checkTensor refuses what a shard cannot hold and fills in Size.
func checkTensor(t *catalog.Tensor) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("tensor %q: %w: %s", t.Name, catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if t.Name == "__metadata__" || !utf8.ValidString(t.Name) {
		return bad("the name is reserved, or not UTF-8")
	}
	if t.DType.Bits() == 0 {
		return bad("unknown dtype %q; known are those of the safetensors format, as %q", t.DType, F32)
	}
	n, ok := product(t.Shape, uint64(t.DType.Bits()))
	if !ok || n/8 > catalog.MaxShardSize {
		return bad("shape %v is negative or too large", t.Shape)
	}
	if n%8 != 0 {
		return bad("shape %v of %s is %d bits, which is not a whole number of bytes; pad the last dimension", t.Shape, t.DType, n)
	}
	t.Size = int64(n / 8)
	if t.Global == nil && t.Start == nil {
		return nil
	}
	if len(t.Global) != len(t.Shape) || len(t.Start) != len(t.Shape) {
		return bad("global has %d and start %d numbers for %d dimensions", len(t.Global), len(t.Start), len(t.Shape))
	}
	if _, ok := product(t.Global, uint64(t.DType.Bits())); !ok {
		return bad("global shape %v is negative or too large", t.Global)
	}
	for i, dim := range t.Shape {
		if t.Start[i] < 0 || t.Start[i] > t.Global[i] || dim > t.Global[i]-t.Start[i] {
			return bad("dimension %d: piece %d+%d lies outside the whole, which has %d", i, t.Start[i], dim, t.Global[i])
		}
	}
	return nil
}

// product multiplies n by every dimension; false when one is negative or the
// product leaves 63 bits.
func product(shape []int64, n uint64) (uint64, bool) {
	for _, dim := range shape {
		hi, lo := bits.Mul64(n, uint64(max(dim, 0)))
		if dim < 0 || hi != 0 || lo > 1<<62 {
			return 0, false
		}
		n = lo
	}
	return n, true
}
