package datasets

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/datasets/source"
)

// memStore keeps a dataset in memory.
type memStore struct {
	packs    []Stored
	blobs    map[catalog.SetID][]byte
	versions []*Base
	fail     func(n int) error // before pack n is committed
	bytes    int64             // of packs
}

func newMemStore() *memStore {
	return &memStore{blobs: make(map[catalog.SetID][]byte), fail: func(int) error { return nil }}
}

func (m *memStore) Base(context.Context) (*Base, error) {
	if len(m.versions) == 0 {
		return nil, nil
	}
	return m.versions[len(m.versions)-1], nil
}

func (m *memStore) Leaving(context.Context) (Leaving, error) { return Leaving{}, nil }

func (m *memStore) Packs(context.Context) ([]catalog.SetID, error) {
	var list []catalog.SetID
	for _, s := range m.packs {
		list = append(list, s.Set)
	}
	return list, nil
}

type memBlob struct{ *bytes.Reader }

func (memBlob) Close() error { return nil }

func (m *memStore) OpenPack(_ context.Context, set catalog.SetID) (Stored, Blob, error) {
	return m.packs[set.Step], memBlob{bytes.NewReader(m.blobs[set])}, nil
}

// read asks for parts as the client does: two goroutines, in order.
func (m *memStore) read(b Put) ([]byte, error) {
	out := make([]byte, b.Size)
	const part = 1 << 20
	next := make(chan int64, b.Size/part+1)
	for off := int64(0); off < b.Size; off += part {
		next <- off
	}
	close(next)
	var group errgroup.Group
	for range 2 {
		group.Go(func() error {
			for off := range next {
				p := out[off:min(off+part, b.Size)]
				if n, err := b.Data.ReadAt(p, off); n < len(p) {
					return fmt.Errorf("read: %w", errors.Join(err, io.ErrUnexpectedEOF))
				}
			}
			return nil
		})
	}
	return out, group.Wait()
}

func (m *memStore) PutPack(_ context.Context, b Put) (Stored, error) {
	if err := m.fail(len(m.packs)); err != nil {
		return Stored{}, err
	}
	data, err := m.read(b)
	if err != nil {
		return Stored{}, err
	}
	s := Stored{Set: catalog.SetID{Run: "_packs/x", Step: int64(len(m.packs)), Attempt: 1}, Size: b.Size, Root: catalog.Digest{1}, Meta: b.Meta()}
	if err := s.Set.Check(); err != nil {
		return Stored{}, err
	}
	m.packs = append(m.packs, s)
	m.blobs[s.Set] = data
	m.bytes += b.Size
	return s, nil
}

func (m *memStore) PutVersion(_ context.Context, b Put) (catalog.SetID, error) {
	data, err := m.read(b)
	if err != nil {
		return catalog.SetID{}, err
	}
	set := catalog.SetID{Run: "_datasets/x", Step: int64(len(m.versions) + 1), Attempt: 1}
	base := &Base{Set: set, Index: data, Close: func() error { return nil }}
	if named, err := PacksOf(base); err != nil || !slices.Equal(named, b.Packs) {
		return catalog.SetID{}, fmt.Errorf("the index names %v, and the store was told %v: %v", named, b.Packs, err)
	}
	m.versions = append(m.versions, base)
	return set, nil
}

// content is every entry of the newest version, by path, with its bytes read
// out of the packs and held against their sums.
func (m *memStore) content(t *testing.T) map[string]string {
	t.Helper()
	x, err := index.Open(m.versions[len(m.versions)-1].Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for i := range x.Len() {
		e, err := x.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		path, err := x.Path(i)
		if err != nil {
			t.Fatal(err)
		}
		switch e.Kind {
		case index.Folder:
			all[string(path)] = "folder"
		case index.Link:
			all[string(path)] = "-> " + string(e.Target)
		case index.File:
			var b []byte
			if e.Pack != index.NoPack {
				p, err := x.Pack(e.Pack)
				if err != nil {
					t.Fatal(err)
				}
				b = m.blobs[p.Set][e.Offset : e.Offset+e.Size]
				if p.Raw && (e.Offset != 0 || e.Size != p.Size) {
					t.Errorf("%q is not all of its raw pack", path)
				}
			}
			var sum pack.Sum
			sum.Write(b)
			if r := sum.Record(); r.Hash != e.Hash || r.CRC != e.CRC {
				t.Errorf("%q: the sums are of other bytes", path)
			}
			all[string(path)] = "file " + string(b)
		}
	}
	return all
}

// samples gives the newest version's samples, each as its fields' bytes.
func (m *memStore) samples(t *testing.T) map[string]int {
	t.Helper()
	x, err := index.Open(m.versions[len(m.versions)-1].Index)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]int)
	for i := range x.Samples() {
		fields, err := x.Sample(i, nil)
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, f := range fields {
			p, err := x.Pack(f.Pack)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, string(m.blobs[p.Set][f.PackOffset:f.PackOffset+f.Size]))
		}
		all[strings.Join(parts, "|")]++
	}
	return all
}

