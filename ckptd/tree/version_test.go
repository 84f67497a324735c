package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/fuse"
)

// library is a shelf with one version of a dataset: files in an aggregate pack
// and one that is a pack by itself.
type library struct {
	*shelf
	x      []byte
	packs  [][]byte
	files  map[string][]byte
	opened int // packs and versions that are open
}

// openLibrary is one that somebody has open.
type openLibrary struct {
	l *library
	x *index.Index
}

func (l *library) OpenVersion(context.Context, catalog.SetRecord) (Version, error) {
	x, err := index.Open(bytes.Clone(l.x)) // its own, as each mapping is
	if err != nil {
		return nil, err
	}
	l.opened++
	return &openLibrary{l, x}, nil
}

func (o *openLibrary) Index() *index.Index { return o.x }
func (o *openLibrary) Used(int)            {}
func (o *openLibrary) Close() error        { o.l.opened--; return nil }

func (o *openLibrary) OpenPack(_ context.Context, pack int) (fuse.File, error) {
	o.l.opened++
	return &openPack{memory{bytes.NewReader(o.l.packs[pack])}, o.l}, nil
}

type openPack struct {
	memory
	l *library
}

func (p *openPack) Close() error { p.l.opened--; return nil }

const lines = 100 // samples of the file of records, 32 bytes each

func newLibrary(t *testing.T) *library {
	t.Helper()
	l := &library{shelf: newShelf("_datasets/pets@1#1", "_datasets/pets@2#1", "_datasets/more/pets@1#1"), files: map[string][]byte{}}
	b := index.NewBuilder()
	rnd := rand.New(rand.NewPCG(3, 4))
	bytesOf := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		return p
	}
	add := func(a index.Add, p []byte) index.FileID {
		t.Helper()
		if a.Mtime.IsZero() {
			a.Mtime = noon
		}
		a.Mode = 0o640
		if a.Kind, a.Hash = index.File, sha256.Sum256(p); p != nil {
			a.Size, a.CRC = int64(len(p)), catalog.Sum32C(p)
		}
		id, err := b.Add(a)
		if err != nil {
			t.Fatal(err)
		}
		l.files[a.Path] = p
		return id
	}
	var aggregate []byte
	for i := range 300 {
		p := bytesOf(1 + rnd.IntN(5000))
		if i == 7 {
			p = bytesOf(smallFile + 100)
		}
		name := fmt.Sprintf("class %d/%03d\xff.jpg", i%3, i)
		if i%40 == 0 {
			name = strings.Repeat("deep/", 40) + name
		}
		id := add(index.Add{Path: name, Offset: int64(len(aggregate))}, p)
		if err := b.Whole(id); err != nil {
			t.Fatal(err)
		}
		aggregate = append(aggregate, p...)
		for len(aggregate)%64 != 0 {
			aggregate = append(aggregate, 0)
		}
	}
	add(index.Add{Path: "empty"}, nil)
	l.files["empty"] = []byte{}
	records := bytesOf(32 * lines)
	id := add(index.Add{Path: "text.jsonl", Pack: 1}, records)
	if err := b.Stride(lines, index.Rule{File: id, Size: 31, Stride: 32}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Add(index.Add{Path: "a link", Kind: index.Link, Mode: 0o777, Mtime: noon, Target: "class 0/../empty"}); err != nil {
		t.Fatal(err)
	}
	l.packs = [][]byte{aggregate, records}
	for i, p := range l.packs {
		if _, err := b.AddPack(index.Pack{Set: catalog.SetID{Run: "_packs/pets", Step: int64(i), Attempt: 1}, Size: int64(len(p)), Root: catalog.Digest{1}, Raw: i == 1}); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := b.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	l.x = out.Bytes()
	return l
}

func readAll(t *testing.T, tr *Tree, e fuse.Entry, step int) []byte {
	t.Helper()
	f, err := tr.Open(t.Context(), e.ID, syscall.O_RDONLY)
	if err != nil {
		t.Fatalf("open %q: %v", e.Name, err)
	}
	defer f.Close()
	b := make([]byte, e.Attr.Size)
	for off := 0; off < len(b); off += step {
		p := b[off:min(off+step, len(b))]
		if n, err := f.ReadAt(t.Context(), p, int64(off)); n != len(p) || err != nil && err != io.EOF {
			t.Fatalf("read %q at %d = %d, %v", e.Name, off, n, err)
		}
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 1), e.Attr.Size); n != 0 || err != io.EOF {
		t.Errorf("read %q behind the end = %d, %v; want EOF", e.Name, n, err)
	}
	return b
}

