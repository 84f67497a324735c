package ckptd

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// What is put together from votes is the manifest's own encoding.
func TestPlanManifestIsMarshal(t *testing.T) {
	id := catalog.SetID{Run: "a/b", Step: 7, Attempt: 1}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	want := &catalog.Manifest{Version: 1, Set: id, World: 5, Metrics: map[string]float64{"loss": 1.5}}
	parts := []catalog.PartRecord{{Set: id, Node: "n1"}, {Set: id, Node: "n2"}}
	index := map[string]map[entryKey]indexEntry{}
	for n, ranks := range [][]int{{0, 2, 4}, {1, 3}} {
		var shards voteIndex
		shards.Set = id
		for _, rank := range ranks {
			s := catalog.Shard{Rank: rank, Node: parts[n].Node, Size: 4096 + 8, Root: catalog.Digest{byte(rank + 1)}, Header: 4096,
				Meta:    map[string]string{"k<&>": "v"},
				Tensors: []catalog.Tensor{{Name: "w", DType: "F32", Shape: []int64{2}, Offset: 4096, Size: 8}}}
			shards.Shards = append(shards.Shards, s)
			at = at.Add(time.Second)
			parts[n].Shards = append(parts[n].Shards, catalog.PartShard{Rank: rank, Size: s.Size, Root: s.Root, Durable: at, Local: true})
		}
		entries, err := decodeIndex(id, encodeForTest(t, shards))
		if err != nil {
			t.Fatal(err)
		}
		index[parts[n].Node] = entries
		want.Shards = append(want.Shards, shards.Shards...)
	}
	want.Created = at
	want.Shards = []catalog.Shard{want.Shards[0], want.Shards[3], want.Shards[1], want.Shards[4], want.Shards[2]}
	wantBytes, wantRoot, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	rec := catalog.SetRecord{SetID: id, World: 5, Metrics: want.Metrics}
	got, root, size, err := planManifest(rec, parts, index)
	if err != nil || !bytes.Equal(got, wantBytes) || root != wantRoot || size != 5*4104 {
		t.Errorf("planManifest = %s, %v, %d, %v\nwant %s", got, root, size, err, wantBytes)
	}
	if _, err := catalog.ParseManifest(got, root); err != nil {
		t.Error(err)
	}
}

func encodeForTest(t *testing.T, v voteIndex) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return indexEncoder.EncodeAll(raw, nil)
}
