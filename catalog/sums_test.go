package catalog

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func rawShard() (Shard, *Seal) {
	seal := &Seal{Size: 2*BlockSize + 5, CRCs: []uint32{1, 0xfffffffe, 3}}
	s := Shard{Node: "n1", Size: seal.Size, Root: seal.Root(), File: "pack.ckptp", Tensors: []Tensor{}}
	return s, seal
}

func TestSums(t *testing.T) {
	id := SetID{"_packs/d", 7, 1}
	s, seal := rawShard()
	s.SetSums(seal, 1)
	m := &Manifest{Version: 1, Set: id, World: 1, Shards: []Shard{s}}
	b, root, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"sums":"AQAAAP7///8DAAAA"`) {
		t.Errorf("%s: want the sums, little-endian, in base64", b)
	}
	if m, err = ParseManifest(b, root); err != nil {
		t.Fatal(err)
	}
	got, err := m.Shards[0].Seal(id)
	if err != nil || got.Root() != s.Root || !reflect.DeepEqual(got.CRCs, seal.CRCs) || got.Name != id.BlobName(0, true) {
		t.Errorf("got %+v, %v", got, err)
	}
	// Manifests that were written before have none, and are read as ever.
	old, _ := rawShard()
	if seal, err := old.Seal(id); seal != nil || err != nil {
		t.Errorf("without sums: %v, %v", seal, err)
	}
}

func TestSumsAreBounded(t *testing.T) {
	for name, edit := range map[string]func(s *Shard) (world int){
		"ManyShards": func(*Shard) int { return 2 },
		"Tensors":    func(s *Shard) int { s.File = ""; return 1 },
		"Large":      func(s *Shard) int { s.Size = MaxSumsSize + 1; return 1 },
	} {
		s, seal := rawShard()
		if s.SetSums(seal, edit(&s)); s.Sums != nil {
			t.Errorf("%s: %d bytes of sums, want none", name, len(s.Sums))
		}
	}
}

// Promise 7, 12: sums that are not the shard's are refused, whoever wrote them.
func TestPromise7SumsOfAnother(t *testing.T) {
	id := SetID{"_packs/d", 7, 1}
	for name, edit := range map[string]func(s *Shard){
		"OtherBlock": func(s *Shard) { s.Sums[0] ^= 1 },
		"TooFew":     func(s *Shard) { s.Sums = s.Sums[4:] },
		"TooMany":    func(s *Shard) { s.Sums = append(s.Sums, 0, 0, 0, 0) },
		"NotWhole":   func(s *Shard) { s.Sums = s.Sums[:11] },
		"OtherSize":  func(s *Shard) { s.Size-- },
		"Tensors":    func(s *Shard) { s.File = "" },
	} {
		s, seal := rawShard()
		s.SetSums(seal, 1)
		edit(&s)
		if _, err := s.Seal(id); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
		b, root, err := (&Manifest{Version: 1, Set: id, World: 1, Shards: []Shard{s}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if m, err := ParseManifest(b, root); err == nil {
			_, err = m.Shards[0].Seal(id)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, from a manifest: %v, want ErrCorrupt", name, err)
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}
