package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ckptd/ckptd/catalog"
)

// packed is a tar of some members, content "x" where it is a file.
func packed(t testing.TB, members ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, 1
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWebDataset(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name.jpg"
	b := packed(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "./a.jpg"}, tar.Header{Name: "./a.seg.png"}, tar.Header{Name: "a.cls"}, tar.Header{Name: "d.x/b.jpg"},
		tar.Header{Name: "README"}, tar.Header{Name: ".hidden"}, tar.Header{Name: long}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "a.cls"},
		tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../a"})
	var zipped, zstded bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	zw.Write(b)
	zw.Close()
	sw, _ := zstd.NewWriter(&zstded)
	sw.Write(b)
	sw.Close()
	want := []string{
		`folder ""`, `file "a.jpg" in a "x"`, `file "a.seg.png" in a "x"`, `file "a.cls" in a "x"`, `file "d.x/b.jpg" in d.x/b "x"`,
		`file "README" no sample "x"`, `file ".hidden" no sample "x"`, `file "` + long + `" in ` + strings.TrimSuffix(long, ".jpg") + ` "x"`,
		`file "h" no sample same as a.cls`, `symlink "l" -> ../a`,
	}
	for name, content := range map[string][]byte{"x.tar": b, "x.tar.gz": zipped.Bytes(), "x.tar.zst": zstded.Bytes(), "no ending": b} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
			got, facts, err := stream(t, path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantLines(t, got, want...)
			if got, want := facts.Schema.String(), `{"format":"webdataset","fields":["cls","jpg","seg.png"]}`; got != want {
				t.Errorf("schema %s, want %s", got, want)
			}
		})
	}
	t.Run("Stdin", func(t *testing.T) {
		got, _, err := stream(t, "-", Options{Stdin: bytes.NewReader(zipped.Bytes())})
		if err != nil {
			t.Fatal(err)
		}
		wantLines(t, got, want...)
	})
}

func TestSeveralTars(t *testing.T) {
	dir := t.TempDir()
	one := string(packed(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "a.jpg"}))
	put(t, dir, map[string]string{"s-00.tar": one, "s-01.tar": one})
	want := []string{`folder "s-00"`, `file "s-00/a.jpg" in s-00/a "x"`, `folder "s-01"`, `file "s-01/a.jpg" in s-01/a "x"`}
	for _, src := range []string{dir, dir + "/s-{00..01}.tar"} {
		got, _, err := stream(t, src, Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantLines(t, got, want...)
	}
}

func TestPromise4HostileTars(t *testing.T) {
	hd := func(name string) tar.Header { return tar.Header{Name: name} }
	cases := map[string]struct {
		tar  []byte
		says string
	}{
		"Up":        {packed(t, hd("a/../../b")), `".."`},
		"Absolute":  {packed(t, hd("/etc/passwd")), "relative"},
		"Twice":     {packed(t, hd("a"), hd("./a")), "two members"},
		"LinkAfter": {packed(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "a"}, hd("a")), "no file before"},
		"LinkOut":   {packed(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}), "relative"},
		"Device":    {packed(t, tar.Header{Name: "d", Typeflag: tar.TypeChar}), "--skip-special"},
		"Apart":     {packed(t, hd("a.jpg"), hd("b.jpg"), hd("a.txt")), "--sort=name"},
		"LongPart":  {packed(t, hd(strings.Repeat("n", 256))), "longer"},
		"LongPath":  {packed(t, hd(strings.Repeat("n/", 2100)+"x")), "longer"},
		"Cut":       {packed(t, hd("a"))[:512], "not a whole tar"},
		"NoTar":     {bytes.Repeat([]byte("no tar "), 1000), "not a whole tar"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := Open("-", Options{Stdin: bytes.NewReader(c.tar)})
			if err != nil {
				t.Fatal(err)
			}
			for it, e := range s.Items(t.Context()) {
				if err = e; err != nil {
					break
				}
				if it.Open != nil {
					r, _ := it.Open()
					if _, e := new(bytes.Buffer).ReadFrom(r); e != nil {
						err = e
						break
					}
				}
			}
			if err == nil || catalog.ClassOf(err) == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("err = %v, want a class and %q", err, c.says)
			}
		})
	}
}

func TestPromise4CutAndFlippedTar(t *testing.T) {
	b := packed(t, tar.Header{Name: "a.jpg"}, tar.Header{Name: "a.cls"}, tar.Header{Name: strings.Repeat("l", 120)})
	read := func(b []byte) {
		s, err := Open("-", Options{Stdin: bytes.NewReader(b)})
		if err != nil {
			t.Fatal(err)
		}
		for it, err := range s.Items(t.Context()) {
			if err != nil {
				if catalog.ClassOf(err) == nil {
					t.Fatalf("error without a class: %v", err)
				}
				return
			}
			if it.Open != nil {
				r, _ := it.Open()
				if _, err := new(bytes.Buffer).ReadFrom(r); err != nil && catalog.ClassOf(err) == nil {
					t.Fatalf("error without a class: %v", err)
				}
			}
		}
	}
	for i := range b {
		read(b[:i])
		flipped := bytes.Clone(b)
		flipped[i] ^= 0xff
		read(flipped)
	}
}

func TestPromise4BombIsBounded(t *testing.T) {
	in := &counted{}
	b := &bounded{r: zeros{}, in: in}
	in.n = 1000
	p := make([]byte, 1<<20)
	for range 2048 {
		if _, err := b.Read(p); err != nil {
			if !errors.Is(err, catalog.ErrInvalid) || b.out > ratioFree+1<<20 {
				t.Errorf("after %d bytes: %v", b.out, err)
			}
			return
		}
	}
	t.Error("2 GiB came out of 1000 bytes")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestRealTar reads what GNU tar writes: long names by PAX and GNU, hard links,
// and sparse files, which it must see and refuse.
func TestRealTar(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Fatal("this test needs tar")
	}
	dir := t.TempDir()
	long := strings.Repeat("x", 200) + "/" + strings.Repeat("y", 200)
	put(t, dir, map[string]string{"in/a": "1", "in/" + long: "2", "in/odd\xff": "3"})
	if err := os.Link(dir+"/in/a", dir+"/in/b"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/hole", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/hole", 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		t.Run(format, func(t *testing.T) {
			out := dir + "/" + format + ".tar"
			if b, err := exec.Command("tar", "-C", dir+"/in", "--sort=name", "--format="+format, "-cf", out, ".").CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, b)
			}
			got, _, err := stream(t, out, Options{Format: Tar})
			if err != nil {
				t.Fatal(err)
			}
			x := strings.Repeat("x", 200)
			wantLines(t, got, `folder ""`, `file "a" "1"`, `file "b" same as a`, `file "odd\xff" "3"`, `folder "`+x+`"`, `file "`+long+`" "2"`)
			if b, err := exec.Command("tar", "-C", dir, "--sparse", "--format="+format, "-cf", out, "hole").CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, b)
			}
			if _, _, err := stream(t, out, Options{}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "sparse") {
				t.Errorf("sparse: %v, want ErrInvalid", err)
			}
		})
	}
}
