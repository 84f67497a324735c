package ckptd

import (
	"errors"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// TestManifestSet: the head of a manifest names its set, and nothing else passes.
func TestManifestSet(t *testing.T) {
	id := catalog.SetID{Run: "llama/7b", Step: 12, Attempt: 3}
	m := &catalog.Manifest{Version: 1, Set: id, World: 1, Shards: []catalog.Shard{{Rank: 0}}}
	b, _, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := manifestSet(b); err != nil || got != id {
		t.Errorf("manifestSet = %v, %v", got, err)
	}
	for _, bad := range []string{"", "x", "[]", "{}", `{"version":1`, `{"version":1,"world":2}`, `{"set":7}`, `{"version":{"set":1}`} {
		if got, err := manifestSet([]byte(bad)); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("manifestSet(%q) = %v, %v, want ErrCorrupt", bad, got, err)
		}
	}
	if _, err := manifestSet([]byte(`{"set":{"run":"../x","step":1,"attempt":1}}`)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a set of no run: %v, want ErrInvalid", err)
	}
}
