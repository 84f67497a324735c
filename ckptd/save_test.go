package ckptd

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// A rank whose save failed and that tries again at once finds the daemon still
// clearing the first one away: it waits for that, and is not told that its
// shard exists. One that is being saved for real is refused.
func TestSaveAgainAfterAnAbandonedOne(t *testing.T) {
	w, err := boot(t.Context(), vfstest.New(vfstest.Options{}), catalogtest.Mem(), catalogtest.Mem())
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	name := crashID(1, 1).ShardName(0)
	first, err := w.n.reserve(w.ctx, name, 8192)
	if err != nil {
		t.Fatal(err)
	}
	gone := time.AfterFunc(50*time.Millisecond, func() { first.Close() })
	defer gone.Stop()
	second, err := w.n.reserve(w.ctx, name, 8192)
	if err != nil {
		t.Fatalf("reserve after an abandoned save: %v", err)
	}
	defer second.Close()
	if _, err := w.n.reserve(w.ctx, name, 8192); !errors.Is(err, fs.ErrExist) {
		t.Errorf("reserve beside a save that goes on: %v, want fs.ErrExist", err)
	}
}