func open(t *testing.T, src string, opt source.Options) source.Source {
	t.Helper()
	s, err := source.Open(src, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustImport(t *testing.T, m *memStore, src string, opt Options) Version {
	t.Helper()
	v, err := Import(t.Context(), open(t, src, source.Options{}), m, opt)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// fill writes n files of some kilobytes, a few large ones, and odd things.
func fill(t *testing.T, dir string, n int) map[string]string {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	want := map[string]string{"": "folder"}
	write := func(name string, size int) {
		b := make([]byte, size)
		for i := 0; i+8 <= size; i += 8 {
			x := rng.Uint64()
			for k := range 8 {
				b[i+k] = byte(x >> (8 * k))
			}
		}
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, b, 0o640); err != nil {
			t.Fatal(err)
		}
		want[name] = "file " + string(b)
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			want[d] = "folder"
		}
	}
	for i := range n {
		write(fmt.Sprintf("d%d/%05d.bin", i%7, i), 100+rng.IntN(20000))
	}
	write("empty", 0)
	write("odd\xff\nname", 10)
	write("a/large", 3<<20)
	write("z/larger", 5<<20+1)
	if err := os.Symlink("a/large", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	want["link"] = "-> a/large"
	return want
}

func wantContent(t *testing.T, m *memStore, want map[string]string) {
	t.Helper()
	got := m.content(t)
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%q is %.40q, want %.40q", path, got[path], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

var small = Options{RawFrom: 2 << 20, PackSize: pack.MinDefault}

func TestImportTree(t *testing.T) {
	dir, m := t.TempDir(), newMemStore()
	want := fill(t, dir, 800)
	v := mustImport(t, m, dir, small)
	wantContent(t, m, want)
	if v.Set.Step != 1 || v.Samples != 804 || v.NewPacks != 3 || v.Unread != 0 {
		t.Errorf("%+v", v)
	}
	t.Run("Unchanged", func(t *testing.T) {
		v := mustImport(t, m, dir, small)
		if !v.Unchanged || v.Set.Step != 1 || v.Unread != 803 || len(m.versions) != 1 {
			t.Errorf("%+v, %d versions", v, len(m.versions))
		}
	})
	t.Run("Rehash", func(t *testing.T) {
		opt := small
		opt.Rehash = true
		if v := mustImport(t, m, dir, opt); !v.Unchanged || v.Unread != 0 || v.Known != 803 || v.NewBytes != 0 {
			t.Errorf("%+v", v)
		}
	})
	t.Run("Force", func(t *testing.T) {
		opt := small
		opt.Force = true
		if v := mustImport(t, m, dir, opt); v.Unchanged || v.Set.Step != 2 || v.NewPacks != 0 {
			t.Errorf("%+v", v)
		}
	})
	t.Run("OnlyWhatChanged", func(t *testing.T) {
		before := m.bytes
		if err := os.WriteFile(dir+"/d1/new", []byte("new content"), 0o644); err != nil {
			t.Fatal(err)
		}
		want["d1/new"] = "file new content"
		if err := os.Rename(dir+"/a/large", dir+"/a/moved"); err != nil {
			t.Fatal(err)
		}
		want["a/moved"] = want["a/large"]
		delete(want, "a/large")
		v := mustImport(t, m, dir, small)
		wantContent(t, m, want)
		if v.NewBytes != 11 || v.Known != 1 || m.bytes-before > 1000 {
			t.Errorf("%+v, and %d bytes were stored", v, m.bytes-before)
		}
	})
}

// TestPromise1ResumesAfterFailure ends an import at every pack; the packs before
// are taken up, and nothing was visible.
func TestPromise1ResumesAfterFailure(t *testing.T) {
	dir := t.TempDir()
	want := fill(t, dir, 200)
	m := newMemStore()
	for n := range 3 {
		m.fail = func(i int) error {
			if i > n-1 {
				return errors.New("killed")
			}
			return nil
		}
		if _, err := Import(t.Context(), open(t, dir, source.Options{}), m, small); err == nil {
			t.Fatal("it did not fail")
		}
		if len(m.versions) != 0 {
			t.Fatal("a version is visible")
		}
	}
	before := m.bytes
	m.fail = func(int) error { return nil }
	v := mustImport(t, m, dir, small)
	wantContent(t, m, want)
	if v.OldPacks != 2 || v.NewPacks != 1 || m.bytes == before {
		t.Errorf("%+v", v)
	}
}

func TestPromise4SamePacks(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 500)
	one, two := newMemStore(), newMemStore()
	mustImport(t, one, dir, Options{RawFrom: 2 << 20, PackSize: pack.MinDefault, Workers: 1})
	mustImport(t, two, dir, Options{RawFrom: 2 << 20, PackSize: pack.MinDefault, Workers: 16})
	for set, b := range one.blobs {
		if !bytes.Equal(b, two.blobs[set]) {
			t.Errorf("pack %v differs", set)
		}
	}
	if !bytes.Equal(one.versions[0].Index, two.versions[0].Index) {
		t.Error("the indexes differ")
	}
}

func TestImportTar(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	big := strings.Repeat("large ", 1<<19)
	put := func(name, content string) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]int{}
	for i := range 300 {
		put(fmt.Sprintf("s/%04d.cls", i), fmt.Sprint(i))
		put(fmt.Sprintf("s/%04d.jpg", i), fmt.Sprintf("image %d", i))
		want[fmt.Sprintf("%d|image %d", i, i)]++
	}
	put("t/big.bin", big)
	put("t/big.cls", "9999")
	want[big+"|9999"]++
	if err := w.WriteHeader(&tar.Header{Name: "t/same", Typeflag: tar.TypeLink, Linkname: "t/big.bin"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	m := newMemStore()
	v, err := Import(t.Context(), open(t, "-", source.Options{Stdin: bytes.NewReader(b.Bytes())}), m, small)
	if err != nil {
		t.Fatal(err)
	}
	got := m.samples(t)
	for s, n := range want {
		if got[s] != n {
			t.Errorf("sample %.40q is there %d times", s, got[s])
		}
	}
	if len(got) != len(want) || v.Files != 603 {
		t.Errorf("%d samples, want %d; %+v", len(got), len(want), v)
	}
	if m.content(t)["t/same"] != "file "+big {
		t.Error("the hard link has other bytes")
	}
	v, err = Import(t.Context(), open(t, "-", source.Options{Stdin: bytes.NewReader(b.Bytes())}), m, small)
	if err != nil || !v.Unchanged || v.NewBytes != 0 {
		t.Errorf("again: %+v, %v", v, err)
	}
}

func TestImportRecords(t *testing.T) {
	dir, m := t.TempDir(), newMemStore()
	want := map[string]int{}
	var lines strings.Builder
	for i := range 5000 {
		s := fmt.Sprintf("{\"i\":%d}", i)
		want[s]++
		lines.WriteString(s + "\n")
	}
	if err := os.WriteFile(dir+"/a.jsonl", []byte(lines.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/README.md", []byte("no sample"), 0o644); err != nil {
		t.Fatal(err)
	}
	v := mustImport(t, m, dir, small)
	got := m.samples(t)
	for s := range want {
		if got[s] != 1 {
			t.Errorf("line %s is there %d times", s, got[s])
		}
	}
	if len(got) != len(want) || v.Samples != 5000 || v.Files != 2 || v.Format != source.JSONL {
		t.Errorf("%+v, %d samples", v, len(got))
	}
}

func TestImportFailsClearly(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 50)
	t.Run("Cancelled", func(t *testing.T) {
		m := newMemStore()
		ctx, cancel := context.WithCancel(t.Context())
		m.fail = func(int) error { cancel(); return nil }
		if _, err := Import(ctx, open(t, dir, source.Options{}), m, small); !errors.Is(err, context.Canceled) || len(m.versions) != 0 {
			t.Errorf("err = %v, %d versions", err, len(m.versions))
		}
	})
	t.Run("NoSpace", func(t *testing.T) {
		m := newMemStore()
		m.fail = func(int) error { return catalog.ErrNoSpace }
		if _, err := Import(t.Context(), open(t, dir, source.Options{}), m, small); !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("err = %v, want ErrNoSpace", err)
		}
	})
	t.Run("AwayForAMoment", func(t *testing.T) {
		m := newMemStore()
		away := 2
		m.fail = func(int) error {
			if away--; away >= 0 {
				return catalog.ErrUnavailable
			}
			return nil
		}
		mustImport(t, m, dir, small)
	})
	t.Run("LargeFileChanges", func(t *testing.T) {
		m := newMemStore()
		m.fail = func(int) error {
			return os.Chtimes(dir+"/z/larger", time.Time{}, time.Unix(1, 0))
		}
		if _, err := Import(t.Context(), open(t, dir, source.Options{}), m, small); !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), "z/larger") {
			t.Errorf("err = %v, want ErrConflict that names the file", err)
		}
	})
	for _, opt := range []Options{{PackSize: 1}, {RawFrom: 1}, {Workers: -1}, {PackSize: 2 << 30}} {
		if _, err := Import(t.Context(), open(t, dir, source.Options{}), newMemStore(), opt); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", opt, err)
		}
	}
}