// TestVersion walks a version: the very tree that was imported, and nothing else.
func TestVersion(t *testing.T) {
	l := newLibrary(t)
	tr := New(l, Options{})
	top, err := walk(t, tr, "datasets/pets/2")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	numbers := map[fuse.ID]bool{}
	var visit func(dir fuse.Entry, at string)
	visit = func(dir fuse.Entry, at string) {
		folders := 0
		for _, e := range listing(t, tr, dir.ID, 7) {
			if numbers[e.ID] {
				t.Fatalf("two nodes have the number %d", e.ID)
			}
			numbers[e.ID] = true
			if got, err := tr.Lookup(t.Context(), dir.ID, e.Name); err != nil || got.ID != e.ID || got.Attr != e.Attr {
				t.Fatalf("%q: Lookup = %+v, %v; ReadDir said %+v", e.Name, got, err, e)
			}
			name := path.Join(at, string(e.Name))
			switch e.Attr.Mode & syscall.S_IFMT {
			case syscall.S_IFDIR:
				folders++
				visit(e, name)
			case syscall.S_IFLNK:
				if to, err := tr.ReadLink(t.Context(), e.ID); err != nil || string(to) != "class 0/../empty" || e.Attr.Size != int64(len(to)) {
					t.Errorf("%q -> %q, %v", name, to, err)
				}
			default:
				found++
				want, ok := l.files[name]
				if !ok || e.Attr.Size != int64(len(want)) || e.Attr.Mode != syscall.S_IFREG|0o640 || !e.Attr.Mtime.Equal(noon) {
					t.Fatalf("%q: %+v, known: %v, want %d bytes", name, e.Attr, ok, len(want))
				}
				for _, step := range []int{1 << 20, 1000} {
					if !bytes.Equal(readAll(t, tr, e, step), want) {
						t.Fatalf("%q, %d bytes a read: other bytes", name, step)
					}
				}
			}
		}
		if int(dir.Attr.Nlink) != 2+folders {
			t.Errorf("%q has %d links, want 2 and its %d folders", at, dir.Attr.Nlink, folders)
		}
	}
	visit(top, "")
	if found != len(l.files) {
		t.Errorf("%d files, want %d", found, len(l.files))
	}
	if to, err := walk(t, tr, "datasets/pets/latest"); err != nil || to.Attr.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		t.Errorf("latest: %+v, %v", to, err)
	}
	if _, err := walk(t, tr, "datasets/more/pets/1/empty"); err != nil {
		t.Errorf("a name with a slash: %v", err)
	}
	for i, want := range l.packs {
		e, err := walk(t, tr, fmt.Sprintf("datasets/pets/2/.packs/%d", i))
		if err != nil || !bytes.Equal(readAll(t, tr, e, 1<<20), want) {
			t.Errorf("pack %d: %v, or other bytes", i, err)
		}
	}
	for _, p := range []string{".packs/2", ".packs/01", ".packs/x", ".shuffle/x", ".shuffle/1/2/3", "empty/x", "nothing"} {
		if _, err := walk(t, tr, "datasets/pets/2/"+p); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: %v, want fs.ErrNotExist", p, err)
		}
	}
	tr.Close()
	if l.opened != 0 {
		t.Errorf("%d packs and versions are open after Close", l.opened)
	}
	for id, n := range l.held {
		if n != 0 {
			t.Errorf("%d leases of %v are left", n, id)
		}
	}
}

// TestPromise5SmallFileIsHeldAgainstItsSum damages one byte of a file in a pack.
func TestPromise5SmallFileIsHeldAgainstItsSum(t *testing.T) {
	l := newLibrary(t)
	l.packs[0][10] ^= 1
	tr := New(l, Options{})
	e, err := walk(t, tr, "datasets/pets/1/"+strings.Repeat("deep/", 40)+"class 0/000\xff.jpg")
	if err != nil {
		t.Fatal(err)
	}
	f, err := tr.Open(t.Context(), e.ID, syscall.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int64{1, e.Attr.Size} {
		if got, err := f.ReadAt(t.Context(), make([]byte, n), 0); got != 0 || !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("read %d bytes of a damaged file = %d, %v; want ErrCorrupt", n, got, err)
		}
	}
}

// TestShuffledTars reads all ranks' tars, goes on with another number of ranks
// in the middle, and finds every sample once; another seed is another order.
func TestShuffledTars(t *testing.T) {
	l := newLibrary(t)
	tr := New(l, Options{})
	samplesOf := func(p string) (names []string) {
		t.Helper()
		e, err := walk(t, tr, "datasets/pets/1/.shuffle/"+p)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		in := tar.NewReader(bytes.NewReader(readAll(t, tr, e, 100_000)))
		for {
			h, err := in.Next()
			if err == io.EOF {
				return names
			}
			if err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			b, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			want, whole := l.files[h.Name]
			if !whole {
				var n int64
				if _, err := fmt.Sscanf(h.Name, "%09d.json", &n); err != nil {
					t.Fatalf("member %q", h.Name)
				}
				k := 32 * (n - 300) // pack 1 comes after the samples of pack 0
				want = l.files["text.jsonl"][k : k+31]
			}
			if !bytes.Equal(b, want) {
				t.Fatalf("%s: member %q has other bytes", p, h.Name)
			}
			names = append(names, h.Name)
		}
	}
	for _, mode := range []string{"", "window/", "window-50-2/"} {
		seen := map[string]int{}
		whole := samplesOf("7/0/" + mode + "0-of-1.tar")
		for _, name := range whole[:123] {
			seen[name]++
		}
		for rank := range 5 {
			for _, name := range samplesOf(fmt.Sprintf("7/0/%sfrom-123/%d-of-5.tar", mode, rank)) {
				seen[name]++
			}
		}
		if len(seen) != 300+lines {
			t.Errorf("%q: %d samples were read, want %d", mode, len(seen), 300+lines)
		}
		for name, n := range seen {
			if n != 1 {
				t.Errorf("%q: sample %q was read %d times", mode, name, n)
			}
		}
		for _, other := range []string{"8/0/", "7/1/"} {
			if strings.Join(samplesOf(other+mode+"0-of-1.tar"), " ") == strings.Join(whole, " ") {
				t.Errorf("%q: %s is the same order as 7/0", mode, other)
			}
		}
	}
	if _, err := walk(t, tr, "datasets/pets/1/.shuffle/7/0/from-401/0-of-1.tar"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from behind the end: %v, want fs.ErrNotExist", err)
	}
}
