package remotetier_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

const blob = "llama/7b/000000001200-000003/rank-00000.safetensors"

// random gives the same n bytes for the same seed.
func random(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// world is a Tier over targets in memory.
type world struct {
	*remotetier.Tier
	mems []*targettest.Mem
}

func newWorld(n int, opt remotetier.Options) *world {
	if opt.Traffic.Linger == 0 {
		opt.Traffic.Linger = 1 // these tests read, and check at once what they have read
	}
	w := &world{}
	var infos []remotetier.TargetInfo
	for i := range n {
		m := targettest.NewMem(fmt.Sprintf("t%d", i))
		w.mems = append(w.mems, m)
		infos = append(infos, remotetier.TargetInfo{Target: m})
	}
	w.Tier = remotetier.New(infos, opt)
	return w
}

// mem is the target of a place's column.
func (w *world) mem(p catalog.Place, column int) *targettest.Mem {
	for _, m := range w.mems {
		if m.Name() == p.Targets[column] {
			return m
		}
	}
	panic("no target " + p.Targets[column])
}

func keyOf(p catalog.Place, column int) remotetier.Key {
	return remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: column}
}

// sealed is bytes with their seal.
type sealed struct {
	*bytes.Reader
	seal *catalog.Seal
}

func (s sealed) Seal() *catalog.Seal { return s.seal }

func sealOf(b []byte) sealed {
	s := &catalog.Seal{Name: blob, Size: int64(len(b))}
	for part := range slices.Chunk(b, catalog.BlockSize) {
		s.CRCs = append(s.CRCs, crcOf(part))
	}
	return sealed{bytes.NewReader(b), s}
}

func layout(k, m int, unit int64) stripe.Layout { return stripe.Layout{K: k, M: m, Unit: unit} }

func mustPut(t *testing.T, tier *remotetier.Tier, b []byte, l stripe.Layout) catalog.Place {
	t.Helper()
	p, err := tier.Put(t.Context(), blob, sealOf(b), l)
	if err != nil {
		t.Fatalf("Put of %d bytes as %v: %v", len(b), l, err)
	}
	return p
}

// readAll reads a whole blob.
func readAll(t *testing.T, tier *remotetier.Tier, p catalog.Place) ([]byte, remotetier.Report, error) {
	t.Helper()
	r, err := tier.Open(t.Context(), p)
	if err != nil {
		return nil, remotetier.Report{}, err
	}
	defer r.Close()
	b := make([]byte, r.Size())
	if _, err := r.ReadAtContext(t.Context(), b, 0); err != nil {
		return nil, r.Report(), err
	}
	return b, r.Report(), nil
}

// sizes that meet every edge of a layout.
func sizes(l stripe.Layout) []int {
	u, w := int(l.Unit), int(l.Unit)*l.K
	return []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, u - 1, u, u + 1, w - 1, w, w + 1, 2*w + 12345, 3 * w, 5*w - 4096*l.K + 1}
}

func TestPromise1PutThenReadAndVerify(t *testing.T) {
	for _, l := range []stripe.Layout{layout(1, 0, 65536), layout(1, 2, 65536), layout(2, 1, 65536), layout(4, 2, 131072), layout(3, 2, 196608), layout(5, 0, 65536), layout(32, 8, 65536)} {
		t.Run(fmt.Sprintf("%v.%d", l, l.Unit), func(t *testing.T) {
			w := newWorld(l.Columns(), remotetier.Options{})
			for _, n := range sizes(l) {
				b := random(n, byte(n))
				p := mustPut(t, w.Tier, b, l)
				if p.Content != blake3.Sum256(b) || p.Size != int64(n) || p.Layout != l.String() || p.Unit != l.Unit || p.Blob != blob || len(p.Targets) != l.Columns() {
					t.Fatalf("size %d: place %+v", n, p)
				}
				got, rep, err := readAll(t, w.Tier, p)
				if err != nil || !bytes.Equal(got, b) || rep.Degraded {
					t.Fatalf("size %d: read gives equal=%v, %+v, %v", n, bytes.Equal(got, b), rep, err)
				}
				if err := w.Verify(t.Context(), p); err != nil {
					t.Fatalf("size %d: %v", n, err)
				}
			}
		})
	}
}

