package localtier

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

func TestSpool(t *testing.T) {
	dir := t.TempDir()
	tier, err := Open(vfs.OS, Options{Dirs: []string{dir}, Quota: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close()
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, 4096, catalog.BlockSize, 5*catalog.BlockSize - 1, 9*catalog.BlockSize + 4097} {
		s, err := tier.NewSpool(t.Context(), "run/x.spool", int64(size)+10)
		if err != nil {
			t.Fatal(err)
		}
		if got := tier.Usage().Reserved; got < int64(size) {
			t.Errorf("%d bytes are reserved for a spool of %d", got, size)
		}
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		for rest := b; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(700_000))
			if got, err := s.Write(rest[:n]); got != n || err != nil {
				t.Fatalf("Write = %d, %v; want %d", got, err, n)
			}
			rest = rest[n:]
		}
		if err := s.Finish(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if n, err := s.Blob().ReadAt(got, 0); size > 0 && (n != size || err != nil) { // checked against the seal
			t.Errorf("size %d: ReadAt = %d, %v", size, n, err)
		}
		if !bytes.Equal(got, b) || s.Blob().Size() != int64(size) {
			t.Errorf("size %d: other bytes came back", size)
		}
		if _, err := s.Write([]byte{1}); err == nil {
			t.Error("a write after Finish succeeded")
		}
		if _, err := tier.Stat("run/x.spool"); err == nil {
			t.Error("a spool is a blob")
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, stagingDir, "*")); len(left) > 0 || tier.Usage().Reserved != 0 {
			t.Errorf("after Close there are %v, and %d bytes are reserved", left, tier.Usage().Reserved)
		}
	}
	t.Run("TooMuch", func(t *testing.T) {
		s, err := tier.NewSpool(t.Context(), "run/x.spool", 100)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Write(make([]byte, 101)); !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("err = %v, want ErrNoSpace", err)
		}
	})
	t.Run("NoRoom", func(t *testing.T) {
		var short *Shortage
		if _, err := tier.NewSpool(t.Context(), "run/x.spool", 65<<20); !errors.As(err, &short) {
			t.Errorf("err = %v, want a *Shortage", err)
		}
	})
	t.Run("SweptAfterACrash", func(t *testing.T) {
		s, err := tier.NewSpool(t.Context(), "run/x.spool", 100)
		if err != nil {
			t.Fatal(err)
		}
		if err := tier.Close(); err != nil { // the process dies with the spool open
			t.Fatal(err)
		}
		if _, err := os.Stat(s.in.staging); err != nil {
			t.Fatal(err)
		}
		again, err := Open(vfs.OS, Options{Dirs: []string{dir}, Quota: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if _, err := os.Stat(s.in.staging); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the spool of a dead process is still there: %v", err)
		}
	})
}
