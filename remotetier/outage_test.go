package remotetier_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// TestAfterAnOutageEverythingIsUsedAtOnce: the network was away, so that every
// write of every target failed; when it is back, there is nobody better.
func TestAfterAnOutageEverythingIsUsedAtOnce(t *testing.T) {
	w := newWorld(4, remotetier.Options{})
	b := random(300_000, 1)
	away := true
	for _, m := range w.mems {
		m.Fault(func(op string, _ remotetier.Key) error {
			if op == "write" && away {
				return fmt.Errorf("the link: %w", catalog.ErrUnavailable)
			}
			return nil
		})
	}
	for i := range 10 {
		if _, err := w.Put(t.Context(), blob, sealOf(b), layout(2, 1, 65536)); !errors.Is(err, catalog.ErrUnavailable) {
			t.Fatalf("%d: Put = %v, want ErrUnavailable", i, err)
		}
	}
	for _, s := range w.Targets(t.Context()) {
		if s.State != catalog.TargetDown {
			t.Errorf("%s is %s, want down", s.Name, s.State)
		}
	}
	away = false
	mustPut(t, w.Tier, b, layout(2, 1, 65536))
}
