package catalog

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// DType is a tensor's element type, by its safetensors name ("BF16").
type DType string

// dtypeBits holds the width of every element type of the safetensors format.
var dtypeBits = map[DType]int64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
	"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64,
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

// Bits is the width of one element; 0 for an unknown type.
func (d DType) Bits() int64 { return dtypeBits[d] }

// Tensor is one named array, or a piece of a sharded one, inside a shard.
type Tensor struct {
	Name   string  `json:"name"`
	DType  DType   `json:"dtype"`
	Shape  []int64 `json:"shape"`  // of the bytes stored here
	Offset int64   `json:"offset"` // of the first byte, from the beginning of the shard
	Size   int64   `json:"size"`   // bytes
	// Global and Start are set for a piece of a sharded tensor: the whole
	// tensor's shape and where in it this piece begins, one number a dimension.
	Global []int64 `json:"global,omitempty"`
	Start  []int64 `json:"start,omitempty"`
}

// Shard describes one rank's file in a manifest.
type Shard struct {
	Rank    int               `json:"rank"`
	Node    string            `json:"node"`           // where it was saved
	Size    int64             `json:"size"`           // bytes
	Root    Digest            `json:"root"`           // of its seal
	File    string            `json:"file,omitempty"` // of a raw shard: the name of the file it was; "" for one of tensors
	Header  int64             `json:"header"`         // bytes before the first tensor's data
	Meta    map[string]string `json:"meta,omitempty"` // the header's __metadata__, or what was said of a raw shard
	Tensors []Tensor          `json:"tensors"`        // none in a raw shard
	// Sums are those of the seal, of a raw shard that is alone in its set: the
	// CRC32C of each BlockSize bytes, little-endian. See Shard.Seal.
	Sums []byte `json:"sums,omitempty"`
}

// Manifest is the committed list of a set's shards and tensors. It is stored
// as JSON; its root in the catalog is the SHA-256 of those bytes.
type Manifest struct {
	Version int                `json:"version"` // 1
	Set     SetID              `json:"set"`
	World   int                `json:"world"`
	Created time.Time          `json:"created"`
	Metrics map[string]float64 `json:"metrics,omitempty"`
	Shards  []Shard            `json:"shards"` // by rank
}

// MaxManifestSize bounds an encoded manifest, in bytes.
const MaxManifestSize = 1 << 30

// Marshal encodes the manifest and gives its root.
func (m *Manifest) Marshal() ([]byte, Digest, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, Digest{}, fmt.Errorf("manifest of %v: %w", m.Set, err)
	}
	return b, sha256.Sum256(b), nil
}

// ParseManifest decodes a manifest and checks it against its root (unless
// that is zero) and its own rules; anything amiss is ErrCorrupt.
func ParseManifest(b []byte, root Digest) (*Manifest, error) {
	bad := func(why string) (*Manifest, error) { return nil, fmt.Errorf("manifest: %w: %s", ErrCorrupt, why) }
	if len(b) > MaxManifestSize {
		return bad("too large")
	}
	if !root.IsZero() && sha256.Sum256(b) != root {
		return bad("root mismatch")
	}
	m := new(Manifest)
	if err := json.Unmarshal(b, m); err != nil {
		return bad(err.Error())
	}
	if m.Version != 1 {
		return bad(fmt.Sprintf("version %d is unknown", m.Version))
	}
	if err := m.Set.Check(); err != nil {
		return bad(err.Error())
	}
	if m.World != len(m.Shards) || m.World < 1 || m.World > MaxWorld {
		return bad("number of shards is not the world size")
	}
	for i := range m.Shards {
		if s := &m.Shards[i]; s.Rank != i {
			return bad(fmt.Sprintf("shard %d is of rank %d", i, s.Rank))
		} else if err := s.check(); err != nil {
			return bad(err.Error())
		}
	}
	return m, nil
}

func (s *Shard) check() error {
	if s.Size < 0 || s.Size > MaxShardSize || s.Header < 0 || s.Header > s.Size {
		return fmt.Errorf("rank %d: size or header out of range", s.Rank)
	}
	if s.Root.IsZero() {
		return fmt.Errorf("rank %d: no root: its bytes could not be checked", s.Rank)
	}
	if s.Raw() {
		if err := s.checkRaw(); err != nil {
			return fmt.Errorf("rank %d: %w", s.Rank, err)
		}
	}
	if err := s.checkSums(); err != nil {
		return fmt.Errorf("rank %d: %w", s.Rank, err)
	}
	names := make(map[string]bool, len(s.Tensors))
	for i := range s.Tensors {
		t := &s.Tensors[i]
		if names[t.Name] {
			return fmt.Errorf("rank %d: tensor %.200q is there twice", s.Rank, t.Name)
		}
		names[t.Name] = true
		if t.Offset < s.Header || t.Size < 0 || t.Offset > s.Size-t.Size {
			return fmt.Errorf("rank %d: tensor %.200q lies outside its shard", s.Rank, t.Name)
		}
		if err := t.check(); err != nil {
			return fmt.Errorf("rank %d: tensor %.200q: %w", s.Rank, t.Name, err)
		}
	}
	return nil
}

// check holds shape and size together. A dimension may be anything up to
// 2^63-1, so the product is taken with care.
func (t *Tensor) check() error {
	n := uint64(1)
	for _, dim := range t.Shape {
		if dim < 0 {
			return errors.New("a dimension is negative")
		}
		hi, lo := bits.Mul64(n, uint64(dim))
		if hi != 0 {
			return errors.New("the shape overflows")
		}
		n = lo
	}
	if t.DType.Bits() == 0 {
		return fmt.Errorf("dtype %.40q is unknown", t.DType)
	}
	if hi, lo := bits.Mul64(n, uint64(t.DType.Bits())); hi != 0 || lo != 8*uint64(t.Size) { // Size is at most MaxShardSize
		return fmt.Errorf("%d bytes do not hold shape %v of %s", t.Size, t.Shape[:min(len(t.Shape), 16)], t.DType)
	}
	if len(t.Global) != len(t.Start) || len(t.Global) != 0 && len(t.Global) != len(t.Shape) {
		return errors.New("global shape does not fit")
	}
	for i, whole := range t.Global {
		if t.Start[i] < 0 || t.Start[i] > whole || t.Shape[i] > whole-t.Start[i] {
			return errors.New("the piece lies outside its whole")
		}
	}
	return nil
}
