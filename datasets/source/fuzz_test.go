package source

import (
	"archive/tar"
	"bytes"
	"io"
	"iter"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// recordFormats are the readers of tables of records, by a byte of the input.
func recordFormats() []recordsFunc {
	t := &tree{format: NPY}
	return []recordsFunc{jsonlRecords, t.npyRecords, safetensorsRecords, ffrecordRecords, func(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
		return mdsShard{3, size}.records(r, size)
	}}
}

// FuzzRecords: whatever a file of records says, its ranges lie within it, or
// there is an error of a class.
func FuzzRecords(f *testing.F) {
	for i, b := range [][]byte{
		[]byte("{\"a\":1}\n\n {\"b\":2} \r\n"),
		npy("{'descr': '<u2', 'fortran_order': False, 'shape': (3, 1), }", 6),
		safetensorsFile(f), ffrecord("one", "", "three"), mds("one", "", "three"),
	} {
		f.Add(byte(i), b)
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		formats := recordFormats()
		if _, err := texts(formats[int(kind)%len(formats)], b); err != nil && catalog.ClassOf(err) == nil {
			t.Fatal(err)
		}
	})
}

// FuzzTar: a tar gives items with clean relative paths and all their bytes, or
// an error of a class.
func FuzzTar(f *testing.F) {
	f.Add(packed(f, tar.Header{Name: "a.jpg"}, tar.Header{Name: "a.cls"}, tar.Header{Name: strings.Repeat("l", 120)}))
	f.Add(packed(f, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../a"}, tar.Header{Name: "d/f"}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Open("-", Options{Stdin: bytes.NewReader(b)})
		if err != nil {
			if catalog.ClassOf(err) == nil {
				t.Fatal(err)
			}
			return
		}
		defer s.Close()
		for it, err := range s.Items(t.Context()) {
			if err != nil {
				if catalog.ClassOf(err) == nil {
					t.Fatal(err)
				}
				return
			}
			for part := range strings.SplitSeq(it.Path, "/") {
				if (part == "" && (it.Path != "" || it.Kind != Folder)) || part == "." || part == ".." {
					t.Fatalf("path %q", it.Path)
				}
			}
			if it.Open == nil {
				continue
			}
			r, err := it.Open()
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, r)
			if err == nil && n != it.Size {
				t.Fatalf("%q: %d bytes of %d", it.Path, n, it.Size)
			}
			if err != nil && catalog.ClassOf(err) == nil {
				t.Fatal(err)
			}
		}
	})
}