func TestPromise1EveryBlockIsHeldAgainstTheSeal(t *testing.T) {
	for _, l := range []stripe.Layout{layout(4, 2, 65536), layout(2, 1, 1<<20), layout(1, 1, 196608)} {
		w := newWorld(l.Columns(), remotetier.Options{})
		b := random(3<<20+777, 1)
		for off := 0; off < len(b); off += 450_001 {
			src := sealOf(b)
			bad := slices.Clone(b)
			bad[off] ^= 1
			src.Reader = bytes.NewReader(bad)
			if _, err := w.Put(t.Context(), blob, src, l); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%v: a flipped bit at %d gives %v, want ErrCorrupt", l, off, err)
			}
		}
		src := sealOf(b)
		src.Reader = bytes.NewReader(b[:len(b)-1])
		if _, err := w.Put(t.Context(), blob, src, l); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%v: a short source gives %v, want ErrCorrupt", l, err)
		}
		for _, m := range w.mems {
			if keys := m.Keys(); len(keys) != 0 {
				t.Errorf("%s holds %v", m.Name(), keys)
			}
		}
	}
}

// liar claims more bytes than it has.
type liar struct{ *bytes.Reader }

func (l liar) Size() int64 { return l.Reader.Size() + 100 }

func TestPutOfASourceThatEndsEarly(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	if _, err := w.Put(t.Context(), blob, liar{bytes.NewReader(random(1<<20, 1))}, layout(2, 1, 65536)); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Put = %v, want ErrCorrupt", err)
	}
}

func TestReadAtIsReaderAt(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	b := random(700_001, 3)
	r, err := w.Open(t.Context(), mustPut(t, w.Tier, b, layout(2, 1, 65536)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("ReadAll: equal=%v, %v", bytes.Equal(got, b), err)
	}
	p := make([]byte, 10)
	for _, c := range []struct {
		off  int64
		n    int
		want error
	}{{700_000, 1, io.EOF}, {700_001, 0, io.EOF}, {1 << 40, 0, io.EOF}, {699_991, 10, nil}, {-1, 0, catalog.ErrInvalid}} {
		if n, err := r.ReadAt(p, c.off); n != c.n || !errors.Is(err, c.want) {
			t.Errorf("ReadAt(10, %d) = %d, %v, want %d, %v", c.off, n, err, c.n, c.want)
		}
	}
}

func TestReadOnlyTheRangesNeeded(t *testing.T) {
	w := newWorld(6, remotetier.Options{})
	l := layout(4, 2, 1<<20)
	b := random(20<<20, 4)
	r, err := w.Open(t.Context(), mustPut(t, w.Tier, b, l))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range []struct{ off, n, most int64 }{
		{5<<20 + 1000, 100, 65536 + 4096},
		{5 << 20, 65536, 65536},
		{5<<20 - 1, 2, 2*65536 + 4096},
		{4<<20 + 1, 4 << 20, 4<<20 + 2*65536 + 4*4096},
	} {
		before := r.Report().BytesRead
		p := make([]byte, c.n)
		if _, err := r.ReadAt(p, c.off); err != nil || !bytes.Equal(p, b[c.off:][:c.n]) {
			t.Fatalf("ReadAt(%d, %d): %v", c.n, c.off, err)
		}
		if got := r.Report().BytesRead - before; got > c.most {
			t.Errorf("ReadAt(%d, %d) read %d bytes, want at most %d", c.n, c.off, got, c.most)
		}
	}
}

func TestOpenWhatIsNotThere(t *testing.T) {
	w := newWorld(3, remotetier.Options{})
	p := mustPut(t, w.Tier, random(100_000, 5), layout(2, 1, 65536))
	other := p
	other.Generation++
	if _, err := w.Open(t.Context(), other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of another generation = %v, want fs.ErrNotExist", err)
	}
	for _, bad := range []catalog.Place{{}, {Blob: p.Blob, Layout: "2+1", Size: -1, Targets: p.Targets}, {Blob: "../x", Layout: "2+1", Targets: p.Targets}, {Blob: p.Blob, Layout: "2+1", Targets: p.Targets[:1]}} {
		if _, err := w.Open(t.Context(), bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Open(%+v) = %v, want ErrInvalid", bad, err)
		}
	}
	away := remotetier.New(nil, remotetier.Options{}) // of targets that are not configured
	if _, err := away.Open(t.Context(), p); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Open without targets = %v, want ErrUnavailable", err)
	}
}
