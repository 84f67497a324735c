package index

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/ckptd/ckptd/catalog"
)

// packOf describes the n-th pack of the tests.
func packOf(n int, size int64, raw bool) Pack {
	return Pack{Set: catalog.SetID{Run: "_packs/pets", Step: int64(1000 + n), Attempt: 1}, Size: size, Root: catalog.Digest{31: byte(n + 1)}, Raw: raw}
}

// thing is what the tests add, and how its samples are made.
type thing struct {
	Add
	sample func(*Builder, map[string]FileID) error
}

func hashOf(s string) catalog.Digest { return blake3.Sum256([]byte(s)) }

// pets is a dataset with something of everything.
func pets() []thing {
	file := func(path string, size int64, pack int, off int64) thing {
		return thing{Add: Add{Path: path, Kind: File, Mode: 0o640, Mtime: time.Unix(1_700_000_000, 5), Size: size, Pack: pack, Offset: off, CRC: uint32(size), Hash: hashOf(path)}}
	}
	whole := func(t thing, more ...string) thing {
		t.sample = func(b *Builder, ids map[string]FileID) error {
			ranges := []Range{{File: ids[t.Path], Size: t.Size}}
			for _, m := range more {
				ranges = append(ranges, Range{File: ids[m], Size: b.entries[ids[m]].size})
			}
			return b.Sample(ranges...)
		}
		return t
	}
	things := []thing{
		{Add: Add{Path: "", Kind: Folder, Mode: 0o755, Mtime: time.Unix(1_600_000_000, 0)}},
		{Add: Add{Path: "empty", Kind: Folder, Mode: 0o1777, Mtime: time.Unix(-5, 7)}},
		{Add: Add{Path: "cats/link", Kind: Link, Mode: 0o777, Target: "../dogs/\xff.jpg"}},
		whole(file("cats/0001.jpg", 100, 0, 64), "cats/0001.cls"),
		file("cats/0001.cls", 2, 0, 192),
		whole(file("cats/0002.jpg", 300, 0, 256)),
		whole(file("dogs/\xff.jpg", 64, 0, 576)),
		whole(file("dogs/none", 0, 0, 0)),
		file("lines.jsonl", 1000, 1, 0),
		file("rows.npy", 128+64*50, 2, 0),
		file("notes", 10, 0, 640),
	}
	things[8].sample = func(b *Builder, ids map[string]FileID) error {
		for at := int64(0); at < 1000; at += 100 {
			if err := b.Sample(Range{ids["lines.jsonl"], at, 99}); err != nil {
				return err
			}
		}
		return nil
	}
	things[9].sample = func(b *Builder, ids map[string]FileID) error {
		return b.Stride(50, Rule{ids["rows.npy"], 128, 64, 64})
	}
	return things
}

