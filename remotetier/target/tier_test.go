package target_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
)

// tierOf is a tier over n targets on the network.
func tierOf(t *testing.T, n int) ([]*served, *remotetier.Tier) {
	t.Helper()
	var all []*served
	var infos []remotetier.TargetInfo
	for i := range n {
		s := serve(t, fmt.Sprintf("t%d", i), target.ServerOptions{})
		all = append(all, s)
		infos = append(infos, remotetier.TargetInfo{Target: s.dial(tcp.Options{})})
	}
	return all, remotetier.New(infos, remotetier.Options{})
}

var layout42 = stripe.Layout{K: 4, M: 2, Unit: 65536}

// torn is a source that ends its Put when a part of it is read.
type torn struct {
	*bytes.Reader
	at   int64
	stop context.CancelFunc
}

func (s *torn) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.at {
		s.stop()
	}
	return s.Reader.ReadAt(p, off)
}

// TestGenerationsNeverMix: a Put that is torn, and the same blob again with
// other bytes: the reader has the second one's, whatever is damaged.
func TestGenerationsNeverMix(t *testing.T) {
	all, tier := tierOf(t, 6)
	first, second := random(2_000_000, 1), random(2_000_000, 2)
	for _, at := range []int64{0, 500_000, 1_900_000} {
		ctx, stop := context.WithCancel(t.Context())
		if _, err := tier.Put(ctx, "run/a", &torn{bytes.NewReader(first), at, stop}, layout42); !errors.Is(err, context.Canceled) {
			t.Fatalf("a Put that is stopped = %v", err)
		}
	}
	for _, s := range all { // nothing of it is visible
		if got, err := os.ReadDir(filepath.Join(s.dir, "columns")); err != nil || len(got) > 0 {
			t.Errorf("%s holds %v, %v", s.name, got, err)
		}
	}
	old, err := tier.Put(t.Context(), "run/a", bytes.NewReader(first), layout42)
	if err != nil {
		t.Fatal(err)
	}
	place, err := tier.Put(t.Context(), "run/a", bytes.NewReader(second), layout42)
	if err != nil {
		t.Fatal(err)
	}
	columnFile := func(p catalog.Place, col int) string {
		for _, s := range all {
			if s.name == p.Targets[col] {
				return filepath.Join(s.dir, "columns", remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: col}.Path())
			}
		}
		t.Fatalf("no target %s", p.Targets[col])
		return ""
	}
	rename := func(from, to string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.Rename(from, to)); err != nil {
			t.Fatal(err)
		}
	}
	// What an operator, or a bad restore of a backup, may do to a target's files.
	column := columnFile(place, 0)
	for name, damage := range map[string]func(t *testing.T){
		"OlderGeneration": func(t *testing.T) { rename(columnFile(old, 0), column) },
		"OtherColumn": func(t *testing.T) {
			b, err := os.ReadFile(columnFile(place, 1))
			if err := errors.Join(err, os.WriteFile(column, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"Truncated": func(t *testing.T) {
			if err := os.Truncate(column, 123_456); err != nil {
				t.Fatal(err)
			}
		},
		"Empty": func(t *testing.T) {
			if err := os.Truncate(column, 0); err != nil {
				t.Fatal(err)
			}
		},
		"Flipped": func(t *testing.T) {
			b, err := os.ReadFile(column)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(b); i += 50_000 {
				b[i] ^= 4
			}
			if err := os.WriteFile(column, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"Gone": func(t *testing.T) {
			if err := os.Remove(column); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			keep, err := os.ReadFile(column)
			if err != nil {
				t.Fatal(err)
			}
			keepOld, err := os.ReadFile(columnFile(old, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(os.WriteFile(column, keep, 0o600), os.WriteFile(columnFile(old, 0), keepOld, 0o600)); err != nil {
					t.Fatal(err)
				}
			}()
			damage(t)
			r, err := tier.Open(t.Context(), place)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got := make([]byte, len(second))
			if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, second) {
				t.Errorf("equal = %v, %v", bytes.Equal(got, second), err)
			}
			if !r.Report().Degraded {
				t.Error("the damage was not noticed")
			}
			if err := tier.Verify(t.Context(), place); err == nil {
				t.Error("Verify finds nothing")
			}
		})
	}
	if err := tier.Verify(t.Context(), place); err != nil {
		t.Error(err)
	}
}

// TestListInParts: a listing that needs several exchanges is complete and in order.
func TestListInParts(t *testing.T) {
	s := serve(t, "t0", target.ServerOptions{})
	r := s.dial(tcp.Options{})
	const n = 4500 // of about 60 bytes each, in parts of 256 KiB
	want := map[remotetier.Key]bool{}
	for i := range n {
		k := remotetier.Key{Blob: fmt.Sprintf("run-%d/step-%04d/rank-%05d.safetensors", i%3, i%50, i), Generation: uint64(i)}
		name := filepath.Join(s.dir, "columns", k.Path())
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		want[k] = true
	}
	for _, prefix := range []string{"", "run-1"} {
		got := 0
		var last remotetier.Key
		for e, err := range r.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			if !want[e.Key] || e.Key.Compare(last) <= 0 {
				t.Fatalf("%v follows %v", e.Key, last)
			}
			last = e.Key
			got++
		}
		if wanted := map[string]int{"": n, "run-1": n / 3}[prefix]; got != wanted {
			t.Errorf("List(%q) gives %d of %d", prefix, got, wanted)
		}
	}
	for _, err := range r.List(t.Context(), "../etc") {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("List of a bad name: %v", err)
		}
	}
}
