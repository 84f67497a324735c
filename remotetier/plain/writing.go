package plain

import (
	"fmt"
	"io/fs"
	"sync"

	"github.com/ckptd/ckptd/remotetier"
)

// Writing keeps two writers of one process from one key. Those of several
// processes meet at the sidecar, which is made only where there is none. The
// zero value is ready for use.
type Writing struct {
	mu   sync.Mutex
	keys map[remotetier.Key]bool
}

// Begin takes the key; fs.ErrExist when another writer has it.
func (w *Writing) Begin(key remotetier.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keys[key] {
		return fmt.Errorf("create %v: %w: it is being written", key, fs.ErrExist)
	}
	if w.keys == nil {
		w.keys = make(map[remotetier.Key]bool)
	}
	w.keys[key] = true
	return nil
}

// End gives it back.
func (w *Writing) End(key remotetier.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.keys, key)
}