// build makes the index of things, added in the order given.
func build(t testing.TB, things []thing) []byte {
	t.Helper()
	b := NewBuilder()
	ids := map[string]FileID{}
	for n, p := range []Pack{packOf(0, 1024, false), packOf(1, 1000, true), packOf(2, 128+64*50, true)} {
		if got, err := b.AddPack(p); err != nil || got != n {
			t.Fatalf("AddPack = %d, %v", got, err)
		}
	}
	for _, th := range things {
		id, err := b.Add(th.Add)
		if err != nil {
			t.Fatal(err)
		}
		ids[th.Path] = id
	}
	for _, th := range things {
		if th.sample != nil {
			if err := th.sample(b, ids); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.SetSchema(`{"kind":"pets"}`); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	n, err := b.WriteTo(&out)
	if err != nil {
		t.Fatal(err)
	}
	if facts, _ := b.Finish(); n != int64(out.Len()) || facts.Size != n {
		t.Fatalf("WriteTo = %d bytes, wrote %d, announced %d", n, out.Len(), facts.Size)
	}
	return out.Bytes()
}

func open(t testing.TB, b []byte) *Index {
	t.Helper()
	x, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// list gives every path with what it is, by walking folders down.
func list(t testing.TB, x *Index) (paths []string) {
	t.Helper()
	var walk func(i int)
	walk = func(i int) {
		e, err := x.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		path, err := x.Path(i)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, string(path))
		if got, err := x.Find(string(path)); err != nil || got != i {
			t.Errorf("Find(%q) = %d, %v, want %d", path, got, err, i)
		}
		for k := range e.Count {
			walk(e.First + k)
		}
	}
	walk(0)
	return paths
}

func TestBuildAndRead(t *testing.T) {
	things := pets()
	x := open(t, build(t, things))
	if err := x.Check(t.Context()); err != nil {
		t.Fatalf("Check: %v", err)
	}
	got := list(t, x)
	want := []string{"", "cats", "cats/0001.cls", "cats/0001.jpg", "cats/0002.jpg", "cats/link", "dogs", "dogs/none", "dogs/\xff.jpg", "empty", "lines.jsonl", "notes", "rows.npy"}
	if !slices.Equal(got, want) {
		t.Errorf("paths = %q, want %q", got, want)
	}
	for _, th := range things {
		i, err := x.Find(th.Path)
		if err != nil {
			t.Fatal(err)
		}
		e, err := x.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		wantTime := th.Mtime
		if wantTime.IsZero() {
			wantTime = time.Unix(0, 0)
		}
		if e.Kind != th.Kind || e.Mode != th.Mode || !e.Mtime.Equal(wantTime) || string(e.Target) != th.Target {
			t.Errorf("%q = %+v, want %+v", th.Path, e, th.Add)
		}
		if th.Kind == File {
			if e.Size != th.Size || e.Hash != th.Hash || th.Size > 0 && (e.Pack != th.Pack || e.Offset != th.Offset || e.CRC != th.CRC) || th.Size == 0 && e.Pack != NoPack {
				t.Errorf("%q = %+v, want %+v", th.Path, e, th.Add)
			}
			if k, ok, err := x.FindHash(th.Hash); err != nil || ok != (th.Size > 0) || ok && k != i {
				t.Errorf("FindHash(%q) = %d, %v, %v, want %d", th.Path, k, ok, err, i)
			}
		}
	}
	f := x.Facts()
	if f.Files != 8 || f.Bytes != 100+2+300+64+1000+128+64*50+10 || f.Samples != 4+10+50 || x.Schema() != `{"kind":"pets"}` {
		t.Errorf("facts = %+v, schema %q", f, x.Schema())
	}
	if _, err := x.Find("cats/0003.jpg"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
	if _, err := x.Find("notes/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path below a file: %v", err)
	}
	if _, ok, err := x.FindHash(catalog.Digest{1}); ok || err != nil {
		t.Errorf("a hash that is not there: %v, %v", ok, err)
	}
}

func TestSamples(t *testing.T) {
	x := open(t, build(t, pets()))
	name := func(f Field) string {
		p, err := x.Path(f.File)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s+%d:%d", p, f.Offset, f.Size)
	}
	var got []string
	for i := range x.Samples() {
		fields, err := x.Sample(i, nil)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, f := range fields {
			s = append(s, name(f))
			e, _ := x.Entry(f.File)
			if f.Pack != e.Pack || f.PackOffset != e.Offset+f.Offset {
				t.Errorf("sample %d = %+v, its file %+v", i, f, e)
			}
		}
		got = append(got, strings.Join(s, " "))
	}
	want := []string{"cats/0001.jpg+0:100 cats/0001.cls+0:2", "cats/0002.jpg+0:300", "dogs/\xff.jpg+0:64"}
	for at := 0; at < 1000; at += 100 {
		want = append(want, fmt.Sprintf("lines.jsonl+%d:99", at))
	}
	for i := range 50 {
		want = append(want, fmt.Sprintf("rows.npy+%d:64", 128+64*i))
	}
	want = append(want, "dogs/none+0:0")
	if !slices.Equal(got, want) {
		t.Errorf("samples = %q, want %q", got, want)
	}
	for i, wantRange := range [][2]int64{{0, 3}, {3, 10}, {13, 50}} {
		p, err := x.Pack(i)
		if err != nil {
			t.Fatal(err)
		}
		if p.FirstSample != wantRange[0] || p.Samples != wantRange[1] {
			t.Errorf("pack %d has samples %d+%d, want %v", i, p.FirstSample, p.Samples, wantRange)
		}
	}
}

// TestPromise2OrderDoesNotMatter: the same content added in any order gives the
// same bytes; other packs give the same digest.
func TestPromise2OrderDoesNotMatter(t *testing.T) {
	things := pets()
	want := build(t, things)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		rng.Shuffle(len(things), func(i, j int) { things[i], things[j] = things[j], things[i] })
		if !bytes.Equal(build(t, things), want) {
			t.Fatal("another order gave other bytes")
		}
	}
	moved := pets()
	for i := range moved {
		if moved[i].Kind == File && moved[i].Pack == 0 && moved[i].Size > 0 {
			moved[i].Offset = 1024 - moved[i].Offset - moved[i].Size // backwards
		}
		moved[i].Mode &= 0o700
		moved[i].Mtime = time.Unix(1, 0)
	}
	other := build(t, moved)
	if bytes.Equal(other, want) || open(t, other).Digest() != open(t, want).Digest() {
		t.Error("packs, modes and times are no part of the digest")
	}
	for i, change := range []func(*thing){
		func(th *thing) { th.Hash[3]++ },
		func(th *thing) { th.Path += "x" },
	} {
		changed := pets()
		change(&changed[len(changed)-1])
		if open(t, build(t, changed)).Digest() == open(t, want).Digest() {
			t.Errorf("change %d left the digest", i)
		}
	}
}

func TestReplaced(t *testing.T) {
	b := NewBuilder()
	if _, err := b.AddPack(packOf(0, 1000, false)); err != nil {
		t.Fatal(err)
	}
	add := func(path string, kind Kind, off int64) FileID {
		id, err := b.Add(Add{Path: path, Kind: kind, Size: 10, Offset: off, Hash: hashOf(path), Target: "t"})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second := add("a/x", File, 0), add("a/x", File, 64)
	other := add("a/y", File, 128)
	for _, s := range [][]Range{{{first, 0, 10}}, {{other, 0, 10}, {first, 0, 10}}, {{second, 0, 10}}, {{other, 2, 3}}} {
		if err := b.Sample(s...); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := b.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	x := open(t, out.Bytes())
	if err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if x.Files() != 2 || x.Samples() != 2 {
		t.Errorf("%d files, %d samples, want 2 and 2", x.Files(), x.Samples())
	}
	i, _ := x.Find("a/x")
	if e, _ := x.Entry(i); e.Offset != 64 {
		t.Errorf("a/x lies at %d, want where the later one does", e.Offset)
	}

	b = NewBuilder()
	add("a/x", Link, 0)
	add("a/x/y", Link, 0)
	if _, err := b.Finish(); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), `"a/x"`) {
		t.Errorf("a link and a folder: %v", err)
	}
}

func TestRefused(t *testing.T) {
	deep := strings.Repeat("d/", MaxPath/2)
	for _, a := range []Add{
		{Path: "/a"}, {Path: "a/"}, {Path: "a//b"}, {Path: "."}, {Path: "a/../b"}, {Path: "a\x00"}, {Path: strings.Repeat("n", 256)}, {Path: deep + "xx"},
		{Path: "a", Mode: 0o10000}, {Path: "a", Size: -1}, {Path: "a", Size: MaxSize + 1}, {Path: "a", Size: 1, Pack: -1}, {Path: "a", Size: 1, Offset: -1},
		{Path: "", Kind: File}, {Path: "a", Kind: 9}, {Path: "a", Kind: Link}, {Path: "a", Kind: Link, Target: "a\x00"}, {Path: "a", Kind: Link, Target: strings.Repeat("t", 5000)},
	} {
		if a.Kind == 0 {
			a.Kind = File
		}
		a.Hash = hashOf("x")
		if _, err := NewBuilder().Add(a); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Add(%.40q, %v, %d bytes) = %v", a.Path, a.Kind, a.Size, err)
		}
	}
	if _, err := NewBuilder().Add(Add{Path: deep + "x", Kind: File, Hash: hashOf("x")}); err == nil {
		t.Error("a path of 4097 bytes was taken")
	}
	if _, err := NewBuilder().Add(Add{Path: deep[2:] + "xx", Kind: File, Hash: hashOf("x")}); err != nil {
		t.Errorf("a path of 4096 bytes: %v", err)
	}
	b := NewBuilder()
	id, err := b.Add(Add{Path: "a", Kind: File, Size: 10, Pack: 3, Hash: hashOf("x")})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"no fields":      b.Sample(),
		"a folder":       b.Sample(Range{File: 0}),
		"no entry":       b.Whole(99),
		"outside":        b.Sample(Range{id, 5, 6}),
		"stride 0":       b.Stride(2, Rule{id, 0, 0, 1}),
		"rule outside":   b.Stride(11, Rule{id, 0, 1, 1}),
		"huge stride":    b.Stride(1<<39, Rule{id, 0, 1 << 41, 1}),
		"a large schema": b.SetSchema(strings.Repeat("x", MaxSchema+1)),
	} {
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Finish(); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a file in a pack that was not added: %v", err)
	}
}

func TestTimes(t *testing.T) {
	for _, tt := range []struct{ give, want time.Time }{
		{time.Unix(0, 0), time.Unix(0, 0)},
		{time.Unix(-1, 999_999_999), time.Unix(-1, 999_999_999)},
		{time.Unix(-1<<40, 1), time.Unix(-1<<31, 0)},
		{time.Unix(1<<40, 1), time.Unix(maxSecs, 999_999_999)},
	} {
		if got, ok := unpackTime(packTime(tt.give)); !ok || !got.Equal(tt.want) {
			t.Errorf("%v became %v, want %v", tt.give, got, tt.want)
		}
	}
}

// TestEmpty: a version of nothing is one.
func TestEmpty(t *testing.T) {
	var out bytes.Buffer
	if _, err := NewBuilder().WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	x := open(t, out.Bytes())
	if err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
	want := Facts{Entries: 1, Digest: x.Digest(), Size: int64(out.Len())}
	if got := x.Facts(); !reflect.DeepEqual(got, want) {
		t.Errorf("facts = %+v, want %+v", got, want)
	}
}
