package frame

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// TestPromise2NoMemoryForPromises: a head alone allocates nothing of what it promises.
func TestPromise2NoMemoryForPromises(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		b := Append(nil, Request, 1, 1<<31-1)
		if _, _, err := Read(bytes.NewReader(b), make([]byte, ScratchSize)); !errors.Is(err, catalog.ErrCorrupt) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("1000 heads allocated %d bytes", n)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(Control(nil, Request, 1, make([]byte, 12), []byte("please pull")))
	f.Add(append(Append(nil, Data, 1, 20), make([]byte, 20)...))
	f.Add(Control(nil, Ping, 2))
	f.Add(Control(nil, Credit, 1, []byte{4, 0, 0, 0}))
	f.Add(Control(nil, Reply, 1, []byte("\x00done")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, payload, err := Read(bytes.NewReader(b), make([]byte, ScratchSize))
		if err != nil {
			return
		}
		var again []byte
		if h.Kind == Data {
			again = Append(nil, h.Kind, h.Number, int(h.Length))
		} else {
			again = Control(nil, h.Kind, h.Number, payload)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("%x was read as %x", b, again)
		}
	})
}
