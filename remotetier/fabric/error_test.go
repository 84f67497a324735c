package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric"
)

func TestEveryClassHasACode(t *testing.T) {
	seen := map[byte]error{}
	for _, class := range append([]error{fabric.ErrRefused}, catalog.Classes...) {
		code := fabric.CodeOf(fmt.Errorf("read %d: %w", 7, class))
		if code == fabric.CodeDone || code == 255 || seen[code] != nil {
			t.Errorf("%v has code %d, as %v", class, code, seen[code])
		}
		seen[code] = class
		if err := fabric.ErrorOf(code, "read 7"); !errors.Is(err, class) || err.Error() != "read 7" {
			t.Errorf("code %d is %v, want %v", code, err, class)
		}
	}
	if fabric.CodeOf(nil) != fabric.CodeDone || fabric.ErrorOf(fabric.CodeDone, "") != nil {
		t.Error("nil does not stay nil")
	}
	// What ended at the target says nothing of the client's context.
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		if got := fabric.ErrorOf(fabric.CodeOf(err), "x"); !errors.Is(got, catalog.ErrUnavailable) || errors.Is(got, err) {
			t.Errorf("%v comes as %v", err, got)
		}
	}
	if err := fabric.ErrorOf(99, "a\x1b[31mb\n"+strings.Repeat("c", 5000)); catalog.ClassOf(err) != nil || len(err.Error()) > fabric.MaxErrorText || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("an unknown code with a hostile text is %q", err)
	}
}

func TestPromise3BuffersAreBounded(t *testing.T) {
	b, err := fabric.NewBuffers(1<<20, 256<<10)
	if err != nil {
		t.Fatal(err)
	}
	var lent []*fabric.Buffer
	for range 4 {
		p, err := b.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Bytes) != 256<<10 || uintptr(unsafe.Pointer(unsafe.SliceData(p.Bytes)))%4096 != 0 {
			t.Errorf("a buffer of %d bytes at %p", len(p.Bytes), p.Bytes)
		}
		lent = append(lent, p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a fifth of four buffers: %v", err)
	}
	if err := b.Close(); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("Close while buffers are lent = %v, want ErrConflict", err)
	}
	for _, p := range lent {
		p.Release()
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for _, bad := range [][2]int64{{-1, 0}, {0, -1}, {1 << 50, 0}, {0, 1 << 40}} {
		if _, err := fabric.NewBuffers(bad[0], bad[1]); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("NewBuffers(%v) = %v, want ErrInvalid", bad, err)
		}
	}
}
