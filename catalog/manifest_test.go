package catalog

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func goodManifest() *Manifest {
	shard := func(rank int) Shard {
		return Shard{Rank: rank, Node: "n1", Size: 4096 + 80, Root: Digest{byte(rank + 1)}, Header: 4096, Meta: map[string]string{"k": "v"}, Tensors: []Tensor{
			{Name: "w", DType: "F32", Shape: []int64{2, 4}, Offset: 4096, Size: 32, Global: []int64{4, 4}, Start: []int64{int64(2 * rank), 0}},
			{Name: "b", DType: "BF16", Shape: []int64{24}, Offset: 4128, Size: 48},
			{Name: "none", DType: "F64", Shape: []int64{0, 7}, Offset: 4176, Size: 0},
			{Name: "scalar", DType: "U8", Shape: []int64{}, Offset: 4096, Size: 1},
		}}
	}
	return &Manifest{Version: 1, Set: SetID{"llama/7b", 1200, 3}, World: 2, Created: time.Unix(1e9, 5).UTC(),
		Metrics: map[string]float64{"loss": 1.5}, Shards: []Shard{shard(0), shard(1)}}
}

func TestManifestRoundTrip(t *testing.T) {
	m := goodManifest()
	b, root, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Digest{root, {}} {
		if got, err := ParseManifest(b, r); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if _, err := ParseManifest(b, Digest{1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another root: %v, want ErrCorrupt", err)
	}
}

// Promise 12: whatever is said in a manifest, it is ErrCorrupt or true to its rules.
func TestPromise12Manifest(t *testing.T) {
	for name, edit := range map[string]func(m *Manifest){
		"Version":           func(m *Manifest) { m.Version = 2 },
		"NoRun":             func(m *Manifest) { m.Set.Run = "" },
		"PathInRun":         func(m *Manifest) { m.Set.Run = "../../etc" },
		"NegativeStep":      func(m *Manifest) { m.Set.Step = -1 },
		"NoAttempt":         func(m *Manifest) { m.Set.Attempt = 0 },
		"WorldTooLarge":     func(m *Manifest) { m.World = math.MaxInt },
		"WorldZero":         func(m *Manifest) { m.World, m.Shards = 0, nil },
		"RankMissing":       func(m *Manifest) { m.Shards = m.Shards[:1] },
		"RankTwice":         func(m *Manifest) { m.Shards[1].Rank = 0 },
		"RanksMixed":        func(m *Manifest) { m.Shards[0], m.Shards[1] = m.Shards[1], m.Shards[0] },
		"NoRoot":            func(m *Manifest) { m.Shards[0].Root = Digest{} },
		"SizeNegative":      func(m *Manifest) { m.Shards[0].Size = -1 },
		"SizeHuge":          func(m *Manifest) { m.Shards[0].Size = math.MaxInt64 },
		"HeaderBehindEnd":   func(m *Manifest) { m.Shards[0].Header = m.Shards[0].Size + 1 },
		"HeaderNegative":    func(m *Manifest) { m.Shards[0].Header = -1 },
		"TensorInHeader":    func(m *Manifest) { m.Shards[0].Tensors[0].Offset = 0 },
		"TensorBehindEnd":   func(m *Manifest) { m.Shards[0].Tensors[1].Offset++; m.Shards[0].Size -= 1 },
		"OffsetOverflows":   func(m *Manifest) { m.Shards[0].Tensors[0].Offset = math.MaxInt64 },
		"SizeOfTensor":      func(m *Manifest) { m.Shards[0].Tensors[0].Size = 31 },
		"SizeNegativeToo":   func(m *Manifest) { m.Shards[0].Tensors[0].Size = -32 },
		"TensorTwice":       func(m *Manifest) { m.Shards[0].Tensors[1].Name = "w" },
		"DTypeUnknown":      func(m *Manifest) { m.Shards[0].Tensors[0].DType = "F31" },
		"DimensionNegative": func(m *Manifest) { m.Shards[0].Tensors[0].Shape = []int64{-2, -4} },
		"ShapeOverflows":    func(m *Manifest) { m.Shards[0].Tensors[0].Shape = []int64{1 << 62, 1 << 62} },
		"ShapeWrapsAround":  func(m *Manifest) { m.Shards[0].Tensors[0].Shape = []int64{1 << 61, 1 << 61, 0} },
		"BitsWrapAround":    func(m *Manifest) { m.Shards[0].Tensors[2].Shape = []int64{1 << 58} },
		"HalfByte": func(m *Manifest) {
			m.Shards[0].Tensors[3] = Tensor{Name: "f4", DType: "F4", Shape: []int64{1}, Offset: 4096, Size: 1}
		},
		"StartMissing":   func(m *Manifest) { m.Shards[0].Tensors[0].Start = nil },
		"StartNegative":  func(m *Manifest) { m.Shards[0].Tensors[0].Start = []int64{-1, 0} },
		"StartBehindEnd": func(m *Manifest) { m.Shards[0].Tensors[0].Start = []int64{3, 0} },
		"StartOverflows": func(m *Manifest) { m.Shards[0].Tensors[0].Start = []int64{math.MaxInt64, 0} },
		"GlobalNegative": func(m *Manifest) { m.Shards[0].Tensors[0].Global = []int64{-4, 4} },
		"GlobalOtherRank": func(m *Manifest) {
			m.Shards[0].Tensors[0].Global, m.Shards[0].Tensors[0].Start = []int64{4}, []int64{0}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := goodManifest()
			edit(m)
			b, root, err := m.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseManifest(b, root); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
		})
	}
	for name, text := range map[string]string{
		"Empty": "", "Null": "null", "Array": "[]", "Cut": `{"version":1`, "Nested": strings.Repeat(`{"a":`, 20000) + strings.Repeat("}", 20000),
		"NestedArray": `{"shards":` + strings.Repeat("[", 100000), "HugeNumber": `{"version":1e400}`, "Fraction": `{"version":1.5}`,
		"NotUTF8": "{\"version\":1,\"set\":{\"run\":\"\xff\"}}", "TwoValues": `{"version":1}{"version":1}`,
	} {
		if _, err := ParseManifest([]byte(text), Digest{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	good, root, err := goodManifest().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := ParseManifest(good[:n], Digest{}); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v, want ErrCorrupt", n, err)
		}
		for bit := range 8 {
			b := bytes.Clone(good)
			b[n] ^= 1 << bit
			if _, err := ParseManifest(b, root); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d flipped: %v, want ErrCorrupt", bit, n, err)
			}
			if _, err := ParseManifest(b, Digest{}); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d flipped, without root: %v", bit, n, err)
			}
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	b, _, err := goodManifest().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b, Digest{})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v is not ErrCorrupt", err)
			}
			return
		}
		again, root, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseManifest(again, root); err != nil {
			t.Errorf("printed again it is %v", err)
		}
	})
}
